"""Run a task with one extra, and print what its plugin has made of it: `python run.py emf`.

With `--without`, the extra is not installed: print the error, which must name it.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import pty
import sys
import uuid
from collections.abc import Callable
from typing import Any

PLUGINS = {
    "emf": "lambda_tasks.contrib.emf.EmfMetrics",
    "prometheus": "lambda_tasks.contrib.prometheus",
    "opentelemetry": "lambda_tasks.contrib.opentelemetry",
    "sentry": "lambda_tasks.contrib.sentry",
}
PACKAGES = {
    "cli": "rich",
    "emf": "aws_lambda_powertools",
    "encryption": "cryptography",
    "opentelemetry": "opentelemetry",
    "prometheus": "prometheus_client",
    "schedules": "cronsim",
    "sentry": "sentry_sdk",
}


def set_up(extra: str) -> None:
    import django
    from django.core.management import call_command

    os.environ["PLUGINS"] = PLUGINS.get(extra, "")
    django.setup()
    call_command("migrate", verbosity=0)


def run(task: str, **kwargs: Any) -> None:
    """Pass a message to the handler, and check its record."""
    from lambda_tasks.handler import handler
    from lambda_tasks.models import TaskRecord

    message_id = str(uuid.uuid4())
    body = json.dumps({"task_name": f"shop.tasks.{task}", "kwargs": kwargs})
    attributes = {"ApproximateReceiveCount": "1", "SentTimestamp": "1796042493809"}
    record = {"messageId": message_id, "body": body, "attributes": attributes}
    assert handler({"Records": [record]}, None) == {"batchItemFailures": []}
    assert TaskRecord.objects.get(pk=message_id).status == ("FAILED" if task == "fail" else "SUCCESS")


def emf() -> None:
    os.environ["AWS_LAMBDA_FUNCTION_NAME"] = "shop"
    set_up("emf")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run("total", prices=[2, 40])
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    [line] = [line for line in lines if line.get("task") == "shop.tasks.total"]
    assert line["Succeeded"] == [1.0], line
    print(f"The metric of the task: Succeeded {line['Succeeded']}, Duration {line['Duration']}")


def encryption() -> None:
    os.environ["ENCRYPTION_KEYS"] = base64.urlsafe_b64encode(os.urandom(32)).decode()
    set_up("encryption")
    from lambda_tasks.wire.encryption import encrypted
    from lambda_tasks.wire.invocation import Invocation

    message = encrypted(Invocation("shop.tasks.count_letters", {"token": "from a vault"}), ["token"])
    assert "vault" not in message.to_body(), message
    run("count_letters", **message.kwargs)
    from lambda_tasks.models import TaskRecord

    print(f"The result of the task whose argument was encrypted: {TaskRecord.objects.latest('start_time').result}")


def prometheus() -> None:
    set_up("prometheus")
    run("total", prices=[2, 40])
    from prometheus_client import generate_latest

    [line] = [line for line in generate_latest().decode().splitlines() if line.startswith("lambda_tasks_ended_total")]
    assert line.endswith(" 1.0"), line
    print(f"The metric of the task: {line}")


def opentelemetry() -> None:
    """With the API, which the extra installs, nothing fails; with the SDK, there is a span."""
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        set_up("opentelemetry")
        run("total", prices=[2, 40])
        print("The task runs without OpenTelemetry's SDK.")
        return
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    set_up("opentelemetry")
    run("total", prices=[2, 40])
    [span] = spans.get_finished_spans()
    print(f"The span of the task: {span.name}, {span.kind.name}")


def sentry() -> None:
    import sentry_sdk
    from sentry_sdk.transport import Transport

    sent: list[dict[str, Any]] = []

    class Post(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            if (event := envelope.get_event()) is not None:
                sent.append(event)

    sentry_sdk.init("https://key@o1.ingest.sentry.io/1", transport=Post)
    set_up("sentry")
    run("fail")
    [event] = sent
    print(f"The event of the task: {event['exception']['values'][-1]['value']}, {event['tags']['task']}")


def schedules() -> None:
    set_up("schedules")
    from django.core.management import call_command

    from lambda_tasks import Cron, lambda_task

    @lambda_task(schedule=Cron("0 6 * * mon", timezone="Europe/Vienna"))
    def send_report() -> None: ...

    with contextlib.redirect_stdout(io.StringIO()) as output:
        call_command("lambda_tasks", "schedules")
    [line] = [line for line in output.getvalue().splitlines() if "send_report" in line]
    run("total", prices=[2, 40])
    print(f"The schedule of the task: {line.strip()}")


def cli() -> None:
    """On a terminal, which a pseudo terminal stands for, there is a table with lines around its cells."""
    set_up("cli")
    run("total", prices=[2, 40])
    output = on_terminal("lambda_tasks", "stats")
    assert "shop.tasks.total" in output
    assert ("─" in output or "━" in output) == bool(importlib.util.find_spec("rich")), output
    print("The table on a terminal is drawn with lines." if importlib.util.find_spec("rich") else "It is plain text.")


def on_terminal(*arguments: str) -> str:
    output = io.BytesIO()

    def read(terminal: int) -> bytes:
        data = os.read(terminal, 1024)
        output.write(data)
        return data

    os.environ |= {"TERM": "xterm", "COLUMNS": "120"}
    pty.spawn([sys.executable, "-m", "django", *arguments], read)
    return output.getvalue().decode()


def fails_without(extra: str) -> None:
    """Use the extra's part of the library, and print its error."""
    from django.core.exceptions import ImproperlyConfigured

    os.environ["AWS_LAMBDA_FUNCTION_NAME"] = "shop"
    try:
        CHECKS[extra]() if extra in ("schedules", "encryption") else set_up(extra)
    except ImproperlyConfigured as error:
        message = str(error)
    else:
        sys.exit(f"The extra {extra} is not installed, and nothing failed.")
    assert f"django-lambda-tasks[{extra}]" in message, message
    print(f"Without the extra: {message}")


CHECKS: dict[str, Callable[[], None]] = {
    "cli": cli,
    "emf": emf,
    "encryption": encryption,
    "opentelemetry": opentelemetry,
    "prometheus": prometheus,
    "schedules": schedules,
    "sentry": sentry,
}


def main(extra: str, *options: str) -> None:
    without = options == ("--without",)
    installed = importlib.util.find_spec(PACKAGES[extra]) is not None
    assert installed != without, f"{PACKAGES[extra]} is {'' if installed else 'not '}installed"
    if not without or extra == "cli":  # the command line is plain text without it
        CHECKS[extra]()
    else:
        fails_without(extra)


if __name__ == "__main__":
    main(*sys.argv[1:])
