"""A project whose processes the tests start, with the tables of the tests' database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from django.db import connections

from lambda_tasks.models import TaskRecord
from lambda_tasks.wire import ids
from tests.environments.runtime_api import PATIENCE, Invocation, RuntimeApi

ROOT: Final = Path(__file__).parents[2]

FILES: Final = {
    "shop/__init__.py": "",
    "shop/settings.py": """
        import json, os

        if os.environ["DATABASE"].find("mysql") > 0:
            import pymysql
            pymysql.install_as_MySQLdb()
        INSTALLED_APPS = ["lambda_tasks", "shop"]
        DATABASES = {"default": json.loads(os.environ["DATABASE"])}
        SECRET_KEY = os.environ.get("DJANGO_KEY", "only for this test")
        USE_TZ = True
        LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default"}
        LAMBDA_TASKS_PLUGINS = ["shop.plugins", *os.environ.get("PLUGINS", "").split()]
        if "LOGGING" in os.environ:
            LOGGING = json.loads(os.environ["LOGGING"])
    """,
    "shop/plugins.py": """
        import os
        from django.db import connection
        from lambda_tasks.hookspecs import hookimpl

        @hookimpl
        def lambda_task_boot():
            with open(os.environ["BOOTS"], "a") as boots:
                print(os.getpid(), file=boots)
            connection.ensure_connection()
    """,
    "shop/tasks.py": """
        import logging, mmap, os, signal, socket, time

        from django.conf import settings
        from lambda_tasks import lambda_task
        from lambda_tasks.logging import task_logger

        imported_by = os.getpid()

        @lambda_task
        def describe() -> dict[str, object]:
            task_logger.warning("described")
            logging.getLogger("shop").warning("logged by the project")
            return {
                "pid": os.getpid(), "parent": os.getppid(), "imported_by": imported_by, "key": settings.SECRET_KEY,
                "files": [os.readlink(f"/proc/self/fd/{file}") for file in os.listdir("/proc/self/fd")[:-1]],
            }

        @lambda_task
        def meet(*, port: int) -> int:
            '''Return when the other side has answered.'''
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"here")
                connection.recv(1)
            return os.getpid()

        leaked = []

        @lambda_task
        def leak(*, megabytes: int) -> int:
            '''Keep private memory, of which no page is ever touched.'''
            leaked.append(mmap.mmap(-1, megabytes * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            return os.getpid()

        @lambda_task
        def sleep() -> None:
            time.sleep(60)

        @lambda_task
        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        @lambda_task(soft_timeout=1, hard_timeout=2)
        def never_end() -> None:
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
    """,
    "shop/handler.py": """
        from lambda_tasks.handler import handler
    """,
    "shop/impatient.py": """
        from lambda_tasks.limits import alarms

        alarms.KILL_GRACE = 0.1

        from lambda_tasks.handler import handler
    """,
    "shop/late.py": """
        import os

        from lambda_tasks.handler import handler

        os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
    """,
    "shop/plain.py": """
        import os

        def handler(event, context):
            return {"pid": os.getpid()}
    """,
    "shop/broken.py": "raise RuntimeError('no such shop')",
}


class Project:
    """The files of the project, and the environment of its processes."""

    def __init__(self, directory: Path, alias: str) -> None:
        for name, text in FILES.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(textwrap.dedent(text))
        self.directory = directory
        self._boots = directory / "boots.txt"
        self.variables = {
            "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]),
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "DATABASE": json.dumps(_settings_of(alias)),
            "BOOTS": str(self._boots),
            "LAMBDA_TASK_ROOT": str(directory),
            "AWS_LAMBDA_LOG_FORMAT": "JSON",
        }

    def boots(self) -> list[int]:
        """Return the process id of each boot."""
        return [int(line) for line in self._boots.read_text().splitlines()] if self._boots.exists() else []

    @contextmanager
    def running(
        self,
        api: RuntimeApi,
        module: str,
        handler: str = "shop.handler.handler",
        *,
        wrapper: tuple[str, ...] = (),
        **variables: str,
    ) -> Iterator[subprocess.Popen[str]]:
        """Run `python -m MODULE HANDLER` until the end of the block. What it prints is in `output()`."""
        with (self.directory / "output.txt").open("w") as output:
            process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", module, handler],
                cwd=self.directory,
                env={**_inherited(), **self.variables, "AWS_LAMBDA_RUNTIME_API": api.address, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait(PATIENCE)

    def output(self) -> str:
        return (self.directory / "output.txt").read_text()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the log that are JSON."""
        return [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]


def event(task: str, message_id: str | None = None, **kwargs: Any) -> dict[str, Any]:
    """Return an event with one message."""
    body = json.dumps({"task_name": f"shop.tasks.{task}", "kwargs": kwargs})
    attributes = {"ApproximateReceiveCount": "1", "SentTimestamp": "1796042493809"}
    arn = "arn:aws:sqs:eu-west-1:123456789012:default"
    record = {"body": body, "attributes": attributes, "eventSourceARN": arn, "receiptHandle": "handle"}
    return {"Records": [{"messageId": message_id or ids.new_message_id(), **record}]}


def result_of(invocation: Invocation, database: str) -> Any:
    """Return the result of the event's only task."""
    assert invocation.error is None
    assert invocation.response == {"batchItemFailures": []}
    return TaskRecord.objects.using(database).get(pk=invocation.event["Records"][0]["messageId"]).result


def _settings_of(alias: str) -> Mapping[str, Any]:
    settings = connections[alias].settings_dict
    return {name: settings[name] for name in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")}


def _inherited() -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ}
