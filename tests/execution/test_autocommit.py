"""Tasks with `atomic=False`: their writes commit as they go, and SUCCESS follows."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from asgiref.sync import sync_to_async
from django.db import IntegrityError, OperationalError, connections, transaction

from lambda_tasks import failpoints
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import LeaseLost, Redeliver, TaskCrashedError, TransactionBroken
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.models import TaskReason, TaskRecord
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Skipped, Succeeded
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend, get_lock, get_store
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.courier import note
from tests.faults.workers import backend, effects, expire_lease, in_another_worker, stored_in

EVERYWHERE: Final = pytest.mark.databases(transaction=True)
ON_SERVERS: Final = pytest.mark.databases("postgres", "mariadb", transaction=True)
COMMITTING: Final = pytest.mark.django_db(transaction=True)

#: What the tasks do between their two steps, by the name that they are called with.
actions: dict[str, Callable[[], object]] = {}
ran: list[str] = []


class Again(Exception):
    pass


def nothing() -> None: ...


def steps(name: str) -> Any:
    ran.append(name)
    Effect.objects.using(get_store().database).create(name=f"{name} 1")
    result = actions.get(name, nothing)()
    Effect.objects.using(get_store().database).create(name=f"{name} 2")
    return result


@lambda_task(atomic=False, retry_on=(Again,), ignore_errors=(KeyError,), retry_delay=5)
def go(*, name: str) -> Any:
    return steps(name)


@lambda_task(atomic=False, retry_on=(Exception,))
def go_again(*, name: str) -> Any:
    return steps(name)


@lambda_task(atomic=False, on_crash="fail")
def go_once(*, name: str) -> Any:
    return steps(name)


@lambda_task(atomic=False, soft_timeout=50, hard_timeout=60)
def go_in_time(*, name: str) -> Any:
    return steps(name)


@lambda_task(atomic=False, singleton=True)
def go_alone(*, name: str) -> Any:
    return steps(name)


@lambda_task(atomic=False)
async def go_asynchronously(*, name: str) -> bool:
    await Effect.objects.acreate(name=f"{name} 1")
    return await sync_to_async(in_transaction)()


def in_transaction() -> bool:
    return connections[get_store().database].in_atomic_block


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    actions.clear()
    ran.clear()
    yield
    getattr(get_backend(), "jobs", []).clear()


@pytest.fixture
def store(database: str) -> Iterator[str]:
    with stored_in(database):
        yield database
    connections[database].close()


def run(task: Any, name: str = "a", message_id: str | None = None, **details: Any) -> Outcome | Skipped:
    message = Invocation(task.name, {"name": name})
    return execute(message, message_id=message_id or new_message_id(), task=task, **details)


def record() -> TaskRecord:
    return TaskRecord.objects.using(get_store().database).get()


def raises(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


@EVERYWHERE
class TestCommits:
    def test_function_has_no_transaction(self, store: str) -> None:
        actions["a"] = in_transaction
        assert run(go) == Succeeded(result=False)
        assert (record().status, record().result) == ("SUCCESS", False)
        assert effects() == ["a 1", "a 2"]

    def test_writes_are_visible_while_it_runs(self, store: str) -> None:
        actions["a"] = lambda: in_another_worker(effects)
        assert run(go) == Succeeded(["a 1"])

    @pytest.mark.parametrize(
        ("error", "kind", "status"),
        [
            (ValueError("x"), Failed, "FAILED"),
            (Again("x"), Retry, "RETRYING"),
            (KeyError("x"), Ignored, "SUCCESS"),
            (SystemExit(3), Failed, "FAILED"),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_writes_before_an_error_stay(self, store: str, error: BaseException, kind: type, status: str) -> None:
        actions["a"] = raises(error)
        assert isinstance(run(go), kind)
        assert record().status == status
        assert effects() == ["a 1"]

    def test_own_transaction_rolls_back_alone(self, store: str) -> None:
        def roll_back() -> None:
            with pytest.raises(IntegrityError), transaction.atomic(using=store):
                Effect.objects.using(store).create(name="lost")
                raise IntegrityError

        actions["a"] = roll_back
        assert run(go) == Succeeded()
        assert effects() == ["a 1", "a 2"]

    def test_result_that_cannot_be_stored_fails_the_task(self, store: str) -> None:
        actions["a"] = object
        assert isinstance(run(go), Failed)
        assert (record().status, record().reason) == ("FAILED", "broken")
        assert effects() == ["a 1", "a 2"]

    def test_enqueued_tasks_leave_with_its_own_transactions(self, store: str) -> None:
        waiting: list[int] = []

        def enqueue() -> None:
            with transaction.atomic(using=store):
                note.using(database=store).execute_on_commit(number=1)
                waiting.append(len(backend().jobs))
            waiting.append(len(backend().jobs))
            note.using(database=store).execute_on_commit(number=2)
            waiting.append(len(backend().jobs))

        actions["a"] = enqueue
        assert run(go) == Succeeded()
        assert waiting == [0, 1, 2]

    def test_statements_that_end_transactions_are_allowed(self, store: str) -> None:
        def begin_and_end() -> None:
            with connections[store].cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute("COMMIT")

        actions["a"] = begin_and_end
        assert run(go) == Succeeded()


def begin(database: str) -> None:
    with connections[database].cursor() as cursor:
        cursor.execute("BEGIN")


def set_autocommit(database: str) -> None:
    transaction.set_autocommit(False, using=database)


def enter_atomic(database: str) -> None:
    transaction.atomic(using=database).__enter__()


@EVERYWHERE
@pytest.mark.parametrize("opens", [begin, set_autocommit, enter_atomic], ids=lambda opens: opens.__name__)
class TestLeftOpen:
    def test_transaction_left_open_fails_the_task(self, store: str, opens: Callable[[str], None]) -> None:
        actions["a"] = lambda: opens(store)
        outcome = run(go)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, TransactionBroken)
        assert f"has left a transaction open on '{store}', which is rolled back" in str(outcome.error)
        assert (record().status, record().reason) == ("FAILED", "broken")
        assert effects() == ["a 1"]
        assert (connections[store].in_atomic_block, connections[store].autocommit) == (False, True)

    def test_error_that_leaves_one_open_is_its_cause(self, store: str, opens: Callable[[str], None]) -> None:
        def open_and_raise() -> None:
            opens(store)
            raise Again("would be retried")

        actions["a"] = open_and_raise
        outcome = run(go)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, TransactionBroken)
        assert isinstance(outcome.error.__cause__, Again)
        assert (record().status, record().reason) == ("FAILED", "broken")

    def test_one_left_open_is_never_retried(self, store: str, opens: Callable[[str], None]) -> None:
        """What the task has committed before would be repeated."""
        actions["a"] = lambda: opens(store)
        assert isinstance(run(go_again), Failed)

    def test_next_task_is_not_affected(self, store: str, opens: Callable[[str], None]) -> None:
        actions["a"] = lambda: opens(store)
        run(go)
        actions["b"] = in_transaction
        assert run(go, "b") == Succeeded(result=False)
        assert effects() == ["a 1", "b 1", "b 2"]


@EVERYWHERE
def test_returning_insert_leaves_nothing_open(store: str) -> None:
    """PyMySQL's state of the session is then that of a statement that is still running."""
    actions["a"] = lambda: Effect.objects.using(store).bulk_create([Effect(name="x"), Effect(name="y")]) and None
    assert run(go) == Succeeded()


@EVERYWHERE
def test_transaction_left_open_elsewhere_is_named(store: str) -> None:
    other = "default" if store != "default" else "sqlite"
    actions["a"] = lambda: begin(other)
    try:
        outcome = run(go)
    finally:
        connections[other].close()
    assert isinstance(outcome, Failed)
    assert f"open on '{other}'" in str(outcome.error)


@EVERYWHERE
class TestConnections:
    def test_task_may_close_its_connection(self, store: str) -> None:
        actions["a"] = connections[store].close
        assert run(go) == Succeeded()
        assert effects() == ["a 1", "a 2"]

    def test_error_after_a_new_connection_is_its_own(self, store: str) -> None:
        def reconnect() -> None:
            connections[store].close()
            connections[store].ensure_connection()
            raise ValueError("its own")

        actions["a"] = reconnect
        outcome = run(go)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, ValueError)

    def test_success_without_connection_at_the_end(self, store: str) -> None:
        def close_at_the_end(point: str) -> None:
            if point == "task:leave":
                connections[store].close()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(failpoints, "reached", close_at_the_end)
            assert run(go) == Succeeded()
        assert record().status == "SUCCESS"


def end_session(database: str) -> None:
    """End the session of this thread in the server, without telling Django."""
    connection = connections[database]
    if connection.vendor == "postgresql":
        sql, session = "SELECT pg_terminate_backend(%s, 5000)", connection.connection.info.backend_pid
    else:
        sql, session = "KILL CONNECTION %s", connection.connection.thread_id()

    def kill() -> None:
        with connections[database].cursor() as cursor:
            cursor.execute(sql, [session])

    in_another_worker(kill)


@ON_SERVERS
class TestLostSessions:
    def test_session_lost_in_the_task_is_redelivered(self, store: str) -> None:
        message_id = new_message_id()
        actions["a"] = lambda: end_session(store)
        with pytest.raises(Redeliver):
            run(go, message_id=message_id)
        assert (record().status, record().claim, record().takeovers) == ("RUNNING", None, 1)
        actions.clear()
        assert run(go, message_id=message_id) == Succeeded()
        assert effects() == ["a 1", "a 1", "a 2"]

    def test_task_that_must_not_repeat_is_failed(self, store: str) -> None:
        actions["a"] = lambda: end_session(store)
        outcome = run(go_once)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, TaskCrashedError)

    @pytest.mark.parametrize("task", [go, go_once], ids=lambda task: task.__name__)
    def test_session_lost_after_the_function_is_replaced(self, store: str, task: Any) -> None:
        """The function is not run again, since nothing but the record depends on the session."""

        def end_at_the_end(point: str) -> None:
            if point == "task:leave":
                end_session(store)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(failpoints, "reached", end_at_the_end)
            assert run(task) == Succeeded()
        assert (record().status, ran) == ("SUCCESS", ["a"])

    def test_lost_answer_to_the_record_is_a_success(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = ORMStore.record
        calls: list[object] = []

        def record_and_lose(self: ORMStore, run: Any, outcome: Outcome) -> None:
            real(self, run, outcome)
            calls.append(outcome)
            if len(calls) == 1:
                raise OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(ORMStore, "record", record_and_lose)
        assert run(go) == Succeeded()
        assert (record().status, ran, len(calls)) == ("SUCCESS", ["a"], 1)

    def test_conflict_is_a_retry_and_no_rerun(self, store: str) -> None:
        """A rerun would repeat the committed writes."""
        actions["a"] = raises(OperationalError(1213, "Deadlock found") if store == "mariadb" else _deadlock())
        assert isinstance(run(go), Retry)
        assert ran == ["a"]


def _deadlock() -> OperationalError:
    error = OperationalError("deadlock detected")

    class DeadlockDetected(Exception):
        sqlstate = "40P01"

    error.__cause__ = DeadlockDetected()
    return error


@EVERYWHERE
def test_run_that_was_taken_over_writes_no_success(store: str) -> None:
    message_id = new_message_id()

    def be_taken_over() -> None:
        expire_lease(message_id)
        actions.clear()
        assert in_another_worker(lambda: run(go, message_id=message_id)) == Succeeded()

    actions["a"] = be_taken_over
    with pytest.raises(Redeliver) as redelivered:
        run(go, message_id=message_id)
    assert isinstance(redelivered.value.__cause__, LeaseLost)
    assert (record().status, record().takeovers) == ("SUCCESS", 1)


@COMMITTING
class TestOptions:
    def test_soft_limit_interrupts_the_function(self) -> None:
        def exceed() -> None:
            from lambda_tasks.limits.alarms import TimeLimits

            limits = TimeLimits.current()
            assert limits is not None
            limits._started -= 55
            signal.raise_signal(signal.SIGALRM)

        actions["a"] = exceed
        outcome = run(go_in_time)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, SoftTimeLimitExceeded)
        assert (record().reason, effects()) == (TaskReason.SOFT_TIMEOUT, ["a 1"])

    def test_singleton_has_no_lock_in_a_transaction(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_LOCK = f"{__name__}.Witness"
        lock = get_lock()
        assert isinstance(lock, Witness)
        actions["a"] = lambda: list(lock.calls)
        assert run(go_alone) == Succeeded(["acquire"])
        assert lock.calls == ["acquire", "release"]

    def test_coroutine(self) -> None:
        assert run(go_asynchronously) == Succeeded(result=False)
        assert effects() == ["a 1"]

    def test_option_in_eager_mode(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        actions["a"] = in_transaction
        handle = go.execute_on_commit(name="a")
        assert (handle.status, record().result) == ("SUCCESS", False)

    def test_direct_call_is_a_plain_call(self) -> None:
        with transaction.atomic():
            actions["a"] = in_transaction
            assert go(name="a") is True
        assert not TaskRecord.objects.exists()

    def test_copy_keeps_the_option(self) -> None:
        assert go.using(delay=5).atomic is False


class Witness(MemoryLock):
    """A lock that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        self.calls.append("acquire")
        return super().acquire(key, token=token, timeout=timeout)

    def release(self, key: str, *, token: str) -> None:
        self.calls.append("release")
        super().release(key, token=token)

    def hold_in_transaction(self, key: str, *, database: str) -> bool:
        self.calls.append("hold")
        return True


@pytest.mark.django_db
class TestInsideATransaction:
    """The transaction of a caller, or of Django's TestCase, is not the task's own."""

    def test_task_runs_inside_it(self) -> None:
        actions["a"] = in_transaction
        assert run(go) == Succeeded(result=True)
        assert record().status == "SUCCESS"

    def test_error_leaves_its_writes(self) -> None:
        actions["a"] = raises(ValueError("x"))
        assert isinstance(run(go), Failed)
        assert effects() == ["a 1"]

    def test_block_left_open_fails_the_task(self) -> None:
        block = transaction.atomic()
        actions["a"] = block.__enter__
        try:
            outcome = run(go)
        finally:
            block.__exit__(None, None, None)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, TransactionBroken)


@EVERYWHERE
@pytest.mark.thorough
@pytest.mark.parametrize(
    "point", ["claim:after", "task:before_begin", "task:enter", "task:leave", "finish:after_commit"]
)
def test_killed_worker_runs_it_again_or_has_succeeded(store: str, point: str) -> None:
    message_id = new_message_id()
    die_at(point, lambda: run(go, message_id=message_id))
    succeeded = point == "finish:after_commit"
    assert record().status == ("SUCCESS" if succeeded else "RUNNING")
    expire_lease(message_id)
    outcome = run(go, message_id=message_id)
    assert outcome == (Skipped("finished") if succeeded else Succeeded())
    before = ["a 1", "a 2"] if point in ("task:leave", "finish:after_commit") else []
    assert effects() == [*before, *([] if succeeded else ["a 1", "a 2"])]


def die_at(point: str, work: Callable[[], object]) -> None:
    """Do `work` in a process that is killed at `point`."""
    connections.close_all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left a thread
        child = os.fork()
    if not child:
        try:
            failpoints.reached = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
