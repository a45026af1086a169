"""Tell load balancers and containers whether a worker goes on: over HTTP, and by a file.

A worker is healthy while each of its threads takes its steps in time, and while SQS answers. Its tasks, its database
and its processes do not count: the worker itself replaces a process that hangs or crashes.
"""

from __future__ import annotations

import json
import socketserver
import threading
import time
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final, cast

from lambda_tasks.recording.lines import sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Seconds by which a step may take longer than announced: for a busy machine, and for SQS's own retries.
SLACK: Final = 60.0
#: Seconds for which SQS may fail before a worker is unhealthy: it may be its own credentials that have expired.
SQS_PATIENCE: Final = 300.0
#: Seconds between two updates of the file.
FILE_EVERY: Final = 5.0


class Pulse:
    """The steps of one thread of a worker: each must end within the time that is announced for it."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._step: tuple[str, float | None, float] = ("starting", None, clock())
        self._failing_since: float | None = None

    def step(self, doing: str, seconds: float | None) -> None:
        """Begin a step that takes at most `seconds`; None if another thread decides how long it takes."""
        now = self._clock()
        self._step = (doing, None if seconds is None else now + seconds + SLACK, now)

    def sqs_answered(self) -> None:
        self._failing_since = None

    def sqs_failed(self) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock()

    def problem(self) -> str | None:
        """Return what is wrong with the thread, or None."""
        now = self._clock()
        doing, due, since = self._step
        if due is not None and now > due:
            return f"{self._name} has been {doing} for {now - since:.0f} s."
        if self._failing_since is not None and now - self._failing_since > SQS_PATIENCE:
            return f"{self._name}: SQS has failed for {now - self._failing_since:.0f} s."
        return None


@contextmanager
def shown(
    problems: Callable[[], list[str]],
    *,
    port: int | None = None,
    file: Path | None = None,
    is_ready: Callable[[], bool] = lambda: True,
) -> Iterator[int | None]:
    """Serve the health at `port` of all interfaces, and keep `file` fresh while the worker is healthy, in the block.

    `GET /ready` also asks `is_ready`; all other paths only ask whether the worker goes on. Yield the port, which the
    system chooses for port 0, or None without a server. Raise OSError if the port is taken or the file cannot be
    written.
    """
    with ExitStack() as stack:
        if file is not None:
            stack.enter_context(_kept_fresh(file, problems))
        yield None if port is None else stack.enter_context(_served(port, problems, is_ready))


@contextmanager
def _kept_fresh(file: Path, problems: Callable[[], list[str]]) -> Iterator[None]:
    file.touch()  # so that a folder that does not exist is an error now
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(FILE_EVERY):
            refresh(file, problems)

    thread = threading.Thread(target=run, name="health-file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(FILE_EVERY)
        file.unlink(missing_ok=True)


def refresh(file: Path, problems: Callable[[], list[str]]) -> None:
    """Update the time of the file, or delete it if there are problems."""
    if problems():
        file.unlink(missing_ok=True)
    else:
        file.touch()


@contextmanager
def _served(port: int, problems: Callable[[], list[str]], is_ready: Callable[[], bool]) -> Iterator[int]:
    try:
        server = _Server(("", port), _Requests)
    except (OSError, OverflowError) as error:
        raise OSError(f"The health cannot be served at port {port}: {sentence(error)} Choose another port.") from error
    server.problems, server.is_ready = problems, is_ready
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    # Not the class in http.server, which looks up the machine's name on start, and may take seconds.
    daemon_threads = True
    allow_reuse_address = True
    problems: Callable[[], list[str]]
    is_ready: Callable[[], bool]


class _Requests(BaseHTTPRequestHandler):
    timeout = 10  # seconds for a client that sends nothing

    def do_GET(self) -> None:
        server = cast("_Server", self.server)
        problems = server.problems()
        if not problems and self.path.partition("?")[0] == "/ready" and not server.is_ready():
            problems = ["A check of the health has failed. The log has its error."]
        body = json.dumps({"status": "unavailable" if problems else "ok", "problems": problems}).encode()
        self.send_response(HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing: health checks come every few seconds."""
