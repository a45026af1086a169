"""The `@lambda_task` decorator, which makes a function a task that can be called or sent to a worker."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from django.conf import settings as django_settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections

from lambda_tasks import registry
from lambda_tasks.definition.options import Options, follow_ups
from lambda_tasks.definition.task import Task
from lambda_tasks.settings import MAX_DELAY, delay_constraint

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lambda_tasks.definition.option_types import TaskOptions
    from lambda_tasks.definition.steps import Step
    from lambda_tasks.flows.works import TaskInvocation
    from lambda_tasks.handles import TaskHandle
    from lambda_tasks.jobs import Job
    from lambda_tasks.messages import SQSLambdaTask
    from lambda_tasks.wire.invocation import Invocation

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class _Delay(int):
    """The option `delay`, which explains itself to callers who know `task.delay()` from another library."""

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            "delay is an option of the task, a number of seconds. To send the task, call execute_on_commit(…) with its "
            "arguments, or using(delay=…).execute_on_commit(…)."
        )


class LambdaTaskWrapper(Task, Generic[P, R_co]):
    """A task: the decorated function, with its options as attributes and with methods that send it.

    Calling it calls the function directly.

    The constructor raises TypeError for an invalid function or an option of the wrong type, and ValueError for an
    option with an invalid value.
    """

    function: Callable[P, R_co]
    #: The alias in `using(database=…)`. The message is sent when the transaction on that database commits.
    database: str | None = None
    #: The message group in `using(group=…)`, in place of the one that the option `group` selects.
    group_of_calls: str | None = None
    #: What follows a call, as `using(on_success=…, on_failure=…)` says, in addition to what the decorator says.
    _followers: tuple[tuple[Step, ...], tuple[Step, ...]] = ((), ())
    #: For a copy that `using()` has returned: the task that the module defines.
    _original: LambdaTaskWrapper[P, R_co] | None = None

    def __init__(self, function: Callable[P, R_co], **options: Unpack[TaskOptions]) -> None:
        if isinstance(function, LambdaTaskWrapper):
            raise TypeError(f"{function.name} is already a task. Call its using() to change how it is sent.")
        super().__init__(function, Options.of(**options))
        functools.update_wrapper(self, function)
        if django_settings.configured:
            self.timeouts()
            self.check_delays()
        registry.register(self)

    def __repr__(self) -> str:
        return f"<lambda_task {self.name}>"

    def set_options(self, options: Options) -> None:
        super().set_options(options)
        self.delay = _Delay(options.delay)

    if not TYPE_CHECKING:  # otherwise type checkers would accept any name

        def __getattr__(self, name):
            from lambda_tasks.definition.hints import for_attribute

            hint = for_attribute(name)
            text = f"The task {self.__dict__.get('name')} has no attribute {name!r}.{f' {hint}' if hint else ''}"
            raise AttributeError(text, name=name, obj=self)

    # Tasks are pickled by their name and copied as themselves, like functions.

    def __reduce__(self) -> str | tuple[object, ...]:
        if self._original is None:
            return self.function.__qualname__
        options = {name: getattr(self, name) for name in ("delay", "queue", "database")}
        options["group"] = self.group_of_calls
        options["on_success"], options["on_failure"] = self._followers
        return _using, (self._original, options)

    def __copy__(self) -> LambdaTaskWrapper[P, R_co]:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> LambdaTaskWrapper[P, R_co]:
        return self

    # The slash allows tasks to have a parameter named `self`.

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function in this process and transaction: no queue, no record, no time limits."""
        return self.function(*args, **kwargs)

    # An `async def` task returns a coroutine when it is called, and its result is what the coroutine returns.

    @overload
    def execute_on_commit(
        self: LambdaTaskWrapper[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    def execute_on_commit(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]: ...
    def execute_on_commit(self, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Send the task when the transaction commits, or immediately without a transaction.

        The transaction is the one on `default`, or on the only other database with an open one. `using(database=…)`
        selects it explicitly. Returns a handle with the message id, which will be the primary key of the record.

        Raises `InvalidArguments`, `UnknownQueue` and `MessageTooLarge` immediately, inside the caller's transaction.
        If SQS rejects the message, boto3's exception is raised after the commit. With LAMBDA_TASKS_OUTBOX, the message
        is part of the transaction, and no exception is raised after the commit.
        """
        # Imported on first use, since most processes that import tasks do not send any.
        from lambda_tasks.database.commits import open_transaction
        from lambda_tasks.sending.outgoing import send_on_commit

        try:
            if self._followers != ((), ()):
                return self._invocation_of(args, kwargs).execute_on_commit()
            return send_on_commit(self._job(args, kwargs, open_transaction))
        except SynchronousOnlyOperation as error:
            from lambda_tasks.database.coroutines import synchronous_only

            raise synchronous_only("execute_on_commit()", f"{self._short_name}.aexecute_on_commit(…)") from error

    @overload
    async def aexecute_on_commit(
        self: LambdaTaskWrapper[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    async def aexecute_on_commit(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]: ...
    async def aexecute_on_commit(self, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Send the task in a coroutine, as `execute_on_commit()` does.

        The transaction is the one of the thread in which the coroutine's synchronous code runs. An async view has none.
        In an `async def` task, it is the task's own.
        """
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.execute_on_commit)(*args, **kwargs)

    @overload
    def execute_now(
        self: LambdaTaskWrapper[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    def execute_now(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]: ...
    def execute_now(self, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Send the task immediately, even if a transaction is open, which may still be rolled back.

        The outbox is not used, so that an error of the queue is raised here: boto3's exception if SQS rejects the
        message. Otherwise the errors are those of `execute_on_commit()`. A delay may be as long as the queue allows.
        Raises TypeError for a task with `unique`, whose key is a part of the transaction.

        The worker may start before the transaction commits, and does not see what it has written.
        """
        from lambda_tasks.database.coroutines import refuse_coroutine
        from lambda_tasks.sending.outgoing import send_immediately
        from lambda_tasks.strategies import get_store

        refuse_coroutine("execute_now()", f"{self._short_name}.aexecute_now(…)")
        if self._followers != ((), ()):
            raise TypeError(
                f"{self.name} has on_success or on_failure at the call, which execute_now() cannot note, since the "
                "transaction may be rolled back. Call execute_on_commit(), or give the options to the decorator."
            )
        return send_immediately(self._job(args, kwargs, lambda: get_store().database))

    @overload
    async def aexecute_now(
        self: LambdaTaskWrapper[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    async def aexecute_now(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]: ...
    async def aexecute_now(self, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Send the task immediately in a coroutine, as `execute_now()` does."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.execute_now)(*args, **kwargs)

    @overload
    def invocation(
        self: LambdaTaskWrapper[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskInvocation[T]: ...
    @overload
    def invocation(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskInvocation[R_co]: ...
    def invocation(self, /, *args: Any, **kwargs: Any) -> TaskInvocation[Any]:
        """Return a call of the task as a value, which can be sent, stored, and follow other tasks.

        An argument may be a placeholder such as `lambda_tasks.RESULT`, whose value is known only when the invocation
        follows another one. Raises `InvalidArguments` as `execute_on_commit()` does.
        """
        return self._invocation_of(args, kwargs)

    def serialize(self, /, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """Return the invocation as a dict of JSON values, after the same checks as in `execute_on_commit()`.

        `SQSLambdaTask.model_validate(payload).execute_on_commit()` sends it later.
        """
        return self._invocation(args, kwargs).model_dump(mode="json")

    def using(
        self,
        *,
        delay: int | None = None,
        queue: str | None = None,
        database: str | None = None,
        group: str | None = None,
        on_success: Step | Iterable[Step] = (),
        on_failure: Step | Iterable[Step] = (),
    ) -> LambdaTaskWrapper[P, R_co]:
        """Return a copy of the task with a different delay, queue, database or group, or with what follows it.

        `delay` is a number of seconds from 0 to 900, or up to a year with LAMBDA_TASKS_OUTBOX. `queue` is a name in
        LAMBDA_TASKS_QUEUES. `database` is the alias in DATABASES of the transaction with which the message is sent.
        `group` is the message group itself, such as "tenant-7": 1 to 128 ASCII characters without spaces. `on_success`
        and `on_failure` are invocations that are sent when the task has ended, in addition to those of the decorator.

        Raises TypeError for a value of the wrong type, and ValueError for an invalid value.
        """
        if database is not None and database not in connections.settings:
            raise ValueError(
                f"database must be an alias in DATABASES ({', '.join(sorted(connections.settings))}), not {database!r}."
            )
        changes = {name: value for name, value in (("delay", delay), ("queue", queue)) if value is not None}
        copy: LambdaTaskWrapper[P, R_co] = LambdaTaskWrapper.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.set_options(Options.of(**{**vars(self.options), **changes}))
        copy.check_delays()
        if database is not None:
            copy.database = database
        if group is not None:
            from lambda_tasks.definition.groups import checked

            copy.group_of_calls = checked(group)
        success, failure = self._followers
        added = follow_ups(on_success, "on_success"), follow_ups(on_failure, "on_failure")
        copy._followers = success + added[0], failure + added[1]
        copy._original = self._original or self
        return copy

    def check_delays(self) -> None:
        """Raise ValueError for a delay that the backend does not support."""
        check_delays(self)

    @property
    def _short_name(self) -> str:
        return self.function.__name__

    def _job(self, args: tuple[object, ...], kwargs: dict[str, Any], database: Callable[[], str]) -> Job:
        from lambda_tasks.jobs import Job

        call = self._call(args, kwargs)
        return Job.of_call(
            call,
            queue=self.queue,
            delay=self.delay,
            task=self,
            database=self.database or database(),
            group=self.group_of_calls,
        )

    def _invocation_of(self, args: tuple[object, ...], kwargs: dict[str, Any]) -> TaskInvocation[Any]:
        # Imported here, because most processes create no invocations.
        from lambda_tasks.definition.steps import Placeholder
        from lambda_tasks.flows.works import TaskInvocation

        if args:
            raise TypeError(self._only_keywords(args))
        takes = {name: value.name for name, value in kwargs.items() if isinstance(value, Placeholder)}
        known = {name: value for name, value in kwargs.items() if name not in takes}
        return TaskInvocation(
            task_name=self.name,
            kwargs=self.signature.encode_without(known, takes) if takes else self.signature.encode(known),
            takes=takes,
            queue=self.queue,
            delay=int(self.delay),
            group=self.group_of_calls,
            on_success=self._followers[0],
            on_failure=self._followers[1],
            database=self.database,
            _task=self,
        )

    def _only_keywords(self, args: tuple[object, ...]) -> str:
        names = ", ".join(f"{name}=…" for name in list(self.signature.parameters)[: len(args)])
        remedy = f" Pass them by name: {self._short_name}.execute_on_commit({names})." if names else ""
        return f"{self.name} takes only keyword arguments, but {len(args)} positional were given.{remedy}"

    def _invocation(self, args: tuple[object, ...], kwargs: dict[str, Any]) -> SQSLambdaTask:
        from lambda_tasks.messages import SQSLambdaTask, SQSLambdaTaskMessage

        call = self._call(args, kwargs)
        message = SQSLambdaTaskMessage(task_name=call.task_name, kwargs=call.kwargs)
        return SQSLambdaTask(message=message, delay=self.delay, queue=self.queue, group=self.group_of_calls)

    def _call(self, args: tuple[object, ...], kwargs: dict[str, Any]) -> Invocation:
        from lambda_tasks.wire.invocation import MAX_NAME_LENGTH, Invocation

        if args:
            raise TypeError(self._only_keywords(args))
        encoded = self.signature.encode(kwargs)
        if len(self.name) > MAX_NAME_LENGTH:
            from lambda_tasks.messages import SQSLambdaTaskMessage

            SQSLambdaTaskMessage(task_name=self.name, kwargs=encoded)  # raises pydantic's ValidationError
        return Invocation(self.name, encoded)


def check_delays(task: Task) -> None:
    """Raise ValueError for a delay in the options of `task` that the backend does not support."""
    delays = [("delay", task.delay), ("retry_delay", task.retry_delay)]
    delays += [("The longest delay in retry", math.ceil(policy.longest_delay)) for policy in task.own_policies()]
    for name, seconds in delays:
        if seconds > MAX_DELAY:
            from lambda_tasks.strategies import longest_delay

            if seconds > (longest := longest_delay()):
                raise ValueError(delay_constraint(name, seconds, longest=longest))


def _using(task: LambdaTaskWrapper[..., Any], options: dict[str, Any]) -> LambdaTaskWrapper[..., Any]:
    """Restore a pickled copy of a task."""
    return task.using(**options)


@overload
def lambda_task(function: Callable[P, T], /) -> LambdaTaskWrapper[P, T]: ...
@overload
def lambda_task(**options: Unpack[TaskOptions]) -> Callable[[Callable[P, T]], LambdaTaskWrapper[P, T]]: ...
def lambda_task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a task, with or without options.

    Options: `soft_timeout` and `hard_timeout` (seconds from 1 to 900, or to LAMBDA_TASKS_MAX_TIMEOUT, or None for the
    settings' defaults), `queue` (a name in LAMBDA_TASKS_QUEUES), `delay` (seconds before the first run, from 0 to 900,
    or up to a year with LAMBDA_TASKS_OUTBOX), `group` (the parameter by whose value a queue shares its workers fairly,
    or a function of the arguments that returns the message group), `ignore_errors` and `retry_on` (iterables of
    exception types), `retry_delay` (seconds before jitter, with the same limits as `delay`), `retry_backoff` (double
    `retry_delay` with each retry), `max_retries` (None for the setting's value), `singleton` (run one invocation at a
    time, or one per value of the named parameters), `max_concurrency` (run at most that many at a time),
    `on_contention` ("retry", "wait" or "skip", if another run holds the lock), `max_wait` (seconds or a timedelta),
    `unique` (accept one call at a time, or one per value), `on_duplicate` ("return", "raise" or "replace", if an
    earlier call waits or runs), `unique_for` (seconds or a timedelta), `on_crash` ("retry", or "fail" for tasks whose
    external effects must never be repeated), `record` ("all", or "failures" to forget a success soon, or None for the
    setting's value), `expires_in` (seconds after which a message is no longer run), `aliases` (former dotted paths of
    the task), `sensitive` (names of parameters whose values are masked in records and logs), `atomic` (False to call
    the function without a transaction, so that its writes commit as it goes). `retry` takes a `RetryPolicy`, or a
    mapping from exception types to policies, in place of `retry_on`, `retry_delay`, `retry_backoff` and `max_retries`.
    `schedule` takes `Cron`, `Every`, or a list of them: when the task runs by itself. `on_success` and `on_failure`
    take invocations that are sent when the task has ended: `task.invocation(…)`, or a list of them.

    Raises TypeError for a function whose parameters are not all keyword-only and annotated and for options of the wrong
    type, and ValueError for options with invalid values.
    """
    if function is None:
        return lambda decorated: LambdaTaskWrapper(decorated, **options)
    return LambdaTaskWrapper(function, **options)
