"""From the call to the transport: what leaves, when, and in how many calls."""

from __future__ import annotations

import gc
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

from lambda_tasks import outgoing
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import UnknownQueue, UnreachableTaskWarning
from lambda_tasks.handles import TaskHandle
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.identity import new_message_id
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.strategies import get_backend

committing = pytest.mark.django_db(transaction=True)


@lambda_task
def note(*, number: int) -> None: ...


class Recorder(MemoryBackend):
    """Remembers what was sent together, and cannot send what has a negative number."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        self.calls.append([number_of(job) for job in jobs])
        super().send([job for job in jobs if number_of(job) >= 0], taken=taken)
        for job in jobs:
            if number_of(job) < 0:
                raise Unsendable(number_of(job))


class FarRecorder(Recorder):
    leaves_process = True


class Unsendable(Exception):
    """What a transport raises that could not send something."""


class Failure(Exception):
    """What the code around a call raises."""


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
    """An atomic block that fails at its end."""
    with suppress(Failure), transaction.atomic(**options):
        yield
        fail()


@contextmanager
def committed(*, error: type[Exception]) -> Iterator[None]:
    """An atomic block that commits, after which something raises."""
    with pytest.raises(error), transaction.atomic():
        yield


# Together, after the commit


@committing
def test_outside_of_a_transaction_a_task_is_sent_at_once(recorder: Recorder) -> None:
    handle = send(1)
    assert recorder.calls == [[1]]
    assert [job.message_id for job in recorder.jobs] == [handle.message_id]


@committing
def test_inside_of_a_transaction_tasks_wait_for_its_commit_and_leave_together(recorder: Recorder) -> None:
    with transaction.atomic():
        for number in range(25):
            send(number)
        assert recorder.calls == []
    assert recorder.calls == [list(range(25))]


@committing
def test_a_transaction_that_is_rolled_back_sends_nothing(recorder: Recorder) -> None:
    with rolled_back():
        send(1)
    assert recorder.calls == []
    send(2)
    assert recorder.calls == [[2]]


@committing
def test_a_savepoint_that_is_rolled_back_takes_only_its_own_along(recorder: Recorder) -> None:
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
def test_callbacks_of_others_in_between_do_not_tear_the_batch_apart(recorder: Recorder) -> None:
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
def test_a_callback_that_raises_keeps_nothing_back_that_came_before_it_or_shares_the_batch(recorder: Recorder) -> None:
    with committed(error=Failure):
        send(1)
        transaction.on_commit(fail)
        send(2)
    assert recorder.calls == [[1, 2]]


@committing
def test_a_callback_that_raises_before_the_first_task_ends_the_callbacks_as_django_does(recorder: Recorder) -> None:
    with committed(error=Failure):
        transaction.on_commit(fail)
        send(1)
    assert recorder.calls == []


@committing
def test_what_django_dropped_after_a_callback_that_raised_is_not_sent_by_a_later_task(recorder: Recorder) -> None:
    try:
        with transaction.atomic():
            transaction.on_commit(fail)
            send(1)
    except Failure:
        # The traceback keeps Django's list of callbacks alive in here.
        send(2)
        with transaction.atomic():
            send(3)
    assert recorder.calls == [[2], [3]]


@committing
def test_a_task_that_a_callback_sends_leaves_at_once_and_alone(recorder: Recorder) -> None:
    with transaction.atomic():
        transaction.on_commit(lambda: send(10))
        send(1)
        transaction.on_commit(lambda: send(11))
        send(2)
    assert recorder.calls == [[10], [1, 2], [11]]


@committing
def test_a_transaction_inside_of_a_callback_has_a_batch_of_its_own(recorder: Recorder) -> None:
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
def test_what_cannot_be_sent_raises_after_the_commit_and_the_rest_is_sent(recorder: Recorder) -> None:
    with committed(error=Unsendable):
        for number in (1, -2, 3):
            send(number)
    assert [number_of(job) for job in recorder.jobs] == [1, 3]
    send(4)
    assert recorder.calls == [[1, -2, 3], [4]]


@committing
def test_a_retry_is_sent_at_once_whatever_transaction_is_open(recorder: Recorder) -> None:
    message_id = new_message_id()
    message = SQSLambdaTaskMessage(task_name=note.name, kwargs={"number": 7}, n_retries=1)
    with rolled_back():
        send(1)
        outgoing.dispatch([Job(message=message, message_id=message_id, root_id=message_id, task=note)])
        assert recorder.calls == [[7]]
    assert recorder.calls == [[7]]


@pytest.mark.django_db(databases=["default", "sqlite"], transaction=True)
def test_each_database_has_transactions_of_its_own(recorder: Recorder) -> None:
    def send_on(alias: str, number: int) -> None:
        job = Job(
            message=SQSLambdaTaskMessage(task_name=note.name, kwargs={"number": number}),
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
def test_a_call_waits_for_the_transaction_of_default_or_for_that_of_the_one_other_that_has_one(
    recorder: Recorder,
) -> None:
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
        thread.start()  # between two of ours, so that a common room would have it in the middle
        assert other_waits.wait(30)
        send(2)
    assert recorder.calls == [[1, 2]]
    one_is_gone.set()
    thread.join(30)
    assert recorder.calls == [[1, 2], [10, 11]]


# Exactly as Django's own callbacks


@dataclass(frozen=True)
class Send:
    """Send a task."""


@dataclass(frozen=True)
class Callback:
    """Register a callback that sends another task."""


@dataclass(frozen=True)
class Atomic:
    """Do something in an atomic block, that may fail at its end, with or without a savepoint."""

    inside: tuple[Any, ...]
    fails: bool
    savepoint: bool


@dataclass(frozen=True)
class Savepoint:
    """Do something after a savepoint set by hand, and perhaps go back to it."""

    inside: tuple[Any, ...]
    goes_back: bool


@dataclass(frozen=True)
class Capture:
    """Do something under `captureOnCommitCallbacks`, which may execute what it has captured."""

    inside: tuple[Any, ...]
    executes: bool


def steps(*nodes: Callable[[Any], Any]) -> Any:
    """Return a strategy for sequences of steps, of which `nodes` contain sequences themselves."""
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
    """Does the steps, with a plain callback of Django's beside each task that is sent."""

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
        """Register a callback that is called once, even where nested captures call it again."""
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
                # The block around it is lost too; whoever goes on in it is told so by Django.
                raise


examples = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@committing
@examples
@given(steps(atomics, savepoints))
def test_whatever_is_rolled_back_tasks_are_sent_when_djangos_own_callbacks_are_called(
    recorder: Recorder, inside: Sequence[Any]
) -> None:
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
def test_a_transaction_is_one_call_whatever_happens_inside_of_it(recorder: Recorder, inside: Sequence[Any]) -> None:
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
def test_djangos_test_case_captures_tasks_as_it_captures_callbacks(recorder: Recorder, inside: Sequence[Any]) -> None:
    recorder.calls.clear()
    player = Player()
    with transaction.atomic():
        with suppress(Failure), transaction.atomic(), TestCase.captureOnCommitCallbacks(execute=True):
            player.play(inside)
        transaction.set_rollback(True)
    sent = [number for call in recorder.calls for number in call]
    assert sorted(sent) == sorted(player.expected)


# In tests of a Django project


@pytest.mark.django_db
def test_captured_callbacks_are_executed_in_one_batch(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks(execute=True) as callbacks:
        send(1)
        send(2)
    assert len(callbacks) == 2
    assert recorder.calls == [[1, 2]]


@pytest.mark.django_db
def test_an_inner_capture_sends_its_own_and_leaves_the_rest_to_the_outer_one(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks(execute=True):
        send(1)
        with TestCase.captureOnCommitCallbacks(execute=True):
            send(2)
            send(3)
        assert recorder.calls == [[2, 3]]
        send(4)
    assert recorder.calls == [[2, 3], [1, 4]]


@pytest.mark.django_db
def test_captured_callbacks_that_nobody_calls_send_nothing(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks() as kept:
        send(1)
    with TestCase.captureOnCommitCallbacks(execute=True):
        send(2)
    assert len(kept) == 1
    assert recorder.calls == [[2]]


@pytest.mark.django_db
def test_a_callback_that_was_captured_can_be_called_later_and_sends_once(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks() as callbacks:
        send(1)
    callbacks[0]()
    callbacks[0]()
    assert recorder.calls == [[1]]


@pytest.mark.django_db
def test_what_a_captured_callback_sends_is_sent_too(recorder: Recorder) -> None:
    with TestCase.captureOnCommitCallbacks(execute=True):
        send(1)
        transaction.on_commit(lambda: send(2))
    assert recorder.calls == [[1], [2]]


# Nothing is left behind


def jobs_alive() -> int:
    gc.collect()
    return sum(isinstance(thing, Job) for thing in gc.get_objects())


@committing
def test_what_was_rolled_back_is_forgotten(recorder: Recorder) -> None:
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
def test_what_was_sent_is_forgotten(recorder: Recorder) -> None:
    before = jobs_alive()
    with transaction.atomic():
        for number in range(50):
            send(number)
    recorder.jobs.clear()
    assert jobs_alive() == before


@committing
def test_a_connection_that_is_closed_in_a_transaction_takes_its_tasks_along(recorder: Recorder) -> None:
    with rolled_back():
        send(1)
        connections["default"].close()
    send(2)
    assert recorder.calls == [[2]]


# What plugins hear and may refuse


class Witness:
    """A plugin that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        job.attributes["tenant"] = "acme"
        self.heard.append(f"sending {number_of(job)}")

    @hookimpl
    def lambda_task_sent(self, job: Job) -> None:
        self.heard.append(f"sent {number_of(job)}")


@committing
def test_plugins_hear_of_the_call_in_the_transaction_and_of_the_sending_after_it(settings: Any) -> None:
    witness = Witness()
    use(settings, witness)
    with transaction.atomic():
        send(1)
        send(2)
        assert witness.heard == ["sending 1", "sending 2"]
    assert witness.heard == ["sending 1", "sending 2", "sent 1", "sent 2"]


@committing
def test_plugins_hear_that_a_job_was_sent_only_if_it_was(settings: Any) -> None:
    witness = Witness()
    use(settings, witness)
    with committed(error=Unsendable):
        send(-1)
        send(2)
    with rolled_back():
        send(3)
    assert witness.heard == ["sending -1", "sending 2", "sent 2", "sending 3"]


@committing
def test_attributes_that_a_plugin_adds_travel_with_the_job(settings: Any) -> None:
    recorder = use(settings, Witness())
    send(1)
    assert recorder.jobs[0].message_attributes()["tenant"] == "acme"


class Refuser:
    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        if number_of(job) == 13:
            raise Failure("not this one")


@committing
def test_a_refusal_of_a_plugin_reaches_the_caller_inside_the_transaction(settings: Any) -> None:
    recorder = use(settings, Refuser())
    with transaction.atomic():
        send(1)
        with pytest.raises(Failure, match="not this one"):
            send(13)
        assert recorder.calls == []
        send(2)
    assert recorder.calls == [[1, 2]]


@committing
def test_an_unknown_queue_is_refused_inside_the_transaction(recorder: Recorder) -> None:
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
def test_a_listener_that_raises_stops_nothing(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    recorder = use(settings, Clumsy())
    with transaction.atomic():
        send(1)
        send(2)
    assert recorder.calls == [[1, 2]]
    assert "raised in lambda_task_sent" in caplog.text


# A task that no worker would find


@committing
def test_a_task_that_no_worker_finds_is_warned_of_where_it_is_sent(settings: Any) -> None:
    use(settings, backend="FarRecorder")

    @lambda_task
    def hidden(*, number: int) -> None: ...

    def call() -> TaskHandle:
        return hidden.execute_on_commit(number=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    [warning] = caught
    assert warning.category is UnreachableTaskWarning
    assert "defined inside a function" in str(warning.message)
    assert (warning.filename, warning.lineno) == (__file__, call.__code__.co_firstlineno + 1)


@committing
def test_a_task_that_stays_in_the_process_is_not_warned_of(recorder: Recorder) -> None:
    @lambda_task
    def hidden(*, number: int) -> None: ...

    hidden.execute_on_commit(number=1)
    assert recorder.calls == [[1]]
