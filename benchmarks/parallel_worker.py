"""A worker process of `benchmarks.parallel`, which runs the events that it receives."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import django

#: The parent's messages when all workers are ready, and when the work is finished.
GO = "go"
END = None


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a worker's events."""

    cpu: float
    #: Deliveries whose task was running in another worker, and that had to be repeated.
    met_busy: int
    ran: list[str] = field(repr=False)


def serve(parent: Connection) -> None:
    """Run one list of events after the other, when the parent sends GO."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.memory_settings"
    django.setup()
    from django.db import connection

    while (events := parent.recv()) is not END:
        connection.ensure_connection()
        parent.send("ready")
        assert parent.recv() == GO
        parent.send(_run(events))
        connection.close()


def _run(events: list[dict[str, Any]]) -> Done:
    from benchmarks.tasks import ran
    from lambda_tasks.handler import handler

    ran.clear()
    busy = 0
    started = time.process_time()
    for event in events:
        records = event["Records"]
        while records:
            again = {item["itemIdentifier"] for item in handler({"Records": records}, None)["batchItemFailures"]}
            busy += len(again)
            records = [_received_again(record) for record in records if record["messageId"] in again]
    return Done(time.process_time() - started, busy, list(ran))


def _received_again(record: dict[str, Any]) -> dict[str, Any]:
    receives = int(record["attributes"]["ApproximateReceiveCount"]) + 1
    return {**record, "attributes": {**record["attributes"], "ApproximateReceiveCount": str(receives)}}
