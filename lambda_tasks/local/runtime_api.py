"""The Lambda Runtime API over HTTP, for one process of a runtime client.

A runtime receives invocations from Lambda with four requests, version 2018-06-01:
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

from lambda_tasks.local import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PREFIX = "/2018-06-01/runtime/"
_ANSWER_PATH = re.compile(re.escape(_PREFIX) + r"invocation/(?P<id>[^/]+)/(?P<kind>response|error)")

#: The maximum size of a response, in bytes (Lambda quotas, "Invocation payload").
MAX_RESPONSE_SIZE = 6_291_556
#: Headers that browsers add to the requests of web pages.
_HEADERS_OF_BROWSERS = ("Origin", "Referer", "Sec-Fetch-Site")

#: Seconds between two checks of the server's shutdown flag, and therefore the longest wait in `close()`.
_SHUTDOWN_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Answered:
    """The handler returned. `body` is the response that the runtime posted, not parsed."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Errored:
    """The handler raised an exception, or (for `init/error`) could not be loaded."""

    error_type: str
    message: str
    stack_trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}" if self.message else self.error_type


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process ended without a response. `how` is text for humans, such as "killed by SIGKILL"."""

    how: str


@dataclass(frozen=True, slots=True)
class TimedOut:
    """No response arrived within the function's timeout. The process is still running: end it."""

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
    """Serve the Runtime API on a free port of 127.0.0.1 to one process.

    After a crash, create a new object for the new process. This way, a request that a dead process left in a socket
    cannot take an invocation from its successor.

    Requests of web pages and for another host are refused. With `is_guarded`, so are those of all processes but the
    one that is passed to `admit()`, where the system can tell processes apart.

        with closing(RuntimeApi(function_arn=arn)) as api:
            start_process(AWS_LAMBDA_RUNTIME_API=api.address)
            result = api.invoke(event, timeout_seconds=60)
    """

    def __init__(self, *, function_arn: str, is_guarded: bool = False) -> None:
        self._function_arn = function_arn
        self._process_id: int | None = None
        self._changed = threading.Condition()
        self._ready = False
        self._init_error: Errored | None = None
        self._ended: str | None = None
        self._offered: _Invocation | None = None
        self._server = _Server(self)
        self._is_guarded = is_guarded and peers.can_tell(self._server.socket)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_SHUTDOWN_POLL,), name="runtime-api", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """The value of AWS_LAMBDA_RUNTIME_API for the process, such as "127.0.0.1:40123"."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    # For the owner of the process.

    def admit(self, process_id: int) -> None:
        """Accept the requests of this process, which was started with `address`."""
        with self._changed:
            self._process_id = process_id
            self._changed.notify_all()

    def wait_until_ready(self, timeout_seconds: float) -> Errored | Crashed | TimedOut | None:
        """Wait for the first `invocation/next` and return None, or return what happened instead."""
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
        """Pass `event` to the process, and wait for the result.

        The deadline that the handler sees counts from the moment when the process takes the event. As in Lambda, only
        one invocation can run at a time.
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
        """Record that the process has ended. A running `invoke()` returns `Crashed(how)`."""
        with self._changed:
            self._ended = how
            self._changed.notify_all()

    def close(self) -> None:
        """Stop serving. Pending requests get no response."""
        with self._changed:
            self._ended = self._ended or "the Runtime API was closed"
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _wait_for(self, has_happened: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait until `has_happened()` or the process has ended. Return False if the timeout expires first."""
        return self._changed.wait_for(lambda: has_happened() or self._ended is not None, timeout_seconds)

    # For the HTTP side.

    def admits(self, client: peers.Address) -> bool:
        """Return whether a connection from this address belongs to the process."""
        if not self._is_guarded:
            return True
        with self._changed:
            self._changed.wait_for(lambda: self._process_id is not None or self._ended is not None)
            process_id = self._process_id
        host, port = self._server.server_address[:2]
        return process_id is not None and peers.is_from(process_id, client, (str(host), port))

    def next_invocation(self) -> tuple[dict[str, str], bytes] | None:
        """Block until there is an invocation, and return its headers and event, or None if the process has ended."""
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
        """Accept the result of an invocation. Return False if it is not the running invocation."""
        with self._changed:
            running = self._offered
            if running is None or running.request_id != request_id or running.result is not None:
                return False
            running.result = result
            self._changed.notify_all()
            return True

    def init_failed(self, error: Errored) -> None:
        """Accept the error of a process that could not start. It exits after this request."""
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
    # Not the class in http.server, which looks up the machine's name on start, and may take seconds.
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, api: RuntimeApi) -> None:
        self.api = api
        super().__init__(("127.0.0.1", 0), _Requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A killed process breaks its connections, and `process_ended()` reports that.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Send the head and the body in one packet: apart, Nagle's algorithm would delay each call by 40 to 90 ms.
    wbufsize = -1
    disable_nagle_algorithm = True
    _was_admitted = False

    @property
    def api(self) -> RuntimeApi:
        return cast("_Server", self.server).api

    def parse_request(self) -> bool:
        """Read the head of a request, and answer the requests of strangers here."""
        if not super().parse_request():
            return False
        if self._is_strange() or not self._is_admitted():
            self.close_connection = True
            self._reply(HTTPStatus.FORBIDDEN, b'{"errorType":"Forbidden"}')
            self.wfile.flush()
            return False
        return True

    def _is_strange(self) -> bool:
        # A web page can reach this port, under a name that its own server resolves to 127.0.0.1.
        return self.headers.get_all("Host") != [self.api.address] or any(map(self.headers.get, _HEADERS_OF_BROWSERS))

    def _is_admitted(self) -> bool:
        if not self._was_admitted:
            self._was_admitted = self.api.admits(self.client_address)
        return self._was_admitted

    def do_GET(self) -> None:
        if self.path != _PREFIX + "invocation/next":
            self._reply(HTTPStatus.NOT_FOUND)
        elif (invocation := self.api.next_invocation()) is None:
            self.close_connection = True
        else:
            headers, event = invocation
            self._reply(HTTPStatus.OK, event, headers)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            self.close_connection = True
            self._reply(HTTPStatus.LENGTH_REQUIRED)
            return
        if int(length) > MAX_RESPONSE_SIZE:
            self._refuse_size()
            return
        body = self.rfile.read(int(length))
        if self.path == _PREFIX + "init/error":
            self.api.init_failed(self._error(body))
            self._reply(HTTPStatus.ACCEPTED)
        elif match := _ANSWER_PATH.fullmatch(self.path):
            result = Answered(body) if match["kind"] == "response" else self._error(body)
            self._reply_to_answer(self.api.answer(match["id"], result))
        else:
            self._reply(HTTPStatus.NOT_FOUND)

    def _refuse_size(self) -> None:
        """Refuse a body like Lambda does; the invocation has failed then."""
        self.close_connection = True  # the body is not read
        if match := _ANSWER_PATH.fullmatch(self.path):
            problem = f"Response payload size exceeded maximum allowed payload size ({MAX_RESPONSE_SIZE} bytes)."
            self.api.answer(match["id"], Errored("Function.ResponseSizeTooLarge", problem))
        self._reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b'{"errorType":"RequestEntityTooLarge"}')

    def handle_expect_100(self) -> bool:
        # curl asks before it sends a large body, and would wait for a second while the response is in the buffer.
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def log_message(self, *args: Any) -> None:
        """Log nothing: a line for each request would be noise."""

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
