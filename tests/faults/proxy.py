"""Run a proxy in front of a server, with which a test can disturb the network.

It forwards bytes between loopback and a server's address until it is told otherwise. All its sockets
belong to one thread, which ends with the context manager.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from django.db import connections

from tests.services import Server

#: COMMIT as psycopg (simple query protocol) and PyMySQL (COM_QUERY) send it: in a message of its own, or on
#: PostgreSQL at the end of one.
COMMITS: Final = (b"Q\x00\x00\x00\x0bCOMMIT\x00", b"; COMMIT\x00", b"\x07\x00\x00\x00\x03COMMIT")
#: Seconds for actions that take almost no time on one machine.
PATIENCE: Final = 20.0
#: Bytes that a silent proxy still accepts from a client: few, so that the client blocks soon.
_BUFFER: Final = 4096

_PORTS: Final = {"PostgreSQL": 5432, "Redis": 6379, "MariaDB": 3306}


class Mode(Enum):
    """What the proxy does with bytes."""

    PASS = auto()
    #: Nothing is read from clients, answered or closed, as on a half-open connection.
    SILENT = auto()


class Strike(Enum):
    """A fault for the next matching request. After it, the proxy works normally again."""

    #: The server gets the request and answers it, but the client's connection ends instead.
    LOSE_ANSWER = auto()
    #: The same for COMMIT: it has taken effect when the client's connection ends.
    LOSE_ANSWER_TO_COMMIT = auto()
    #: The server gets the COMMIT, and the client's connection ends while the server is still processing it.
    CUT_AFTER_COMMIT = auto()
    #: The same, but the connections end with `cut_struck()`.
    HOLD_AFTER_COMMIT = auto()
    #: The server never gets the COMMIT: both connections end.
    CUT_BEFORE_COMMIT = auto()


_OF_COMMIT: Final = frozenset(Strike) - {Strike.LOSE_ANSWER}


class Proxy:
    """A proxy, created by `proxy_to()`. When one of its methods returns, it has taken effect."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._mode = Mode.PASS
        self._strike: Strike | None = None
        self._struck = threading.Event()
        #: The other end of every open socket. A client whose request was struck waits in `_doomed`.
        self._peers: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._doomed: set[socket.socket] = set()
        self._orders: SimpleQueue[tuple[Callable[[], None], threading.Event]] = SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listener: socket.socket | None = _bound(0)
        self.host, self.port = self._listener.getsockname()
        #: Reserves the port while the proxy does not listen on it.
        self._reservation = _bound(self.port)
        self._listen()
        self._thread = threading.Thread(target=self._run, name=f"proxy on {self.port}")
        self._thread.start()

    # Methods for tests

    def pass_through(self) -> None:
        """Work normally: accept new connections and forward everything. Connections that were cut stay cut."""
        self._do(lambda: (self._set(Mode.PASS), self._listen()))

    def refuse(self) -> None:
        """Refuse new connections, as a server that is down does. Open connections continue."""
        self._do(self._stop_listening)

    def cut(self) -> None:
        """End all connections, and accept new ones."""
        self._do(self._close_links)

    def cut_struck(self) -> None:
        """End the connections of the request that was struck."""
        self._do(lambda: [self._end_link(client) for client in list(self._doomed)])

    def become_unavailable(self) -> None:
        """End all connections and refuse new ones, as if the server were gone."""
        self._do(lambda: (self._stop_listening(), self._close_links()))

    def stop_answering(self) -> None:
        """Accept connections, but neither read nor answer, as if the server disappeared without closing them."""
        self._do(lambda: self._set(Mode.SILENT))

    def strike(self, strike: Strike) -> None:
        """Apply `strike` to the next matching request, once."""
        self._struck.clear()
        self._do(lambda: setattr(self, "_strike", strike))

    def wait_until_struck(self) -> None:
        assert self._struck.wait(PATIENCE), "no matching request arrived"

    def close(self) -> None:
        self._do(lambda: (self._stop_listening(), self._close_links(), self._selector.close()))
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        for sock in (self._wake, self._woken, self._reservation):
            sock.close()

    # Methods of the thread

    def _do(self, action: Callable[[], Any]) -> None:
        done = threading.Event()
        self._orders.put((action, done))
        self._wake.send(b"!")
        assert done.wait(PATIENCE), "the proxy's thread hangs"

    def _run(self) -> None:
        while self._selector.get_map() is not None:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._woken.recv(1)
                    action, done = self._orders.get()
                    action()
                    done.set()
                    break  # sockets that select() returned may be closed
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._peers:
                    self._forward(key.fileobj)  # type: ignore[arg-type]

    def _set(self, mode: Mode) -> None:
        self._mode = mode
        for sock in list(self._peers):
            registered = sock in self._selector.get_map()
            if mode is Mode.SILENT and registered:
                self._selector.unregister(sock)
            elif mode is Mode.PASS and not registered:
                self._selector.register(sock, selectors.EVENT_READ)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _bound(self.port)
        if self._listener not in self._selector.get_map():
            self._listener.listen()
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        try:
            server = self._connect()
        except OSError:
            client.close()  # the server itself is gone
            return
        for sock in (client, server):
            sock.settimeout(PATIENCE)
        self._peers.update({client: server, server: client})
        self._clients.add(client)
        self._set(self._mode)

    def _forward(self, sock: socket.socket) -> None:
        peer = self._peers[sock]
        try:
            data = sock.recv(65536)
            if not data or sock in self._doomed or peer in self._doomed:
                self._end_link(sock)  # drop the answer on a doomed link
            elif sock in self._clients and self._fits(data):
                self._hit(sock, peer, data)
            else:
                peer.sendall(data)
        except OSError:
            self._end_link(sock)

    def _fits(self, data: bytes) -> bool:
        if self._strike in _OF_COMMIT:
            return any(commit in data for commit in COMMITS)
        return self._strike is not None

    def _hit(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        strike, self._strike = self._strike, None
        if strike is not Strike.CUT_BEFORE_COMMIT:
            server.sendall(data)
        if strike in (Strike.CUT_BEFORE_COMMIT, Strike.CUT_AFTER_COMMIT):
            self._end_link(client)
        else:
            self._doomed.add(client)
        self._struck.set()

    def _close_links(self) -> None:
        for client in list(self._clients):
            self._end_link(client)

    def _end_link(self, sock: socket.socket) -> None:
        for end in (sock, self._peers[sock]):
            self._peers.pop(end)
            self._clients.discard(end)
            self._doomed.discard(end)
            if end in self._selector.get_map():
                self._selector.unregister(end)
            # Send RST instead of FIN, so that the port does not stay in TIME_WAIT after the test.
            if end.family == socket.AF_INET:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.bind(("127.0.0.1", port))
    return sock


def connector(server: Server) -> Callable[[], socket.socket]:
    """Return a function that connects to `server`, which listens on TCP or a Unix socket."""
    url = urlsplit(server.url)
    host = (parse_qs(url.query).get("host") or [unquote(url.hostname or "")])[0]
    if url.scheme == "unix":
        path = unquote(url.path)
    elif not host.startswith("/"):
        address = (host or "127.0.0.1", url.port or _PORTS[server.name])
        return lambda: socket.create_connection(address, timeout=PATIENCE)
    else:
        path = f"{host}/.s.PGSQL.{url.port or 5432}" if server.name == "PostgreSQL" else host

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return sock

    return connect


@contextmanager
def proxy_to(server: Server) -> Iterator[Proxy]:
    """Yield a proxy in front of `server`, and close every socket and the thread at the end."""
    proxy = Proxy(connector(server))
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def database_behind_proxy(alias: str, server: Server) -> Iterator[Proxy]:
    """Yield a proxy between Django's connections of `alias` and their server. The data stay the same.

    Connections are kept between messages, and checked before each, as the documentation recommends.
    """
    connection = connections[alias]
    connection.close()
    plain = {"PostgreSQL": {"sslmode": "disable", "gssencmode": "disable"}, "MariaDB": {}}[server.name]
    with proxy_to(server) as proxy, pytest.MonkeyPatch.context() as patch:
        changed = {
            "HOST": proxy.host,
            "PORT": proxy.port,
            "CONN_MAX_AGE": 600,
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {**connection.settings_dict["OPTIONS"], **plain},
        }
        for name, value in changed.items():
            patch.setitem(connection.settings_dict, name, value)
        try:
            yield proxy
        finally:
            connection.close()
