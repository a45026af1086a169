"""Celery's decorator, calls and `self`: what is carried over, and what is refused with an answer."""

from __future__ import annotations

import copy
import pickle
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks import RetryLater, RetryPolicy, current_task
from lambda_tasks.contrib import celery
from lambda_tasks.contrib.celery import CeleryTask, Retry, Task, calls, chain, group, shared_task
from lambda_tasks.contrib.celery.calls import CallOptions
from lambda_tasks.contrib.celery.options import CeleryOptions, translated
from lambda_tasks.contrib.celery.parameters import Parameters
from lambda_tasks.definition import hints
from lambda_tasks.definition.option_types import OptionsWithoutRetries
from lambda_tasks.definition.signatures import TaskSignature
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.testing import TaskQueue


@pytest.mark.django_db(transaction=True)
class TestBoundSelf:
    def test_progress_is_reported(self, lambda_tasks_queue: TaskQueue) -> None:
        seen: list[Any] = []

        def report(self: Any, total: int) -> None:
            self.update_state(state="PROGRESS", meta={"current": 1, "total": total, "status": "reading"})
            seen.append((self.AsyncResult(self.request.id).info, self.AsyncResult(self.request.id).state))

        define(report, bind=True, atomic=False).delay(3)
        lambda_tasks_queue.run_until_idle()
        assert seen == [({"current": 1, "total": 3, "status": "reading"}, "STARTED")]

    def test_request_is_true(self, lambda_tasks_queue: TaskQueue) -> None:
        seen: list[Any] = []

        def look(self: Any, x: int, *, y: int = 2) -> None:
            request = self.request
            seen.extend([request.args, request.kwargs, request.retries, request.called_directly, request.timelimit])
            seen.extend([self.name, self.max_retries, current_task().message_id == request.id])  # type: ignore[union-attr]
            seen.append(request.delivery_info)

        task = define(look, bind=True, time_limit=60, queue="other", max_retries=None)
        task.delay(1)
        lambda_tasks_queue.run_until_idle()
        name = f"{__name__}.{look.__qualname__}"
        assert seen == [(), {"x": 1}, 0, False, (60, 59), name, None, True, {"routing_key": "other"}]

    @pytest.mark.parametrize(
        ("use", "answer"),
        [
            (
                lambda self: self.retry(kwargs={"x": 2}),
                r"must not have the argument kwargs: a retry runs the same call again",
            ),
            (lambda self: self.retry(queue="other"), "must not have the argument queue"),
            (lambda self: self.retry(throw=False), "must not have the argument throw"),
            (lambda self: self.update_state(state="STARTED", meta={"step": 1}), "must have meta with current"),
            (lambda self: self.update_state("another id", "PROGRESS", {"current": 1}), "must have meta with current"),
        ],
    )
    def test_other_arguments_are_refused(self, use: Any, answer: str) -> None:
        with pytest.raises(TypeError, match=answer):
            define(lambda_named(use), bind=True)()

    @pytest.mark.parametrize(
        ("use", "answer"),
        [
            (lambda self: self.replace, r"has no attribute 'replace'\. See docs/howto/from-celery\.md"),
            (lambda self: self.app, "there is no app"),
            (lambda self: self.request.headers, "current_task"),
            (lambda self: setattr(self, "client", 1), "Keep the value in a module"),
        ],
    )
    def test_other_attributes_are_refused(self, use: Any, answer: str) -> None:
        with pytest.raises(AttributeError, match=answer):
            define(lambda_named(use), bind=True)()

    def test_direct_call_is_not_retried(self) -> None:
        error = OSError("down")
        with pytest.raises(OSError, match="down"):
            define(lambda_named(lambda self: self.retry(exc=error)), bind=True)()
        with pytest.raises(Retry):
            define(lambda_named(lambda self: self.retry()), bind=True)()

    def test_base_class_is_refused(self) -> None:
        with pytest.raises(TypeError, match="write a plugin with the hooks"):
            type("Base", (Task,), {})


def lambda_named(use: Any) -> Any:
    """Return a function for a task that does `use`."""

    def task(self: Any) -> Any:
        return use(self)

    return task


class TestDefinition:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, {}),
            ({"queue": "other", "ignore_result": True, "serializer": "json"}, {"queue": "other"}),
            ({"acks_late": True, "reject_on_worker_lost": True}, {}),
            ({"acks_late": False}, {"on_crash": "fail"}),
            ({"time_limit": 60}, {"hard_timeout": 60, "soft_timeout": 59}),
            ({"soft_time_limit": 400}, {"soft_timeout": 400, "hard_timeout": 430}),
            ({"time_limit": 60, "soft_time_limit": 49.5}, {"hard_timeout": 60, "soft_timeout": 50}),
            ({"expires": 90, "sensitive": ("x",)}, {"expires_in": 90, "sensitive": ("x",)}),
            ({"name": "shop.greet"}, {"aliases": ("shop.greet",)}),
            ({"name": "greet"}, {}),
            (
                {"autoretry_for": (OSError,)},
                {"retry": RetryPolicy(on=(OSError,), max_retries=3, delay=180, jitter=False)},
            ),
            (
                {"autoretry_for": (OSError,), "retry_kwargs": {"max_retries": 5, "countdown": 7}},
                {"retry": RetryPolicy(on=(OSError,), max_retries=5, delay=7, jitter=False)},
            ),
            (
                {"autoretry_for": [OSError], "retry_backoff": True, "max_retries": None},
                {"retry": RetryPolicy(on=(OSError,), delay=1, backoff=True, max_delay=600)},
            ),
            (
                {"autoretry_for": [OSError], "retry_backoff": 9, "retry_backoff_max": 60, "retry_jitter": False},
                {"retry": RetryPolicy(on=(OSError,), max_retries=3, delay=9, backoff=True, max_delay=60, jitter=False)},
            ),
            (
                {"autoretry_for": (OSError,), "dont_autoretry_for": (TimeoutError, KeyError)},
                {
                    "retry": {
                        OSError: RetryPolicy(max_retries=3, delay=180, jitter=False),
                        TimeoutError: RetryPolicy(max_retries=0),
                    }
                },
            ),
            (
                {"bind": True, "max_retries": 1, "default_retry_delay": 5},
                {"retry": RetryPolicy(on=(RetryLater,), max_retries=1, delay=5, jitter=False)},
            ),
        ],
    )
    def test_options_are_translated(self, given: dict[str, Any], expected: dict[str, Any]) -> None:
        is_bound = given.pop("bind", False)
        assert translated(given, name="shop.tasks.greet", is_bound=is_bound).options == expected

    @pytest.mark.parametrize(
        ("given", "answer"),
        [
            ({"rate_limit": "10/m"}, r"must not have the option rate_limit.* use max_concurrency"),
            ({"time_limit": 901}, "use hard_timeout, at most 900 seconds"),
            ({"base": object}, "write a plugin with the hooks"),
            ({"serializer": "pickle"}, "arguments are JSON"),
            ({"throws": (KeyError,)}, "use ignore_errors"),
            ({"acks_on_failure_or_timeout": False}, "acks_on_failure_or_timeout"),
            ({"retry_on": (KeyError,)}, "Use Celery's options for retries"),
            ({"colour": 1}, r"See docs/howto/from-celery\.md"),
            ({"retry_kwargs": {"eta": 1}}, "must contain max_retries and countdown only, not eta"),
            ({"max_retries": "3"}, "max_retries must be"),
            ({"default_retry_delay": "3"}, "default_retry_delay must be a finite number"),
        ],
    )
    def test_option_without_counterpart_is_refused(self, given: dict[str, Any], answer: str) -> None:
        with pytest.raises((TypeError, ValueError), match=answer):
            translated(given, name="shop.tasks.greet", is_bound=False)

    def test_long_retry_delay_needs_the_outbox(self) -> None:
        with pytest.raises(ValueError, match="LAMBDA_TASKS_OUTBOX"):
            shared_task(autoretry_for=(OSError,), default_retry_delay=3600)(greet)

    def test_carried_options_are_those_of_the_table(self) -> None:
        names = CeleryOptions.__optional_keys__ - OptionsWithoutRetries.__optional_keys__
        carried = hints.CARRIED_OPTIONS - {"bind", "queue"}
        assert names == carried | hints.DROPPED_OPTIONS.keys()
        assert CallOptions.__optional_keys__ == (hints.CARRIED_CALLS - {"args", "kwargs"}) | hints.DROPPED_CALLS.keys()
        assert set(celery.__all__) >= hints.CARRIED_NAMES
        itself = Task(define(greet), {}, called_directly=True)
        assert [name for name in sorted(hints.CARRIED_ATTRIBUTES) if not hasattr(itself, name)] == [
            "apply_async_on_commit",
            "delay_on_commit",
        ]
        assert [name for name in sorted(hints.CARRIED_REQUEST) if not hasattr(itself.request, name)] == []

    def test_parameters_are_bound_and_annotated(self) -> None:
        def place(a, /, b, c: int, d: str = None, *, e=5):  # type: ignore[no-untyped-def, assignment]  # noqa: RUF013
            return [a, b, c, d, e]

        parameters = Parameters(place, is_bound=False)
        signature = TaskSignature(parameters.keyword_only(dict))
        named = parameters.named(([1], None), {"c": 3, "d": None})
        assert signature.encode(named) == named == {"a": [1], "b": None, "c": 3, "d": None}
        assert parameters.lambda_task_call((), named) == [[1], None, 3, None, 5]
        for wrong in ({"c": "3"}, {"d": 3}, {"celery_expires": "soon"}):
            with pytest.raises(InvalidArguments, match=f"{next(iter(wrong))} must be"):
                signature.encode({**named, **wrong})

    @pytest.mark.parametrize("arguments", [(), (1, 2, 3)])
    def test_arguments_that_do_not_fit_are_refused(self, arguments: tuple[Any, ...]) -> None:
        task = define(greet)
        with pytest.raises(InvalidArguments, match=r"Invalid arguments for tests\.contrib\.test_celery\.greet: "):
            task.delay(*arguments)

    def test_other_functions_are_refused(self) -> None:
        def variadic(*names: str) -> None: ...

        def own_expiry(celery_expires: int) -> None: ...

        def without_self(*, name: str) -> None: ...

        async def coroutine() -> None: ...

        with pytest.raises(TypeError, match="must not be variadic"):
            shared_task(variadic)
        with pytest.raises(TypeError, match=r"celery_expires of .* must have another name"):
            shared_task(own_expiry)
        with pytest.raises(TypeError, match="must have self as its first parameter"):
            shared_task(bind=True)(without_self)
        with pytest.raises(TypeError, match="must not be an async function"):
            shared_task(coroutine)

    def test_warning_says_what_to_write(self) -> None:
        with pytest.warns(DeprecationWarning, match="In place of self, call current_task") as caught:
            shared_task(bind=True, queue="other", autoretry_for=(OSError,))(lambda_named(id))
        [warning] = caught
        assert warning.filename == __file__
        assert "Write @lambda_task(queue='other', retry=RetryPolicy(on=(OSError, RetryLater), max_retries=3, " in str(
            warning.message
        )
        with pytest.warns(DeprecationWarning, match=r"and def greet\(\*, name: …, shout: bool = False\), with a type"):
            shared_task(greet)

    def test_direct_call_runs_the_function(self) -> None:
        task = define(greet)
        assert task("Ada", True) == task.run("Ada", shout=True) == task.s("Ada")(shout=True) == "ADA"


def greet(name, shout: bool = False):  # type: ignore[no-untyped-def]
    return name.upper() if shout else name


class TestCalls:
    @pytest.mark.parametrize(
        ("options", "delay"),
        [
            ({}, 0),
            ({"countdown": None}, 0),
            ({"countdown": 1.2}, 2),
            ({"countdown": timedelta(minutes=1)}, 60),
            ({"eta": datetime.fromtimestamp(1_800_000_060, timezone.utc)}, 60),
            ({"eta": datetime(2027, 1, 15, 8, 1)}, 60),  # noqa: DTZ001, naive as people write it
            ({"eta": datetime(2020, 1, 1)}, 0),  # noqa: DTZ001
        ],
    )
    def test_times_become_a_delay(self, now: Any, options: dict[str, Any], delay: int) -> None:
        assert define(greet).s("Ada").invocation(takes_result=False, **options).delay == delay

    def test_naive_time_is_in_celerys_time_zone(self, now: Any) -> None:
        with override_settings(CELERY_TIMEZONE="Europe/Berlin"):
            assert calls.seconds_until(datetime(2027, 1, 15, 9, 1)) == 60  # noqa: DTZ001

    def test_long_delay_needs_the_outbox(self) -> None:
        with pytest.raises(ValueError, match="LAMBDA_TASKS_OUTBOX"):
            define(greet).apply_async(("Ada",), countdown=3600)

    @pytest.mark.parametrize(
        ("options", "answer"),
        [
            ({"countdown": 1, "eta": datetime.now(timezone.utc)}, "must not be combined with eta"),
            ({"eta": 60}, "eta must be a datetime, not"),
            ({"countdown": "60"}, "countdown must be a finite number of seconds, not"),
            ({"priority": 3}, "must not be called with priority=3.*SQS has no priorities"),
            ({"link_error": 1}, "on_failure"),
            ({"task_id": "x"}, r"handle\.message_id"),
            ({"serializer": "pickle"}, "arguments are JSON"),
            ({"colour": "red"}, r"See docs/howto/from-celery\.md"),
        ],
    )
    def test_option_without_counterpart_is_refused(self, options: dict[str, Any], answer: str) -> None:
        with pytest.raises(TypeError, match=answer):
            define(greet).apply_async(("Ada",), **options)

    @pytest.mark.parametrize(
        ("build", "answer"),
        [
            (lambda s: group(s) | s, r"In place of Celery's chord, send group"),
            (lambda s: group(chain(s, s)), "not chains"),
            (lambda s: chain(group(s)), "must have signatures of tasks"),
            (lambda s: chain(), "at least one signature"),
            (lambda s: chain(s, s).apply_async(queue="other"), r"A chain must not be sent with queue='other'"),
            (lambda s: group(s).apply_async(priority=1), "A group must not be sent with priority=1"),
        ],
    )
    def test_other_flows_are_refused(self, build: Any, answer: str) -> None:
        with pytest.raises(TypeError, match=answer):
            build(define(greet).s("Ada"))

    def test_result_comes_first_in_a_chain(self) -> None:
        task = define(greet)
        after = task.s(True).invocation(takes_result=True)
        assert (after.takes, after.kwargs) == ({"name": "result"}, {"shout": True})
        assert task.si("Ada").invocation(takes_result=True).takes == {}
        with pytest.raises(InvalidArguments, match="multiple values for argument 'name'"):
            task.s(name="Ada").invocation(takes_result=True)

    @pytest.mark.parametrize("build", [lambda s: s, lambda s: s | s, group])
    def test_other_attributes_have_an_answer(self, build: Any) -> None:
        value = build(define(greet).s("Ada"))
        for name, answer in (("on_error", "docs/howto/from-celery"), ("update_state", "progress")):
            with pytest.raises(AttributeError, match=f"has no attribute {name!r}.*{answer}"):
                getattr(value, name)

    def test_signature_is_changed_in_place(self) -> None:
        task = define(greet)
        signature = task.s("Ada")
        assert signature.set(countdown=5).set(queue="other") is signature
        assert (signature.invocation(takes_result=False).delay, signature.options["queue"]) == (5, "other")
        assert task.signature(("Ada",), countdown=5, queue="other") == signature

    def test_task_is_copied_with_its_methods(self) -> None:
        task = define(greet)
        slow = task.using(delay=5)
        assert (type(slow), slow.delay, task.delay) == (CeleryTask, 5, 0)
        assert copy.deepcopy(task) is task
        assert type(pickle.loads(pickle.dumps(slow.delay))) is int

    @pytest.mark.parametrize("name", ["chord", "Celery", "crontab", "Reject"])
    def test_missing_name_has_an_answer(self, name: str) -> None:
        with pytest.raises(ImportError, match=f"In place of Celery's {name}, "):
            exec(f"from lambda_tasks.contrib.celery import {name}")
        with pytest.raises(AttributeError, match="no attribute 'colour'"):
            _ = celery.colour  # type: ignore[attr-defined]


def define(function: Any, /, **options: Any) -> Any:
    """Define a task that this module keeps, so that a worker may call it."""
    with pytest.warns(DeprecationWarning, match=r"docs/howto/from-celery\.md"):
        task = shared_task(**options)(function) if options else shared_task(function)
    setattr(sys.modules[__name__], f"kept_{function.__name__}", task)
    return task
