"""Start an SQS server, databases, the site and local workers, each stopped at the end of its `with`."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demonstration.console import Console

if TYPE_CHECKING:
    from django.core.servers.basehttp import ThreadedWSGIServer

    from lambda_tasks.local import progress
    from lambda_tasks.local.worker import LocalWorker


LOGIN: Final = ("admin", "admin")


@dataclass(frozen=True, slots=True)
class Function:
    """A queue, and the configuration that its Lambda function would have on AWS."""

    queue: str
    processes: int
    batch_size: int
    #: Seconds. This is also the queue's visibility timeout.
    timeout: int


# The timeout is short, because the message of a killed process comes back only after it.
PARCELS: Final = Function("parcels", processes=1, batch_size=1, timeout=15)
FUNCTIONS: Final = (
    Function("default", processes=2, batch_size=10, timeout=60),
    # Two processes take one message each, so two counts of the stock overlap.
    Function("stock", processes=2, batch_size=1, timeout=60),
    PARCELS,
)


class CannotRun(Exception):
    """The demo cannot run, because something that it needs is missing."""


def prepare_environment(state: Path) -> None:
    """Set the environment of the site, its workers and boto3 so that they never reach the real AWS."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        os.environ.pop(name, None)
    os.environ.update(
        DJANGO_SETTINGS_MODULE="webshop.settings",
        EXAMPLE_STATE=str(state),
        AWS_ACCESS_KEY_ID="demo",
        AWS_SECRET_ACCESS_KEY="demo",
        AWS_DEFAULT_REGION="eu-west-1",
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
    )


class SqsServer:
    """Run moto in threads, create the queues, and publish their URLs in the environment."""

    def __enter__(self) -> SqsServer:
        import boto3

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._start(port=0)
        host, self._port = self._server.get_host_and_port()
        os.environ["AWS_ENDPOINT_URL_SQS"] = f"http://{host}:{self._port}"
        self.client = boto3.client("sqs")
        queues = {
            function.queue: self.client.create_queue(
                QueueName=function.queue, Attributes={"VisibilityTimeout": str(function.timeout)}
            )["QueueUrl"]
            for function in FUNCTIONS
        }
        os.environ["EXAMPLE_QUEUES"] = json.dumps(queues)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Stop the server for the duration of the block. The queues keep their messages."""
        self._server.stop()
        try:
            yield
        finally:
            self._start(self._port)

    def _start(self, port: int) -> None:
        try:
            from moto.server import ThreadedMotoServer
        except ImportError as error:
            remedy = "Install the extra: pip install -e '.[demo]'"
            raise CannotRun(f"moto's server is missing ({error}). {remedy}") from None
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        self._server.start()


def queue_urls() -> dict[str, str]:
    urls: dict[str, str] = json.loads(os.environ["EXAMPLE_QUEUES"])
    return urls


def make_databases() -> None:
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    call_command("createcachetable", database="cache")


def make_login() -> None:
    from django.contrib.auth import get_user_model

    get_user_model().objects.create_superuser(LOGIN[0], password=LOGIN[1])


def bind(port: int) -> ThreadedWSGIServer:
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

    try:
        return ThreadedWSGIServer(("127.0.0.1", port), WSGIRequestHandler)
    except OSError as error:
        message = f"Port {port} of 127.0.0.1 is unavailable: {error.strerror}. Stop the program that uses it."
        raise CannotRun(message) from None


@contextmanager
def website(server: ThreadedWSGIServer) -> Iterator[str]:
    """Serve the site in a thread, with a new thread for each request, and yield its address."""
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.wsgi import get_wsgi_application

    server.set_app(StaticFilesHandler(get_wsgi_application()))
    # The page sends a request every second, and the demo itself prints the messages that stay in the outbox.
    for name in ("django.server", "django.request", "lambda_tasks.outbox", "lambda_tasks.schedules"):
        logging.getLogger(name).setLevel(logging.ERROR)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="site", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


class Workers:
    """Run a local worker for each queue, in a thread, just as each queue has its own Lambda function on AWS."""

    def __init__(self, console: Console, log: Path) -> None:
        self._console = console
        self._log = log.open("w", encoding="utf-8")
        self._threads: list[threading.Thread] = []
        self._workers: list[LocalWorker] = []
        self.failures: list[BaseException] = []
        self.pids: dict[str, int] = {}

    def __enter__(self) -> Workers:
        from lambda_tasks.local.worker import LocalWorker

        urls = queue_urls()
        for function in FUNCTIONS:
            worker = LocalWorker(
                {function.queue: urls[function.queue]},
                concurrency=function.processes,
                batch_size=function.batch_size,
                function_timeout=function.timeout,
                report=self._report,
            )
            self._workers.append(worker)
            self._threads.append(threading.Thread(target=self._run, args=(worker,), name=function.queue, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, exc_type: object, *exc_info: object) -> None:
        for worker in self._workers:
            worker.stop() if exc_type is None else worker.kill()
        for thread in self._threads:
            thread.join()
        self._log.close()

    def _run(self, worker: LocalWorker) -> None:
        try:
            worker.run()
        except Exception as error:
            self.failures.append(error)

    def _report(self, event: progress.Event) -> None:
        from lambda_tasks.local import progress

        say = self._console.say
        match event:
            case progress.Output():
                print(event, file=self._log, flush=True)
            case progress.RuntimeReady():
                self.pids[event.environment] = event.pid
                state = "restarted" if event.is_restart else "ready"
                say(event.environment, f"{state}: awslambdaric, process {event.pid}")
            case progress.Received():
                say(event.environment, f"received {messages(len(event.message_ids))}")
            case progress.Finished(kept_ids=()):
                say(event.environment, f"{messages(len(event.done_ids))} done in {event.seconds:.1f} s")
            case progress.Finished():
                say(event.environment, f"{messages(len(event.kept_ids))} kept in the queue: {event.reason}")
            case progress.Trouble():
                say(event.environment, event.text)
            case progress.Warned():
                say("worker", event.text)


def messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"
