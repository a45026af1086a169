"""The path from the call to the transport: which tasks are sent, when, and in how many calls."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from django.db import connections, transaction
from django.test import TestCase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambda_tasks.backends.base import Taken
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import UnknownQueue, UnreachableTaskWarning
from lambda_tasks.handles import TaskHandle
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.sending import outgoing
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation

committing = pytest.mark.django_db(transaction=True)


@lambda_task
def note(*, number: int) -> None: ...


class Recorder(MemoryBackend):
    """Records which jobs were sent together, and fails for negative numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def send(self, jobs: Sequence[Job]) -> Iterator[Taken]:
        self.calls.append([number_of(job) for job in jobs])
        yield from super().send([job for job in jobs if number_of(job) >= 0])
        for job in jobs:
            if number_of(job) < 0:
                raise Unsendable(number_of(job))


class FarRecorder(Recorder):
    leaves_process = True


class Unsendable(Exception):
    """An exception from a transport that cannot send a job."""


class Failure(Exception):
    """An exception from the code around a call."""


def number_of(job: Job) -> int:
    number: int = job.message.kwargs["number"]
    return number


def use(settings: Any, *plugins: object, backend: str = "Recorder") -> Recorder:
    settings.LAMBDA_TASKS_PLUGINS = plugins
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.{backend}"
    return get_backend()  # type: ignore[return-value]


@pytest.fixture(name="recorder")
def _recorder(settings: Any) -> Recorder:
    return use(settings)


def send(number: int) -> TaskHandle:
    return note.execute_on_commit(number=number)


def fail() -> None:
    raise Failure


@contextmanager
def rolled_back(**options: Any) -> Iterator[None]:
    """Run an atomic block that fails at its end."""
    with suppress(Failure), transaction.atomic(**options):
        yield
        fail()


@contextmanager
def committed(*, error: type[BaseException]) -> Iterator[None]:
    """Run an atomic block that commits, and expect an error after the commit."""
    with pytest.raises(error), transaction.atomic():
        yield


# Sending together after the commit


@committing
def test_task_outside_a_transaction_is_sent_immediately(recorder: Recorder) -> None:
    handle = send(1)
    assert recorder.calls == [[1]]
    assert [job.message_id for job in recorder.jobs] == [handle.message_id]


@committing
def test_tasks_in_a_transaction_leave_together_after_commit(recorder: Recorder) -> None:
    with transaction.atomic():
        for number in range(25):
            send(number)
        assert recorder.calls == []
    assert recorder.calls == [list(range(25))]


@committing
def test_rolled_back_transaction_sends_nothing(recorder: Recorder) -> None:
    with rolled_back():
        send(1)
    assert recorder.calls == []
    send(2)
    assert recorder.calls == [[2]]


@committing
def test_savepoint_rollback_discards_only_its_tasks(recorder: Recorder) -> None:
    with transaction.atomic():
        send(1)
        with rolled_back():
            send(2)
            with transaction.atomic():
                send(3)
        with transaction.atomic():
            send(4)
        send(5)
    assert recorder.calls == [[1, 4, 5]]


@committing
def test_foreign_callbacks_do_not_split_the_batch(recorder: Recorder) -> None:
    seen: list[str] = []
    with transaction.atomic():
        transaction.on_commit(lambda: seen.append(f"first sees {recorder.calls}"))
        send(1)
        transaction.on_commit(lambda: seen.append(f"second sees {recorder.calls}"))
        send(2)
        transaction.on_commit(lambda: seen.append(f"third sees {recorder.calls}"), robust=True)
        send(3)
    assert recorder.calls == [[1, 2, 3]]
    assert seen == ["first sees []", "second sees [[1, 2, 3]]", "third sees [[1, 2, 3]]"]


@committing
def test_raising_callback_does_not_stop_its_batch(recorder: Recorder) -> None:
    with committed(error=Failure):
        send(1)
        transaction.on_commit(fail)
        send(2)
    assert recorder.calls == [[1, 2]]


@committing
def test_raising_foreign_callback_blocks_no_task(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    with committed(error=Failure):
        send(1)
        transaction.on_commit(fail)
        send(2)
    with committed(error=Failure):
        transaction.on_commit(fail)
        send(3)
        send(4)
    assert [number for call in recorder.calls for number in call] == [1, 2, 3, 4]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "lambda_tasks.outgoing"]
    assert line.startswith("An on_commit callback of another program raised Failure; ")
    assert line.endswith("enqueued in the same transaction is sent all the same.")


@committing
def test_process_exiting_in_a_callback_sends_first(recorder: Recorder) -> None:
    with committed(error=SystemExit):
        transaction.on_commit(sys.exit)
        send(1)
    assert recorder.calls == [[1]]


@committing
def test_rescue_excludes_tasks_of_rolled_back_savepoints(recorder: Recorder) -> None:
    with committed(error=Failure):
        transaction.on_commit(fail)
        with suppress(Failure), transaction.atomic():
            send(1)
            raise Failure
        send(2)
    assert recorder.calls == [[2]]


@committing
def test_rescued_task_is_sent_once(recorder: Recorder) -> None:
    try:
        with transaction.atomic():
            transaction.on_commit(fail)
            send(1)
    except Failure:
        # Here, the traceback keeps Django's list of callbacks alive.
        send(2)
        with transaction.atomic():
            send(3)
    assert recorder.calls == [[1], [2], [3]]


@committing
def test_failed_rescue_does_not_hide_the_error(
    recorder: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise ConnectionError("no response")

    with committed(error=Failure):
        transaction.on_commit(fail)
        send(1)
        monkeypatch.setattr(outgoing, "dispatch", refuse)
    assert "could not be sent" in caplog.text


def test_django_runs_callbacks_as_the_library_expects() -> None:
    """The library replaces this private method, and reads its state after a callback has raised an error."""
    wrapper = connections["default"]
    source = inspect.getsource(type(wrapper).run_and_clear_commit_hooks)
    assert "self.run_on_commit = []" in source
    assert "pop(0)" in source


@committing
def test_task_sent_by_a_callback_leaves_immediately(recorder: Recorder) -> None:
    with transaction.atomic():
        transaction.on_commit(lambda: send(10))
        send(1)
        transaction.on_commit(lambda: send(11))
        send(2)
    assert recorder.calls == [[10], [1, 2], [11]]


@committing
def test_transaction_in_a_callback_has_its_own_batch(recorder: Recorder) -> None:
    def another() -> None:
        with transaction.atomic():
            send(10)
            send(11)

    with transaction.atomic():
        transaction.on_commit(another)
        send(1)
        send(2)
    assert recorder.calls == [[10, 11], [1, 2]]


@committing
def test_unsendable_task_raises_after_others_are_sent(recorder: Recorder) -> None:
    with committed(error=Unsendable):
        for number in (1, -2, 3):
            send(number)
    assert [number_of(job) for job in recorder.jobs] == [1, 3]
    send(4)
    assert recorder.calls == [[1, -2, 3], [4]]


@committing
def test_retry_is_sent_immediately_inside_a_transaction(recorder: Recorder) -> None:
    message_id = new_message_id()
    message = Invocation(task_name=note.name, kwargs={"number": 7}, n_retries=1)
    with rolled_back():
        send(1)
        outgoing.dispatch([Job(message=message, message_id=message_id, root_id=message_id, task=note)])
        assert recorder.calls == [[7]]
    assert recorder.calls == [[7]]


@pytest.mark.django_db(databases=["default", "sqlite"], transaction=True)
def test_each_database_has_its_own_transactions(recorder: Recorder) -> None:
    def send_on(alias: str, number: int) -> None:
        job = Job(
            message=Invocation(task_name=note.name, kwargs={"number": number}),
            message_id=new_message_id(),
            root_id="",
            task=note,
        )
        outgoing.send_on_commit(replace(job, database=alias))

    with transaction.atomic(using="default"):
        send_on("default", 1)
        with transaction.atomic(using="sqlite"):
            send_on("sqlite", 2)
            send_on("default", 3)
        assert recorder.calls == [[2]]
        with rolled_back(using="sqlite"):
            send_on("sqlite", 4)
            send_on("default", 5)
    assert recorder.calls == [[2], [1, 3, 5]]


@pytest.mark.django_db(databases=["default", "sqlite"], transaction=True)
def test_message_leaves_with_the_only_open_transaction(
    recorder: Recorder,
) -> None:
    """If `default` also has an open transaction, the message leaves with that transaction."""
    with transaction.atomic(using="sqlite"):
        note.execute_on_commit(number=1)
        with transaction.atomic(using="default"):
            note.execute_on_commit(number=2)
            assert recorder.calls == []
        assert recorder.calls == [[2]]
    assert recorder.calls == [[2], [1]]


@committing
def test_threads_do_not_send_each_others_tasks(recorder: Recorder) -> None:
    other_waits, one_is_gone = threading.Event(), threading.Event()

    def other() -> None:
        try:
            with transaction.atomic():
                send(10)
                other_waits.set()
                assert one_is_gone.wait(30)
                send(11)
        finally:
            connections.close_all()

    thread = threading.Thread(target=other, daemon=True)
    with transaction.atomic():
        send(1)
        thread.start()  # between two calls of this thread, so that a shared list would mix them
        assert other_waits.wait(30)
        send(2)
    assert recorder.calls == [[1, 2]]
    one_is_gone.set()
    thread.join(30)
    assert recorder.calls == [[1, 2], [10, 11]]


# Comparison with Django's callbacks


@dataclass(frozen=True)
class Send:
    """Send a task."""


@dataclass(frozen=True)
class Callback:
    """Register a callback that sends another task."""


@dataclass(frozen=True)
class Atomic:
    """Run steps in an atomic block that may fail at its end, with or without a savepoint."""

    inside: tuple[Any, ...]
    fails: bool
    savepoint: bool


@dataclass(frozen=True)
class Savepoint:
    """Run steps after a manual savepoint, and optionally roll back to it."""

    inside: tuple[Any, ...]
    goes_back: bool


@dataclass(frozen=True)
class Capture:
    """Run steps inside `captureOnCommitCallbacks`, which may execute the captured callbacks."""

    inside: tuple[Any, ...]
    executes: bool


def steps(*nodes: Callable[[Any], Any]) -> Any:
    """Return a strategy for sequences of steps. The steps from `nodes` contain further sequences."""
    leaf = st.builds(Send) | st.builds(Send) | st.builds(Callback)
    return st.recursive(
        st.lists(leaf, max_size=3).map(tuple),
        lambda inside: st.lists(leaf | st.one_of([node(inside) for node in nodes]), max_size=4).map(tuple),
        max_leaves=12,
    )


def atomics(inside: Any) -> Any:
    return st.builds(Atomic, inside, st.booleans(), st.just(True) | st.booleans())


def savepoints(inside: Any) -> Any:
    return st.builds(Savepoint, inside, st.booleans())


def captures(inside: Any) -> Any:
    return st.builds(Capture, inside, st.just(True))


class Player:
    """Runs the steps, and registers a plain Django callback with each task that it sends."""

    def __init__(self) -> None:
        self.number = 0
        self.expected: list[int] = []

    def play(self, inside: Sequence[Any]) -> None:
        for step in inside:
            match step:
                case Send():
                    self.send()
                case Callback():
                    self.on_commit(self.send)
                case Atomic(inside, fails, savepoint):
                    self.atomic(inside, fails, savepoint)
                case Savepoint(inside, goes_back) if (connection := transaction.get_connection()).in_atomic_block:
                    mark = connection.savepoint()
                    self.play(inside)
                    (connection.savepoint_rollback if goes_back else connection.savepoint_commit)(mark)
                case Savepoint(inside):
                    self.play(inside)
                case Capture(inside, executes):
                    with TestCase.captureOnCommitCallbacks(execute=executes):
                        self.play(inside)

    def send(self) -> None:
        number = self.number
        self.number += 1
        self.on_commit(lambda: self.expected.append(number))
        send(number)

    def on_commit(self, callback: Callable[[], object]) -> None:
        """Register a callback that runs once, even if nested captures call it again."""
        pending = [callback]
        transaction.on_commit(lambda: pending.pop()() if pending else None)

    def atomic(self, inside: Sequence[Any], fails: bool, savepoint: bool) -> None:
        outermost = not transaction.get_connection().in_atomic_block
        try:
            with transaction.atomic(savepoint=savepoint):
                self.play(inside)
                if fails:
                    raise Failure
        except Failure:
            if not savepoint and not outermost:
                # The outer block is broken too: Django refuses further queries in it.
                raise


examples = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@committing
@examples
@given(steps(atomics, savepoints))
def test_tasks_are_sent_when_djangos_callbacks_run(recorder: Recorder, inside: Sequence[Any]) -> None:
    recorder.calls.clear()
    player = Player()
    with suppress(Failure):
        player.play(inside)
    sent = [number for call in recorder.calls for number in call]
    assert sorted(sent) == sorted(player.expected)
    assert len(sent) == len(set(sent))


@committing
@examples
@given(steps(atomics, savepoints).filter(lambda inside: "Callback" not in repr(inside)))
def test_transaction_is_sent_in_one_call(recorder: Recorder, inside: Sequence[Any]) -> None:
    recorder.calls.clear()
    player = Player()
    try:
        with transaction.atomic():
            player.play(inside)
    except Failure:
        assert player.expected == []
    assert recorder.calls == ([player.expected] if player.expected else [])


@pytest.mark.django_db
@examples
@given(steps(atomics, savepoints, captures))
def test_case_captures_tasks_like_callbacks(recorder: Recorder, inside: Sequence[Any]) -> None:
    recorder.calls.clear()
    player = Player()
    with transaction.atomic():
        with suppress(Failure), transaction.atomic(), TestCase.captureOnCommitCallbacks(execute=True):
            player.play(inside)
        transaction.set_rollback(True)
    sent = [number for call in recorder.calls for number in call]
    assert sorted(sent) == sorted(player.expected)


# Tests of a Django project


@pytest.mark.django_db
def test_captured_callbacks_are_executed_in_one_batch(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks(execute=True) as callbacks:
        send(1)
        send(2)
    assert len(callbacks) == 2
    assert recorder.calls == [[1, 2]]


@pytest.mark.django_db
def test_inner_capture_sends_only_its_own_tasks(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks(execute=True):
        send(1)
        with TestCase.captureOnCommitCallbacks(execute=True):
            send(2)
            send(3)
        assert recorder.calls == [[2, 3]]
        send(4)
    assert recorder.calls == [[2, 3], [1, 4]]


@pytest.mark.django_db
def test_captured_callbacks_send_nothing_until_called(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks() as kept:
        send(1)
    with TestCase.captureOnCommitCallbacks(execute=True):
        send(2)
    assert len(kept) == 1
    assert recorder.calls == [[2]]


@pytest.mark.django_db
def test_captured_callback_sends_once(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks() as callbacks:
        send(1)
    callbacks[0]()
    callbacks[0]()
    assert recorder.calls == [[1]]


@pytest.mark.django_db
def test_task_sent_by_a_captured_callback_is_sent(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks(execute=True):
        send(1)
        transaction.on_commit(lambda: send(2))
    assert recorder.calls == [[1], [2]]


# Memory


def jobs_alive() -> int:
    gc.collect()
    return sum(isinstance(thing, Job) for thing in gc.get_objects())


@committing
def test_rolled_back_jobs_are_freed(recorder: Recorder) -> None:
    before = jobs_alive()
    with transaction.atomic():
        for number in range(50):
            with rolled_back():
                send(number)
    with rolled_back():
        send(99)
    assert jobs_alive() == before
    assert recorder.calls == []


@committing
def test_sent_jobs_are_freed(recorder: Recorder) -> None:
    before = jobs_alive()
    with transaction.atomic():
        for number in range(50):
            send(number)
    recorder.jobs.clear()
    assert jobs_alive() == before


@committing
def test_connection_closed_in_a_transaction_discards_its_tasks(recorder: Recorder) -> None:
    with rolled_back():
        send(1)
        connections["default"].close()
    send(2)
    assert recorder.calls == [[2]]


# Plugins


class Witness:
    """A plugin that records its notifications."""

    def __init__(self) -> None:
        self.notifications: list[str] = []

    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        job.attributes["tenant"] = "acme"
        self.notifications.append(f"sending {number_of(job)}")

    @hookimpl
    def lambda_task_sent(self, job: Job) -> None:
        self.notifications.append(f"sent {number_of(job)}")


@committing
def test_plugins_are_notified_before_and_after_the_commit(settings: Any) -> None:
    witness = Witness()
    use(settings, witness)
    with transaction.atomic():
        send(1)
        send(2)
        assert witness.notifications == ["sending 1", "sending 2"]
    assert witness.notifications == ["sending 1", "sending 2", "sent 1", "sent 2"]


@committing
def test_plugins_are_notified_only_of_sent_jobs(settings: Any) -> None:
    witness = Witness()
    use(settings, witness)
    with committed(error=Unsendable):
        send(-1)
        send(2)
    with rolled_back():
        send(3)
    assert witness.notifications == ["sending -1", "sending 2", "sent 2", "sending 3"]


@committing
def test_attributes_of_plugins_are_sent_with_the_job(settings: Any) -> None:
    recorder = use(settings, Witness())
    send(1)
    assert recorder.jobs[0].message_attributes()["tenant"] == "acme"


class Refuser:
    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        if number_of(job) == 13:
            raise Failure("not this one")


@committing
def test_refusal_of_a_plugin_reaches_the_caller(settings: Any) -> None:
    recorder = use(settings, Refuser())
    with transaction.atomic():
        send(1)
        with pytest.raises(Failure, match="not this one"):
            send(13)
        assert recorder.calls == []
        send(2)
    assert recorder.calls == [[1, 2]]


@committing
def test_unknown_queue_is_refused_inside_the_transaction(recorder: Recorder) -> None:
    with transaction.atomic():
        with pytest.raises(UnknownQueue):
            note.using(queue="nowhere").execute_on_commit(number=1)
        send(2)
    assert recorder.calls == [[2]]


class Clumsy:
    @hookimpl
    def lambda_task_sent(self, job: Job) -> None:
        raise Failure


@committing
def test_raising_listener_does_not_stop_sending(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    recorder = use(settings, Clumsy())
    with transaction.atomic():
        send(1)
        send(2)
    assert recorder.calls == [[1, 2]]
    assert "raised an exception in lambda_task_sent" in caplog.text


# Tasks that a worker cannot find


@committing
def test_unreachable_task_warns_at_its_call(settings: Any) -> None:
    use(settings, backend="FarRecorder")

    def hidden(*, number: int) -> None: ...

    hidden.__qualname__ = hidden.__name__ = "of_another_name"
    task = lambda_task(hidden)

    def call() -> TaskHandle:
        return task.execute_on_commit(number=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    [warning] = caught
    assert warning.category is UnreachableTaskWarning
    assert "has no attribute 'of_another_name'" in str(warning.message)
    assert (warning.filename, warning.lineno) == (__file__, call.__code__.co_firstlineno + 1)


@committing
def test_in_process_task_is_not_warned_about(recorder: Recorder) -> None:
    @lambda_task
    def hidden(*, number: int) -> None: ...

    hidden.execute_on_commit(number=1)
    assert recorder.calls == [[1]]
