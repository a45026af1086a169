"""Handles wait for the end of a task, and return its result as the annotated type."""

from __future__ import annotations

import enum
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest
from django.db import OperationalError, connections, transaction
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from lambda_tasks import RetryLater, TaskFailed, lambda_task
from lambda_tasks.database import aside
from lambda_tasks.exceptions import LambdaTasksError, ResultUnavailable
from lambda_tasks.handles import Polling, TaskHandle
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Latest
from lambda_tasks.results import json_result
from lambda_tasks.stores.null import NullStore
from lambda_tasks.strategies import get_store
from lambda_tasks.testing import TaskQueue
from lambda_tasks.wire.ids import new_message_id, retry_id
from tests.clocks import Clock
from tests.courier import Courier, note, outbox, use_outbox
from tests.faults.workers import backend, deliver, in_another_worker, stored_in

if TYPE_CHECKING:
    pass  # type: ignore[import-not-found]

EVERYWHERE: Final = pytest.mark.databases(transaction=True)
ON_SERVERS: Final = pytest.mark.databases("postgres", "mariadb", transaction=True)
COMMITTING: Final = pytest.mark.django_db(transaction=True)

#: What the next call of `answer` does.
actions: list[Callable[[], Any]] = []


class Again(Exception):
    pass


class Rollback(Exception):
    pass


class Size(enum.Enum):
    SMALL = "small"


@dataclass
class Parcel:
    number: int
    sizes: list[Size]


class Label(BaseModel):
    printed: date
    weight: Decimal


class LongLabel(Label):
    text: str = "fragile"


@lambda_task(retry_on=(Again,), ignore_errors=(KeyError,), max_retries=2)
def answer(*, number: int = 0) -> int:
    return actions.pop(0)() if actions else number  # type: ignore[no-any-return]


@lambda_task
async def asynchronous() -> UUID:
    return UUID(int=7)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    actions.clear()


@pytest.fixture
def store(database: str) -> Iterator[str]:
    with stored_in(database):
        yield database


def raising(error: Exception) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


def work() -> None:
    """Deliver everything that is on the queue, as another process would."""
    while jobs := backend().take():
        in_another_worker(lambda jobs=jobs: deliver(*jobs))


def send(database: str, number: int = 7) -> TaskHandle[int]:
    return answer.using(database=database).execute_on_commit(number=number)


@EVERYWHERE
class TestEnds:
    def test_success_returns_the_result(self, store: str) -> None:
        handle = send(store)
        clock = Clock(work)
        assert handle.result(poll=clock.polling()) == 7
        assert len(clock.sleeps) == 1
        assert handle.wait() == "SUCCESS"

    def test_failure_raises_with_the_record(self, store: str) -> None:
        handle = send(store)
        actions.append(raising(ValueError("no stock")))
        work()
        with pytest.raises(TaskFailed, match=r"answer \[.+\] has failed \(error\): ValueError: no stock") as raised:
            handle.result()
        failed = raised.value
        assert isinstance(failed, LambdaTasksError)
        assert (str(failed.record.pk), failed.record.status) == (handle.message_id, "FAILED")
        assert failed.reason == "error"
        assert failed.traceback == failed.record.traceback
        assert "raise error" in failed.traceback
        assert handle.wait() == "FAILED"

    def test_retries_are_followed_to_the_end(self, store: str) -> None:
        handle = send(store)
        actions.extend([raising(Again()), raising(RetryLater(delay=1, reason="later"))])
        clock = Clock(deliver_one, deliver_one, deliver_one)
        assert handle.result(poll=clock.polling()) == 7
        assert len(clock.sleeps) == 3
        assert handle.status == "RETRYING"

    def test_last_retry_is_the_failure(self, store: str) -> None:
        handle = send(store)
        actions.extend([raising(Again("a")), raising(Again("b")), raising(Again("c"))])
        work()
        with pytest.raises(TaskFailed, match=r"\(max_retries\): .*Again: c$") as raised:
            handle.result()
        assert raised.value.record.n_retries == 2

    def test_handle_of_a_retry_follows_its_chain(self, store: str) -> None:
        handle = send(store)
        actions.extend([raising(Again()), raising(Again())])
        deliver_one()
        deliver_one()
        first_retry: TaskHandle[int] = TaskHandle.from_id(retry_id(handle.message_id, 1), answer)
        clock = Clock(work)
        assert first_retry.result(poll=clock.polling()) == 7
        assert first_retry.status == "RETRYING"

    def test_ignored_error_has_no_result(self, store: str) -> None:
        handle = send(store)
        actions.append(raising(KeyError()))
        work()
        assert handle.result() is None
        assert handle.wait() == "SUCCESS"

    def test_cancelled_task_has_failed(self, store: str) -> None:
        handle = send(store)
        clock = Clock(handle.cancel)
        with pytest.raises(TaskFailed, match=r"\(cancelled\)"):
            handle.result(poll=clock.polling())

    def test_error_contains_no_sensitive_argument(self, store: str) -> None:
        handle = login.using(database=store).execute_on_commit(token="hunter2")
        work()
        with pytest.raises(TaskFailed) as raised:
            handle.result()
        assert "hunter2" not in f"{raised.value} {raised.value.traceback}"


@lambda_task(sensitive=("token",))
def login(*, token: str) -> None:
    raise ValueError(f"wrong {token}")


def deliver_one() -> None:
    [job] = backend().take(1)
    in_another_worker(lambda: deliver(job))


class TestPolling:
    def test_pauses_double_up_to_the_longest(self) -> None:
        clock = Clock()
        pauses = []
        for pause in clock.polling(first=0.1, longest=1).pauses(None):
            pauses.append(pause)
            if len(pauses) == 6:
                break
        assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1])

    def test_jitter_shortens_each_pause_by_up_to_half(self) -> None:
        assert next(Clock().polling(jitter=1.0, first=0.4).pauses(None)) == pytest.approx(0.2)
        assert next(Clock().polling(jitter=0.5, first=0.4).pauses(None)) == pytest.approx(0.3)

    def test_default_pauses_differ(self) -> None:
        assert len({next(Polling().pauses(None)) for _ in range(10)}) > 1

    def test_last_question_is_at_the_timeout(self) -> None:
        clock = Clock()
        for pause in clock.polling(first=1, longest=4).pauses(9):
            clock.sleep(pause)
        assert clock.sleeps == [1, 2, 4, 2]

    @pytest.mark.parametrize("options", [{"first": 0}, {"first": 6}, {"longest": -1}, {"first": math.nan}])
    def test_invalid_pause_raises_value_error(self, options: Any) -> None:
        with pytest.raises(ValueError, match="first must be more than 0"):
            Polling(**options)

    @pytest.mark.parametrize("options", [{"first": "1"}, {"longest": True}])
    def test_pause_of_another_type_raises_type_error(self, options: Any) -> None:
        with pytest.raises(TypeError, match="must be a number of seconds"):
            Polling(**options)

    @pytest.mark.parametrize("timeout", ["5", True, object()])
    def test_timeout_of_another_type_raises_type_error(self, timeout: Any) -> None:
        with pytest.raises(TypeError, match="timeout must be a number"):
            TaskHandle(new_message_id()).result(timeout)

    @pytest.mark.parametrize("timeout", [-1, math.nan, timedelta(seconds=-1)])
    def test_negative_timeout_raises_value_error(self, timeout: Any) -> None:
        with pytest.raises(ValueError, match="timeout must be at least 0"):
            TaskHandle(new_message_id()).wait(timeout)

    @pytest.mark.django_db
    def test_real_clock_is_the_default(self) -> None:
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            TaskHandle(new_message_id()).result(0.01)


@EVERYWHERE
class TestQuestions:
    def test_each_question_is_one_query(self, store: str) -> None:
        handle = send(store)
        actions.append(raising(Again()))
        clock = Clock(deliver_one, lambda: None, deliver_one)
        with CaptureQueriesContext(connections[store]) as queries:
            assert handle.result(poll=clock.polling()) == 7
        assert len(queries) == 4  # immediately, and after each of three pauses

    def test_timeout_of_zero_asks_once(self, store: str) -> None:
        clock = Clock()
        handle: TaskHandle[Any] = TaskHandle.from_id(new_message_id())
        with CaptureQueriesContext(connections[store]) as queries, pytest.raises(TimeoutError):
            handle.result(0, poll=clock.polling())
        assert clock.sleeps == []
        assert len(queries) == 3  # one for the result, and two for the status in the error


@EVERYWHERE
class TestTimeouts:
    def fails(self, handle: TaskHandle[Any]) -> str:
        with pytest.raises(TimeoutError) as raised:
            handle.result(3, poll=Clock().polling())
        return str(raised.value)

    def test_error_names_task_id_status_and_remedy(self, store: str) -> None:
        handle = send(store)
        text = self.fails(handle)
        assert text == (
            f"{answer.name} [{handle.message_id}] has not ended within 3 s; its status is SENT. No worker has claimed "
            "it. Check that a worker receives messages from its queue, or wait longer."
        )

    def test_remedy_depends_on_the_status(self, store: str) -> None:
        handle = send(store)
        actions.append(raising(Again()))
        deliver_one()
        assert "its status is RETRYING. It waits for its next retry." in self.fails(handle)

    def test_unknown_id_is_explained(self, store: str) -> None:
        text = self.fails(TaskHandle.from_id(new_message_id()))
        assert text.startswith("The task [")
        assert "its status is None. It has no record" in text

    def test_message_in_the_outbox_is_named(self, store: str, settings: Any) -> None:
        use_outbox(settings, store)
        handle = note.using(database=store, delay=86_400).execute_on_commit(number=1)
        assert "its status is WAITING. Its message waits in the outbox." in self.fails(handle)


@EVERYWHERE
class TestInTransactions:
    def test_result_of_an_unsent_task_raises_immediately(self, store: str) -> None:
        clock = Clock()
        with transaction.atomic(using=store):
            handle = send(store)
            for wait in (handle.result, handle.wait):
                with pytest.raises(ResultUnavailable, match=f"open transaction on '{store}' commits"):
                    wait(poll=clock.polling())
        assert clock.sleeps == []
        assert handle.result(poll=Clock(work).polling()) == 7

    def test_other_thread_waits_for_the_transaction(self, store: str) -> None:
        with transaction.atomic(using=store):
            handle = send(store)
            with pytest.raises(TimeoutError, match=r"its status is PENDING\. End the transaction"):
                in_another_worker(lambda: handle.result(1, poll=Clock().polling()))

    def test_result_of_a_rolled_back_call_raises_immediately(self, store: str) -> None:
        with suppress(Rollback), transaction.atomic(using=store):
            handle = send(store)
            raise Rollback
        with pytest.raises(ResultUnavailable, match=r"was never sent: the transaction .* was rolled back"):
            handle.result()

    def test_transaction_that_begins_later_sees_the_end(self, store: str) -> None:
        handle = send(store)
        with transaction.atomic(using=store):
            assert not TaskRecord.objects.using(store).exists()  # a snapshot, if the isolation level has one
            assert handle.result(poll=Clock(work).polling()) == 7

    def test_connection_for_the_question_is_closed(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        threads = []
        start = aside.AsideThread.start
        monkeypatch.setattr(aside.AsideThread, "start", lambda thread: (threads.append(thread), start(thread)))
        handle = send(store)
        with transaction.atomic(using=store):
            handle.wait(poll=Clock(work).polling())
        assert len(threads) == 1
        assert not threads[0].is_alive()
        send(store).wait(poll=Clock(work).polling())
        assert len(threads) == 1  # outside of a transaction, the caller's connection is used


@ON_SERVERS
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_question_does_not_read_an_old_snapshot(database: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = connections[database]
    with stored_in(database):
        handle = send(database)
        with transaction.atomic(using=database):
            with connection.cursor() as cursor:
                if connection.vendor == "postgresql":
                    cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level.upper()}")
            assert TaskRecord.objects.using(database).count() == 0
            assert handle.result(poll=Clock(work).polling()) == 7
            if connection.vendor == "postgresql":
                assert TaskRecord.objects.using(database).count() == 0, "the transaction has no snapshot"


@pytest.mark.databases("mariadb", transaction=True)
def test_question_does_not_read_mariadbs_snapshot(database: str) -> None:
    connection = connections[database]
    with stored_in(database):
        handle = send(database)
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        try:
            with transaction.atomic(using=database):
                assert TaskRecord.objects.using(database).count() == 0
                assert handle.result(poll=Clock(work).polling()) == 7
                assert TaskRecord.objects.using(database).count() == 0, "the transaction has no snapshot"
        finally:
            connection.close()


@pytest.mark.django_db
def test_result_is_visible_in_a_test_case(lambda_tasks_queue: TaskQueue) -> None:
    with lambda_tasks_queue.commit():
        handle = answer.execute_on_commit(number=7)
    lambda_tasks_queue.run_until_idle()
    assert handle.result(poll=Clock().polling()) == 7
    sent = answer.execute_now(number=8)
    assert sent.result(poll=Clock(lambda_tasks_queue.run_until_idle).polling()) == 8


@EVERYWHERE
class TestStates:
    def test_states_of_a_call(self, store: str) -> None:
        with transaction.atomic(using=store):
            handle = send(store)
            assert handle.status == "PENDING"
        assert handle.status == "SENT"
        work()
        assert handle.status == "SUCCESS"

    def test_rolled_back_savepoint(self, store: str) -> None:
        with transaction.atomic(using=store):
            with suppress(Rollback), transaction.atomic(using=store):
                handle = send(store)
                raise Rollback
            assert handle.status == "ROLLED_BACK"
            other = send(store)
        assert (handle.status, other.status) == ("ROLLED_BACK", "SENT")

    def test_pending_call_is_known_without_the_outbox(self, store: str) -> None:
        with transaction.atomic(using=store):
            handle = send(store)
            with CaptureQueriesContext(connections[store]) as queries:
                _ = handle.status
            assert len(queries) == 1

    def test_call_without_a_transaction_is_sent(self, store: str) -> None:
        assert send(store).status == "SENT"

    def test_refused_message_is_unsent(self, store: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = f"{__name__}.Unavailable"
        with pytest.raises(ConnectionError), transaction.atomic(using=store):
            handle = send(store)
        assert handle.status == "UNSENT"

    def test_outbox_knows_more(self, store: str, settings: Any) -> None:
        courier = use_outbox(settings, store)
        courier.fails = {1}
        with transaction.atomic(using=store):
            handle = note.using(database=store).execute_on_commit(number=1)
            assert handle.status == "PENDING"
        assert handle.status == "WAITING"
        courier.fails = set()
        outbox().send_now([handle.message_id], using=store)
        assert handle.status is None  # another process may have deleted it
        assert note.using(database=store).execute_on_commit(number=2).status == "SENT"

    def test_failed_commit_leaves_a_kept_call_unknown(
        self, store: str, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """COMMIT has failed after the outbox has kept the message, so only the database knows."""
        use_outbox(settings, store)
        monkeypatch.setattr(connections[store], "_commit", raising(OperationalError()))
        with pytest.raises(OperationalError), transaction.atomic(using=store):
            handle = note.using(database=store).execute_on_commit(number=1)
        assert handle.status is None

    def test_handle_from_an_id_knows_only_the_database(self, store: str) -> None:
        handle = send(store)
        assert TaskHandle.from_id(handle.message_id).status is None
        work()
        assert TaskHandle.from_id(handle.message_id).status == "SUCCESS"

    def test_handle_can_be_pickled(self, store: str) -> None:
        with transaction.atomic(using=store):
            handle = send(store)
            copy = pickle.loads(pickle.dumps(handle))
            assert copy == handle
            assert copy.task is not None
            assert copy.task.name == answer.name
            assert copy.status is None
        work()
        assert copy.result() == 7


class Unavailable(Courier):
    def send(self, jobs: Any) -> Any:
        raise ConnectionError("no queue")


class TestFromId:
    def test_handle_with_a_type_can_be_created(self) -> None:
        handle = TaskHandle[int]("018f0000-0000-7000-8000-000000000000", "other")
        assert handle == TaskHandle("018f0000-0000-7000-8000-000000000000", "other")
        with pytest.raises(AttributeError):
            handle.message_id = "another"  # type: ignore[misc]

    def test_id_is_made_canonical(self) -> None:
        key = UUID(int=7)
        for given in (key, str(key).upper(), key.hex):
            assert TaskHandle.from_id(given).message_id == str(key)

    def test_invalid_id_raises_value_error(self) -> None:
        with pytest.raises(ValueError, match=r"must be a UUID, as in handle\.message_id"):
            TaskHandle.from_id("7")

    @pytest.mark.parametrize("task", [len, "answer", 7])
    def test_other_than_a_task_raises_type_error(self, task: Any) -> None:
        with pytest.raises(TypeError, match="task must be a function with @lambda_task"):
            TaskHandle.from_id(new_message_id(), task)

    @EVERYWHERE
    def test_result_without_the_task_is_json(self, store: str) -> None:
        handle = asynchronous.using(database=store).execute_on_commit()
        work()
        assert handle.result() == TaskHandle.from_id(handle.message_id, asynchronous).result() == UUID(int=7)
        assert TaskHandle.from_id(handle.message_id).result() == str(UUID(int=7))


def typed(annotation: Any) -> Any:
    def function(*, x: int = 0) -> Any: ...

    function.__annotations__["return"] = annotation
    return lambda_task(function)


def received(annotation: Any, result: Any) -> Any:
    """Return a result as a caller receives it."""
    return typed(annotation).signature.returned.read(json_result(result))


class TestTypes:
    @pytest.mark.parametrize(
        ("annotation", "result"),
        [
            (int, 7),
            (float, 1),
            (float, 0.1),
            (str, "ü"),
            (UUID, UUID(int=1)),
            (date, date(2026, 11, 29)),
            (datetime, datetime(2026, 11, 29, 10, 30, 0, 5000, tzinfo=timezone.utc)),
            (timedelta, timedelta(days=-1, microseconds=5)),
            (Decimal, Decimal("0.10")),
            (Size, Size.SMALL),
            (Parcel, Parcel(1, [Size.SMALL])),
            (Label, Label(printed=date(2026, 11, 29), weight=Decimal("1.5"))),
            (list[Parcel], [Parcel(1, []), Parcel(2, [])]),
            (tuple[int, UUID], (1, UUID(int=1))),
            (set[str], {"a"}),
            (frozenset[int], frozenset({3, 1})),
            (dict[str, Decimal | None], {"a": Decimal("1.0"), "b": None}),
            (str | UUID, UUID(int=1)),
            (str | UUID, "a"),
            (date | str, "1735689600"),
            (int | None, 7),
            ("list[Parcel]", [Parcel(1, [])]),
        ],
        ids=repr,
    )
    def test_result_has_the_annotated_type(self, annotation: Any, result: Any) -> None:
        value = received(annotation, result)
        assert (value, type(value)) == (result, type(result))

    @pytest.mark.parametrize(
        ("annotation", "result"),
        [
            (int, "seven"),
            (UUID, 7),
            (Any, {"a": [1]}),
            (Label, LongLabel(printed=date(2026, 11, 29), weight=Decimal(1))),
            (TaskRecord, 7),
            ("Missing", [7]),
            ("1 +", [7]),
        ],
        ids=repr,
    )
    def test_other_results_stay_json(self, annotation: Any, result: Any) -> None:
        assert received(annotation, result) == json_result(result)

    @pytest.mark.parametrize("stored", [["a", "b"], ["b", "a"]])
    def test_set_is_read_in_any_order(self, stored: list[str]) -> None:
        assert typed(set[str]).signature.returned.read(stored) == {"a", "b"}

    def test_function_without_annotation_returns_json(self) -> None:
        def function(*, x: int = 0): ...  # type: ignore[no-untyped-def]

        assert lambda_task(function).signature.returned.read([1]) == [1]


class Minimal(NullStore):
    """A store that returns results."""

    ends: list[Latest | None]

    def latest(self, message_id: str) -> Latest | None:
        return self.ends.pop(0)


class TestStores:
    def test_store_without_results_says_so(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = "lambda_tasks.stores.null.NullStore"
        with pytest.raises(NotImplementedError, match="NullStore does not return results"):
            TaskHandle.from_id(new_message_id(), answer).result()

    @pytest.mark.django_db
    def test_store_needs_to_implement_one_method(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = f"{__name__}.Minimal"
        store = get_store()
        assert isinstance(store, Minimal)
        key = new_message_id()
        store.ends = [None, Latest(key, key, "RETRYING"), Latest(key, key, "SUCCESS", result=7)]
        handle = TaskHandle.from_id(key, answer)
        assert handle.result(poll=Clock().polling()) == 7
        store.ends = [Latest(key, key, "FAILED")]
        with pytest.raises(TaskFailed, match="has failed: no traceback is recorded"):
            handle.result()
        assert handle.progress is None


@EVERYWHERE
class TestSendingNow:
    def test_message_leaves_although_its_transaction_rolls_back(self, store: str) -> None:
        with suppress(Rollback), transaction.atomic(using=store):
            handle = answer.using(database=store).execute_now(number=7)
            assert handle.status == "SENT"
            raise Rollback
        assert handle.result(poll=Clock(work).polling()) == 7

    def test_outbox_is_bypassed(self, store: str, settings: Any) -> None:
        courier = use_outbox(settings, store)
        with suppress(Rollback), transaction.atomic(using=store), CaptureQueriesContext(connections[store]) as queries:
            note.using(database=store).execute_now(number=1)
            raise Rollback
        assert courier.sent == [1]
        assert list(queries) == []

    def test_error_of_the_queue_reaches_the_caller(self, store: str, settings: Any) -> None:
        use_outbox(settings, store).fails = {1}
        with transaction.atomic(using=store):
            with pytest.raises(ConnectionError):
                note.execute_now(number=1)
            assert TaskRecord.objects.using(store).count() == 0  # the transaction is usable

    def test_delay_is_limited_by_the_queue(self, store: str, settings: Any) -> None:
        use_outbox(settings, store)
        with pytest.raises(LambdaTasksError, match="from 0 to 900"):
            note.using(delay=901).execute_now(number=1)
        note.using(delay=900).execute_now(number=1)

    def test_invalid_arguments_are_refused(self, store: str) -> None:
        with pytest.raises(LambdaTasksError, match="number must be a valid integer"):
            answer.execute_now(number="7")  # type: ignore[arg-type]
        assert backend().jobs == []

    def test_unique_task_is_refused(self, store: str) -> None:
        with pytest.raises(TypeError, match=r"option unique, so execute_now\(\) cannot send it"):
            only_one.execute_now()
        assert backend().jobs == []

    def test_plugins_may_refuse_it(self, store: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_PLUGINS = [Refuses()]
        with pytest.raises(Rollback):
            answer.execute_now(number=7)
        assert backend().jobs == []

    def test_eager_task_runs_in_the_callers_transaction(self, store: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        with suppress(Rollback), transaction.atomic(using=store):
            handle = answer.execute_now(number=7)
            assert handle.result(0) == 7
            raise Rollback
        assert handle.status == "SENT"


class Refuses:
    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        raise Rollback


@lambda_task(unique=True)
def only_one() -> None: ...
