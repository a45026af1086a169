"""`@lambda_task`: the functions and options that it accepts, and the ways to call a task."""

# No postponed annotations here: some tasks are local functions with local types. test_arguments covers postponed ones.

import asyncio
import copy
import functools
import multiprocessing
import pickle
import re
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings

from lambda_tasks import registry
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition import steps
from lambda_tasks.definition.option_types import TaskOptions
from lambda_tasks.definition.options import OPTION_NAMES
from lambda_tasks.definition.schedules import Every
from lambda_tasks.exceptions import InvalidArguments, LockError, UnreachableTask, UnreachableTaskWarning
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.schedules import tasks_forgotten

MODULE = __name__


class Refused(Exception):
    pass


@lambda_task
def greet(*, name: str, times: int = 1) -> str:
    """Say hello."""
    return " ".join([f"hello {name}"] * times)


@lambda_task(queue="other", delay=30, soft_timeout=5, hard_timeout=9, retry_on=[Refused], retry_delay=7, singleton=True)
def refuse(*, name: str) -> None:
    raise Refused(name)


def sent_and_run(task: LambdaTaskWrapper[..., Any], eager: bool, /, **arguments: Any) -> TaskRecord:
    """Send the task, in eager mode or through the handler, and return its record."""
    if eager:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = task.execute_on_commit(**arguments)
    else:
        handle = task.execute_on_commit(**arguments)
        records = [event_record(job) for job in queue()]
        queue().clear()
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
    return TaskRecord.objects.get(pk=handle.message_id)


class QueueOfAnotherProcess(MemoryBackend):
    """A transport whose workers have to find the task by its name."""

    leaves_process = True


REAL_QUEUE = f"{MODULE}.QueueOfAnotherProcess"


@pytest.fixture(autouse=True)
def _empty_queue() -> None:
    queue().clear()


def queue() -> list[Job]:
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    return backend.jobs


class TestDecoration:
    def test_decorator_works_with_and_without_options(self) -> None:
        def function(*, name: str) -> str:
            return name

        for task in (lambda_task(function), lambda_task()(function), lambda_task(queue="other")(function)):
            assert isinstance(task, LambdaTaskWrapper)
            assert task(name="Ada") == "Ada"

    def test_task_keeps_the_functions_metadata(self) -> None:
        assert (greet.__name__, greet.__doc__, greet.__module__) == ("greet", "Say hello.", MODULE)
        assert greet.name == f"{MODULE}.greet"
        assert repr(greet) == f"<lambda_task {MODULE}.greet>"

    def test_defaults_are_as_documented(self) -> None:
        assert vars(greet.options) == {
            "soft_timeout": None,
            "hard_timeout": None,
            "queue": "default",
            "ignore_errors": (),
            "retry": None,
            "retry_on": (),
            "retry_delay": 0,
            "retry_backoff": False,
            "max_retries": None,
            "singleton": False,
            "max_concurrency": None,
            "on_contention": "retry",
            "max_wait": 86_400,
            "unique": False,
            "on_duplicate": "return",
            "unique_for": 86_400,
            "delay": 0,
            "group": None,
            "on_crash": "retry",
            "record": None,
            "expires_in": None,
            "aliases": (),
            "sensitive": (),
            "atomic": True,
            "schedule": (),
            "on_success": (),
            "on_failure": (),
        }

    def test_task_has_every_option_as_attribute(self) -> None:
        given: dict[str, Any] = {
            "soft_timeout": 5,
            "hard_timeout": 9,
            "queue": "other",
            "ignore_errors": (KeyError,),
            "retry_on": (Refused,),
            "retry_delay": 7,
            "retry_backoff": True,
            "max_retries": 3,
            "singleton": ("user_id",),
            "max_concurrency": 2,
            "on_contention": "wait",
            "max_wait": 60,
            "unique": "user_id",
            "on_duplicate": "replace",
            "unique_for": 30.5,
            "delay": 30,
            "group": "user_id",
            "on_crash": "fail",
            "record": "failures",
            "expires_in": 600,
            "aliases": ("shop.old.task",),
            "sensitive": ("token",),
            "atomic": False,
            "schedule": (Every(minutes=5, kwargs={"token": "x", "user_id": 1}),),
            "on_success": (steps.Step("shop.tasks.report"),),
            "on_failure": (steps.Step("shop.tasks.repair"),),
        }
        # A task has either a policy or its short form; tests/definition/test_retry_policy.py passes policies.
        assert {*given, "retry"} == {*OPTION_NAMES} == TaskOptions.__optional_keys__

        @lambda_task(**given)
        def task(*, token: str, user_id: int) -> None: ...

        assert {name: getattr(task, name) for name in given} == given
        other = task.using(delay=31)
        assert {name: getattr(other, name) for name in given} == given | {"delay": 31}

    @pytest.mark.parametrize("collection", [tuple, list, set, frozenset, iter, dict.fromkeys])
    def test_exception_types_from_iterables_become_tuples(
        self, collection: Callable[[list[type[Exception]]], Any]
    ) -> None:
        @lambda_task(ignore_errors=collection([KeyError]), retry_on=collection([Refused, OSError]))
        def task() -> None: ...

        assert task.ignore_errors == (KeyError,)
        assert isinstance(task.retry_on, tuple)
        assert set(task.retry_on) == {Refused, OSError}

    def test_wrapper_works_without_the_decorator(self) -> None:
        def function(*, number: int) -> int:
            return number + 1

        task = LambdaTaskWrapper(function, queue="other", retry_on=(Refused,))

        assert task(number=1) == 2
        assert (task.queue, task.retry_on) == ("other", (Refused,))

    def test_task_cannot_be_decorated_again(self) -> None:
        with pytest.raises(TypeError, match=r"greet is already a task. Call its using\(\)"):
            lambda_task(greet)

    def test_inner_decorator_that_keeps_names_is_allowed(self) -> None:
        @lambda_task
        @functools.lru_cache
        def task(*, number: int) -> int:
            return number * 2

        assert task(number=2) == 4
        assert task.serialize(number=2)["message"]["kwargs"] == {"number": 2}
        with pytest.raises(InvalidArguments):
            task.serialize(number="2")


# Functions that are refused at decoration, each with its expected error.


def positional(name: str) -> None: ...
def positional_only(name: str, /) -> None: ...
def mixed(name: str, *, other: str) -> None: ...
def with_args(*args: str) -> None: ...
def with_kwargs(**kwargs: str) -> None: ...
def with_underscore(*, _name: str) -> None: ...
def without_annotation(*, name) -> None: ...


class WithMethods:
    def method(self, *, name: str) -> str:
        return name

    @classmethod
    def class_method(cls, *, name: str) -> str:
        return name


class TestRefusedFunctions:
    @pytest.mark.parametrize(
        ("function", "sentence"),
        [
            (positional, "Parameter name: str of .*positional must be keyword-only, not positional. Put a \\* before"),
            (positional_only, "Parameter name: str of .* must be keyword-only, not positional"),
            (mixed, "Parameter name: str of .* must be keyword-only, not positional"),
            (with_args, "\\*args: str of .* must be keyword-only, not variadic. Replace it with named parameters"),
            (with_kwargs, "\\*\\*kwargs: str of .* must be keyword-only, not variadic. Replace it with named"),
            (with_underscore, "Parameter _name of .* must not start with an underscore"),
            (without_annotation, "Parameter name of .* must have an annotation"),
            (WithMethods.method, "Parameter self of .* must be keyword-only, not positional"),
        ],
    )
    def test_unsendable_parameter_raises_type_error(self, function: Any, sentence: str) -> None:
        with pytest.raises(TypeError, match=sentence):
            lambda_task(function)

    @pytest.mark.parametrize(
        "thing",
        [42, "greet", len, WithMethods, functools.partial(greet.function, name="Ada"), WithMethods(), staticmethod],
        ids=["number", "text", "builtin", "class", "partial", "instance", "type"],
    )
    def test_non_function_raises_type_error(self, thing: Any) -> None:
        with pytest.raises(TypeError, match="decorates functions, not "):
            lambda_task(thing)

    def test_function_without_parameters_is_a_task(self) -> None:
        @lambda_task
        def task() -> str:
            return "done"

        assert task() == "done"
        assert task.serialize()["message"]["kwargs"] == {}


class TestRefusedOptions:
    @pytest.mark.parametrize(
        ("options", "error", "sentence"),
        [
            (
                {"soft_timeout": 10, "hard_timeout": 10},
                ValueError,
                "soft_timeout must be shorter .* \\(10\\), not 10",
            ),
            (
                {"soft_timeout": 11, "hard_timeout": 10},
                ValueError,
                "soft_timeout must be shorter .* \\(10\\), not 11",
            ),
            (
                {"soft_timeout": 901},
                ValueError,
                "soft_timeout must be a whole number of seconds from 1 to 900, not 901",
            ),
            (
                {"hard_timeout": 901},
                ValueError,
                "hard_timeout must be a whole number of seconds from 1 to 900, not 901",
            ),
            ({"soft_timeout": 0}, ValueError, "soft_timeout must be a whole number of seconds from 1 to 900, not 0"),
            ({"hard_timeout": -1}, ValueError, "hard_timeout must be a whole number of seconds from 1 to 900, not -1"),
            ({"soft_timeout": 1.5}, TypeError, "soft_timeout must be a whole number of seconds .*, not 1.5"),
            ({"hard_timeout": "60"}, TypeError, "hard_timeout must be a whole number of seconds .*, not '60'"),
            ({"hard_timeout": True}, TypeError, "hard_timeout must be a whole number of seconds .*, not True"),
            # Longer than the default hard timeout of 300 s in the settings.
            ({"soft_timeout": 300}, ValueError, "soft timeout of 300 s, .* its hard timeout of 300 s.*hard_timeout="),
            ({"hard_timeout": 270}, ValueError, "soft timeout of 270 s, .* its hard timeout of 270 s.*soft_timeout="),
            ({"delay": 901}, ValueError, "delay must be a whole number of seconds from 0 to 900, .*not 901"),
            (
                {"delay": -1},
                ValueError,
                "^delay must be .* from 0 to 900, or to 31536000 .*, not -1",
            ),
            ({"delay": 901}, ValueError, "^delay must be .* 0 to 900, .* not 901. .* set LAMBDA_TASKS_OUTBOX = True"),
            (
                {"delay": 31_536_001},
                ValueError,
                "^delay must be .* from 0 to 900, or to 31536000 .*, not 31536001",
            ),
            ({"delay": 1.0}, TypeError, "delay must be a whole number of seconds .*, not 1.0"),
            ({"queue": ""}, ValueError, "queue must be the name of a queue in LAMBDA_TASKS_QUEUES, not ''"),
            ({"queue": None}, TypeError, "queue must be the name of a queue in LAMBDA_TASKS_QUEUES, not None"),
            ({"retry_delay": 5}, ValueError, "retry_delay must be 0 if retry_on is empty, not 5"),
            (
                {"retry_delay": -1, "retry_on": (OSError,)},
                ValueError,
                "retry_delay must be .* 0 to 900, or to 31536000 .*, not -1",
            ),
            (
                {"retry_delay": 901, "retry_on": (OSError,)},
                ValueError,
                "^retry_delay must be .* 0 to 900, .* not 901. .* set LAMBDA_TASKS_OUTBOX = True",
            ),
            (
                {"retry_delay": 0.5, "retry_on": (OSError,)},
                TypeError,
                "retry_delay must be a whole number of seconds .*, not 0.5",
            ),
            ({"retry_on": (int,)}, TypeError, "retry_on must be .* exception types, .* contains <class 'int'>"),
            (
                {"retry_on": ("OSError",)},
                TypeError,
                "retry_on must be .* exception types, .* contains 'OSError'",
            ),
            (
                {"retry_on": (OSError(),)},
                TypeError,
                "retry_on must be .* exception types, .* contains OSError\\(\\)",
            ),
            (
                {"retry_on": OSError},
                TypeError,
                "retry_on must be .* exception types, .*, not <class 'OSError'>",
            ),
            ({"retry_on": None}, TypeError, "retry_on must be .* exception types, .*, not None"),
            (
                {"ignore_errors": (int,)},
                TypeError,
                "ignore_errors must be .* exception types, .* contains <class 'int'>",
            ),
            (
                {"ignore_errors": KeyError},
                TypeError,
                "ignore_errors must be .* exception types, .*, not <class 'KeyError'>",
            ),
            (
                {"ignore_errors": "KeyError"},
                TypeError,
                "ignore_errors must be .* exception types, .* contains 'K'",
            ),
            (
                {"ignore_errors": (KeyError, OSError), "retry_on": (OSError, ValueError)},
                TypeError,
                "retry_on and ignore_errors must not .*, and both contain OSError. Remove it from one",
            ),
            (
                {"ignore_errors": (OSError,), "retry_on": (ValueError, ConnectionError)},
                TypeError,
                "retry_on must not contain ConnectionError, .* its base class OSError, .* never retried. Remove",
            ),
            (
                {"retry_on": (LockError,), "singleton": True},
                TypeError,
                "retry_on must not contain LockError for a task with singleton or max_concurrency. Remove it",
            ),
            ({"retry_backoff": True}, ValueError, "retry_backoff must be False .* 0, .* Set retry_on, and a"),
            (
                {"retry_backoff": True, "retry_on": (OSError,)},
                ValueError,
                "retry_backoff must be False if retry_delay is 0",
            ),
            ({"retry_backoff": 2}, TypeError, "retry_backoff must be True or False, not 2"),
            ({"max_retries": -1}, ValueError, "max_retries must be an integer of at least 0, not -1"),
            ({"max_retries": 1.5}, TypeError, "max_retries must be an integer .*, not 1.5"),
            ({"max_retries": True}, TypeError, "max_retries must be an integer .*, not True"),
            ({"expires_in": 0}, ValueError, "expires_in must be a whole number of seconds of at least 1, not 0"),
            ({"expires_in": 0.5}, TypeError, "expires_in must be a whole number of seconds .*, not 0.5"),
            ({"expires_in": 60, "delay": 60}, ValueError, "delay must be shorter than expires_in \\(60\\), not 60"),
            (
                {"expires_in": 60, "retry_delay": 90, "retry_on": (OSError,)},
                ValueError,
                "retry_delay must be shorter than expires_in \\(60\\), not 90",
            ),
            (
                {"aliases": "shop.old.task"},
                TypeError,
                "aliases must be .* dotted paths, .*, not 'shop.old.task'",
            ),
            ({"aliases": None}, TypeError, "aliases must be .* dotted paths, .*, not None"),
            (
                {"aliases": (greet,)},
                TypeError,
                "aliases must contain .* strings, not <lambda_task .*greet>",
            ),
            (
                {"aliases": ("task",)},
                ValueError,
                "aliases must contain .* at most 255 .*, not 'task'",
            ),
            (
                {"aliases": ("shop..task",)},
                ValueError,
                "aliases must contain .* at most 255 .*, not 'shop..task'",
            ),
            (
                {"aliases": ("shop." + "a" * 251,)},
                ValueError,
                "aliases must contain .* at most 255",
            ),
            ({"atomic": 0}, TypeError, r"atomic must be True .* or False .*, not 0"),
            ({"atomic": None}, TypeError, r"atomic must be True .* or False .*, not None"),
            ({"sensitive": "name"}, TypeError, "sensitive must be .* parameter names, .*, not 'name'"),
            ({"sensitive": None}, TypeError, "sensitive must be .* parameter names, .*, not None"),
            ({"sensitive": (5,)}, TypeError, "sensitive must be .* parameter names, .* contains 5"),
            (
                {"sensitive": ("name", "token")},
                ValueError,
                "sensitive must contain parameters of .*greet, not 'token'. Its parameters: name",
            ),
            ({"singleton": 1}, TypeError, "singleton must be True or False, a parameter name, .*, not 1"),
            ({"on_crash": "ignore"}, ValueError, "on_crash must be 'retry' or 'fail', not 'ignore'"),
            ({"on_crash": None}, ValueError, "on_crash must be 'retry' or 'fail', not None"),
            ({"record": "none"}, ValueError, "record must be 'all', 'failures' or None, not 'none'"),
            ({"record": True}, ValueError, "record must be 'all', 'failures' or None, not True"),
            ({"timeout": 5}, TypeError, "Unknown options for @lambda_task: timeout. The options are soft_timeout, "),
        ],
    )
    def test_invalid_option_is_refused_at_decoration(self, options: Any, error: type[Exception], sentence: str) -> None:
        with pytest.raises(error, match=sentence):
            lambda_task(**options)(greet.function)

    def test_redis_lock_error_cannot_be_retried(self) -> None:
        from redis.exceptions import LockError as RedisLockError

        with pytest.raises(TypeError, match="retry_on must not contain LockError for a task with singleton"):
            lambda_task(retry_on=(RedisLockError,), singleton=True)(greet.function)

    def test_other_tasks_may_retry_lock_errors(self) -> None:
        from redis.exceptions import LockError as RedisLockError

        @lambda_task(retry_on=(LockError, RedisLockError))
        def task() -> None: ...

        assert task.retry_on == (LockError, RedisLockError)

    def test_lock_errors_may_be_ignored(self) -> None:
        @lambda_task(ignore_errors=(LockError,), singleton=True)
        def task() -> None: ...

        assert task.ignore_errors == (LockError,)

    def test_base_class_of_ignored_error_may_be_retried(self) -> None:
        @lambda_task(ignore_errors=(FileNotFoundError,), retry_on=(OSError,))
        def task() -> None: ...

        assert (task.ignore_errors, task.retry_on) == ((FileNotFoundError,), (OSError,))

    def test_boundary_values_are_accepted(self) -> None:
        with tasks_forgotten():  # a worker warns of a task this long

            @lambda_task(soft_timeout=1, hard_timeout=900, delay=900)
            def longest() -> None: ...

        assert longest.timeouts() == (1, 900)

    @pytest.mark.parametrize("field", OPTION_NAMES)
    def test_every_option_is_checked(self, field: str) -> None:
        with pytest.raises((TypeError, ValueError)):
            lambda_task(**{field: object()})(greet.function)


class TestTimeouts:
    def test_own_limits_override_the_settings(self) -> None:
        assert refuse.timeouts() == (5, 9)

    def test_settings_apply_without_own_limits(self) -> None:
        assert greet.timeouts() == (270, 300)
        with override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=20, LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=30):
            assert greet.timeouts() == (20, 30)

    def test_missing_limit_comes_from_the_settings(self) -> None:
        @lambda_task(soft_timeout=100)
        def task() -> None: ...

        assert task.timeouts() == (100, 300)

    def test_settings_that_conflict_with_the_task_raise(self) -> None:
        @lambda_task(soft_timeout=100)
        def task() -> None: ...

        with (
            override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=20, LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=30),
            pytest.raises(ImproperlyConfigured, match=r"soft timeout of 100 s, .* its hard timeout of 30 s"),
        ):
            task.timeouts()


class TestCalling:
    def test_direct_call_runs_without_a_record(self) -> None:
        assert greet(name="Ada", times=2) == "hello Ada hello Ada"
        with pytest.raises(Refused):
            refuse(name="Ada")

    def test_direct_call_passes_arguments_unchanged(self) -> None:
        @lambda_task
        def identity(*, thing: object) -> object:
            return thing

        thing = object()
        assert identity(thing=thing) is thing

    @pytest.mark.django_db
    def test_direct_call_runs_in_the_callers_transaction(self) -> None:
        @lambda_task
        def leave(*, name: str) -> bool:
            Effect.objects.create(name=name)
            return transaction.get_connection().in_atomic_block

        with transaction.atomic():
            assert leave(name="a")
            transaction.set_rollback(True)
        assert not Effect.objects.exists()
        assert not TaskRecord.objects.exists()

    @pytest.mark.django_db(transaction=True)
    def test_message_is_sent_after_the_commit(self) -> None:
        """The call returns a handle with the id of the message."""
        with transaction.atomic():
            handle = greet.execute_on_commit(name="Ada")
            assert queue() == []

        [job] = queue()
        assert isinstance(handle, TaskHandle)
        assert job.message_id == handle.message_id == str(UUID(handle.message_id))
        assert UUID(handle.message_id).version == 7
        assert job.message == Invocation(f"{MODULE}.greet", {"name": "Ada"})

    @pytest.mark.django_db(transaction=True)
    def test_message_is_sent_immediately_without_a_transaction(self) -> None:
        greet.execute_on_commit(name="Ada")
        assert len(queue()) == 1

    @pytest.mark.django_db(transaction=True)
    def test_rolled_back_transaction_sends_nothing(self) -> None:
        with transaction.atomic():
            greet.execute_on_commit(name="Ada")
            transaction.set_rollback(True)
        assert queue() == []

    @pytest.mark.django_db(transaction=True)
    def test_first_send_has_the_tasks_queue_and_delay(self) -> None:
        refuse.execute_on_commit(name="Ada")
        assert [(job.queue, job.delay) for job in queue()] == [("other", 30)]

    @pytest.mark.django_db(transaction=True)
    def test_retry_has_the_tasks_queue_and_retry_delay(self) -> None:
        @lambda_task(queue="other", delay=30, retry_on=[Refused], retry_delay=7)
        def again() -> None:
            raise Refused

        assert sent_and_run(again, False).status == "RETRYING"
        [job] = queue()
        assert job.queue == "other"
        assert 7 + 1 <= job.delay <= 7 + 5

    @pytest.mark.parametrize("call", ["execute_on_commit", "serialize"])
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({}, "^Invalid arguments for .*greet: name is missing"),
            ({"name": 5}, "name must be a valid string"),
            ({"name": "Ada", "times": "1"}, "times must be a valid integer"),
            ({"name": "Ada", "nom": "Ada"}, "nom is unknown"),
            ({"name": None}, "name must be a valid string"),
            ({"name": 5, "times": "1"}, "name must .*; times must "),
        ],
    )
    def test_invalid_arguments_are_refused_at_the_call(
        self, call: str, arguments: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(InvalidArguments, match=sentence):
            getattr(greet, call)(**arguments)
        assert queue() == []

    @pytest.mark.parametrize("call", ["execute_on_commit", "serialize"])
    def test_positional_arguments_are_refused(self, call: str) -> None:
        with pytest.raises(TypeError, match="greet takes only keyword arguments, but 1 positional were given"):
            getattr(greet, call)("Ada")

    @pytest.mark.django_db(transaction=True)
    def test_unknown_queue_is_refused_at_the_call(self) -> None:
        @lambda_task(queue="fast")
        def task() -> None: ...

        with (
            pytest.raises(ImproperlyConfigured, match=r"Queue 'fast' is not in LAMBDA_TASKS_QUEUES \(default, other\)"),
            transaction.atomic(),
        ):
            task.execute_on_commit()
        with override_settings(LAMBDA_TASKS_EAGER=True), pytest.raises(ImproperlyConfigured, match="Queue 'fast'"):
            task.execute_on_commit()
        assert not TaskRecord.objects.exists()


class TestUsing:
    @pytest.mark.django_db(transaction=True)
    def test_routing_changes_for_this_call_only(self) -> None:
        greet.using(delay=60, queue="other").execute_on_commit(name="a")
        greet.using(delay=61).execute_on_commit(name="b")
        refuse.using(delay=0).execute_on_commit(name="c")
        greet.execute_on_commit(name="d")

        assert [(job.queue, job.delay) for job in queue()] == [
            ("other", 60),
            ("default", 61),
            ("other", 0),
            ("default", 0),
        ]

    def test_other_options_stay(self) -> None:
        other = refuse.using(delay=1)
        assert (other.name, other.singleton, other.retry_on, other.timeouts()) == (
            refuse.name,
            True,
            (Refused,),
            (5, 9),
        )
        assert other.function is refuse.function
        assert refuse.delay == 30

    def test_using_can_be_chained(self) -> None:
        assert refuse.using(delay=1).using(queue="default").serialize(name="a") == {
            "message": {"task_name": refuse.name, "kwargs": {"name": "a"}},
            "delay": 1,
            "queue": "default",
        }

    @pytest.mark.parametrize(
        ("routing", "error"), [({"delay": 901}, ValueError), ({"delay": "1"}, TypeError), ({"queue": ""}, ValueError)]
    )
    def test_invalid_routing_is_refused(self, routing: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            greet.using(**routing)

    def test_delay_beyond_the_expiry_is_refused(self) -> None:
        @lambda_task(expires_in=60)
        def task() -> None: ...

        assert task.using(delay=59).expires_in == 60
        with pytest.raises(ValueError, match="delay must be shorter than expires_in \\(60\\), not 60"):
            task.using(delay=60)


NAMES = ["self", "cls", "schema", "model_config", "model_fields", "json", "copy", "args", "kwargs", "function", "task"]
# Names of parameters in asgiref's wrappers of coroutines.
NAMES += ["awaitable", "context", "call_result", "exc_info", "task_context", "message_id", "run", "arguments"]


def task_with_parameters(names: list[str], *, prefix: str = "") -> LambdaTaskWrapper[..., Any]:
    module = types.ModuleType("names_of_parameters")
    parameters = ", ".join(f"{name}: int" for name in names)
    result = ", ".join(f"{name!r}: {name}" for name in names)
    exec(f"{prefix}def function(*, {parameters}): return {{{result}}}", module.__dict__)
    return lambda_task(module.__dict__["function"])


@pytest.mark.django_db(transaction=True)
class TestNamesOfParameters:
    @pytest.mark.parametrize("prefix", ["", "async "], ids=["def", "async def"])
    @pytest.mark.parametrize("eager", [True, False], ids=["eager", "worker"])
    def test_special_names_are_ordinary_parameter_names(self, prefix: str, eager: bool) -> None:
        task = task_with_parameters(NAMES, prefix=prefix)
        arguments = {name: number for number, name in enumerate(NAMES)}

        assert task.serialize(**arguments)["message"]["kwargs"] == arguments
        record = sent_and_run(task, eager, **arguments)

        assert (record.traceback, record.result) == (None, arguments)

    def test_direct_call_accepts_special_names(self) -> None:
        arguments = {name: number for number, name in enumerate(NAMES)}
        assert task_with_parameters(NAMES)(**arguments) == arguments


# Functions that a worker could not find: they run, but cannot be sent to another process.


def without_wraps(function: Any) -> Any:
    def wrapper(*, name: str) -> str:
        return str(function(name=name))

    return wrapper


def renamed(function: Any) -> Any:
    function.__qualname__ = function.__name__ = "another_name"
    return function


def closure() -> LambdaTaskWrapper[..., Any]:
    @lambda_task
    def inner(*, name: str) -> str:
        return name

    return inner


@lambda_task
@renamed
def shout(*, name: str) -> str:
    return name


def in_a_script() -> LambdaTaskWrapper[..., Any]:
    def function(*, name: str) -> str:
        return name

    function.__module__, function.__qualname__ = "__main__", "function"
    return lambda_task(function)


def anonymous() -> LambdaTaskWrapper[..., Any]:
    function = lambda *, name: name  # noqa: E731
    function.__annotations__["name"] = str
    function.__qualname__ = "<lambda>"
    return lambda_task(function)


UNIMPORTABLE: list[tuple[Callable[[], LambdaTaskWrapper[..., Any]], str]] = [
    (closure, "it is defined inside a function; move it"),
    (lambda: lambda_task(without_wraps(greet)), "it is defined inside a function; move it"),
    (anonymous, "it is a lambda; define it with def"),
    (lambda: LambdaTaskWrapper(WithMethods().method), "it is defined inside a class; move it"),
    (lambda: LambdaTaskWrapper(WithMethods.class_method), "it is defined inside a class; move it"),
]
DOUBTFUL: list[tuple[Callable[[], LambdaTaskWrapper[..., Any]], str]] = [
    (lambda: shout, "has no attribute 'another_name'; a decorator below @lambda_task may have renamed it"),
    (in_a_script, "its module is run as a script"),
]


def made_by_a_factory() -> LambdaTaskWrapper[..., Any]:
    @lambda_task
    def made(*, name: str) -> str:
        return name

    return made


kept = made_by_a_factory()


@pytest.mark.django_db(transaction=True)
class TestUnreachable:
    @pytest.mark.parametrize(("make", "reason"), [*UNIMPORTABLE, *DOUBTFUL])
    def test_unreachable_task_runs_directly_without_warning(
        self, make: Callable[[], LambdaTaskWrapper[..., Any]], reason: str
    ) -> None:
        """It also runs in eager mode without a warning."""
        task = make()
        with warnings.catch_warnings(), override_settings(LAMBDA_TASKS_EAGER=True):
            warnings.simplefilter("error")
            direct = task(name="Ada")
            handle = task.execute_on_commit(name="Ada")
        assert TaskRecord.objects.get(pk=handle.message_id).result == direct

    @pytest.mark.parametrize(("make", "reason"), UNIMPORTABLE)
    @override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE)
    def test_unimportable_task_is_refused_on_a_real_queue(
        self, make: Callable[[], LambdaTaskWrapper[..., Any]], reason: str
    ) -> None:
        task = make()
        with pytest.raises(UnreachableTask, match=f"{re.escape(task.name)} cannot be sent to a queue, .*: {reason}"):
            task.execute_on_commit(name="Ada")
        with pytest.raises(UnreachableTask):
            task.using(delay=3).execute_on_commit(name="Ada")
        assert queue() == []

    @pytest.mark.parametrize(("make", "reason"), DOUBTFUL)
    @override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE)
    def test_doubtful_task_warns_on_a_real_queue(
        self, make: Callable[[], LambdaTaskWrapper[..., Any]], reason: str
    ) -> None:
        task = make()
        with pytest.warns(UnreachableTaskWarning, match=f"{task.name} is sent to queue 'default'.* {reason}"):
            task.execute_on_commit(name="Ada")
        assert [job.task_name for job in queue()] == [task.name]


@pytest.mark.django_db(transaction=True)
class TestReachable:
    @override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE)
    def test_module_level_task_does_not_warn(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            greet.execute_on_commit(name="Ada")
            greet.using(delay=3).execute_on_commit(name="Ada")
        assert len(queue()) == 2

    @override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE)
    def test_task_of_a_factory_can_be_sent(self) -> None:
        registry.register(kept)
        kept.execute_on_commit(name="Ada")
        made_by_a_factory()  # has the same name, so that workers would run its function
        with pytest.raises(UnreachableTask):
            kept.execute_on_commit(name="Ada")
        assert [job.task_name for job in queue()] == [kept.name]

    def test_warning_points_at_the_call(self) -> None:
        with override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE), pytest.warns(UnreachableTaskWarning) as caught:
            shout.execute_on_commit(name="Ada")
        assert caught[0].filename == __file__


@dataclass
class Step:
    task: LambdaTaskWrapper[..., Any]


class TestCopies:
    def test_task_is_pickled_by_its_name(self) -> None:
        assert pickle.loads(pickle.dumps(greet)) is greet
        assert b"hello" not in pickle.dumps(greet)

    def test_copy_with_other_options_is_pickled_with_them(self) -> None:
        task = greet.using(delay=5).using(queue="other", database="default")
        restored = pickle.loads(pickle.dumps(task))
        assert (restored.delay, restored.queue, restored.database) == (5, "other", "default")
        assert restored.function is greet.function

    def test_task_runs_in_another_process(self) -> None:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            assert pool.submit(greet, name="Ada").result() == "hello Ada"

    def test_local_task_cannot_be_pickled(self) -> None:
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(closure())

    def test_task_is_copied_as_itself(self) -> None:
        assert copy.copy(greet) is copy.deepcopy(greet) is greet
        assert copy.deepcopy({"tasks": [greet]})["tasks"][0] is greet
        assert asdict(Step(greet)) == {"task": greet}
        assert asdict(Step(greet))["task"] is greet


def test_calling_the_delay_names_the_right_call() -> None:
    call: Any = greet.delay
    with pytest.raises(TypeError, match=r"call execute_on_commit\(…\) with its arguments"):
        call(name="Ada")
    assert greet.delay == 0
    assert greet.using(delay=9).delay == 9


# async def


@lambda_task
async def greet_slowly(*, name: str) -> str:
    await asyncio.sleep(0)
    return f"hello {name}"


@lambda_task(retry_on=[Refused])
async def leave_and_refuse(*, name: str) -> None:
    await Effect.objects.acreate(name=name)
    raise Refused(name)


@lambda_task
async def leave_async(*, name: str) -> int:
    await Effect.objects.acreate(name=name)
    return await Effect.objects.acount()


@pytest.mark.django_db(transaction=True)
class TestAsync:
    """test_async_tasks covers time limits and cancellation."""

    def test_direct_call_returns_a_coroutine(self) -> None:
        assert asyncio.run(greet_slowly(name="Ada")) == "hello Ada"

    @pytest.mark.parametrize("eager", [True, False], ids=["eager", "worker"])
    def test_result_and_writes_are_kept(self, eager: bool) -> None:
        record = sent_and_run(leave_async, eager, name="a")
        assert (record.status, record.result, record.traceback) == ("SUCCESS", 1, None)
        assert Effect.objects.count() == 1

    def test_error_rolls_back_and_is_retried(self) -> None:
        assert sent_and_run(leave_and_refuse, False, name="a").status == "RETRYING"
        assert [job.message.n_retries for job in queue()] == [1]
        assert not Effect.objects.exists()
