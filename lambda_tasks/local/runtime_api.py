"""The Lambda Runtime API over HTTP, for one process of a runtime client.

Lambda hands invocations to a runtime over four calls, version 2018-06-01:
`GET invocation/next`, `POST invocation/ID/response`, `POST invocation/ID/error`, `POST init/error`.
https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import json
import re
import secrets
import socketserver
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PREFIX = "/2018-06-01/runtime/"
_ANSWER_PATH = re.compile(re.escape(_PREFIX) + r"invocation/(?P<id>[^/]+)/(?P<kind>response|error)")

#: Seconds between two looks of the server at its "shut down" flag: the most that `close()` waits.
_SHUTDOWN_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Answered:
    """The handler returned; `body` is what the runtime posted, not parsed."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Errored:
    """The handler raised, or (for `init/error`) could not be loaded."""

    error_type: str
    message: str
    stack_trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}" if self.message else self.error_type


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process ended without an answer; `how` is readable, as "killed by SIGKILL"."""

    how: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """No answer came within the function's timeout. The process is still there: end it."""

    after_seconds: float


#: How an invocation ended.
InvocationResult: TypeAlias = Answered | Errored | Crashed | TimedOut


@dataclass(eq=False, slots=True)
class _Invocation:
    event: bytes
    timeout_seconds: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    fetched: bool = False
    result: Answered | Errored | None = None


class RuntimeApi:
    """Serves the Runtime API on a free port of 127.0.0.1 to one process.

    One object serves one life of the process: after a crash, make a new one. So a request that a
    dead process left in a socket can never take an invocation from its successor.

        with closing(RuntimeApi(function_arn=arn)) as api:
            start_process(AWS_LAMBDA_RUNTIME_API=api.address)
            result = api.invoke(event, timeout_seconds=60)
    """

    def __init__(self, *, function_arn: str) -> None:
        self._function_arn = function_arn
        self._changed = threading.Condition()
        self._ready = False
        self._init_error: Errored | None = None
        self._ended: str | None = None
        self._offered: _Invocation | None = None
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_SHUTDOWN_POLL,), name="runtime-api", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """What the process needs as AWS_LAMBDA_RUNTIME_API, as "127.0.0.1:40123"."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    # For the owner of the process.

    def wait_until_ready(self, timeout_seconds: float) -> Errored | Crashed | TimedOut | None:
        """Wait for the first `invocation/next`; return what came in its place, None if nothing did."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended is not None, timeout_seconds)
            if self._ready:
                return None
            if self._init_error is not None:
                return self._init_error
            if self._ended is not None:
                return Crashed(self._ended)
            return TimedOut(timeout_seconds)

    def invoke(self, event: Mapping[str, Any], *, timeout_seconds: float) -> InvocationResult:
        """Hand `event` to the process and wait for how it ends.

        The deadline that the handler sees counts from the moment when the process takes the event.
        One invocation at a time, as in Lambda.
        """
        invocation = _Invocation(json.dumps(event).encode(), timeout_seconds)
        with self._changed:
            self._offered = invocation
            self._changed.notify_all()
            if self._wait_for(lambda: invocation.fetched, timeout_seconds):
                self._wait_for(lambda: invocation.result is not None, timeout_seconds)
            self._offered = None
            if invocation.result is not None:
                return invocation.result
            if self._ended is not None:
                return Crashed(self._ended)
            return TimedOut(timeout_seconds)

    def process_ended(self, how: str) -> None:
        """Tell that the process is no more; a running `invoke` returns `Crashed(how)`."""
        with self._changed:
            self._ended = how
            self._changed.notify_all()

    def close(self) -> None:
        """Stop serving. Requests that still wait get no answer."""
        with self._changed:
            self._ended = self._ended or "the Runtime API was closed"
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _wait_for(self, has_happened: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait until it has happened or the process has ended; False if neither came in time."""
        return self._changed.wait_for(lambda: has_happened() or self._ended is not None, timeout_seconds)

    # For the HTTP side.

    def next_invocation(self) -> tuple[dict[str, str], bytes] | None:
        """Block until there is an invocation; return its headers and event, None once it is over."""
        with self._changed:
            self._ready = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._has_offer() or self._ended is not None)
            if self._ended is not None or self._offered is None:
                return None
            invocation = self._offered
            invocation.fetched = True
            self._changed.notify_all()
        return self._headers(invocation), invocation.event

    def answer(self, request_id: str, result: Answered | Errored) -> bool:
        """Take the result of an invocation; False if it is not the one that runs."""
        with self._changed:
            running = self._offered
            if running is None or running.request_id != request_id or running.result is not None:
                return False
            running.result = result
            self._changed.notify_all()
            return True

    def init_failed(self, error: Errored) -> None:
        """Take what the process said about its failed start; it ends by itself after that."""
        with self._changed:
            self._init_error = error
            self._changed.notify_all()

    def _has_offer(self) -> bool:
        return self._offered is not None and not self._offered.fetched

    def _headers(self, invocation: _Invocation) -> dict[str, str]:
        return {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + invocation.timeout_seconds) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": self._function_arn,
            "Lambda-Runtime-Trace-Id": _trace_id(),
        }


def _trace_id() -> str:
    """Return an X-Ray header that is not sampled, so that nothing tries to reach a daemon."""
    root = f"1-{int(time.time()):08x}-{secrets.token_hex(12)}"
    return f"Root={root};Parent={secrets.token_hex(8)};Sampled=0"


def _parse_error(error_type: str | None, body: bytes) -> Errored:
    try:
        details = json.loads(body)
    except ValueError:
        details = None
    if not isinstance(details, dict):
        details = {}
    return Errored(
        str(details.get("errorType") or error_type or "Unknown"),
        str(details.get("errorMessage") or ""),
        tuple(map(str, details.get("stackTrace") or ())),
    )


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    # Not http.server's class: it looks up the machine's name on start, which may take seconds.
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, api: RuntimeApi) -> None:
        self.api = api
        super().__init__(("127.0.0.1", 0), _Requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A process that is killed breaks its connections; whoever killed it knows.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in one packet: written apart, Nagle's algorithm costs 40 to 90 ms a call.
    wbufsize = -1
    disable_nagle_algorithm = True

    @property
    def api(self) -> RuntimeApi:
        return cast("_Server", self.server).api

    def do_GET(self) -> None:
        if self.path != _PREFIX + "invocation/next":
            self._reply(HTTPStatus.NOT_FOUND)
        elif (invocation := self.api.next_invocation()) is None:
            self.close_connection = True
        else:
            headers, event = invocation
            self._reply(HTTPStatus.OK, event, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == _PREFIX + "init/error":
            self.api.init_failed(self._error(body))
            self._reply(HTTPStatus.ACCEPTED)
        elif match := _ANSWER_PATH.fullmatch(self.path):
            result = Answered(body) if match["kind"] == "response" else self._error(body)
            self._reply_to_answer(self.api.answer(match["id"], result))
        else:
            self._reply(HTTPStatus.NOT_FOUND)

    def handle_expect_100(self) -> bool:
        # curl asks before it sends a large body, and waits a second for what is still in the buffer.
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def log_message(self, *args: Any) -> None:
        """Nobody wants to read these."""

    def _error(self, body: bytes) -> Errored:
        return _parse_error(self.headers.get("Lambda-Runtime-Function-Error-Type"), body)

    def _reply_to_answer(self, was_taken: bool) -> None:
        if was_taken:
            self._reply(HTTPStatus.ACCEPTED, b'{"status":"OK"}')
        else:
            self._reply(HTTPStatus.BAD_REQUEST, b'{"errorType":"InvalidRequestID"}')

    def _reply(self, status: HTTPStatus, body: bytes = b"{}", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
