"""Place orders, one of them with a task of each kind, and check how their records end.

Import this module only after Django is set up, because it needs the models.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.request import ProxyHandler, Request, build_opener
from uuid import UUID

from django.db import DatabaseError, connection
from django.db.models import Sum
from django.utils import timezone
from shop.models import Measurement, OrderEvent
from shop.records import outcome, seconds, short_name

from demonstration.console import Console
from demonstration.infrastructure import PARCELS, CannotRun, SqsServer, Workers, messages, queue_urls
from lambda_tasks.maintenance import relay_once
from lambda_tasks.models import OutboxMessage, TaskRecord

#: Seconds until everything must have ended, and the longest time without output.
PATIENCE: Final = 90
SILENCE: Final = 4
#: Seconds between two relays of the outbox; on AWS, EventBridge starts one each minute.
RELAY_EVERY: Final = 1
#: Seconds between the start of pack_parcel and the kill of its worker.
UNTIL_KILLED: Final = 0.3
#: Lines of the workers' output that are shown after a failure.
LOG_LINES: Final = 40


@dataclass(frozen=True, slots=True)
class Expected:
    """How an invocation and its retries must end."""

    task: str
    #: The statuses of its records, in order, as a regular expression.
    statuses: str
    #: What the last result or traceback must contain.
    outcome: str
    crashes: int = 0


EXPECTED: Final = (
    Expected("send_receipt", "SUCCESS", "sent to Alice"),
    Expected("send_receipt", "SUCCESS", "sent to Bob"),  # sent from the outbox
    Expected("charge_card", "FAILED", "CardRefused"),
    Expected("send_newsletter", "SUCCESS", "Unsubscribed"),
    Expected("reserve_stock", "RETRYING RETRYING SUCCESS", "attempt 3"),
    # Of two invocations of one task, the one with fewer records comes first.
    Expected("count_stock", "SUCCESS", "Counted"),
    Expected("count_stock", "(RETRYING )+SUCCESS", "Counted"),
    Expected("load_truck", "SUCCESS", "dock north"),
    Expected("load_truck", "SUCCESS", "dock north"),
    Expected("refresh_prices", "SUCCESS", "prices of Oslo"),
    Expected("send_coupon", "FAILED", "cancel"),
    Expected("wrap_gift", "SUCCESS", "350"),
    Expected("bill_gift", "SUCCESS", "350 cents"),
    Expected("count_shelf", "SUCCESS", "5"),
    Expected("count_shelf", "SUCCESS", "5"),
    Expected("count_shelf", "SUCCESS", "4"),
    Expected("build_report", "SUCCESS", '"complete": false'),
    Expected("search_archive", "FAILED", "HardTimeLimitExceeded"),
    Expected("import_products", "SUCCESS", "20"),
    Expected("fetch_rates", "SUCCESS", '"EUR": 1.5'),
    Expected("send_reminder", "SUCCESS", "Reminded"),
    Expected("pack_parcel", "SUCCESS", "Packed one parcel", crashes=1),
)
#: The events that the tasks must have written: one for each SUCCESS, and none for a failed or killed run.
EXPECTED_EVENTS: Final = {
    "receipt sent": 2,
    "stock reserved": 1,
    "stock counted": 2,
    "truck loaded": 2,
    "prices refreshed": 1,
    "apology sent": 1,
    "gift wrapped": 1,
    "gift billed": 1,
    "shelf counted": 3,
    "shelves added up": 1,
    "report built": 1,
    "products imported": 1,
    "rates fetched": 1,
    "reminder sent": 1,
    "parcel packed": 1,
}


class Scenario:
    """Place orders, follow their tasks, and print the table of records."""

    def __init__(self, console: Console, site: str, sqs: SqsServer, log: Path) -> None:
        self.console = console
        self._site = site
        self._sqs = sqs
        self._log = log
        self._orders: list[int] = []
        self._sent: list[str] = []

    def place_orders(self) -> None:
        """Place an order that is rolled back, one with a task of each kind, and one while SQS is down."""
        refused = self._trigger("rollback")
        self.console.say("request", f"/trigger/?kind=rollback: rolled back, {messages(len(refused['sent']))} sent")
        order = self._place("everything")
        self.console.say("request", f"/trigger/?kind=everything: order {order} and its tasks committed")
        waiting = ", ".join(f"{count} in {queue}" for queue, count in self._depths().items())
        self.console.say("sqs", f"waiting messages: {waiting}")
        self._place_while_sqs_is_down()

    def _place_while_sqs_is_down(self) -> None:
        with self._sqs.outage():
            self.console.say("sqs", "is down: connections are refused")
            order = self._place("success", name="Bob")
        self.console.say("request", f"/trigger/?kind=success: order {order} and its task committed anyway")
        for message in OutboxMessage.objects.order_by("due_at"):
            self.console.say("outbox", f"keeps {short_name(message.task_name)}: {message.error.partition(':')[0]}")
        self.console.say("sqs", "is up again")

    def _place(self, kind: str, *, name: str = "Alice") -> int:
        """Place an order, remember the ids of its tasks, and return its number."""
        placed = self._trigger(kind, name=name)
        order: int = placed["order"]
        self._orders.append(order)
        self._sent += placed["sent"]
        return order

    def watch_until_ended(self, watcher: Watcher) -> None:
        """Print what happens until every task has ended and the queues are empty."""
        give_up_at = time.monotonic() + PATIENCE
        while True:
            watcher.look()
            if self._all_ended():
                return
            if time.monotonic() > give_up_at:
                self.console.say("demo", f"gives up: some tasks did not end within {PATIENCE} s")
                return
            if time.monotonic() - self.console.spoke_at > SILENCE:
                self.console.say(
                    "demo", f"waits: the killed process's message comes back {PARCELS.timeout} s after it was received"
                )
            time.sleep(0.1)

    def show_result(self) -> bool:
        """Print the table and the verdict. Return True if all expectations hold."""
        rows = table([record for chain in chains(self._sent) for record in chain])
        self.console.write("", *map(self.console.fitted, rows), "")
        if wrong := faults(self._sent, *self._orders):
            log = self._log.read_text(encoding="utf-8").splitlines()[-LOG_LINES:]
            self.console.write("WRONG:", *(f"  {fault}" for fault in wrong), "", "Last lines of the workers:", *log)
            return False
        self.console.write(
            "ok: every record ended as expected, and the writes of each task exist exactly once.",
            f"The plugin in shop/lambda_plugins.py counted the runs: {measured()}.",
        )
        return True

    def _trigger(self, kind: str, *, name: str = "Alice") -> dict[str, Any]:
        """Request tasks of a kind from the site, as a browser would, and return its response."""
        request = Request(f"{self._site}/trigger/?name={name}&kind={kind}", headers={"Accept": "application/json"})
        with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
            placed: dict[str, Any] = json.load(answer)
        return placed

    def _depths(self) -> dict[str, int]:
        """Return the number of messages in each queue: visible, delayed and in flight."""
        names = [f"ApproximateNumberOfMessages{state}" for state in ("", "Delayed", "NotVisible")]
        return {
            queue: sum(int(counts[name]) for name in names)
            for queue, url in queue_urls().items()
            for counts in [self._sqs.client.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]]
        }

    def _all_ended(self) -> bool:
        ended = all(chain and chain[-1].status in ("SUCCESS", "FAILED") for chain in chains(self._sent))
        return ended and not any(self._depths().values())


class Relay:
    """Relay the outbox in a thread, as the maintenance event from EventBridge does on AWS."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(RELAY_EVERY):
            try:
                relay_once()
            except DatabaseError as error:
                self._console.say("relay", f"retries: {error}")
        connection.close()


class Watcher:
    """Report messages that leave the outbox and changes of records, and kill the first worker that packs a parcel."""

    def __init__(self, console: Console, workers: Workers) -> None:
        self._console = console
        self._workers = workers
        self._seen: dict[UUID, tuple[str, int]] = {}
        self._kill_at: dict[UUID, float] = {}
        self._kept = dict(OutboxMessage.objects.filter(attempts__gt=0).values_list("pk", "task_name"))

    def look(self) -> None:
        """Check the newest records once. Raise `CannotRun` if a worker has ended by itself."""
        if self._workers.failures:
            raise CannotRun(f"A worker has ended: {self._workers.failures[0]}")
        if self._kept:
            self._look_at_outbox()
        for record in TaskRecord.objects.order_by("-start_time")[:100][::-1]:
            state = (record.status, record.takeovers)
            if self._seen.get(record.pk) != state:
                self._seen[record.pk] = state
                self._tell(record)
            if state == ("RUNNING", 0) and short_name(record.task_name) == "pack_parcel":
                self._kill_in_time(record)

    def _look_at_outbox(self) -> None:
        """Report messages that have left the outbox, whether a relay or a worker has sent them."""
        kept = set(OutboxMessage.objects.filter(pk__in=self._kept).values_list("pk", flat=True))
        for key in self._kept.keys() - kept:
            self._console.say("outbox", f"{short_name(self._kept.pop(key))} was relayed to SQS")

    def _tell(self, record: TaskRecord) -> None:
        text = outcome(record)
        if record.status == "RUNNING" and record.takeovers:
            text = "taken over from the killed process"
        self._console.say("record", f"{short_name(record.task_name):<16} {record.status:<9} {text}".rstrip())

    def _kill_in_time(self, record: TaskRecord) -> None:
        now = time.monotonic()
        if now >= self._kill_at.setdefault(record.pk, now + UNTIL_KILLED):
            self._kill_at[record.pk] = float("inf")
            pid = self._workers.pids[f"{PARCELS.queue}-1"]
            self._console.say("demo", f"kills process {pid}, in the middle of pack_parcel")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def chains(roots: list[str]) -> list[list[TaskRecord]]:
    """Return the record of each sent invocation, followed by the records of its retries, in order."""
    found: dict[str, list[TaskRecord]] = {root: [] for root in roots}
    for record in TaskRecord.objects.filter(root_id__in=roots).order_by("n_retries"):
        found[str(record.root_id)].append(record)
    return list(found.values())


def faults(roots: list[str], *orders: int) -> list[str]:
    """Return the expectations that do not hold."""
    found: list[str] = []
    ended = sorted(filter(None, chains(roots)), key=len)
    for expected in EXPECTED:
        chain = next((chain for chain in ended if short_name(chain[0].task_name) == expected.task), None)
        if chain is None:
            found.append(f"{expected.task}: it has no record.")
        else:
            ended.remove(chain)
            found += faults_of(chain, expected)
    events = Counter(OrderEvent.objects.filter(order_id__in=orders).values_list("text", flat=True))
    if events != EXPECTED_EVENTS:
        found.append(f"The tasks wrote {dict(events)} instead of {EXPECTED_EVENTS}.")
    return found


def faults_of(chain: list[TaskRecord], expected: Expected) -> Iterator[str]:
    statuses, last = " ".join(record.status for record in chain), chain[-1]
    if not re.fullmatch(expected.statuses, statuses):
        yield f"{expected.task}: its statuses are {statuses} instead of {expected.statuses}."
    elif expected.outcome not in outcome(last):
        yield f"{expected.task}: its outcome {outcome(last)!r} must contain {expected.outcome!r}."
    if last.takeovers != expected.crashes:
        yield f"{expected.task}: {last.takeovers} of its workers died instead of {expected.crashes}."


def table(records: list[TaskRecord]) -> list[str]:
    head = f"{'task':<16} {'status':<9} {'seconds':>7} {'retries':>8}  result, or last line of the traceback"
    return [
        head,
        "-" * len(head),
        *(
            f"{short_name(record.task_name):<16} {record.status:<9} {seconds(record, now=timezone.now()):7.2f} "
            f"{record.n_retries:8}  {outcome(record)}".rstrip()
            for record in records
        ),
    ]


def measured() -> str:
    """Return the plugin's counts of runs, by outcome."""
    rows = Measurement.objects.order_by("outcome").values_list("outcome").annotate(Sum("runs"))
    return ", ".join(f"{how} {runs}" for how, runs in rows)
