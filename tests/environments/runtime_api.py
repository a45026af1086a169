"""The Runtime API of an environment with several processes, and of one that is restored from a snapshot."""

from __future__ import annotations

import json
import re
import select
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast

#: Seconds that only a failing test waits.
PATIENCE: Final = 30
_ANSWER: Final = re.compile(r"/2018-06-01/runtime/invocation/([^/]+)/(response|error)")


@dataclass(eq=False)
class Invocation:
    """An invocation, and how it ended: with a response or an error."""

    event: Any
    timeout: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    ended: threading.Event = field(default_factory=threading.Event)
    response: Any = None
    error: dict[str, Any] | None = None
    #: The header that newer versions of the Runtime API expect back.
    returned: str | None = None

    def wait(self) -> Invocation:
        assert self.ended.wait(PATIENCE), f"no answer to {self.event}"
        return self


class RuntimeApi:
    """Serves any number of processes. Use it in a `with` block."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._offered: deque[Invocation] = deque()
        self._running: dict[str, Invocation] = {}
        self._closed = False
        #: How many requests wait for an invocation, and the paths of all other requests.
        self.idle = 0
        self.requests: list[str] = []
        self.init_errors: list[dict[str, Any]] = []
        #: Called when a process asks to be restored, which is the moment of the snapshot.
        self.on_snapshot: Callable[[], None] = lambda: None
        self._server = _Server(("127.0.0.1", 0), _Requests)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> RuntimeApi:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def offer(self, event: Any, *, timeout: float = 60) -> Invocation:
        """Offer an event to the processes, without waiting for its end."""
        invocation = Invocation(event, timeout)
        with self._changed:
            self._offered.append(invocation)
            self._changed.notify_all()
        return invocation

    def invoke(self, event: Any, *, timeout: float = 60) -> Invocation:
        return self.offer(event, timeout=timeout).wait()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)

    def take(self, is_connected: Callable[[], bool]) -> Invocation | None:
        """Return the next invocation, or None for a process that has died while it waited."""
        with self._changed:
            self.idle += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._offered or self._closed)
            self.idle -= 1
            if self._closed or not is_connected():
                return None
            invocation = self._offered.popleft()
            self._running[invocation.id] = invocation
            return invocation

    def end(self, invocation_id: str, *, returned: str | None, **how: Any) -> bool:
        with self._changed:
            invocation = self._running.pop(invocation_id, None)
        if invocation is None:
            return False
        invocation.returned = returned
        for name, value in how.items():
            setattr(invocation, name, value)
        invocation.ended.set()
        return True

    def note(self, path: str) -> None:
        with self._changed:
            self.requests.append(path)
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    api: RuntimeApi

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the broken connections of killed processes."""


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    @property
    def api(self) -> RuntimeApi:
        return cast(_Server, self.server).api

    def do_GET(self) -> None:
        if self.path.endswith("/restore/next"):
            self.api.on_snapshot()
            self.api.note(self.path)
            self._reply(200, b"{}")
            return
        invocation = self.api.take(self._is_connected)
        if invocation is None:
            self.close_connection = True
            return
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.id,
            "Lambda-Runtime-Invocation-Id": f"of {invocation.id}",
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + invocation.timeout) * 1000)),
            "Lambda-Runtime-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0",
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-west-1:123456789012:function:shop",
        }
        self._reply(200, json.dumps(invocation.event).encode(), headers)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.api.note(self.path)
        if match := _ANSWER.fullmatch(self.path):
            returned = self.headers.get("Lambda-Runtime-Invocation-Id")
            known = self.api.end(match[1], returned=returned, **{match[2]: body})
            self._reply(202 if known else 400, b"{}")
        else:
            self.api.init_errors.append(body)
            self._reply(202, b"{}")

    def _is_connected(self) -> bool:
        return not select.select([self.connection], [], [], 0)[0]

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")  # the runtime client crashes without it
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""
