"""`RetryPolicy` and `RetryLater`: what is retried, after which delay, and until when."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.message import Message
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import pytest
from botocore.exceptions import ClientError
from django.test import override_settings
from redis.exceptions import LockError as RedisLockError

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.exceptions import LockError, LockUnavailable, MaxRetriesExceededError, RetryLater
from lambda_tasks.execution import retry_after
from lambda_tasks.execution.attempt import Attempt, Stage
from lambda_tasks.execution.errors import classify
from lambda_tasks.execution.retry_after import requested_delay
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry
from lambda_tasks.strategies import get_backend
from lambda_tasks.testing import collect_tasks
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import FIRST_SENT_ATTRIBUTE
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect

NOW = 1_800_000_000.0


class Busy(Exception):
    pass


class VeryBusy(Busy):
    pass


class Gone(Exception):
    pass


def function() -> None: ...


def task_with(retry: Any, **options: Any) -> LambdaTaskWrapper[..., Any]:
    return lambda_task(retry=retry, **options)(function)


def outcome_of(
    task: LambdaTaskWrapper[..., Any], error: BaseException, *, n_retries: int = 0, **details: Any
) -> Outcome:
    """Return the outcome of a run that raised `error`, as the executor decides it."""
    message_id = ids.new_message_id()
    run = Run(
        message=Invocation(task_name=task.name, n_retries=n_retries),
        message_id=message_id,
        root_id=message_id,
        task=task,
        queue="default",
        arguments={},
        soft_timeout=1,
        hard_timeout=2,
        lease=9,
        database="default",
        **details,
    )
    stage = Stage.BEGIN if isinstance(error, LockUnavailable) else Stage.CALL
    attempt = Attempt(run)
    attempt.stage = stage
    return classify(attempt, error)


def delay_of(task: LambdaTaskWrapper[..., Any], error: BaseException, *, n_retries: int = 0) -> int:
    outcome = outcome_of(task, error, n_retries=n_retries)
    assert isinstance(outcome, Retry)
    return outcome.delay


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


@pytest.fixture(autouse=True)
def _empty_queue() -> None:
    backend().jobs.clear()


def chain_of(task: Any, /, **arguments: Any) -> list[TaskRecord]:
    """Run the task and its retries through the handler, and return their records."""
    handle = task.execute_on_commit(**arguments)
    while records := backend().take_records():
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
    return list(TaskRecord.objects.chain(handle.message_id))


class TestValues:
    def test_policy_is_immutable_and_comparable(self) -> None:
        policy = RetryPolicy(on=(Busy,), delay=30)
        with pytest.raises(dataclasses.FrozenInstanceError):
            policy.delay = 5  # type: ignore[misc]
        assert policy == RetryPolicy(on=(Busy,), delay=30)
        assert hash(policy) == hash(RetryPolicy(on=(Busy,), delay=30))
        assert pickle.loads(pickle.dumps(policy)) == policy

    def test_several_tasks_share_a_policy(self) -> None:
        policy = RetryPolicy(on=(Busy,), delay=30)
        assert task_with(policy).retry is task_with(policy).using(delay=5).retry is policy

    def test_mapping_of_a_task_cannot_change(self) -> None:
        given = {Busy: RetryPolicy(delay=1)}
        task = task_with(given)
        given[Gone] = RetryPolicy()  # type: ignore[index]
        assert dict(task.retry) == {Busy: RetryPolicy(delay=1)}
        with pytest.raises(TypeError):
            task.retry[Gone] = RetryPolicy()
        assert task.using(queue="other").retry == task.retry

    def test_exception_types_become_a_tuple(self) -> None:
        assert RetryPolicy(on=[Busy, Gone]).on == (Busy, Gone)  # type: ignore[arg-type]

    def test_times_are_numbers_or_timedeltas(self) -> None:
        policy = RetryPolicy(delay=timedelta(minutes=1), max_age=timedelta(hours=6), max_delay=90)
        assert (policy.seconds, policy.age_limit, policy.longest_delay) == (60, 21_600, 90)

    @pytest.mark.parametrize(
        ("given", "error", "sentence"),
        [
            ({"on": Busy}, TypeError, "on must be a tuple of exception types, as in on=.*, not <class '.*Busy'>"),
            ({"on": ("OSError",)}, TypeError, "on must be a tuple of exception types.* contains 'OSError'"),
            ({"max_retries": "5"}, TypeError, "max_retries must be an integer of at least 0, not '5'"),
            ({"max_retries": -1}, ValueError, "max_retries must be an integer of at least 0, not -1"),
            ({"max_retries": True}, TypeError, "max_retries must be an integer of at least 0, not True"),
            ({"max_age": "6h"}, TypeError, "max_age must be a number of seconds or a timedelta, not '6h'"),
            ({"max_age": 0}, ValueError, "max_age must be longer than delay"),
            ({"max_age": 60, "delay": 60}, ValueError, r"max_age must be longer than delay \(60\), not 60"),
            ({"delay": True}, TypeError, "delay must be a number of seconds or a timedelta, not True"),
            ({"delay": -1}, ValueError, "delay must be from 0 to 31536000 seconds, which is one year, not -1"),
            ({"delay": math.nan}, ValueError, "delay must be from 0 to .*, not nan"),
            ({"delay": timedelta(days=366)}, ValueError, "delay must be from 0 to .*, not datetime.timedelta"),
            ({"max_delay": 10, "delay": 30}, ValueError, r"max_delay must not be shorter than delay \(30\), not 10"),
            ({"backoff": "2"}, TypeError, "backoff must be True, False or a number from 1 to 1000, not '2'"),
            ({"backoff": 0.5, "delay": 1}, ValueError, "backoff must be True, .* from 1 to 1000, not 0.5"),
            ({"backoff": True}, ValueError, "backoff must be False if delay is 0, .* Set a delay"),
            ({"jitter": 2}, ValueError, "jitter must be True, False or a number from 0 to 1, not 2"),
            ({"jitter": None}, TypeError, "jitter must be True, False or a number from 0 to 1, not None"),
            ({"retries": 5}, TypeError, "unexpected keyword argument 'retries'"),
        ],
        ids=str,
    )
    def test_invalid_value_is_refused(self, given: Any, error: type[Exception], sentence: str) -> None:
        with pytest.raises(error, match=sentence):
            RetryPolicy(**given)

    def test_positional_values_are_refused(self) -> None:
        with pytest.raises(TypeError):
            RetryPolicy((Busy,))  # type: ignore[misc]


class TestOption:
    @pytest.mark.parametrize(
        ("options", "error", "sentence"),
        [
            ({"retry": 5}, TypeError, "retry must be a RetryPolicy, or a mapping .*, not 5"),
            ({"retry": [RetryPolicy(on=(Busy,))]}, TypeError, r"retry must be a RetryPolicy, or a mapping .*, not \["),
            ({"retry": RetryPolicy}, TypeError, "retry must be a RetryPolicy, or a mapping .*, not <class"),
            ({"retry": {}}, ValueError, "retry must be .*, not an empty one"),
            ({"retry": RetryPolicy(delay=5)}, TypeError, r"in `on`, as in RetryPolicy\(on=\(ConnectionError,\)\)"),
            ({"retry": {"Busy": RetryPolicy()}}, TypeError, "It contains the key 'Busy'"),
            ({"retry": {Busy: 30}}, TypeError, "For Busy it contains 30"),
            ({"retry": {Busy: RetryPolicy(on=(Gone,))}}, TypeError, r"for other exceptions \(Gone\). Leave out `on`"),
            (
                {"retry": RetryPolicy(on=(Busy,)), "retry_on": (Busy,), "max_retries": 0},
                TypeError,
                "retry must not be combined with retry_on, max_retries, which are its short form. Put everything into",
            ),
            (
                {"retry": RetryPolicy(on=(Busy,)), "retry_backoff": True, "retry_delay": 5, "retry_on": (Busy,)},
                TypeError,
                "combined with retry_on, retry_delay, retry_backoff",
            ),
            (
                {"retry": RetryPolicy(on=(Busy,)), "max_retries": 5},
                TypeError,
                "combined with max_retries, which is its short form",
            ),
            (
                {"retry": RetryPolicy(on=(Busy,), delay=60), "expires_in": 60},
                ValueError,
                r"The delay of a retry must be shorter than expires_in \(60\), not 60",
            ),
            (
                {"retry": RetryPolicy(on=(Busy,), delay=901)},
                ValueError,
                "The longest delay in retry must be .* 0 to 900, .* not 901.* LAMBDA_TASKS_OUTBOX = True",
            ),
            (
                {"retry": {Busy: RetryPolicy(max_delay=3600)}},
                ValueError,
                "The longest delay in retry must be .* not 3600",
            ),
        ],
        ids=str,
    )
    def test_contradiction_is_refused_at_decoration(
        self, options: dict[str, Any], error: type[Exception], sentence: str
    ) -> None:
        with pytest.raises(error, match=sentence):
            lambda_task(**options)(function)

    def test_outbox_allows_long_delays(self) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            task = task_with(RetryPolicy(on=(Busy,), delay=timedelta(days=2), jitter=False))
            assert delay_of(task, Busy()) == 172_800

    def test_expires_in_may_limit_the_age_too(self) -> None:
        assert task_with(RetryPolicy(on=(Busy,), delay=30), expires_in=60).expires_in == 60


class TestIgnoredTypes:
    def test_narrower_ignored_type_is_an_exception(self) -> None:
        task = task_with(RetryPolicy(on=(Busy,)), ignore_errors=(VeryBusy,))
        assert isinstance(outcome_of(task, Busy()), Retry)
        assert isinstance(outcome_of(task, VeryBusy()), Ignored)

    @pytest.mark.parametrize("ignored", [Busy, Exception, BaseException])
    @pytest.mark.parametrize("retry", [RetryPolicy(on=(Gone, Busy)), {Busy: RetryPolicy()}], ids=["policy", "mapping"])
    def test_swallowed_type_is_refused(self, ignored: type[BaseException], retry: Any) -> None:
        sentence = f"retry must not name .*usy, because ignore_errors contains {ignored.__name__}"
        with pytest.raises(TypeError, match=sentence if ignored is Busy else ignored.__name__):
            task_with(retry, ignore_errors=(ignored,))

    @pytest.mark.parametrize("lock_error", [LockError, RedisLockError])
    def test_lock_error_is_refused_for_singletons_only(self, lock_error: type[Exception]) -> None:
        """Other tasks may have locks of their own."""
        for retry in (RetryPolicy(on=(lock_error,)), {lock_error: RetryPolicy()}):
            with pytest.raises(TypeError, match="retry must not contain LockError for a task with singleton"):
                task_with(retry, singleton=True)
            assert isinstance(outcome_of(task_with(retry), lock_error("held")), Retry)


class TestErrors:
    def test_listed_types_and_subclasses_are_retried(self) -> None:
        task = task_with(RetryPolicy(on=(Busy,)))
        assert isinstance(outcome_of(task, Busy()), Retry)
        assert isinstance(outcome_of(task, VeryBusy()), Retry)
        assert isinstance(outcome_of(task, Gone()), Failed)

    def test_most_specific_class_decides(self) -> None:
        """The order of the mapping does not matter."""
        policies = {
            Exception: RetryPolicy(delay=1, jitter=False),
            Busy: RetryPolicy(delay=2, jitter=False),
            VeryBusy: RetryPolicy(delay=3, jitter=False),
        }
        for mapping in (policies, dict(reversed(policies.items()))):
            task = task_with(mapping)
            assert [delay_of(task, error()) for error in (Gone, Busy, VeryBusy)] == [1, 2, 3]

    def test_classes_outside_the_mapping_fail(self) -> None:
        assert isinstance(outcome_of(task_with({VeryBusy: RetryPolicy()}), Busy()), Failed)

    def test_shared_policy_with_types_fits_a_mapping(self) -> None:
        policy = RetryPolicy(on=(Busy,), delay=7, jitter=False)
        assert delay_of(task_with({VeryBusy: policy}), VeryBusy()) == 7

    @pytest.mark.parametrize("limit", [SoftTimeLimitExceeded, HardTimeLimitExceeded])
    def test_time_limit_must_be_listed(self, limit: type[Exception]) -> None:
        policy = RetryPolicy(delay=1)
        for retry in (RetryPolicy(on=(Exception,)), {Exception: policy}):
            assert isinstance(outcome_of(task_with(retry), limit()), Failed)
        for listed in (RetryPolicy(on=(Exception, limit)), {Exception: policy, limit: policy}):
            assert isinstance(outcome_of(task_with(listed), limit()), Retry)

    def test_lock_outage_is_retried_without_being_listed(self) -> None:
        """How long the lock server is unavailable does not depend on the task."""
        task = task_with(RetryPolicy(on=(Busy,), max_retries=0, max_age=1), singleton=True)
        assert isinstance(outcome_of(task, LockUnavailable("away"), n_retries=5, first_sent=1.0), Retry)

    def test_contention_has_the_limits_of_the_policy(self) -> None:
        task = task_with(RetryPolicy(on=(Busy,), delay=40, jitter=False, max_retries=2), singleton=True)
        assert delay_of(task, LockError("held"), n_retries=1) == 40
        assert isinstance(outcome_of(task, LockError("held"), n_retries=2), Failed)


class TestDelay:
    def drawn(self, policy: RetryPolicy, n_retries: int) -> list[int]:
        return [policy.random_delay(n_retries) for _ in range(3_000)]

    @pytest.mark.parametrize(
        ("policy", "delays"),
        [
            (RetryPolicy(delay=30), [30, 30, 30, 30]),
            (RetryPolicy(delay=30, backoff=True), [30, 60, 120, 240, 480, 900, 900]),
            (RetryPolicy(delay=10, backoff=3), [10, 30, 90, 270, 810, 900]),
            (RetryPolicy(delay=1, backoff=1.5), [1, 2, 3, 4, 6]),
            (RetryPolicy(delay=30, backoff=True, max_delay=100), [30, 60, 100, 100]),
            (RetryPolicy(delay=0.2), [1, 1]),
            (RetryPolicy(), [0, 0]),
            (RetryPolicy(delay=timedelta(minutes=2)), [120, 120]),
            (RetryPolicy(delay=2_000), [2_000, 2_000]),
            (RetryPolicy(delay=600, backoff=2, max_delay=5_000), [600, 1_200, 2_400, 4_800, 5_000]),
        ],
        ids=str,
    )
    def test_delay_without_jitter_follows_the_formula(self, policy: RetryPolicy, delays: list[int]) -> None:
        policy = dataclasses.replace(policy, jitter=False)
        assert [policy.random_delay(n) for n in range(len(delays))] == delays

    @pytest.mark.parametrize("factor", [2, 1.0001, 1000])
    def test_growth_ends_at_the_limit(self, factor: float) -> None:
        policy = RetryPolicy(delay=1, backoff=factor, jitter=False)
        assert policy.random_delay(2**31 - 1) == 900

    def test_jitter_without_backoff_adds_one_to_five_seconds(self) -> None:
        assert set(self.drawn(RetryPolicy(delay=30), 3)) == {31, 32, 33, 34, 35}
        assert set(self.drawn(RetryPolicy(), 0)) == {1, 2, 3, 4, 5}

    def test_jitter_with_backoff_uses_the_whole_range(self) -> None:
        assert set(self.drawn(RetryPolicy(delay=3, backoff=2), 1)) == {1, 2, 3, 4, 5, 6}

    def test_fraction_lengthens_the_delay_at_most(self) -> None:
        drawn = self.drawn(RetryPolicy(delay=100, jitter=0.1), 0)
        assert (min(drawn), max(drawn)) == (101, 110)

    def test_jitter_does_not_exceed_the_limit_of_sqs(self) -> None:
        assert max(self.drawn(RetryPolicy(delay=900), 0)) == 900
        assert max(self.drawn(RetryPolicy(delay=900, jitter=1), 0)) == 900
        assert max(self.drawn(RetryPolicy(delay=901), 0)) == 906

    @pytest.mark.parametrize(
        "policy",
        [RetryPolicy(delay=30), RetryPolicy(delay=30, backoff=2), RetryPolicy(delay=30, jitter=0.5), RetryPolicy()],
        ids=str,
    )
    def test_shortest_and_average_delay_are_those_drawn(self, policy: RetryPolicy) -> None:
        drawn = self.drawn(policy, 2)
        assert policy.shortest_delay(2) <= min(drawn) <= policy.shortest_delay(2) + 1
        assert sum(drawn) / len(drawn) == pytest.approx(policy.average_delay(2), rel=0.1, abs=1)

    def test_short_form_is_a_policy(self) -> None:
        short = lambda_task(retry_on=(Busy,), retry_delay=20, retry_backoff=True, max_retries=7)(function)
        assert short.retry_policy(Busy()) == RetryPolicy(on=(Busy,), delay=20, backoff=True, max_retries=7)

    def test_plugin_takes_precedence(self) -> None:
        class Punctual:
            @hookimpl
            def lambda_task_retry_delay(self, error: BaseException) -> int | None:
                return 77 if isinstance(error, Busy | RetryLater) else None

        with override_settings(LAMBDA_TASKS_PLUGINS=[Punctual()]):
            assert delay_of(task_with(RetryPolicy(on=(Busy,), delay=5)), Busy()) == 77
            assert delay_of(task_with(RetryPolicy(on=(Busy,), delay=5)), RetryLater(delay=5)) == 77


class TestSpan:
    @pytest.mark.parametrize(
        ("policy", "seconds"),
        [
            (RetryPolicy(delay=27, jitter=False), 2880 * 27),
            (RetryPolicy(delay=27), 2880 * 30),
            (RetryPolicy(delay=30, max_retries=5), 5 * 33),
            (RetryPolicy(delay=30, backoff=True, jitter=False, max_retries=7), 30 + 60 + 120 + 240 + 480 + 2 * 900),
            (RetryPolicy(delay=30, max_age=600), 600),
            (RetryPolicy(delay=1, backoff=1.0001, max_retries=3, jitter=False), pytest.approx(3, rel=0.01)),
            (RetryPolicy(jitter=False, max_retries=2**31 - 1), 0),
            (RetryPolicy(max_retries=2**31 - 1), 31_536_000),
        ],
        ids=str,
    )
    def test_span_is_the_sum_of_average_delays(self, policy: RetryPolicy, seconds: float) -> None:
        assert policy.average_span(2880) == seconds


class TestMaxRetries:
    def test_setting_applies_without_a_limit(self) -> None:
        task = task_with(RetryPolicy(on=(Busy,)))
        assert isinstance(outcome_of(task, Busy(), n_retries=2879), Retry)
        assert isinstance(outcome_of(task, Busy(), n_retries=2880), Failed)

    def test_limit_of_the_errors_policy_applies(self) -> None:
        task = task_with({Busy: RetryPolicy(max_retries=1), Gone: RetryPolicy(max_retries=3)})
        outcome = outcome_of(task, Busy(), n_retries=1)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, MaxRetriesExceededError)
        assert "failed after 1 retry, and its max_retries is 1. The last error was Busy." in str(outcome.error)
        assert isinstance(outcome_of(task, Gone(), n_retries=1), Retry)

    def test_limit_applies_to_retries_that_plugins_ask_for(self) -> None:
        class Persistent:
            @hookimpl
            def lambda_task_classify(self, error: BaseException) -> Outcome:
                return Retry(error, delay=1)

        with override_settings(LAMBDA_TASKS_PLUGINS=[Persistent()]):
            task = task_with(RetryPolicy(on=(Busy,), max_retries=1))
            assert isinstance(outcome_of(task, Gone(), n_retries=0), Retry)
            assert isinstance(outcome_of(task, Gone(), n_retries=1), Failed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock that the test controls, for the code that reads `time.time()`."""
    now = SimpleNamespace(value=time.time())
    monkeypatch.setattr(time, "time", lambda: now.value)
    return now


@lambda_task(retry=RetryPolicy(on=(Busy,), delay=60, max_age=timedelta(minutes=10), jitter=False))
def aging() -> None:
    raise Busy


@lambda_task(retry=RetryPolicy(on=(Busy,), delay=60))
def ageless() -> None:
    raise Busy


@pytest.mark.django_db(transaction=True)
class TestMaxAge:
    def test_no_retry_starts_after_max_age(self, clock: Any) -> None:
        sent = clock.value
        assert isinstance(outcome_of(aging, Busy(), first_sent=sent - 539), Retry)
        outcome = outcome_of(aging, Busy(), first_sent=sent - 541, n_retries=3)
        assert isinstance(outcome, Failed)
        assert str(outcome.error) == (
            f"{aging.name} failed after 3 retries, and its next retry would start 601 s after the first invocation "
            "(its max_age is 600 s). The last error was Busy."
        )

    def test_requested_delay_counts(self, clock: Any) -> None:
        error = Busy()
        error.retry_after = 595  # type: ignore[attr-defined]
        assert isinstance(outcome_of(aging, error, first_sent=clock.value), Retry)
        assert isinstance(outcome_of(aging, error, first_sent=clock.value - 10), Failed)

    def test_age_without_a_time_counts_from_the_id(self, clock: Any) -> None:
        clock.value += 550
        assert isinstance(outcome_of(aging, Busy()), Failed)

    def test_chain_ends_in_time_with_its_reason(self, clock: Any) -> None:
        """Ten minutes have room for nine pauses of 60 seconds, in which each message is as old as its chain."""
        sent = clock.value
        handle = aging.execute_on_commit()
        while jobs := backend().take():
            [job] = jobs
            assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
            clock.value += 61
        chain = list(TaskRecord.objects.chain(handle.message_id))
        assert [record.reason for record in chain] == ["error"] * 9 + ["max_retries"]
        assert clock.value - sent == 10 * 61
        assert "MaxRetriesExceededError" in chain[-1].traceback

    def test_only_retries_with_max_age_carry_the_time(self) -> None:
        for task, carried in ((aging, True), (ageless, False)):
            task.execute_on_commit()
            first, moment = backend().take_records()[0], int(time.time() * 1000) - 5_000
            first["attributes"]["SentTimestamp"] = str(moment)
            assert handler({"Records": [first]}, None) == {"batchItemFailures": []}
            [job] = backend().take()
            assert job.message_attributes().get(FIRST_SENT_ATTRIBUTE) == (str(moment) if carried else None)

    def test_time_in_the_outbox_counts(self) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            handles = [task.using(delay=1_000).execute_on_commit() for task in (aging, ageless)]
        attributes = [OutboxMessage.objects.get(pk=handle.message_id).attributes for handle in handles]
        assert [FIRST_SENT_ATTRIBUTE in each for each in attributes] == [True, False]


def botocore_error(value: str) -> ClientError:
    return ClientError({"Error": {}, "ResponseMetadata": {"HTTPHeaders": {"retry-after": value}}}, "SendEmail")  # type: ignore[typeddict-item]


def urllib_error(value: str) -> HTTPError:
    headers = Message()
    headers["Retry-After"] = value
    return HTTPError("https://crm.example", 429, "busy", headers, None)


def error_with(**attributes: Any) -> Busy:
    error = Busy()
    vars(error).update(attributes)
    return error


def with_response(value: Any) -> Busy:
    """Return an error like those of requests and httpx, which keep the response."""
    return error_with(response=SimpleNamespace(headers={"RETRY-AFTER": value}))


@pytest.fixture
def at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_after.time, "time", lambda: NOW)


HTTP_DATE = format_datetime(datetime.fromtimestamp(NOW + 300, timezone.utc), usegmt=True)


class Hostile(Exception):
    @property
    def retry_after(self) -> int:
        raise RuntimeError("not now")


@pytest.mark.usefixtures("at_noon")
class TestRetryAfter:
    @pytest.mark.parametrize(
        ("error", "seconds"),
        [
            (error_with(retry_after=120), 120),
            (error_with(retry_after=0.5), 0.5),
            (error_with(retry_after="120"), 120),
            (error_with(retry_after=timedelta(minutes=2)), 120),
            (error_with(retry_after=datetime.fromtimestamp(NOW + 90, timezone.utc)), 90),
            (error_with(retry_after=math.inf), 31_536_000),
            (error_with(retry_after=10**9), 31_536_000),
            (with_response("120"), 120),
            (with_response(" 120 "), 120),
            (with_response(HTTP_DATE), 300),
            (botocore_error("7"), 7),
            (urllib_error("8"), 8),
            (urllib_error(HTTP_DATE), 300),
            (error_with(retry_after=None, response=SimpleNamespace(headers={"Retry-After": "9"})), 9),
            (error_with(retry_after=-5), 0),
            (error_with(retry_after=True), 0),
            (error_with(retry_after=math.nan), 0),
            (error_with(retry_after="soon"), 0),
            (error_with(retry_after="soon", headers={"retry-after": "5"}), 5),
            (with_response(datetime.fromtimestamp(NOW + 60, timezone.utc).strftime("%a %b %d %H:%M:%S %Y")), 60),
            (error_with(retry_after=["120"]), 0),
            (error_with(retry_after=datetime.fromtimestamp(NOW - 90, timezone.utc)), 0),
            (with_response("9" * 5_000), 31_536_000),
            (with_response("tomorrow"), 0),
            (error_with(response=None), 0),
            (error_with(response=SimpleNamespace(headers=None)), 0),
            (error_with(response={"ResponseMetadata": None}), 0),
            (error_with(headers="Retry-After: 5"), 0),
            (Hostile(), 0),
            (Busy(), 0),
        ],
        ids=lambda value: repr(getattr(value, "__dict__", value))[:60],
    )
    def test_request_is_read_from_the_error(self, error: BaseException, seconds: float) -> None:
        assert requested_delay(error) == seconds

    def test_delay_is_at_least_the_requested_one(self) -> None:
        exact = task_with(RetryPolicy(on=(Busy,), delay=30, jitter=False))
        assert delay_of(exact, error_with(retry_after=120.2)) == 121
        assert delay_of(exact, error_with(retry_after=5)) == 30
        spread = task_with(RetryPolicy(on=(Busy,), delay=30, backoff=True))
        assert {delay_of(spread, error_with(retry_after=120)) for _ in range(200)} == {121, 122, 123, 124, 125}

    def test_delay_is_limited_by_the_transport(self) -> None:
        task = task_with(RetryPolicy(on=(Busy,)))
        assert delay_of(task, error_with(retry_after=5_000)) == 900
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            assert 5_000 < delay_of(task, error_with(retry_after=5_000)) <= 5_005

    def test_max_delay_limits_the_request(self) -> None:
        task = task_with(RetryPolicy(on=(Busy,), max_delay=100, jitter=False))
        assert delay_of(task, error_with(retry_after=5_000)) == 100

    def test_short_form_respects_the_request(self) -> None:
        task = lambda_task(retry_on=(Busy,), retry_delay=5)(function)
        assert 120 < delay_of(task, error_with(retry_after=120)) <= 125


# RetryLater


class Report:
    """An external report that is ready after some questions."""

    questions = 0

    @classmethod
    def is_ready(cls) -> bool:
        cls.questions -= 1
        return cls.questions < 0


@lambda_task
def fetch(*, reason: str = "", delay: int | None = 30) -> str:
    Effect.objects.create(name="written before the question")
    if not Report.is_ready():
        raise RetryLater(delay=delay, reason=reason)
    return "fetched"


@lambda_task(ignore_errors=(Exception,), retry=RetryPolicy(on=(RetryLater,), delay=40, jitter=False, max_retries=2))
def fetch_with_policy() -> None:
    raise RetryLater


@lambda_task(sensitive=("token",))
def fetch_with_token(*, token: str) -> None:
    raise RetryLater(reason=f"{token} is not valid yet")


@lambda_task
def fetch_with_odd_reason() -> None:
    raise RetryLater(reason="\x00 \ud800\nERROR: forged " + 200_000 * "x")


@pytest.fixture
def _ready_after_two() -> None:
    Report.questions = 2


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("lambda_")]


class TestRetryLaterItself:
    @pytest.mark.parametrize(
        ("given", "error", "sentence"),
        [
            ({"delay": "30"}, TypeError, "delay must be a number of seconds or a timedelta, not '30'"),
            ({"delay": -1}, ValueError, "delay must be a finite number of at least 0 seconds, not -1"),
            ({"delay": math.inf}, ValueError, "delay must be a finite number .*, not inf"),
            ({"delay": True}, TypeError, "delay must be a number"),
            ({"reason": 5}, TypeError, "reason must be a string, not 5"),
        ],
        ids=str,
    )
    def test_invalid_value_is_refused(self, given: Any, error: type[Exception], sentence: str) -> None:
        with pytest.raises(error, match=sentence):
            RetryLater(**given)

    @pytest.mark.parametrize("again", [copy.copy, lambda error: RetryLater(*error.args)], ids=["copied", "rebuilt"])
    def test_copy_has_the_same_values(self, again: Callable[[RetryLater], RetryLater]) -> None:
        made = again(RetryLater(delay=timedelta(minutes=1), reason="not ready"))
        assert (made.delay, made.reason, str(made)) == (60, "not ready", "not ready")

    @pytest.mark.parametrize("ignored", [RetryLater, type("Later", (RetryLater,), {})])
    def test_ignoring_it_is_refused(self, ignored: type[RetryLater]) -> None:
        with pytest.raises(TypeError, match=r"ignore_errors must not contain .*ater, .* is always retried. Remove it"):
            lambda_task(ignore_errors=(ignored,))(function)

    def test_direct_call_raises_it(self) -> None:
        with pytest.raises(RetryLater):
            fetch_with_policy()


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_ready_after_two")
class TestRetryLater:
    def test_task_is_retried_until_it_is_ready(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            chain = chain_of(fetch, reason="the report is not ready")
        assert [(record.status, record.reason) for record in chain] == [
            ("RETRYING", "retry_later"),
            ("RETRYING", "retry_later"),
            ("SUCCESS", ""),
        ]
        assert chain[0].traceback == "RetryLater: the report is not ready"
        assert Effect.objects.count() == 1
        lines = lines_of(caplog)
        assert {level for level, _ in lines} == {"INFO"}
        assert f"{fetch.name} asks to run again in 30 s: the report is not ready" in lines[0][1]

    def test_record_without_a_reason_has_no_traceback(self) -> None:
        assert [record.traceback for record in chain_of(fetch)] == [None, None, None]

    def test_delay_is_exact(self) -> None:
        fetch.execute_on_commit()
        handler({"Records": backend().take_records()}, None)
        assert [job.delay for job in backend().take()] == [30]

    @pytest.mark.parametrize(("outbox", "seconds"), [(False, 900), (True, 4_000)])
    def test_delay_is_limited_by_the_transport(self, outbox: bool, seconds: int) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=outbox):
            assert delay_of(fetch, RetryLater(delay=4_000)) == seconds

    def test_delay_of_the_task_is_the_default(self) -> None:
        assert delay_of(fetch_with_policy, RetryLater()) == 40
        assert delay_of(fetch, RetryLater()) in range(1, 6)

    def test_retries_count_and_ignored_types_do_not_matter(self, caplog: pytest.LogCaptureFixture) -> None:
        chain = chain_of(fetch_with_policy)
        assert [(record.status, record.reason) for record in chain] == [
            ("RETRYING", "retry_later"),
            ("RETRYING", "retry_later"),
            ("FAILED", "max_retries"),
        ]
        assert "its max_retries is 2. The last error was RetryLater." in chain[-1].traceback
        assert [level for level, _ in lines_of(caplog)] == ["ERROR"]

    def test_max_age_applies(self, clock: Any) -> None:
        task = task_with(RetryPolicy(on=(Busy,), max_age=600))
        assert isinstance(outcome_of(task, RetryLater(delay=590), first_sent=clock.value), Retry)
        assert isinstance(outcome_of(task, RetryLater(delay=590), first_sent=clock.value - 20), Failed)

    def test_sensitive_argument_is_masked(self, caplog: pytest.LogCaptureFixture) -> None:
        fetch_with_token.execute_on_commit(token="a secret token")
        with caplog.at_level(logging.INFO):
            handler({"Records": backend().take_records()}, None)
        [record] = TaskRecord.objects.all()
        assert "is not valid yet" in record.traceback
        assert "is not valid yet" in caplog.text
        assert "a secret token" not in record.traceback + caplog.text

    def test_odd_reason_stays_in_its_line(self, caplog: pytest.LogCaptureFixture) -> None:
        fetch_with_odd_reason.execute_on_commit()
        with caplog.at_level(logging.INFO):
            handler({"Records": backend().take_records()}, None)
        [record] = TaskRecord.objects.all()
        assert record.traceback.startswith("RetryLater: \\x00 \\ud800\nERROR: forged xxx")
        [line] = [text for _, text in lines_of(caplog) if "asks to run again" in text]
        assert "\n" not in line
        assert len(line) < 1_000

    def test_mapping_limits_it_by_its_class(self) -> None:
        task = task_with({RetryLater: RetryPolicy(max_retries=1, delay=50, jitter=False), Busy: RetryPolicy()})
        assert delay_of(task, RetryLater()) == 50
        assert isinstance(outcome_of(task, RetryLater(), n_retries=1), Failed)
        assert isinstance(outcome_of(task, Busy(), n_retries=1), Retry)

    @pytest.mark.parametrize("outbox", [False, True])
    def test_eager_mode_retries_immediately(self, outbox: bool) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=not outbox, LAMBDA_TASKS_OUTBOX=outbox):
            if outbox:
                with collect_tasks() as queue:
                    fetch.execute_on_commit()
                    assert queue.run_until_idle() == 3
            else:
                fetch.execute_on_commit()
        assert sorted(TaskRecord.objects.values_list("status", flat=True)) == ["RETRYING", "RETRYING", "SUCCESS"]

    def test_plugin_may_decide_otherwise(self) -> None:
        class Impatient:
            @hookimpl
            def lambda_task_classify(self, error: BaseException) -> Outcome | None:
                return Failed(error) if isinstance(error, RetryLater) else None

        with override_settings(LAMBDA_TASKS_PLUGINS=[Impatient()]):
            assert [record.status for record in chain_of(fetch)] == ["FAILED"]


def test_plain_task_does_not_load_policies() -> None:
    """Compiling the dataclass costs each process time."""
    program = (
        "import sys; from lambda_tasks.definition.options import Options; Options(retry_on=(OSError,)); "
        "print('lambda_tasks.definition.retry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
