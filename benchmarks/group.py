"""What does a group of 10,000 tasks cost, and does its last member hold up the others?

Each member counts in a row of its own, in the transaction of its record. After COMMIT, its worker asks whether a member
is pending, and reads the index from its end, since members end more or less in the order in which they were sent. It is
compared with the same question from the beginning of the index, and with one counter row that all workers update.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import Measured, Sample, in_turn, microseconds, timed
from benchmarks.report import Lines, Report, Table, main

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBER: Final = "member of the group"
PLAIN: Final = "plain task"
OURS: Final = "rows of their own"
COUNTER: Final = "one counter row"
FROM_END: Final = "from the end (ours)"
FROM_BEGINNING: Final = "from the beginning"
#: The shares of the members that have ended when the question is asked.
SHARES: Final = (0, 0.1, 0.5, 0.9, 0.99)
WORKERS: Final = 4
#: Tasks that are executed in one measurement, and ends that are counted in one.
EXECUTED: Final = 300
COUNTED: Final = 200
#: Members that one statement ends before a measurement of the question.
_CHUNK: Final = 100
#: Questions in one measurement.
ASKED: Final = 20
#: Seconds after the count in which the transactions of slower tasks do something else, such as writing their record.
HELD: Final = (0.0, 0.002)


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.memory_settings"
    from benchmarks.databases import migrated

    with migrated():
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from benchmarks import servers

    size, rounds = options.members, options.rounds
    sent = in_turn(
        {MEMBER: partial(_sends_group, size), PLAIN: partial(_sends_plain, size)}, rounds=rounds, reset=_empty
    )
    ran = in_turn({MEMBER: partial(_runs, size, group=True), PLAIN: partial(_runs, size, group=False)}, rounds=rounds)
    asked = {share: _questions(size, share, rounds) for share in SHARES}
    counted = {
        held: in_turn(
            {OURS: partial(_ends, size, held, own=True), COUNTER: partial(_ends, size, held, own=False)}, rounds=rounds
        )
        for held in HELD
    }
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return Report(
        title="A group of 10,000 tasks",
        question=__doc__ or "",
        method=[
            f"A group of {size:,} tasks that do nothing, on PostgreSQL. {rounds} rounds; the contenders take turns.",
            "Messages stay in the process, so no request to SQS is measured. Sending is one transaction.",
            f"{EXECUTED:,} tasks are executed in one measurement, in batches of ten.",
            f"Ends are counted by {WORKERS} threads, each with a connection, {COUNTED} in one measurement.",
            "The transaction of an end updates the record and the count, and then waits for 0 or 2 ms before COMMIT.",
            f"Other programs used this machine at the same time: the load averages were {load}.",
            *servers.machine(),
        ],
        tables=[
            _sending_and_running(sent, ran),
            _question_table(asked, size),
            _counting_table(counted),
        ],
        plots=[
            Lines(
                "group-question",
                f"Is a member of {size:,} pending?",
                "members that have ended",
                "microseconds",
                [
                    (name, [(share * size, of.wall(name).median * 1e6) for share, of in asked.items()])
                    for name in (FROM_END, FROM_BEGINNING)
                ],
                logarithmic_y=True,
            )
        ],
        remarks=[
            "If COMMIT follows the count immediately, one counter row is a little faster, because no question follows.",
            "If a transaction takes longer before its COMMIT, the others wait; with rows of their own, none waits.",
        ],
    )


def _sending_and_running(sent: Measured, ran: Measured) -> Table:
    rows = [
        (
            what,
            microseconds(of.wall(MEMBER).median),
            microseconds(of.wall(PLAIN).median),
            str(of.wall_ratio(MEMBER, PLAIN)),
        )
        for what, of in (("send", sent), ("execute", ran))
    ]
    return Table("Wall time for one task, µs, medians.", ("", MEMBER, PLAIN, "ratio"), rows)


def _question_table(asked: dict[float, Measured], size: int) -> Table:
    rows = [
        (f"{round(size * share):,}", *(microseconds(of.wall(name).median) for name in (FROM_END, FROM_BEGINNING)))
        for share, of in asked.items()
    ]
    caption = "Wall time of the question whether a member is pending, µs, medians. No vacuum ran since the first end."
    return Table(caption, ("members that have ended", FROM_END, FROM_BEGINNING), rows)


def _counting_table(counted: dict[float, Measured]) -> Table:
    rows = [
        (
            f"{held * 1e3:g} ms",
            *(f"{1 / of.wall(name).median:,.0f}" for name in (OURS, COUNTER)),
            str(of.wall_ratio(COUNTER, OURS)),
        )
        for held, of in counted.items()
    ]
    caption = f"Members that {WORKERS} concurrent workers end in a second, by the time between count and COMMIT."
    return Table(caption, ("held for", OURS, COUNTER, "ratio of times"), rows)


# Sending and executing


def _empty() -> None:
    from django.db import connection

    from lambda_tasks.strategies import get_backend

    backend: Any = get_backend()
    backend.jobs.clear()
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE lambda_tasks_taskflow, lambda_tasks_taskflowmember, lambda_tasks_taskrecord")


def _send_group(size: int) -> str:
    from benchmarks.tasks import nothing
    from lambda_tasks import group

    flow_id: str = group([nothing.invocation() for _ in range(size)]).execute_on_commit().flow_id
    return flow_id


def _send_plain(size: int) -> None:
    from django.db import transaction

    from benchmarks.tasks import nothing

    with transaction.atomic():
        for _ in range(size):
            nothing.execute_on_commit()


def _sends_group(size: int) -> Sample:
    return timed(lambda: _send_group(size), units=size)()


def _sends_plain(size: int) -> Sample:
    return timed(lambda: _send_plain(size), units=size)()


def _runs(size: int, *, group: bool) -> Sample:
    """Execute the first members of a group, or as many plain tasks."""
    from lambda_tasks.backends.memory import event_record
    from lambda_tasks.handler import handler
    from lambda_tasks.strategies import get_backend

    _empty()
    if group:
        _send_group(size)
    else:
        _send_plain(EXECUTED)
    backend: Any = get_backend()
    records = [event_record(job) for job in backend.jobs[:EXECUTED]]

    def run() -> None:
        for start in range(0, EXECUTED, 10):
            handler({"Records": records[start : start + 10]}, None)

    return timed(run, units=EXECUTED)()


# The question whether a member is pending


def _questions(size: int, share: float, rounds: int) -> Measured:
    from django.db import connection

    from lambda_tasks.flows import rows

    _empty()
    flow_id = _send_group(size)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE lambda_tasks_taskflowmember")
        cursor.execute("ALTER TABLE lambda_tasks_taskflowmember SET (autovacuum_enabled = off)")
    ids = rows.members("default").filter(flow_id=flow_id).order_by("position").values_list("pk", flat=True)
    ended = list(ids)[: round(size * share)]
    for start in range(0, len(ended), _CHUNK):
        rows.members("default").filter(pk__in=ended[start : start + _CHUNK]).update(status=rows.SUCCESS)

    def from_beginning() -> bool:
        pending = rows.members("default").filter(flow_id=flow_id, status=rows.PENDING).order_by("pk")
        return bool(pending.values_list("pk", flat=True)[:1])

    def asking(question: Callable[[], bool]) -> Callable[[], Sample]:
        return timed(lambda: [question() for _ in range(ASKED)], units=ASKED)

    from_end = partial(rows.has_pending_members, flow_id, "default")
    return in_turn({FROM_END: asking(from_end), FROM_BEGINNING: asking(from_beginning)}, rounds=rounds)


# Counting


def _ends(size: int, held: float, *, own: bool) -> Sample:
    """End members by several workers at the same time, and return the seconds for each member."""
    from lambda_tasks.flows import rows

    _empty()
    flow_id = _send_group(size)
    ids = [str(pk) for pk in rows.members("default").order_by("position").values_list("pk", flat=True)[:COUNTED]]
    _write_records(ids)
    start = threading.Barrier(WORKERS + 1)
    end = partial(_end_own if own else _end_counted, flow_id, held)
    threads = [threading.Thread(target=_end_all, args=(ids[place::WORKERS], end, start)) for place in range(WORKERS)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return Sample((time.perf_counter() - began) / COUNTED, 0.0)


def _write_records(ids: Sequence[str]) -> None:
    from lambda_tasks.database.clock import DatabaseNow
    from lambda_tasks.models import TaskRecord

    TaskRecord.objects.bulk_create(
        TaskRecord(
            id=each, root_id=each, task_name="benchmarks.tasks.nothing", start_time=DatabaseNow(), claim=uuid.uuid4()
        )
        for each in ids
    )


def _end_all(ids: Sequence[str], end: Callable[[str], object], start: threading.Barrier) -> None:
    from django.db import connection

    connection.ensure_connection()
    start.wait()
    for message_id in ids:
        end(message_id)
    connection.close()


@contextmanager
def _recorded(message_id: str, held: float) -> Iterator[None]:
    from django.db import transaction

    from lambda_tasks.models import TaskRecord

    with transaction.atomic():
        TaskRecord.objects.filter(pk=message_id).update(status="SUCCESS")
        yield
        time.sleep(held)


def _end_own(flow_id: str, held: float, message_id: str) -> None:
    from lambda_tasks.flows import rows

    with _recorded(message_id, held):
        rows.count_member(message_id, flow_id, "default", succeeded=True)
    rows.has_pending_members(flow_id, "default")


def _end_counted(flow_id: str, held: float, message_id: str) -> None:
    from django.db import connection

    with _recorded(message_id, held), connection.cursor() as cursor:
        cursor.execute("UPDATE lambda_tasks_taskflow SET size = size - 1 WHERE id = %s RETURNING size", [flow_id])
        cursor.fetchone()


if __name__ == "__main__":
    main(measure, rounds=3, members=10_000)
