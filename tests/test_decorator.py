"""`@lambda_task`: which functions and options it takes, and the ways to call what it makes of them."""

# No postponed annotations here: some tasks are local functions with local types. Those are in test_arguments.

import asyncio
import functools
import types
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.exceptions import InvalidArguments, LockError, UnreachableTaskWarning
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.options import Options, TaskOptions
from lambda_tasks.plain import Invocation
from lambda_tasks.strategies import get_backend
from tests.app.models import Effect

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
    """A transport whose workers would have to find the task by its name."""

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
    def test_without_options_and_with_them_it_makes_a_task(self) -> None:
        def function(*, name: str) -> str:
            return name

        for task in (lambda_task(function), lambda_task()(function), lambda_task(queue="other")(function)):
            assert isinstance(task, LambdaTaskWrapper)
            assert task(name="Ada") == "Ada"

    def test_the_task_looks_like_its_function(self) -> None:
        assert (greet.__name__, greet.__doc__, greet.__module__) == ("greet", "Say hello.", MODULE)
        assert greet.name == f"{MODULE}.greet"
        assert repr(greet) == f"<lambda_task {MODULE}.greet>"

    def test_the_defaults_are_the_documented_ones(self) -> None:
        assert greet.options == Options(
            soft_timeout=None,
            hard_timeout=None,
            queue="default",
            ignore_errors=(),
            retry_on=(),
            retry_delay=0,
            retry_backoff=False,
            max_retries=None,
            singleton=False,
            delay=0,
            on_crash="retry",
            expires_in=None,
            aliases=(),
            sensitive=(),
        )

    def test_every_option_stands_on_the_task(self) -> None:
        given: dict[str, Any] = {
            "soft_timeout": 5,
            "hard_timeout": 9,
            "queue": "other",
            "ignore_errors": (KeyError,),
            "retry_on": (Refused,),
            "retry_delay": 7,
            "retry_backoff": True,
            "max_retries": 3,
            "singleton": True,
            "delay": 30,
            "on_crash": "fail",
            "expires_in": 600,
            "aliases": ("shop.old.task",),
            "sensitive": ("token",),
        }
        assert set(given) == {field.name for field in fields(Options)} == TaskOptions.__optional_keys__

        @lambda_task(**given)
        def task(*, token: str) -> None: ...

        assert {name: getattr(task, name) for name in given} == given
        other = task.using(delay=31)
        assert {name: getattr(other, name) for name in given} == given | {"delay": 31}

    @pytest.mark.parametrize("collection", [tuple, list, set, frozenset, iter, dict.fromkeys])
    def test_exception_types_may_come_in_any_iterable_and_are_kept_as_a_tuple(
        self, collection: Callable[[list[type[Exception]]], Any]
    ) -> None:
        @lambda_task(ignore_errors=collection([KeyError]), retry_on=collection([Refused, OSError]))
        def task() -> None: ...

        assert task.ignore_errors == (KeyError,)
        assert isinstance(task.retry_on, tuple)
        assert set(task.retry_on) == {Refused, OSError}

    def test_the_wrapper_can_be_made_without_the_decorator(self) -> None:
        def function(*, number: int) -> int:
            return number + 1

        task = LambdaTaskWrapper(function, queue="other", retry_on=(Refused,))

        assert task(number=1) == 2
        assert (task.queue, task.retry_on) == ("other", (Refused,))

    def test_a_task_is_no_function_to_be_decorated_again(self) -> None:
        with pytest.raises(TypeError, match=r"greet is a task already; task\.using\(\)"):
            lambda_task(greet)

    def test_a_decorator_that_keeps_the_name_may_stand_between(self) -> None:
        @lambda_task
        @functools.lru_cache
        def task(*, number: int) -> int:
            return number * 2

        assert task(number=2) == 4
        assert task.serialize(number=2)["message"]["kwargs"] == {"number": 2}
        with pytest.raises(InvalidArguments):
            task.serialize(number="2")


# What is refused at decoration. Functions of every shape, each with what its error must say.


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
            (positional, "Parameter name: str of .*positional is positional; .* keyword-only: put a \\* before"),
            (positional_only, "Parameter name: str of .* is positional"),
            (mixed, "Parameter name: str of .* is positional"),
            (with_args, "Parameter \\*args: str of .* is variadic"),
            (with_kwargs, "Parameter \\*\\*kwargs: str of .* is variadic"),
            (with_underscore, "Parameter _name of .* begins with an underscore"),
            (without_annotation, "Parameter name of .* has no annotation"),
            (WithMethods.method, "Parameter self of .* is positional"),
        ],
    )
    def test_a_parameter_that_no_argument_can_be_sent_for_is_a_type_error(self, function: Any, sentence: str) -> None:
        with pytest.raises(TypeError, match=sentence):
            lambda_task(function)

    @pytest.mark.parametrize(
        "thing",
        [42, "greet", len, WithMethods, functools.partial(greet.function, name="Ada"), WithMethods(), staticmethod],
        ids=repr,
    )
    def test_what_is_no_function_is_a_type_error(self, thing: Any) -> None:
        with pytest.raises(TypeError, match="decorates functions, not "):
            lambda_task(thing)

    def test_a_function_without_parameters_is_a_task(self) -> None:
        @lambda_task
        def task() -> str:
            return "done"

        assert task() == "done"
        assert task.serialize()["message"]["kwargs"] == {}


class TestRefusedOptions:
    @pytest.mark.parametrize(
        ("options", "error", "sentence"),
        [
            ({"soft_timeout": 10, "hard_timeout": 10}, ValueError, "soft_timeout is 10 and hard_timeout 10; the soft"),
            ({"soft_timeout": 11, "hard_timeout": 10}, ValueError, "the soft one must be the shorter"),
            ({"soft_timeout": 901}, ValueError, "soft_timeout is 901; give a whole number of 1 to 900"),
            ({"hard_timeout": 901}, ValueError, "hard_timeout is 901; give a whole number of 1 to 900"),
            ({"soft_timeout": 0}, ValueError, "soft_timeout is 0; give a whole number of 1 to 900"),
            ({"hard_timeout": -1}, ValueError, "hard_timeout is -1"),
            ({"soft_timeout": 1.5}, TypeError, "soft_timeout is 1.5; give a whole number"),
            ({"hard_timeout": "60"}, TypeError, "hard_timeout is '60'; give a whole number"),
            ({"hard_timeout": True}, TypeError, "hard_timeout is True; give a whole number"),
            # Longer than the settings' default hard timeout of 300 s.
            ({"soft_timeout": 300}, ValueError, "soft timeout of 300 s and a hard timeout of 300 s.*hard_timeout="),
            ({"hard_timeout": 270}, ValueError, "soft timeout of 270 s and a hard timeout of 270 s.*soft_timeout="),
            ({"delay": 901}, ValueError, "delay is 901; give a whole number of 0 to 900"),
            ({"delay": -1}, ValueError, "^delay is -1; give a whole number of 0 to 31536000"),
            ({"delay": 901}, ValueError, "^delay is 901; give .* 0 to 900, .* set LAMBDA_TASKS_OUTBOX = True"),
            ({"delay": 31_536_001}, ValueError, "^delay is 31536001; give a whole number of 0 to 31536000"),
            ({"delay": 1.0}, TypeError, "delay is 1.0; give a whole number"),
            ({"queue": ""}, ValueError, "queue is empty"),
            ({"queue": None}, TypeError, "queue is None; give the name of a queue"),
            ({"retry_delay": 5}, ValueError, "retry_delay is 5, but retry_on is empty"),
            ({"retry_delay": -1, "retry_on": (OSError,)}, ValueError, "retry_delay is -1; give .* 0 to 31536000"),
            (
                {"retry_delay": 901, "retry_on": (OSError,)},
                ValueError,
                "^retry_delay is 901; give .* 0 to 900, .* set LAMBDA_TASKS_OUTBOX = True",
            ),
            ({"retry_delay": 0.5, "retry_on": (OSError,)}, TypeError, "retry_delay is 0.5; give a whole number"),
            ({"retry_on": (int,)}, TypeError, "retry_on has <class 'int'>, which is no exception type"),
            ({"retry_on": ("OSError",)}, TypeError, "retry_on has 'OSError', which is no exception type"),
            ({"retry_on": (OSError(),)}, TypeError, "retry_on has OSError\\(\\), which is no exception type"),
            ({"retry_on": OSError}, TypeError, "retry_on is <class 'OSError'>; give a tuple"),
            ({"retry_on": None}, TypeError, "retry_on is None; give a tuple"),
            ({"ignore_errors": (int,)}, TypeError, "ignore_errors has <class 'int'>, which is no exception type"),
            ({"ignore_errors": KeyError}, TypeError, "ignore_errors is <class 'KeyError'>; give a tuple"),
            ({"ignore_errors": "KeyError"}, TypeError, "ignore_errors has 'K', which is no exception type"),
            (
                {"ignore_errors": (KeyError, OSError), "retry_on": (OSError, ValueError)},
                TypeError,
                "OSError stands in retry_on and in ignore_errors",
            ),
            (
                {"retry_on": (LockError,)},
                TypeError,
                "retry_on has LockError; leave it out",
            ),
            ({"retry_backoff": True}, ValueError, "retry_backoff doubles retry_delay .* 0; give retry_on, and a"),
            (
                {"retry_backoff": True, "retry_on": (OSError,)},
                ValueError,
                "retry_backoff doubles retry_delay with each retry, and that is 0",
            ),
            ({"retry_backoff": 2}, TypeError, "retry_backoff is 2; give True or False"),
            ({"max_retries": -1}, ValueError, "max_retries is -1; give a whole number of 0 or more"),
            ({"max_retries": 1.5}, TypeError, "max_retries is 1.5; give a whole number"),
            ({"max_retries": True}, TypeError, "max_retries is True; give a whole number"),
            ({"expires_in": 0}, ValueError, "expires_in is 0; give a whole number of 1 or more"),
            ({"expires_in": 0.5}, TypeError, "expires_in is 0.5; give a whole number"),
            ({"expires_in": 60, "delay": 60}, ValueError, "delay is 60 and expires_in 60; what waits that long"),
            (
                {"expires_in": 60, "retry_delay": 90, "retry_on": (OSError,)},
                ValueError,
                "retry_delay is 90 and expires_in 60; what waits that long on the queue is expired",
            ),
            ({"aliases": "shop.old.task"}, TypeError, "aliases is 'shop.old.task'; give a tuple of dotted paths"),
            ({"aliases": None}, TypeError, "aliases is None; give a tuple"),
            ({"aliases": (greet,)}, TypeError, "aliases has <lambda_task .*greet>; give dotted paths as texts"),
            ({"aliases": ("task",)}, ValueError, "aliases has 'task', which is no name of a task"),
            ({"aliases": ("shop..task",)}, ValueError, "aliases has 'shop..task', which is no name"),
            ({"aliases": ("shop." + "a" * 251,)}, ValueError, "which is no name of a task"),
            ({"sensitive": "name"}, TypeError, "sensitive is 'name'; give a tuple of names"),
            ({"sensitive": None}, TypeError, "sensitive is None; give a tuple"),
            ({"sensitive": (5,)}, TypeError, "sensitive has 5; give a tuple of names"),
            (
                {"sensitive": ("name", "token")},
                ValueError,
                "sensitive has 'token', which is no parameter of .*greet; its parameters: name",
            ),
            ({"singleton": 1}, TypeError, "singleton is 1; give True or False"),
            ({"on_crash": "ignore"}, ValueError, "on_crash is 'ignore'; give one of 'retry', 'fail'"),
            ({"on_crash": None}, ValueError, "on_crash is None"),
            ({"timeout": 5}, TypeError, "no option timeout; there are soft_timeout, "),
        ],
    )
    def test_an_option_that_cannot_work_is_refused_at_decoration(
        self, options: Any, error: type[Exception], sentence: str
    ) -> None:
        with pytest.raises(error, match=sentence):
            lambda_task(**options)(greet.function)

    def test_redis_pys_lock_error_is_refused_in_retry_on_as_well(self) -> None:
        from redis.exceptions import LockError as RedisLockError

        with pytest.raises(TypeError, match="retry_on has LockError"):
            lambda_task(retry_on=(RedisLockError,), singleton=True)(greet.function)

    def test_lock_errors_may_be_ignored(self) -> None:
        @lambda_task(ignore_errors=(LockError,), singleton=True)
        def task() -> None: ...

        assert task.ignore_errors == (LockError,)

    def test_a_base_class_of_what_is_ignored_may_be_retried(self) -> None:
        @lambda_task(ignore_errors=(FileNotFoundError,), retry_on=(OSError,))
        def task() -> None: ...

        assert (task.ignore_errors, task.retry_on) == ((FileNotFoundError,), (OSError,))

    def test_the_limits_at_the_ends_of_their_ranges_are_taken(self) -> None:
        @lambda_task(soft_timeout=1, hard_timeout=900, delay=900)
        def longest() -> None: ...

        assert longest.timeouts() == (1, 900)

    @pytest.mark.parametrize("field", [field.name for field in fields(Options)])
    def test_every_option_is_checked(self, field: str) -> None:
        with pytest.raises((TypeError, ValueError)):
            lambda_task(**{field: object()})(greet.function)


class TestTimeouts:
    def test_the_tasks_own_limits_come_before_those_of_the_settings(self) -> None:
        assert refuse.timeouts() == (5, 9)

    def test_without_limits_of_its_own_the_settings_count(self) -> None:
        assert greet.timeouts() == (270, 300)
        with override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=20, LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=30):
            assert greet.timeouts() == (20, 30)

    def test_one_of_its_own_is_joined_by_the_other_of_the_settings(self) -> None:
        @lambda_task(soft_timeout=100)
        def task() -> None: ...

        assert task.timeouts() == (100, 300)

    def test_settings_that_do_not_fit_the_task_any_more_are_named(self) -> None:
        @lambda_task(soft_timeout=100)
        def task() -> None: ...

        with (
            override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=20, LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=30),
            pytest.raises(ImproperlyConfigured, match="soft timeout of 100 s and a hard timeout of 30 s"),
        ):
            task.timeouts()


class TestCalling:
    def test_a_direct_call_runs_the_function_here_and_records_nothing(self) -> None:
        assert greet(name="Ada", times=2) == "hello Ada hello Ada"
        with pytest.raises(Refused):
            refuse(name="Ada")

    def test_a_direct_call_leaves_the_arguments_alone(self) -> None:
        @lambda_task
        def identity(*, thing: object) -> object:
            return thing

        thing = object()
        assert identity(thing=thing) is thing

    @pytest.mark.django_db
    def test_a_direct_call_runs_in_the_callers_transaction(self) -> None:
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
    def test_execute_on_commit_sends_after_the_commit_and_returns_the_message_id(self) -> None:
        with transaction.atomic():
            handle = greet.execute_on_commit(name="Ada")
            assert queue() == []

        [job] = queue()
        assert isinstance(handle, TaskHandle)
        assert job.message_id == handle.message_id == str(UUID(handle.message_id))
        assert UUID(handle.message_id).version == 7
        assert job.message == Invocation(f"{MODULE}.greet", {"name": "Ada"})

    @pytest.mark.django_db(transaction=True)
    def test_outside_of_a_transaction_it_is_sent_at_once(self) -> None:
        greet.execute_on_commit(name="Ada")
        assert len(queue()) == 1

    @pytest.mark.django_db(transaction=True)
    def test_a_transaction_that_is_rolled_back_sends_nothing(self) -> None:
        with transaction.atomic():
            greet.execute_on_commit(name="Ada")
            transaction.set_rollback(True)
        assert queue() == []

    @pytest.mark.django_db(transaction=True)
    def test_the_first_send_has_the_tasks_queue_and_delay(self) -> None:
        refuse.execute_on_commit(name="Ada")
        assert [(job.queue, job.delay) for job in queue()] == [("other", 30)]

    @pytest.mark.django_db(transaction=True)
    def test_a_retry_has_the_tasks_queue_and_its_retry_delay(self) -> None:
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
            ({}, "greet cannot be called so: name: Field required"),
            ({"name": 5}, "name: Input should be a valid string"),
            ({"name": "Ada", "times": "1"}, "times: Input should be a valid integer"),
            ({"name": "Ada", "nom": "Ada"}, "nom: Extra inputs are not permitted"),
            ({"name": None}, "name: Input should be a valid string"),
            ({"name": 5, "times": "1"}, "name: .*; times: "),
        ],
    )
    def test_arguments_that_do_not_fit_are_refused_at_the_call(
        self, call: str, arguments: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(InvalidArguments, match=sentence):
            getattr(greet, call)(**arguments)
        assert queue() == []

    @pytest.mark.parametrize("call", ["execute_on_commit", "serialize"])
    def test_positional_arguments_are_refused(self, call: str) -> None:
        with pytest.raises(TypeError, match="greet takes keyword arguments only; 1 positional were given"):
            getattr(greet, call)("Ada")

    @pytest.mark.django_db(transaction=True)
    def test_a_queue_that_is_not_in_the_settings_is_refused_at_the_call(self) -> None:
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
    def test_it_changes_the_routing_of_this_call_only(self) -> None:
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

    def test_everything_else_stays(self) -> None:
        other = refuse.using(delay=1)
        assert (other.name, other.singleton, other.retry_on, other.timeouts()) == (
            refuse.name,
            True,
            (Refused,),
            (5, 9),
        )
        assert other.function is refuse.function
        assert refuse.delay == 30

    def test_it_may_be_repeated(self) -> None:
        assert refuse.using(delay=1).using(queue="default").serialize(name="a") == {
            "message": {"task_name": refuse.name, "kwargs": {"name": "a"}},
            "delay": 1,
            "queue": "default",
        }

    @pytest.mark.parametrize(
        ("routing", "error"), [({"delay": 901}, ValueError), ({"delay": "1"}, TypeError), ({"queue": ""}, ValueError)]
    )
    def test_it_refuses_what_the_decorator_refuses(self, routing: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            greet.using(**routing)

    def test_it_refuses_a_delay_after_which_the_message_is_expired(self) -> None:
        @lambda_task(expires_in=60)
        def task() -> None: ...

        assert task.using(delay=59).expires_in == 60
        with pytest.raises(ValueError, match="delay is 60 and expires_in 60"):
            task.using(delay=60)


NAMES = ["self", "cls", "schema", "model_config", "model_fields", "json", "copy", "args", "kwargs", "function", "task"]
# What asgiref's wrappers of coroutines call their own parameters.
NAMES += ["awaitable", "context", "call_result", "exc_info", "task_context", "message_id", "run", "arguments"]


def made_of(names: list[str], *, prefix: str = "") -> LambdaTaskWrapper[..., Any]:
    module = types.ModuleType("names_of_parameters")
    parameters = ", ".join(f"{name}: int" for name in names)
    result = ", ".join(f"{name!r}: {name}" for name in names)
    exec(f"{prefix}def function(*, {parameters}): return {{{result}}}", module.__dict__)
    return lambda_task(module.__dict__["function"])


@pytest.mark.django_db(transaction=True)
class TestNamesOfParameters:
    @pytest.mark.parametrize("prefix", ["", "async "], ids=["def", "async def"])
    @pytest.mark.parametrize("eager", [True, False], ids=["eager", "worker"])
    def test_names_that_mean_something_elsewhere_are_names_like_others(self, prefix: str, eager: bool) -> None:
        task = made_of(NAMES, prefix=prefix)
        arguments = {name: number for number, name in enumerate(NAMES)}

        assert task.serialize(**arguments)["message"]["kwargs"] == arguments
        record = sent_and_run(task, eager, **arguments)

        assert (record.traceback, record.result) == (None, arguments)

    def test_a_direct_call_takes_them_too(self) -> None:
        arguments = {name: number for number, name in enumerate(NAMES)}
        assert made_of(NAMES)(**arguments) == arguments


# Functions that a worker could not find: they run, and putting them on a queue that leaves the process warns.


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


UNREACHABLE: list[tuple[Callable[[], LambdaTaskWrapper[..., Any]], str]] = [
    (closure, "it is defined inside a function; move it"),
    (lambda: lambda_task(without_wraps(greet)), "it is defined inside a function; move it"),
    (anonymous, "it is a lambda; give it a name with def"),
    (lambda: LambdaTaskWrapper(WithMethods().method), "it is defined inside a class; move it"),
    (lambda: LambdaTaskWrapper(WithMethods.class_method), "it is defined inside a class; move it"),
    (lambda: shout, "has no 'another_name'; a decorator below @lambda_task may have renamed it"),
    (in_a_script, "its module is run as a script"),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("make", "reason"),
    UNREACHABLE,
    ids=["closure", "bare wrapper", "lambda", "method", "class method", "renamed", "script"],
)
class TestUnreachable:
    def test_it_runs_directly_and_eagerly_without_a_word(
        self, make: Callable[[], LambdaTaskWrapper[..., Any]], reason: str
    ) -> None:
        task = make()
        with warnings.catch_warnings(), override_settings(LAMBDA_TASKS_EAGER=True):
            warnings.simplefilter("error")
            direct = task(name="Ada")
            handle = task.execute_on_commit(name="Ada")
        assert TaskRecord.objects.get(pk=handle.message_id).result == direct

    @override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE)
    def test_it_warns_with_the_reason_when_it_is_put_on_a_real_queue(
        self, make: Callable[[], LambdaTaskWrapper[..., Any]], reason: str
    ) -> None:
        task = make()
        with pytest.warns(UnreachableTaskWarning, match=f"{task.name} is put on queue 'default'.* {reason}"):
            task.execute_on_commit(name="Ada")
        assert [job.task_name for job in queue()] == [task.name]


@pytest.mark.django_db(transaction=True)
class TestReachable:
    @override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE)
    def test_a_task_at_the_level_of_its_module_is_put_on_a_real_queue_without_a_word(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            greet.execute_on_commit(name="Ada")
            greet.using(delay=3).execute_on_commit(name="Ada")
        assert len(queue()) == 2

    def test_the_warning_points_at_the_call(self) -> None:
        task = closure()
        with override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE), pytest.warns(UnreachableTaskWarning) as caught:
            task.execute_on_commit(name="Ada")
        assert caught[0].filename == __file__


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
    """More about time limits and cancelling is in test_async_tasks."""

    def test_a_direct_call_gives_the_coroutine(self) -> None:
        assert asyncio.run(greet_slowly(name="Ada")) == "hello Ada"

    @pytest.mark.parametrize("eager", [True, False], ids=["eager", "worker"])
    def test_its_result_and_its_writes_are_kept(self, eager: bool) -> None:
        record = sent_and_run(leave_async, eager, name="a")
        assert (record.status, record.result, record.traceback) == ("SUCCESS", 1, None)
        assert Effect.objects.count() == 1

    def test_an_error_rolls_its_writes_back_and_is_judged_like_any_other(self) -> None:
        assert sent_and_run(leave_and_refuse, False, name="a").status == "RETRYING"
        assert [job.message.n_retries for job in queue()] == [1]
        assert not Effect.objects.exists()
