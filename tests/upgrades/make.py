"""Write the state that a published version leaves in an empty database: its schema, migrations, rows and messages.

Run it in an environment of its own, where that version is installed; README.md has the commands. It uses the
version's public names only: `migrate`, the decorator, `execute_on_commit()` and the handler.
"""

# ruff: noqa: E402, T201

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

VENDOR, NAME, TARGET = sys.argv[1:]
TABLE = "lambda_tasks_taskrecord"
QUEUES: dict[str, Any] = {}
#: The queue of AWS Batch, which 0.8 has.
BATCH: dict[str, str] = {
    "job_queue_arn": "arn:aws:batch:us-east-1:123456789012:job-queue/batch",
    "job_definition_arn": "arn:aws:batch:us-east-1:123456789012:job-definition/render:1",
}
HAS_BATCH = version("django-lambda-tasks") >= "0.8"
URL: list[str] = []

from django.conf import settings

ENGINES = {"sqlite": "sqlite3", "postgres": "postgresql", "mariadb": "mysql"}
USERS = {"sqlite": "", "postgres": "postgres", "mariadb": "root"}
if VENDOR == "mariadb":
    import pymysql

    pymysql.version_info = (2, 2, 7, "final", 0)
    pymysql.install_as_MySQLdb()
for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
    os.environ[variable] = "testing"
os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": f"django.db.backends.{ENGINES[VENDOR]}",
            "NAME": NAME,
            "USER": USERS[VENDOR],
            "HOST": "127.0.0.1",
        }
    },
    INSTALLED_APPS=["django.contrib.postgres", "lambda_tasks"],
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    USE_TZ=True,
    SECRET_KEY="only for this",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    LAMBDA_TASKS_QUEUES=QUEUES,
    AWS_REGION="us-east-1",
)

import boto3
import django
from moto import mock_aws

django.setup()
from django.core.management import call_command
from django.db import connection

sys.modules["shop"] = sys.modules["shop.tasks"] = sys.modules["__main__"]
__name__ = "shop.tasks"
from lambda_tasks.decorators import lambda_task


@lambda_task
def greet(*, name: str, amount: int = 1) -> dict[str, Any]:
    return {"greeting": f"Hello {name}", "amounts": [amount, None, 1.5]}


@lambda_task
def broken(*, name: str) -> None:
    raise ValueError(f"broken for {name}")


@lambda_task(retry_on=(KeyError,))
def again(*, name: str) -> None:
    raise KeyError(name)


@lambda_task
def dies() -> None:
    os._exit(0)


@lambda_task(queue="batch")
def render(*, name: str) -> str:
    return f"rendered for {name}"


def migrate() -> None:
    try:
        call_command("migrate", "lambda_tasks", skip_checks=True, verbosity=0)
    except django.db.utils.OperationalError as error:
        print(f"`migrate` stopped: {error}", file=sys.stderr)


def received() -> list[dict[str, Any]]:
    answer = boto3.client("sqs").receive_message(
        QueueUrl=URL[0], MaxNumberOfMessages=10, MessageAttributeNames=["All"], AttributeNames=["All"]
    )
    return answer.get("Messages", [])


def record(message: dict[str, Any]) -> dict[str, Any]:
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": message.get("MessageAttributes", {}),
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:default",
        "awsRegion": "us-east-1",
    }


def run(message: dict[str, Any]) -> None:
    """Run a message in a child: one of the tasks takes its process along."""
    connection.close()
    child = os.fork()
    if not child:
        from lambda_tasks.handler import handler

        try:
            print(handler({"Records": [record(message)]}, None), file=sys.stderr)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def statements() -> list[str]:
    if VENDOR == "postgres":
        command = ["pg_dump", "-h127.0.0.1", "-Upostgres", "-s", "--no-owner", "-t", TABLE, NAME]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [line for line in dump.splitlines() if line and not re.match(r"--|SET |SELECT |\\", line)]
        return [each.strip().replace("public.", "") for each in "\n".join(lines).split(";\n")]
    with connection.cursor() as cursor:
        if VENDOR == "mariadb":
            cursor.execute(f"SHOW CREATE TABLE {TABLE}")
            return [cursor.fetchone()[1]]
        cursor.execute("SELECT sql FROM sqlite_master WHERE tbl_name = %s AND sql IS NOT NULL", [TABLE])
        return [sql for (sql,) in cursor.fetchall()]


def without_frames(text: str | None) -> str | None:
    """Leave the frames out: they have the paths of this machine, and lines of other people's source."""
    return text and re.sub(r"(?m)^  .*\n", "", text)


def rows() -> list[dict[str, Any]]:
    """Return the rows as the driver gives them, in types that JSON has."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {TABLE} ORDER BY task_name, status, id")
        names = [column[0] for column in cursor.description]
        read = [dict(zip(names, map(plain, row), strict=True)) for row in cursor.fetchall()]
    return [row | {"traceback": without_frames(row["traceback"])} for row in read]


def plain(value: Any) -> Any:
    return value if isinstance(value, int | None) else str(value)


def of_0_8() -> dict[str, Any]:
    """Return the message of a task on a queue of AWS Batch, and a call with `_delay`."""
    render.execute_on_commit(name="Ada")
    return {
        "batch": [record(message) for message in received()],
        "delayed": greet.serialize(name="Ada", _delay=30),
    }


def main() -> None:
    with mock_aws():
        url = boto3.client("sqs").create_queue(QueueName="default")["QueueUrl"]
        URL.append(url)
        QUEUES.update({"default": {"queue_url": url}, "batch": BATCH} if HAS_BATCH else {"default": url})
        migrate()
        for call in (greet, broken, again):
            call.execute_on_commit(name="Zoë")
        dies.execute_on_commit()
        for message in received():
            run(message)
        greet.execute_on_commit(name="Ada", amount=2)
        waiting = [record(message) for message in received()]
        only_in_0_8 = of_0_8() if HAS_BATCH else {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM django_migrations WHERE app = 'lambda_tasks' ORDER BY id")
        applied = [name for (name,) in cursor.fetchall()]
    state = {
        "schema": statements(),
        "migrations": applied,
        "rows": rows(),
        "messages": waiting,
        "serialized": greet.serialize(name="Ada", amount=3),
        **only_in_0_8,
    }
    Path(TARGET).write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n")


main()
