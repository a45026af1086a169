"""Check that only messages with an outcome are deleted from the queue, whatever happens to their batch.

`Queue` simulates SQS and the event source mapping under AWS's rules for partial batch responses, without their
waiting times: a message that returns can be received again immediately.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import pytest
from django.db import connections
from django.test import override_settings

from lambda_tasks import failpoints
from lambda_tasks import handler as handler_module
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidEvent
from lambda_tasks.execution import pipeline
from lambda_tasks.execution.backoff import handed_back_pause
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.local.event_source import interpret_answer
from lambda_tasks.models import TaskRecord, TaskStatus
from lambda_tasks.strategies import get_backend
from tests.app.models import Effect

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # PyMySQL leaves a socket open if it cannot connect.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

#: The maximum time in seconds for a quick step of a test process.
PATIENCE: Final = 60.0
#: The maximum function timeout of Lambda in seconds.
FUNCTION_TIMEOUT: Final = 900.0


# Tasks


class Busy(Exception):
    pass


class Clock:
    """A clock for the handler, the executor and Lambda's context."""

    now = 10_000.0
    invocation_ends = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def get_remaining_time_in_millis(self) -> int:
        return int((self.invocation_ends - self.now) * 1000)


clock = Clock()


@lambda_task
def note(*, name: str) -> None:
    Effect.objects.create(name=name)


@lambda_task(hard_timeout=300, soft_timeout=270)
def take(*, name: str, seconds: int) -> None:
    Effect.objects.create(name=name)
    clock.now += seconds


@lambda_task
def fail(*, name: str) -> None:
    Effect.objects.create(name=name)
    raise ValueError(name)


@lambda_task(retry_on=[Busy])
def stumble(*, name: str) -> None:
    Effect.objects.create(name=name)
    raise Busy(name)


@lambda_task(retry_on=[Busy])
def stumble_until_exists(*, name: str) -> None:
    if not Effect.objects.filter(name=name).exists():
        raise Busy(name)
    Effect.objects.create(name="there it is")


@lambda_task
def poison(*, name: str) -> None:
    Effect.objects.create(name=name)
    os.kill(os.getpid(), signal.SIGKILL)


@lambda_task
def meet(*, began: int, go_on: int) -> None:
    """Run as long as the test wants, which holds the other ends of the pipes."""
    os.write(began, b".")
    select.select([go_on], [], [], PATIENCE)
    Effect.objects.create(name="met")


# The platform


class Killed(Exception):
    """The process ended without an answer: it ran out of memory, got a signal, or exceeded the function's timeout."""


def returned_by(answer: str, message_ids: Sequence[str]) -> set[str]:
    """Return the messages that return to the queue after `answer`, under `ReportBatchItemFailures`."""
    everything = set(message_ids)
    try:
        told = json.loads(answer)
    except ValueError:
        return everything
    if told is None or told == {}:
        return set()
    if not isinstance(told, dict) or "batchItemFailures" not in told:
        return everything
    failures = told["batchItemFailures"]
    if failures is None:
        return set()
    if not isinstance(failures, list):
        return everything
    failed = [failure.get("itemIdentifier") if isinstance(failure, dict) else None for failure in failures]
    if not all(isinstance(raw_id, str) and raw_id in everything for raw_id in failed):
        return everything
    return set(failed)


def in_this_process(event: Mapping[str, Any], context: Any) -> str:
    return json.dumps(handler(event, context))


def in_another_process(event: Mapping[str, Any], context: Any) -> str:
    """Run the handler in a fork of this process, and raise `Killed` if it ends without an answer."""
    with forked(lambda: in_this_process(event, context)) as answer:
        return answer()


class Queue:
    """A queue with an event source mapping, and all messages that were ever in it."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self.waiting = list(records)
        self.deleted: list[dict[str, Any]] = []
        self.receives: Counter[str] = Counter()

    def deliver(
        self,
        run: Callable[[Mapping[str, Any], Any], str] = in_this_process,
        *,
        context: Any = None,
        answer_is_lost: bool = False,
    ) -> list[str]:
        """Deliver all waiting messages as one batch, and return the ids of the messages that return."""
        batch = self.waiting
        self.receives.update({record["messageId"] for record in batch})
        for record in batch:
            count = str(self.receives[record["messageId"]])
            record["attributes"] = record["attributes"] | {"ApproximateReceiveCount": count}
        ids = [record["messageId"] for record in batch]
        try:
            # The runtime passes the event and the answer as JSON.
            answer = run(json.loads(json.dumps({"Records": batch})), context)
            returned = set(ids) if answer_is_lost else returned_by(answer, ids)
        except (Killed, InvalidEvent):
            returned = set(ids)
        self.deleted += [record for record in batch if record["messageId"] not in returned]
        self.waiting = [record for record in batch if record["messageId"] in returned]
        assert len(settled(self.deleted)) == len(self.deleted), "a message without an outcome was deleted"
        return list(dict.fromkeys(record["messageId"] for record in self.waiting))

    def deliver_until_empty(self, **options: Any) -> int:
        """Deliver repeatedly, and end leases in between. Return the number of deliveries."""
        for deliveries in range(1, 20):
            if not self.deliver(**options):
                return deliveries
            expire_leases()
        raise AssertionError(f"{len(self.waiting)} messages are still on the queue")


def settled(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the messages with a recorded outcome. Only these may be deleted."""
    ended = set(TaskRecord.objects.exclude(status=TaskStatus.RUNNING).values_list("pk", flat=True))
    return [record for record in records if UUID(task_id(record)) in ended]


def task_id(record: Mapping[str, Any]) -> str:
    attribute = record["messageAttributes"].get("lambda_tasks.message_id", {})
    found: str = attribute.get("stringValue", record["messageId"])
    return found


def only_settled_are_deleted(queue: Queue) -> bool:
    return settled(queue.deleted) == queue.deleted and settled(queue.waiting) == []


def expire_leases() -> None:
    """Let all leases expire."""
    TaskRecord.objects.filter(status=TaskStatus.RUNNING).update(lease_until=DatabaseNow())


@contextmanager
def forked(work: Callable[[], str]) -> Iterator[Callable[[], str]]:
    """Do `work` in a fork, and yield a function that waits for the string that it returns."""
    connections.close_all()  # two processes cannot share a socket
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left a thread
        child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            os.write(writing, work().encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)

    def answer() -> str:
        text = b""
        until = time.monotonic() + PATIENCE
        while select.select([reading], [], [], max(until - time.monotonic(), 0))[0]:
            if not (chunk := os.read(reading, 65_536)):
                break
            text += chunk
        else:
            raise AssertionError("the process hangs")
        if not text:
            raise Killed
        return text.decode()

    try:
        yield answer
    finally:
        os.kill(child, signal.SIGKILL)  # if it has not ended by itself
        os.waitpid(child, 0)
        os.close(reading)


class PostponingBackend(MemoryBackend):
    postponed: list[Any] = []  # noqa: RUF012, emptied by the test
    is_away = False

    def send(self, jobs: Sequence[Job]) -> Any:
        if self.is_away:
            raise ConnectionError("the queue is away")
        return super().send(jobs)

    def postpone(self, records: Any) -> None:
        self.postponed.extend((record["messageId"], seconds) for record, seconds in records)


@pytest.fixture(autouse=True)
def _clean(settings: Any) -> None:
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.PostponingBackend"
    backend().jobs.clear()
    backend().postponed.clear()
    backend().is_away = False


def backend() -> PostponingBackend:
    chosen = get_backend()
    assert isinstance(chosen, PostponingBackend)
    return chosen


def message(task: Any, /, **kwargs: Any) -> dict[str, Any]:
    task.execute_on_commit(**kwargs)
    return event_record(backend().take()[-1])


def notes(*names: object) -> list[dict[str, Any]]:
    return [message(note, name=str(name)) for name in names]


def effects() -> list[str]:
    return [effect.name for effect in Effect.objects.order_by("pk")]


def each_once(names: Sequence[object]) -> bool:
    return sorted(effects()) == sorted(map(str, names))


# The model itself


@pytest.mark.parametrize(
    ("answer", "returned"),
    [
        ('{"batchItemFailures": []}', ""),
        ('{"batchItemFailures": null}', ""),
        ("{}", ""),
        ("null", ""),
        ('{"batchItemFailures": [{"itemIdentifier": "b"}]}', "b"),
        ('{"batchItemFailures": [{"itemIdentifier": "b"}, {"itemIdentifier": "b"}]}', "b"),
        ('{"batchItemFailures": [{"itemIdentifier": "b"}, {"itemIdentifier": "unknown"}]}', "abc"),
        ('{"batchItemFailures": [{"itemIdentifier": ""}]}', "abc"),
        ('{"batchItemFailures": [{"itemIdentifier": null}]}', "abc"),
        ('{"batchItemFailures": [{"itemIdentifer": "b"}]}', "abc"),
        ('{"batchItemFailure": []}', "abc"),
        ('{"batchItemFailures": "b"}', "abc"),
        ("not JSON", "abc"),
        ("[]", "abc"),
    ],
)
def test_rules_match_aws_and_the_local_worker(answer: str, returned: str) -> None:
    assert returned_by(answer, "abc") == set(returned)
    assert interpret_answer(answer.encode(), "abc").failed_ids == set(returned)


# Time


class TestTime:
    @pytest.fixture(autouse=True)
    def _fake_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(handler_module, "time", clock)
        monkeypatch.setattr(pipeline, "time", clock)
        # As in a new process.
        monkeypatch.setattr(handler_module, "_full_time", 0.0)
        monkeypatch.setattr(handler_module, "_warned_of_limits", False)

    @staticmethod
    def invocation(event: Mapping[str, Any], context: Any) -> str:
        """Run the handler for a function that Lambda kills when its time has run out."""
        clock.invocation_ends = clock.now + FUNCTION_TIMEOUT
        answer = in_this_process(event, clock)
        if clock.now > clock.invocation_ends:
            raise Killed
        return answer

    @staticmethod
    def short_invocation(event: Mapping[str, Any], context: Any) -> str:
        clock.invocation_ends = clock.now + 60
        return in_this_process(event, clock)

    def test_long_batch_is_finished_over_several_invocations(self) -> None:
        """Ten hard timeouts are longer than the function's, and each task is done once."""
        queue = Queue(*(message(take, name=str(number), seconds=250) for number in range(10)))
        left = []
        while queue.waiting:
            returned = queue.deliver(self.invocation)
            # The messages are postponed by a few seconds, with jitter.
            assert sorted(raw_id for raw_id, _ in backend().postponed) == sorted(returned)
            assert all(5 <= seconds <= 5 * 2 ** len(left) * 1.25 for _, seconds in backend().postponed)
            backend().postponed.clear()
            assert only_settled_are_deleted(queue)
            left.append(len(queue.waiting))
        # After 0, 250 and 500 s, another 300 s fit, but not after 750 s.
        assert left == [7, 4, 1, 0]
        assert each_once(range(10))

    def test_quick_tasks_finish_in_one_invocation(self) -> None:
        """Their limits together are longer than the function's timeout."""
        queue = Queue(*(message(take, name=str(number), seconds=1) for number in range(10)))
        assert queue.deliver(self.invocation) == []
        assert each_once(range(10))

    def test_tasks_without_enough_time_are_handed_back(self) -> None:
        tasks = [("a", 590), ("b", 9), ("c", 1)]  # 310 s are left, and then 301
        queue = Queue(*(message(take, name=name, seconds=seconds) for name, seconds in tasks))
        last = queue.waiting[-1]["messageId"]
        assert queue.deliver(self.invocation) == [last]
        assert effects() == ["a", "b"]
        assert only_settled_are_deleted(queue)
        assert queue.deliver(self.invocation) == []
        assert effects() == ["a", "b", "c"]

    def test_first_task_starts_with_any_time_left(self) -> None:
        """Its limits are shortened to the time left."""
        limits = []

        class Listening:
            @hookimpl
            def lambda_task_started(self, run: Any) -> None:
                limits.append((run.soft_timeout, run.hard_timeout))

        queue = Queue(message(take, name="a", seconds=1))
        with override_settings(LAMBDA_TASKS_PLUGINS=[Listening()]):
            assert queue.deliver(self.invocation) == []
            queue.waiting += [message(take, name=name, seconds=1) for name in "bc"]
            # A fresh invocation has 900 s.
            assert len(queue.deliver(self.short_invocation)) == 1
        assert effects() == ["a", "b"]
        assert limits[0] == (270, 300)
        assert all(soft < hard < 60 for soft, hard in limits[1:])
        assert len(limits) == 2

    def test_first_runnable_message_counts_as_the_first(self) -> None:
        queue = Queue(message(take, name="first", seconds=1))
        queue.deliver(self.invocation)  # a fresh invocation has 900 s
        broken = message(take, name="broken", seconds=1) | {"body": "{", "messageAttributes": {}}
        queue = Queue(broken, message(take, name="a", seconds=1))
        assert queue.deliver(self.short_invocation) == [broken["messageId"]]
        assert effects() == ["first", "a"]

    @pytest.mark.parametrize("context", [None, object(), {}], ids=["none", "an object", "a dict"])
    def test_context_without_a_clock_limits_nothing(self, context: Any) -> None:
        queue = Queue(*(message(take, name=str(number), seconds=250) for number in range(10)))
        assert queue.deliver(context=context) == []
        assert each_once(range(10))

    def test_function_shorter_than_limits_runs_its_whole_batch(self, caplog: pytest.LogCaptureFixture) -> None:
        """A fresh invocation would not have more time, so handing messages back would only use up receives."""
        for _ in range(2):
            queue = Queue(*(message(take, name=str(number), seconds=1) for number in range(10)))
            assert queue.deliver(self.short_invocation) == []
        [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert "The function has 60 s" in warning
        assert "take needs up to 305 s" in warning

    def test_slow_start_leaves_time_for_a_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The function's time includes the setup of Django."""

        def boot() -> None:
            clock.now += 8

        monkeypatch.setattr(handler_module, "boot", boot)
        queue = Queue(*(message(take, name=str(number), seconds=0) for number in range(10)))
        assert queue.deliver(self.short_invocation) == []

    def test_long_task_waits_for_a_fresh_invocation(self, caplog: pytest.LogCaptureFixture) -> None:
        """It needs most of the function's time, and would fail with shortened limits."""
        queue = Queue(*(message(take, name=str(number), seconds=50) for number in range(3)))
        assert len(queue.deliver(self.short_invocation)) == 2
        [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warning.startswith("2 messages were handed back, at the cost of one receive each")
        assert "The function has 60 s" in warning
        assert "take needs up to 305 s" in warning
        assert queue.deliver_until_empty(run=self.short_invocation) == 2
        assert each_once(range(3))

    def test_each_delivery_accepts_less_time(self) -> None:
        queue = Queue(*(message(take, name=str(number), seconds=5) for number in range(10)))
        # Four tasks start while 45 s of 60 are left. The next delivery accepts 33 s, which is enough for six.
        assert len(queue.deliver(self.short_invocation)) == 6
        assert queue.deliver(self.short_invocation) == []
        assert each_once(range(10))

    def test_pauses_of_returned_messages_grow_with_jitter(self) -> None:
        for receives, least in ((1, 5), (2, 10), (3, 20), (20, 320)):
            pauses = {handed_back_pause(receives) for _ in range(20)}
            assert len(pauses) > 1
            assert all(least <= pause <= 1.25 * least for pause in pauses)


# Workers that die


class TestPoisonPills:
    def test_poison_pill_fails_alone(self) -> None:
        good = [str(number) for number in range(9)]
        records = notes(*good)
        pill = message(poison, name="poison")
        queue = Queue(*records[:3], pill, *records[3:])

        # The first worker dies in the fourth message, and all ten return.
        assert len(queue.deliver(in_another_process)) == 10
        assert effects() == good[:3]
        assert not queue.deleted

        # Messages that have ended are acknowledged without a run. The poison pill runs last and harms no other message.
        expire_leases()
        assert len(queue.deliver(in_another_process)) == 10
        assert effects() == good

        # Repeat until the pill has killed the maximum number of workers.
        deliveries = 2
        while queue.waiting:
            expire_leases()
            queue.deliver(in_another_process)
            deliveries += 1
        assert deliveries == 5
        assert effects() == good
        record = TaskRecord.objects.get(pk=pill["messageId"])
        assert record.status == "FAILED"
        assert "TaskCrashedError: crashed: 4 workers died" in record.traceback
        assert only_settled_are_deleted(queue)

    def test_often_received_messages_run_last(self) -> None:
        """If the worker died before it claimed them, the store cannot tell which were started."""
        queue = Queue(*notes("suspicious"))
        queue.receives[queue.waiting[0]["messageId"]] = 2
        queue.waiting += notes("a", "b")
        queue.deliver()
        assert effects() == ["a", "b", "suspicious"]

    def test_returned_message_keeps_its_place(self) -> None:
        first = message(stumble_until_exists, name="neighbour")
        queue = Queue(first, *notes("neighbour"))
        backend().is_away = True  # the retry cannot be sent
        assert queue.deliver() == [first["messageId"]]
        assert TaskRecord.objects.get(pk=first["messageId"]).status == "RUNNING"
        backend().is_away = False
        queue.waiting += notes("new")
        assert queue.deliver() == []
        assert effects() == ["neighbour", "there it is", "new"]

    def test_work_survives_a_death_before_the_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def die(point: str) -> None:
            if point == "batch:before_return":
                os.kill(os.getpid(), signal.SIGKILL)

        queue = Queue(*notes(*range(5)), message(fail, name="rolled back"))
        with monkeypatch.context() as patch:
            patch.setattr(failpoints, "reached", die)
            assert len(queue.deliver(in_another_process)) == 6
        assert each_once(range(5))
        assert queue.deliver() == []
        assert each_once(range(5))
        assert only_settled_are_deleted(queue)


# Copies, and answers that are lost


class TestCopies:
    def test_lost_answer_repeats_no_work(self) -> None:
        skipped = []

        class Counting:
            @hookimpl
            def lambda_task_skipped(self, message_id: str, reason: str) -> None:
                skipped.append((message_id, reason))

        queue = Queue(*notes(*range(8)), message(fail, name="x"), message(stumble, name="x"))
        ids = [record["messageId"] for record in queue.waiting]
        with override_settings(LAMBDA_TASKS_PLUGINS=[Counting()]):
            assert queue.deliver(answer_is_lost=True) == ids
            assert skipped == []
            assert queue.deliver() == []
        assert skipped == [(raw_id, "finished") for raw_id in ids]
        assert each_once(range(8))
        assert len(backend().jobs) == 1  # the retry was sent once
        assert only_settled_are_deleted(queue)

    def test_duplicates_in_one_batch_are_one_invocation(self) -> None:
        for task, ended in ((note, "SUCCESS"), (fail, "FAILED"), (stumble, "RETRYING")):
            TaskRecord.objects.all().delete()
            record = message(task, name="once")
            copy = record | {"messageId": f"copy of {record['messageId']}", "receiptHandle": "another"}
            queue = Queue(record, copy, dict(record), *notes("neighbour"), dict(copy))
            assert queue.deliver() == []
            assert len(queue.deleted) == 5
            assert sorted(TaskRecord.objects.values_list("status", flat=True)) == sorted([ended, "SUCCESS"])
        assert effects() == ["once", "neighbour", "neighbour", "neighbour"]
        assert len(backend().jobs) == 1

    def test_malformed_duplicates_are_named_once(self) -> None:
        broken = {**message(note, name="a"), "body": "{", "messageAttributes": {}}
        queue = Queue(broken, dict(broken), *notes("b"))
        answer = handler({"Records": queue.waiting}, None)
        assert answer == {"batchItemFailures": [{"itemIdentifier": broken["messageId"]}]}
        assert queue.deliver() == [broken["messageId"]]
        assert only_settled_are_deleted(queue)

    def test_copy_waits_until_the_first_has_ended(self) -> None:
        began, started = os.pipe()
        waiting, go_on = os.pipe()
        record = message(meet, began=started, go_on=waiting)
        event = {"Records": [record]}
        try:
            with forked(lambda: in_this_process(event, None)) as answer:
                assert select.select([began], [], [], PATIENCE)[0], "the other worker does not start"
                queue = Queue(dict(record), *notes("neighbour"))
                assert queue.deliver() == [record["messageId"]]
                assert effects() == ["neighbour"]
                # The copy is not delivered again before the lease has expired, with jitter.
                [(postponed, seconds)] = backend().postponed
                assert postponed == record["messageId"]
                assert 200 < seconds < 330
                os.write(go_on, b".")
                assert json.loads(answer()) == {"batchItemFailures": []}
        finally:
            for end in (began, started, waiting, go_on):
                os.close(end)
        assert queue.deliver() == []
        assert effects() == ["neighbour", "met"]
        assert only_settled_are_deleted(queue)


# Unavailable databases


class TestDatabaseOutage:
    @contextmanager
    def absent(self, monkeypatch: pytest.MonkeyPatch, *, at: str, number: int) -> Iterator[list[str]]:
        """Make the database unavailable when the failpoint `at` is reached for the `number`-th time.

        Yields a list with one entry for each time.
        """
        connection = connections["default"]
        before = {name: connection.settings_dict[name] for name in ("HOST", "NAME", "OPTIONS")}
        nowhere = "/nonexistent/database"
        seen: list[str] = []

        def strike(point: str) -> None:
            if point == at:
                seen.append(point)
                if len(seen) == number:
                    if connection.vendor == "sqlite" and not connection.in_atomic_block:
                        # SQLite has no server that could end a session, and its driver reports a closed connection as a
                        # programming error.
                        connection.close()
                    elif (session := connection.connection) is not None:
                        # PyMySQL refuses to close twice. This is what it does when the server is gone.
                        getattr(session, "_force_close", session.close)()
                    connection.settings_dict.update(HOST=nowhere, NAME=nowhere, OPTIONS={})

        with monkeypatch.context() as patch:
            patch.setattr(failpoints, "reached", strike)
            try:
                yield seen
            finally:
                connection.close()
                connection.settings_dict.update(before)

    def test_outage_between_two_messages_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        queue = Queue(*notes(*range(10)))
        ids = [record["messageId"] for record in queue.waiting]
        with self.absent(monkeypatch, at="batch:next", number=5) as begun:
            answer = in_this_process({"Records": queue.waiting}, None)
        assert returned_by(answer, ids) == set(ids[4:])
        assert len(begun) == 5  # the others do not wait for it one after the other
        # They are postponed, so that an outage does not use up the receives.
        assert [raw_id for raw_id, _ in backend().postponed] == ids[4:]
        assert all(20 <= seconds <= 25 for _, seconds in backend().postponed)
        assert effects() == ["0", "1", "2", "3"]
        assert queue.deliver_until_empty() == 1
        assert each_once(range(10))

    @pytest.mark.parametrize("at", ["task:enter", "task:leave", "finish:before_commit"])
    def test_outage_during_a_task_loses_nothing(self, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
        queue = Queue(*notes(*range(10)))
        ids = [record["messageId"] for record in queue.waiting]
        with self.absent(monkeypatch, at=at, number=5):
            answer = in_this_process({"Records": queue.waiting}, None)
        assert returned_by(answer, ids) == set(ids[4:])
        assert effects() == ["0", "1", "2", "3"]
        expire_leases()
        queue.deliver_until_empty()
        assert each_once(range(10))
        assert only_settled_are_deleted(queue)

    def test_outage_after_the_commit_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        queue = Queue(*notes(*range(10)))
        ids = [record["messageId"] for record in queue.waiting]
        with self.absent(monkeypatch, at="finish:after_commit", number=5):
            answer = in_this_process({"Records": queue.waiting}, None)
        assert returned_by(answer, ids) == set(ids[5:])
        queue.deliver_until_empty()
        assert each_once(range(10))

    def test_long_outage_returns_every_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        queue = Queue(*notes(*range(3)))
        records = queue.waiting
        for receives in (1, 2, 3):
            for record in records:
                record["attributes"]["ApproximateReceiveCount"] = str(receives)
            with self.absent(monkeypatch, at="batch:start", number=1):
                answer = in_this_process({"Records": records}, None)
            assert returned_by(answer, [r["messageId"] for r in records]) == {r["messageId"] for r in records}
        least = [20] * 3 + [200] * 3 + [2000] * 3
        pauses = [seconds for _, seconds in backend().postponed]
        assert all(low <= pause <= 1.25 * low for pause, low in zip(pauses, least, strict=True))
        queue.deliver_until_empty()
        assert each_once(range(3))


# Events of every size, and malformed events


class TestEvents:
    @pytest.mark.parametrize(("size", "kinds"), [(100, "ggggfggbgg"), (1_000, "gbbbfbbbbb")])
    def test_large_batch_is_answered_message_by_message(self, size: int, kinds: str) -> None:
        """With a batching window, an event has up to 10,000 messages: good, failing and malformed."""
        by_kind: dict[str, list[dict[str, Any]]] = {"g": [], "f": [], "b": []}
        records = []
        for number in range(size):
            kind = kinds[number % len(kinds)]
            record = message(fail if kind == "f" else note, name=str(number))
            if kind == "b":
                record |= {"body": "[]", "messageAttributes": {}}
            by_kind[kind].append(record)
            records.append(record)
        queue = Queue(*records)
        assert queue.deliver() == [record["messageId"] for record in by_kind["b"]]
        assert only_settled_are_deleted(queue)
        assert effects() == [str(number) for number in range(size) if kinds[number % len(kinds)] == "g"]
        statuses = Counter(TaskRecord.objects.values_list("status", flat=True))
        assert statuses == {"SUCCESS": len(by_kind["g"]), "FAILED": len(by_kind["f"])}

    @pytest.mark.parametrize("raw_id", [None, "", 7, ...], ids=["null", "empty", "a number", "absent"])
    @pytest.mark.parametrize("place", [0, 5, 9])
    def test_message_without_an_id_returns_the_batch(self, raw_id: Any, place: int) -> None:
        """No task of the batch runs."""
        records = notes(*range(10))
        nameless = dict(records[place])
        if raw_id is ...:
            del nameless["messageId"]
        else:
            nameless["messageId"] = raw_id
        with pytest.raises(InvalidEvent, match="no messageId"):
            handler({"Records": [*records[:place], nameless, *records[place + 1 :]]}, None)
        assert effects() == []
        assert not TaskRecord.objects.exists()
        assert Queue(*records).deliver() == []  # in SQS, each message has an id
        assert each_once(range(10))

    @pytest.mark.parametrize(
        ("event", "message"),
        [
            (
                {
                    "Records": [
                        {"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": {"MessageId": "a", "Message": "{}"}}
                    ]
                },
                "no messageId: it comes from aws:sns, not from a queue",
            ),
            ({"Records": [{"eventSource": "aws:s3", "s3": {"object": {"key": "a"}}}]}, "it comes from aws:s3"),
            (
                {"Records": [{"eventSource": "aws:kinesis", "eventID": "shard:1", "kinesis": {"data": "e30="}}]},
                "it comes from aws:kinesis",
            ),
            (
                {"version": "0", "id": "1", "detail-type": "Scheduled Event", "source": "aws.events", "detail": {}},
                "It has: version, id, detail-type, source, detail. If a rule",
            ),
            ({"Records": {}}, "It has: Records."),
            ({}, "It has: no fields."),
        ],
        ids=["SNS", "S3", "Kinesis", "EventBridge", "an object", "empty"],
    )
    def test_events_of_other_sources_raise(self, event: Any, message: str) -> None:
        with pytest.raises(InvalidEvent, match=message):
            handler(event, None)

    def test_empty_batch_succeeds(self) -> None:
        answer = in_this_process({"Records": []}, None)
        assert returned_by(answer, []) == set()
        assert json.loads(answer) == {"batchItemFailures": []}
