"""What every transport, lock and store must hold: tests to subclass for your own.

Subclass the contract of your family in a test module, override the fixture that makes your class and
the few methods that look behind it, and pytest runs the rest:

    from lambda_tasks.testing.contracts import LockContract

    class TestMyLock(LockContract):
        @pytest.fixture
        def lock(self): ...

The contracts need pytest and nothing else. What your tests need besides (pytest-django's `django_db`,
a server) stands on your subclass. The how-tos of the documentation have an example of each.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, Final, Generic, TypeVar

import pytest
from django.core.checks import CheckMessage
from django.db import connections, transaction
from django.utils import timezone
from pydantic import BaseModel

from lambda_tasks import identity
from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import LeaseLost, ResultNotSerializable, UnknownQueue
from lambda_tasks.jobs import MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE, Job, Run
from lambda_tasks.locks.base import BaseLock
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.outcomes import Busy, Claim, Claimed, Failed, Finished, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.results import json_result
from lambda_tasks.stores.base import BaseStore

T = TypeVar("T")

#: Seconds after which a thread of a contract counts as stuck.
PATIENCE: Final = 60.0
#: Seconds that an answer may take which must not wait for anything.
AT_ONCE: Final = 5.0
#: How many ask for the same thing at the same moment, and how often that is tried.
CROWD: Final = 8
ROUNDS: Final = 10


@lambda_task
def example(*, number: int = 0, text: str = "") -> int:
    """Return `number`: the task that the contracts send and claim."""
    return number


# Transports


@dataclass(frozen=True, slots=True)
class Received:
    """A message as a worker gets it: its body, and its attributes that are text."""

    body: str
    attributes: Mapping[str, str]

    @property
    def message_id(self) -> str:
        return self.attributes[MESSAGE_ID_ATTRIBUTE]


class BackendContract:
    """What every transport holds; override `backend` and `received`, and `unsendable` if you can.

    LAMBDA_TASKS_QUEUES must have the queue "default" while the tests run. A transport that runs jobs
    itself meets the task `lambda_tasks.testing.contracts.example`.
    """

    #: Whether a job with a delay is kept from workers until then.
    honours_delay: ClassVar[bool] = True
    #: Whether attributes that plugins add arrive too; the ids always do.
    carries_attributes: ClassVar[bool] = True

    @pytest.fixture
    def backend(self) -> BaseBackend:
        """Override: return the transport under test, with nothing on its queues."""
        raise NotImplementedError

    def received(self, backend: BaseBackend) -> Sequence[Received]:
        """Override: take everything off the queue "default" that a worker can receive now."""
        raise NotImplementedError

    def unsendable(self, backend: BaseBackend) -> Job | None:
        """Override if there is such a thing: return a job that cannot be sent, whatever `validate()` says."""
        return None

    def new_job(
        self,
        *,
        number: int = 0,
        text: str = "",
        queue: str = "default",
        delay: int = 0,
        root_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Job:
        """Return a job for `example`; override it if your transport needs another task."""
        message_id = identity.new_message_id()
        return Job(
            message=SQSLambdaTaskMessage(task_name=example.name, kwargs={"number": number, "text": text}),
            message_id=message_id,
            root_id=root_id or message_id,
            queue=queue,
            delay=delay,
            attributes=dict(attributes or {}),
            task=example,
        )

    def new_jobs(self, count: int) -> list[Job]:
        return [self.new_job(number=number) for number in range(count)]

    @pytest.mark.parametrize("count", [1, 2, 10, 11, 25])
    def test_every_job_arrives_once_and_is_reported_taken_once(self, backend: BaseBackend, count: int) -> None:
        jobs = self.new_jobs(count)
        taken: list[Job] = []
        backend.send(jobs, taken=taken.append)
        assert Counter(job.message_id for job in taken) == Counter(job.message_id for job in jobs)
        arrived = Counter(message.message_id for message in self.received(backend))
        assert arrived == Counter(job.message_id for job in jobs)

    def test_what_is_reported_taken_is_the_job_that_was_given(self, backend: BaseBackend) -> None:
        jobs = self.new_jobs(2)
        taken: list[Job] = []
        backend.send(jobs, taken=taken.append)
        assert {id(job) for job in taken} == {id(job) for job in jobs}

    def test_nothing_to_send_is_no_error(self, backend: BaseBackend) -> None:
        taken: list[Job] = []
        backend.send([], taken=taken.append)
        assert taken == []
        assert list(self.received(backend)) == []

    def test_the_ids_travel_beside_the_body(self, backend: BaseBackend) -> None:
        root_id = identity.new_message_id()
        job = self.new_job(root_id=root_id)
        backend.send([job], taken=ignore)
        [message] = self.received(backend)
        assert message.attributes[MESSAGE_ID_ATTRIBUTE] == job.message_id
        assert message.attributes[ROOT_ID_ATTRIBUTE] == root_id

    def test_the_body_is_the_documented_schema_and_nothing_else(self, backend: BaseBackend) -> None:
        backend.send([self.new_job(number=7, text="x")], taken=ignore)
        [message] = self.received(backend)
        assert json.loads(message.body) == {"task_name": example.name, "kwargs": {"number": 7, "text": "x"}}

    def test_the_body_of_a_retry_says_which_one_it_is(self, backend: BaseBackend) -> None:
        first = self.new_job(number=7)
        retry = dataclasses.replace(first, message=first.message.next_retry())
        backend.send([retry], taken=ignore)
        [message] = self.received(backend)
        assert json.loads(message.body) == {
            "task_name": example.name,
            "kwargs": {"number": 7, "text": ""},
            "n_retries": 1,
        }

    @pytest.mark.parametrize(
        "text", ["ünï", "\U0001f600", '"\\/', "\t\r\n", "\x01\x7f", "\uffff\ufffe\ufdd0", "\u2028", "]]>", "x" * 9_999]
    )
    def test_any_text_arrives_as_it_was_sent(self, backend: BaseBackend, text: str) -> None:
        backend.send([self.new_job(text=text)], taken=ignore)
        [message] = self.received(backend)
        assert SQSLambdaTaskMessage.from_body(message.body).kwargs["text"] == text

    def test_the_attributes_of_plugins_arrive_too(self, backend: BaseBackend) -> None:
        if not self.carries_attributes:
            pytest.skip("this transport carries no attributes but the ids")
        backend.send([self.new_job(attributes={"traceparent": "00-4bf9-00f0-01"})], taken=ignore)
        [message] = self.received(backend)
        assert message.attributes["traceparent"] == "00-4bf9-00f0-01"

    def test_an_attribute_cannot_replace_the_ids(self, backend: BaseBackend) -> None:
        job = self.new_job(attributes={MESSAGE_ID_ATTRIBUTE: "forged", ROOT_ID_ATTRIBUTE: "forged"})
        backend.send([job], taken=ignore)
        [message] = self.received(backend)
        assert message.message_id == job.message_id
        assert message.attributes[ROOT_ID_ATTRIBUTE] == job.root_id

    def test_a_job_for_a_queue_that_is_set_is_accepted(self, backend: BaseBackend) -> None:
        backend.validate(self.new_job())

    def test_a_queue_that_is_not_set_is_refused_at_the_call(self, backend: BaseBackend) -> None:
        with pytest.raises(UnknownQueue, match="no-such-queue"):
            backend.validate(self.new_job(queue="no-such-queue"))

    def test_a_delayed_job_is_taken_now_and_received_later(self, backend: BaseBackend) -> None:
        if not self.honours_delay:
            pytest.skip("this transport knows no delay")
        taken: list[Job] = []
        delayed, prompt = self.new_job(delay=900), self.new_job()
        backend.send([delayed, prompt], taken=taken.append)
        assert {job.message_id for job in taken} == {delayed.message_id, prompt.message_id}
        assert [message.message_id for message in self.received(backend)] == [prompt.message_id]

    def test_what_cannot_be_sent_keeps_nothing_else_from_being_sent(self, backend: BaseBackend) -> None:
        bad = [self.unsendable(backend), self.unsendable(backend)]
        if None in bad:
            pytest.skip("this transport can send everything")
        good = self.new_jobs(3)
        taken: list[Job] = []
        jobs = [job for job in (good[0], bad[0], good[1], bad[1], good[2]) if job is not None]
        with pytest.raises(Exception):  # noqa: B017, PT011, whatever the transport raises
            backend.send(jobs, taken=taken.append)
        sent = [job.message_id for job in good]
        assert sorted(message.message_id for message in self.received(backend)) == sorted(sent)
        assert sorted(job.message_id for job in taken if job in good) == sorted(sent)

    def test_threads_may_send_at_once(self, backend: BaseBackend) -> None:
        jobs = [self.new_job(number=number) for number in range(CROWD)]
        taken: list[Job] = []
        together(CROWD, lambda number: backend.send([jobs[number]], taken=taken.append))
        sent = Counter(job.message_id for job in jobs)
        assert Counter(job.message_id for job in taken) == sent
        assert Counter(message.message_id for message in self.received(backend)) == sent

    @pytest.mark.parametrize(
        "record",
        [
            {},
            {"messageId": "1", "receiptHandle": None, "eventSourceARN": None},
            {"messageId": "1", "receiptHandle": "unknown", "eventSourceARN": "arn:aws:sqs:eu-west-1:1:default"},
        ],
        ids=["empty", "nothing in it", "unknown receipt"],
    )
    def test_postponing_never_raises(self, backend: BaseBackend, record: dict[str, Any]) -> None:
        backend.postpone([])
        backend.postpone([(record, 0), (record, 12.5)])

    def test_its_checks_are_django_messages(self, backend: BaseBackend) -> None:
        assert all(isinstance(message, CheckMessage) for message in backend.check())


# Locks


class LockContract:
    """What every lock holds; override `lock`, `seconds_left` and `expire`, and the others if they apply.

    Each test has a key of its own, so a server may be shared with others.
    """

    @pytest.fixture
    def lock(self) -> BaseLock:
        """Override: return the lock under test."""
        raise NotImplementedError

    def elsewhere(self, lock: BaseLock) -> BaseLock:
        """Override if workers share the lock: return it as another process has it, a new instance."""
        return lock

    def seconds_left(self, lock: BaseLock, key: str) -> float:
        """Override: return for how long the lock stays taken if nothing happens."""
        raise NotImplementedError

    def expire(self, lock: BaseLock, key: str) -> None:
        """Override: let the time of the lock run out: by the clock, or by what its server would do then."""
        raise NotImplementedError

    def unreachable(self) -> BaseLock | None:
        """Override if the lock has a server: return a lock whose server does not answer."""
        return None

    @pytest.fixture
    def key(self) -> str:
        return f"lambda_tasks.singleton_lock.contract.{uuid.uuid4().hex}"

    def test_a_free_lock_is_taken(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60) is True

    def test_a_held_lock_is_refused_to_another_token(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60) is False
        assert lock.acquire(key, token="b", timeout=60) is False

    def test_a_refusal_does_not_wait(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        begin = time.monotonic()
        assert not lock.acquire(key, token="b", timeout=60)
        assert time.monotonic() - begin < AT_ONCE

    def test_a_refusal_does_not_prolong_the_holders_time(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert not lock.acquire(key, token="b", timeout=900)
        assert self.seconds_left(lock, key) < 100

    def test_of_many_that_ask_at_once_one_gets_it(self, lock: BaseLock, key: str) -> None:
        workers = [self.elsewhere(lock) for _ in range(CROWD)]
        won = crowd(
            lambda round_, number: workers[number].acquire(f"{key}.{round_}", token=f"worker {number}", timeout=60)
        )
        assert [sum(answers) for answers in won] == [1] * ROUNDS

    def test_a_lock_that_was_released_is_free(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="a")
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)

    def test_it_may_be_released_in_another_thread_than_it_was_taken_in(self, lock: BaseLock, key: str) -> None:
        assert together(1, lambda _: lock.acquire(key, token="a", timeout=60)) == [True]
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_only_the_holders_token_releases_it(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="b")
        self.elsewhere(lock).release(key, token="b")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_releasing_what_nobody_holds_does_nothing(self, lock: BaseLock, key: str) -> None:
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_it_can_be_released_twice(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="a")
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_the_run_that_takes_over_from_a_dead_worker_has_its_lock_again(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        successor = self.elsewhere(lock)
        assert successor.acquire(key, token="a", timeout=60)
        assert not lock.acquire(key, token="b", timeout=60)
        successor.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_when_it_is_taken_again_its_time_begins_anew(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert self.elsewhere(lock).acquire(key, token="a", timeout=900)
        assert 800 < self.seconds_left(lock, key) < 910

    def test_it_ends_by_itself_but_not_before_its_time(self, lock: BaseLock, key: str) -> None:
        begin = time.monotonic()
        assert lock.acquire(key, token="a", timeout=60)
        assert 60 - (time.monotonic() - begin) - 0.1 <= self.seconds_left(lock, key) < 65

    def test_it_is_free_when_its_time_is_over(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)

    def test_of_many_that_ask_for_a_lock_whose_time_is_over_one_gets_it(self, lock: BaseLock, key: str) -> None:
        workers = [self.elsewhere(lock) for _ in range(CROWD)]
        for round_ in range(ROUNDS):
            assert lock.acquire(f"{key}.{round_}", token="dead", timeout=60)
            self.expire(lock, f"{key}.{round_}")
        won = crowd(
            lambda round_, number: workers[number].acquire(f"{key}.{round_}", token=f"worker {number}", timeout=60)
        )
        assert [sum(answers) for answers in won] == [1] * ROUNDS

    def test_who_comes_too_late_does_not_release_the_next_holders_lock(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)
        lock.release(key, token="a")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_who_comes_too_late_does_not_get_it_back_from_the_next_holder(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)
        assert not lock.acquire(key, token="a", timeout=60)

    def test_each_key_is_a_lock_of_its_own(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert lock.acquire(f"{key}.other", token="b", timeout=60)
        lock.release(f"{key}.other", token="b")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_a_server_that_is_away_raises_soon(self, key: str) -> None:
        unreachable = self.unreachable()
        if unreachable is None:
            pytest.skip("this lock has no server of its own")
        begin = time.monotonic()
        with pytest.raises(Exception):  # noqa: B017, PT011, whatever its client raises
            unreachable.acquire(key, token="a", timeout=60)
        assert time.monotonic() - begin < AT_ONCE

    def test_its_checks_are_django_messages(self, lock: BaseLock) -> None:
        assert all(isinstance(message, CheckMessage) for message in lock.check())


# Stores


@dataclass(frozen=True, slots=True)
class Stored:
    """What a record says."""

    status: str
    result: Any = None
    traceback: str | None = None


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: int
    y: Any = None


class Order(BaseModel):
    number: int
    placed: dt.date


#: Results that every store keeps, as `lambda_tasks.results.json_result` writes them.
STORABLE: Final[Mapping[str, Any]] = {
    "nothing": None,
    "true": True,
    "false": False,
    "zero": 0,
    "empty text": "",
    "empty list": [],
    "empty dict": {},
    "text that looks like JSON": "null",
    "large number": 2**70,
    "fraction": 0.1,
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600",
    "control characters": "\x01\x1f\x7f\t\r\n\u2028",
    "noncharacters": "\uffff\ufffe\U0010ffff",
    "quotes and backslashes": "'\"\\ %s %% {} \\u0000",
    "huge text": "ä" * 100_000,
    "nested": {"a": [1, {"b": [None, {"": "c"}]}]},
    "keys that are no text": {2: "a", None: "b", True: "c"},
    "date": dt.date(2026, 11, 22),
    "moment": dt.datetime(2026, 11, 22, 10, 30, 0, 123456, tzinfo=dt.timezone.utc),
    "moment without zone": dt.datetime(2026, 11, 22, 10, 30),  # noqa: DTZ001, a task may return one
    "time": dt.time(10, 30),
    "duration": dt.timedelta(days=1, microseconds=5),
    "uuid": uuid.UUID(int=1),
    "decimal": Decimal("0.10"),
    "tuple": (1, "a"),
    "set": {1},
    "enum": [Colour.RED, Level.HIGH],
    "dataclass": Point(1, Point(2)),
    "pydantic model": Order(number=1, placed=dt.date(2026, 11, 22)),
}


def nested(depth: int) -> list[Any]:
    """Return a list in a list in a list …"""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


#: Results that no store takes.
UNSTORABLE: Final[Mapping[str, Any]] = {
    "object": object(),
    "bytes": b"x",
    "not a number": float("nan"),
    "infinity": [float("inf")],
    "NUL": "a\x00b",
    "NUL in a key": {"a": {"b\x00": 1}},
    "lone surrogate": "\ud800",
    "lone surrogate in a key": [{"\udfff": 1}],
    "cycle": _cycle(),
    "key that is no text": {(1, 2): 3},
    "bottomless": nested(100_000),
}


class Unprintable(Exception):
    """An error that fails when it is printed."""

    def __str__(self) -> str:
        raise RuntimeError("cannot be printed")


#: Errors whose traceback is hard to store.
AWKWARD_ERRORS: Final[Mapping[str, BaseException]] = {
    "NUL": ValueError("a\x00b"),
    "lone surrogate": ValueError("\ud800 \udcff"),
    "emoji": ValueError("\U0001f600"),
    "noncharacter": ValueError("\uffff"),
    "huge": ValueError("ü" * 5_000_000),
    "unprintable": Unprintable(),
    "of the system": SystemExit(3),
    "quotes": KeyError("'%s' % \\"),
}

_ERROR: Final = ValueError("what the task raised")
OUTCOMES: Final[Sequence[Outcome]] = (Succeeded({"answer": 42}), Ignored(_ERROR), Retry(_ERROR, 5), Failed(_ERROR))
STATUS_OF: Final[Mapping[type, str]] = {
    Succeeded: "SUCCESS",
    Ignored: "SUCCESS",
    Retry: "RETRYING",
    Failed: "FAILED",
}

_each_outcome = pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)


class StoreContract:
    """What every store of records holds; override `store`, `stored` and `delete`.

    The tests commit: with pytest-django, mark the subclass `django_db(transaction=True)`, with all its
    `databases`. They end a lease without waiting by asking for one that is over already, so `claim()`
    must take a negative lease.
    """

    #: Whether `has_succeeded()` waits for a COMMIT under way; not needed where no connection can be lost.
    waits_for_commit: ClassVar[bool] = True

    @pytest.fixture
    def store(self) -> BaseStore:
        """Override: return the store under test."""
        raise NotImplementedError

    def stored(self, store: BaseStore, run: Run) -> Stored | None:
        """Override: return what is recorded of the invocation of `run`, None if nothing is."""
        raise NotImplementedError

    def delete(self, store: BaseStore, run: Run) -> None:
        """Override: delete the record of `run`, as somebody might by hand."""
        raise NotImplementedError

    def new_run(
        self, store: BaseStore, *, of: Run | None = None, lease: float = 60, kwargs: dict[str, Any] | None = None
    ) -> Run:
        """Return a run of a new invocation, or another run of the invocation `of`."""
        message_id = of.message_id if of else identity.new_message_id()
        return Run(
            message=of.message if of else SQSLambdaTaskMessage(task_name=example.name, kwargs=kwargs or {}),
            message_id=message_id,
            root_id=message_id,
            queue="default",
            task=example,
            arguments={},
            soft_timeout=10,
            hard_timeout=20,
            lease=lease,
            database=store.database,
        )

    def claimed_run(self, store: BaseStore, *, of: Run | None = None, lease: float = 60) -> Run:
        """Return a run that holds its invocation."""
        run = self.new_run(store, of=of, lease=lease)
        claim = store.claim(run)
        assert isinstance(claim, Claimed), claim
        return run

    def record(self, store: BaseStore, run: Run, outcome: Outcome) -> None:
        """Record as the executor does: success in the task's transaction, everything else outside."""
        if isinstance(outcome, Succeeded):
            with transaction.atomic(using=store.database):
                store.record(run, outcome)
        else:
            store.record(run, outcome)

    def status(self, store: BaseStore, run: Run) -> str | None:
        stored = self.stored(store, run)
        return None if stored is None else stored.status

    # Claims

    def test_a_new_invocation_is_claimed(self, store: BaseStore) -> None:
        run = self.new_run(store)
        assert store.claim(run) == Claimed(takeovers=0)
        assert self.stored(store, run) == Stored("RUNNING")

    def test_any_arguments_of_a_message_can_be_claimed(self, store: BaseStore) -> None:
        kwargs = {
            "text": STORABLE["emoji"] + STORABLE["noncharacters"],
            "": {"n": [1.5, None, 2**70]},
            "long": "x" * 99_999,
        }
        assert isinstance(store.claim(self.new_run(store, kwargs=kwargs)), Claimed)

    def test_an_invocation_that_runs_is_busy_until_its_lease_ends(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=60)
        claim = store.claim(self.new_run(store, of=run, lease=900))
        assert isinstance(claim, Busy)
        assert 30 < claim.seconds <= 60

    def test_asking_for_a_busy_invocation_does_not_touch_it(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        assert isinstance(store.claim(self.new_run(store, of=run, lease=-1)), Busy)
        assert isinstance(store.claim(self.new_run(store, of=run)), Busy)
        self.record(store, run, Succeeded(1))
        assert self.stored(store, run) == Stored("SUCCESS", 1)

    def test_a_run_that_claims_again_since_it_heard_no_answer_gets_what_it_has(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        run = self.new_run(store, of=dead)
        assert store.claim(run) == store.claim(run) == Claimed(takeovers=1)
        assert isinstance(store.claim(self.new_run(store, of=dead)), Busy)

    def test_of_runs_that_claim_at_once_one_gets_it(self, store: BaseStore) -> None:
        invocations = [self.new_run(store) for _ in range(ROUNDS)]
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=invocations[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(0)]] * ROUNDS

    def test_when_the_lease_is_over_it_is_taken_over_and_the_death_is_counted(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        second = self.new_run(store, of=run, lease=-1)
        assert store.claim(second) == Claimed(takeovers=1)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=2)
        assert self.status(store, run) == "RUNNING"

    def test_a_takeover_has_a_lease_of_its_own(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        self.claimed_run(store, of=run, lease=60)
        claim = store.claim(self.new_run(store, of=run))
        assert isinstance(claim, Busy)
        assert 30 < claim.seconds <= 60

    def test_of_runs_that_take_over_at_once_one_gets_it(self, store: BaseStore) -> None:
        dead = [self.claimed_run(store, lease=-1) for _ in range(ROUNDS)]
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=dead[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(1)]] * ROUNDS

    def test_a_claim_that_was_given_back_is_taken_at_once_and_counts_no_death(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=900)
        store.release(run)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=0)

    def test_giving_back_does_not_make_earlier_deaths_forgotten(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        second = self.claimed_run(store, of=run)
        store.release(second)
        assert store.claim(self.new_run(store, of=run, lease=-1)) == Claimed(takeovers=1)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=2)

    def test_of_runs_that_claim_what_was_given_back_one_gets_it(self, store: BaseStore) -> None:
        free = [self.claimed_run(store) for _ in range(ROUNDS)]
        for run in free:
            store.release(run)
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=free[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(0)]] * ROUNDS

    def test_a_run_that_was_taken_over_cannot_give_it_back(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        self.claimed_run(store, of=dead)
        store.release(dead)
        assert isinstance(store.claim(self.new_run(store, of=dead)), Busy)

    @_each_outcome
    def test_what_has_ended_is_finished_for_good(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store, lease=-1)
        self.record(store, run, outcome)
        assert store.claim(self.new_run(store, of=run)) == Finished(STATUS_OF[type(outcome)])
        store.release(run)
        assert store.claim(self.new_run(store, of=run)) == Finished(STATUS_OF[type(outcome)])

    def test_a_claim_that_is_refused_does_not_spoil_an_open_transaction(self, store: BaseStore) -> None:
        run, other = self.claimed_run(store), self.new_run(store)
        with transaction.atomic(using=store.database):
            assert isinstance(store.claim(self.new_run(store, of=run)), Busy)
            assert store.claim(other) == Claimed(0)
        assert self.status(store, other) == "RUNNING"

    def test_a_clock_of_the_worker_that_is_wrong_ends_no_lease(
        self, store: BaseStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for hours in (-1, 1):
            with monkeypatch.context() as patch:
                run = self.claimed_run(store, lease=60)
                skew(patch, hours * 3600, also=sys.modules[type(store).__module__])
                claim = store.claim(self.new_run(store, of=run))
                assert isinstance(claim, Busy)
                assert 30 < claim.seconds <= 60

    def test_a_clock_of_the_worker_that_is_wrong_prolongs_no_lease(
        self, store: BaseStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for hours in (-1, 1):
            with monkeypatch.context() as patch:
                skew(patch, hours * 3600, also=sys.modules[type(store).__module__])
                dead = self.claimed_run(store, lease=-1)
                assert store.claim(self.new_run(store, of=dead)) == Claimed(1)
                alive = self.claimed_run(store, lease=60)
            claim = store.claim(self.new_run(store, of=alive))
            assert isinstance(claim, Busy)
            assert 30 < claim.seconds <= 60

    # Records

    @_each_outcome
    def test_an_outcome_is_recorded(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        self.record(store, run, outcome)
        stored = self.stored(store, run)
        assert stored is not None
        assert stored.status == STATUS_OF[type(outcome)]
        if isinstance(outcome, Succeeded):
            assert (stored.result, stored.traceback) == ({"answer": 42}, None)
        else:
            assert stored.result is None
            assert "ValueError: what the task raised" in (stored.traceback or "")

    def test_success_commits_with_the_transaction(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            assert together(1, lambda _: self.status(store, run)) == ["RUNNING"]
        assert self.stored(store, run) == Stored("SUCCESS", 1)

    def test_success_rolls_back_with_the_transaction(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            transaction.set_rollback(True, using=store.database)
        assert self.stored(store, run) == Stored("RUNNING")
        self.record(store, run, Failed(_ERROR))
        assert self.status(store, run) == "FAILED"

    def test_a_lease_that_is_over_but_was_not_taken_may_still_be_recorded(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        self.record(store, run, Succeeded(1))
        assert self.status(store, run) == "SUCCESS"

    @_each_outcome
    def test_a_run_that_was_taken_over_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
        dead = self.claimed_run(store, lease=-1)
        heir = self.claimed_run(store, of=dead)
        with pytest.raises(LeaseLost):
            self.record(store, dead, outcome)
        assert self.stored(store, dead) == Stored("RUNNING")
        self.record(store, heir, Succeeded("the heir's"))
        with pytest.raises(LeaseLost):
            self.record(store, dead, outcome)
        assert self.stored(store, dead) == Stored("SUCCESS", "the heir's")

    @_each_outcome
    def test_a_run_whose_record_was_deleted_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        self.delete(store, run)
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) is None

    @_each_outcome
    def test_a_run_that_was_given_back_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        store.release(run)
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) == Stored("RUNNING")

    @_each_outcome
    def test_an_outcome_is_never_replaced(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Succeeded("first"))
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) == Stored("SUCCESS", "first")

    def test_success_and_a_takeover_at_once_do_not_both_happen(self, store: BaseStore) -> None:
        late = self.claimed_run(store, lease=-1)
        claim = InThread(lambda: store.claim(self.new_run(store, of=late)))
        with transaction.atomic(using=store.database):
            store.record(late, Succeeded(1))
            claim.start().wait(0.2)  # it has to wait for this transaction, or to be refused
        answer = claim.answer()
        assert isinstance(answer, Busy | Finished), answer
        assert self.stored(store, late) == Stored("SUCCESS", 1)

    # After an accident

    def test_only_a_committed_success_has_succeeded(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        assert store.has_succeeded(run) is False
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            transaction.set_rollback(True, using=store.database)
        assert store.has_succeeded(run) is False
        self.record(store, run, Succeeded(1))
        assert store.has_succeeded(run) is True

    def test_the_success_of_another_run_is_not_ones_own(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        self.record(store, self.claimed_run(store, of=dead), Succeeded(1))
        assert store.has_succeeded(dead) is False

    def test_what_failed_or_is_gone_has_not_succeeded(self, store: BaseStore) -> None:
        failed, gone = self.claimed_run(store), self.claimed_run(store)
        self.record(store, failed, Failed(_ERROR))
        self.delete(store, gone)
        assert store.has_succeeded(failed) is False
        assert store.has_succeeded(gone) is False

    def test_whether_it_has_succeeded_is_answered_after_a_commit_under_way(self, store: BaseStore) -> None:
        if not self.waits_for_commit:
            pytest.skip("no connection to this store can be lost during COMMIT")
        run = self.claimed_run(store)
        question = InThread(lambda: store.has_succeeded(run))
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            question.start().wait(0.2)  # who answers before the COMMIT answers wrongly
        assert question.answer() is True

    # What is hard to store

    @pytest.mark.parametrize("name", STORABLE)
    def test_a_result_comes_back_as_its_json(self, store: BaseStore, name: str) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Succeeded(STORABLE[name]))
        stored = self.stored(store, run)
        assert stored is not None
        assert json.dumps(stored.result, sort_keys=True) == json.dumps(json_result(STORABLE[name]), sort_keys=True)

    @pytest.mark.parametrize("name", UNSTORABLE)
    def test_a_result_that_cannot_be_stored_is_refused(self, store: BaseStore, name: str) -> None:
        run = self.claimed_run(store)
        with pytest.raises(ResultNotSerializable):
            self.record(store, run, Succeeded(UNSTORABLE[name]))
        assert self.stored(store, run) == Stored("RUNNING")
        self.record(store, run, Failed(ResultNotSerializable("…")))
        assert self.status(store, run) == "FAILED"

    @pytest.mark.parametrize("depth", [30, 100])
    def test_a_deep_result_is_stored_or_refused(self, store: BaseStore, depth: int) -> None:
        run = self.claimed_run(store)
        try:
            self.record(store, run, Succeeded(nested(depth)))
        except ResultNotSerializable:
            assert self.stored(store, run) == Stored("RUNNING")
        else:
            assert self.stored(store, run) == Stored("SUCCESS", nested(depth))

    @pytest.mark.parametrize("name", AWKWARD_ERRORS)
    def test_any_error_leaves_a_traceback(self, store: BaseStore, name: str) -> None:
        error = AWKWARD_ERRORS[name]
        run = self.claimed_run(store)
        self.record(store, run, Failed(error))
        stored = self.stored(store, run)
        assert stored is not None
        assert stored.status == "FAILED"
        assert type(error).__name__ in (stored.traceback or "")
        assert len(stored.traceback or "") < 1_000_000


# What the contracts are made of


def ignore(job: Job) -> None:
    """Hear of a job that was taken, and do nothing."""


def winners(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims that were granted; whoever got none must have been told to come back."""
    return [claim for claim in claims if not isinstance(claim, Busy)]


def skew(patch: pytest.MonkeyPatch, seconds: float, *, also: ModuleType) -> None:
    """Set the clocks wrong that Python code reads: `time.time`, and `datetime` in Django and in `also`."""
    true_time = time.time

    class WrongDatetime(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.now(tz) + dt.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(dt.timezone.utc).replace(tzinfo=None)

    patch.setattr(time, "time", lambda: true_time() + seconds)
    for module in (timezone, also):
        if getattr(module, "datetime", None) is dt.datetime:
            patch.setattr(module, "datetime", WrongDatetime)


class InThread(Generic[T]):
    """A call in a thread of its own, with database connections of its own, which it closes."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._answers: list[T] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._answers.append(self._call())
        except BaseException as error:
            self.error = error
        finally:
            connections.close_all()

    def start(self) -> InThread[T]:
        self._thread.start()
        return self

    def wait(self, seconds: float) -> None:
        """Wait for the end of the call, but no longer than that."""
        self._thread.join(seconds)

    def answer(self) -> T:
        """Return what the call returned, or raise what it raised."""
        self.wait(PATIENCE)
        assert not self._thread.is_alive(), f"no answer within {PATIENCE:.0f} s"
        if self.error is not None:
            raise self.error
        return self._answers[0]


def together(count: int, action: Callable[[int], T]) -> list[T]:
    """Call `action` with 0, 1, … in as many threads at one moment; return the answers in that order."""
    [answers] = crowd(lambda _, number: action(number), size=count, rounds=1)
    return answers


def crowd(action: Callable[[int, int], T], *, size: int = CROWD, rounds: int = ROUNDS) -> list[list[T]]:
    """Call `action(round, number)` in `size` threads at one moment, for so many rounds; return the answers by round."""
    start = threading.Barrier(size, timeout=PATIENCE)

    def take_part(number: int) -> list[T]:
        try:
            return [(start.wait(), action(round_, number))[1] for round_ in range(rounds)]
        except BaseException:
            start.abort()  # the others need not wait for this one any more
            raise

    threads = [InThread(partial(take_part, number)).start() for number in range(size)]
    for thread in threads:
        thread.wait(PATIENCE)
    # The error to see is the one for which the others then waited in vain.
    for thread in sorted(threads, key=lambda thread: isinstance(thread.error, threading.BrokenBarrierError)):
        thread.answer()
    by_thread = [thread.answer() for thread in threads]
    return [list(answers) for answers in zip(*by_thread, strict=True)]
