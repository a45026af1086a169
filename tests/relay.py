"""A proxy in front of moto's SQS that records every request and simulates faults that moto does not support.

The faults are rejected entries, and lost, late or incomplete responses. Each fault is a function that handles one of
the next requests. It gets the request, and a function that forwards the request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

#: The response to a request: HTTP status and JSON, or None for a lost response.
Answer = tuple[int, dict[str, Any]] | None
Forward = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
Fault = Callable[[dict[str, Any], Forward], Answer]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as SQS receives it."""

    operation: str
    payload: dict[str, Any]
    size: int
    region: str
    connection: int

    @property
    def entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.payload.get("Entries", [self.payload])
        return entries


class Relay(ThreadingHTTPServer):
    """Records requests and forwards them to moto; the queued faults handle the next requests."""

    daemon_threads = True
    #: The maximum number of connections that wait to be accepted. Others are dropped, and retried after seconds.
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _RelayHandler)
        self.upstream = urlsplit(upstream)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def operations(self) -> list[tuple[str, int]]:
        """Return the operations of all requests, with the number of entries."""
        return [(request.operation, len(request.entries)) for request in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected."""


class _RelayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Relay

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1
        self.number = self.server.connections

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        payload = json.loads(body)
        operation = self.headers["X-Amz-Target"].rpartition(".")[2]
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/sqs/", self.headers["Authorization"])
        self.server.requests.append(Request(operation, payload, len(body), scope[1] if scope else "", self.number))
        fault = self.server.faults.pop(0) if self.server.faults else None
        answer = fault(payload, self._forward) if fault else self._forward(payload)
        if answer is None:
            self.close_connection = True
            return
        status, content = answer
        text = json.dumps(content).encode()
        head = (
            f"HTTP/1.1 {status} OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        self.wfile.write(head.encode() + text)

    def _forward(self, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {name: self.headers[name] for name in ("X-Amz-Target", "Content-Type", "Authorization")}
        upstream = self.server.upstream
        with closing(HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)) as connection:
            connection.request("POST", "/", json.dumps(payload), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def log_message(self, *_: object) -> None:
        """Write nothing to the terminal."""


@contextmanager
def running(upstream: str) -> Iterator[Relay]:
    """Run a relay in front of the server at `upstream`."""
    with Relay(upstream) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)
