"""`@lambda_task`: a function that can be called, and can be sent to a worker."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from django.conf import settings as django_settings
from django.db import connections

from lambda_tasks import registry
from lambda_tasks.options import Options, TaskOptions
from lambda_tasks.plain import MAX_NAME_LENGTH, Invocation
from lambda_tasks.settings import MAX_DELAY, app_settings, too_long_delay
from lambda_tasks.signatures import TaskSignature

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lambda_tasks.handles import TaskHandle
    from lambda_tasks.messages import SQSLambdaTask

P = ParamSpec("P")
R = TypeVar("R")


class LambdaTaskWrapper(Generic[P, R]):
    """A task: the function that was decorated, with its options and the ways to send it.

    Calling it calls the function, here and now. The options stand on it as attributes.

    Raises, when it is made, TypeError for a function or option of the wrong kind and ValueError for an
    option that cannot work.
    """

    #: The alias that `using(database=…)` has named: the message leaves with that one's COMMIT.
    database: str | None = None

    def __init__(self, function: Callable[P, R], **options: Unpack[TaskOptions]) -> None:
        if isinstance(function, LambdaTaskWrapper):
            raise TypeError(f"{function.name} is a task already; task.using() changes how it is sent.")
        self._set_options(Options.of(**options))
        self.signature = TaskSignature(function, sensitive=self.sensitive)
        self.function = function
        functools.update_wrapper(self, function)
        #: The dotted path under which workers look for the task.
        self.name: str = self.signature.name
        if django_settings.configured:
            self.timeouts()
            self.check_delays()
        registry.register(self)

    def _set_options(self, options: Options) -> None:
        self.options = options
        self.soft_timeout = options.soft_timeout
        self.hard_timeout = options.hard_timeout
        self.queue = options.queue
        self.ignore_errors = options.ignore_errors
        self.retry_on = options.retry_on
        self.retry_delay = options.retry_delay
        self.retry_backoff = options.retry_backoff
        self.max_retries = options.max_retries
        self.singleton = options.singleton
        self.delay = options.delay
        self.on_crash = options.on_crash
        self.expires_in = options.expires_in
        self.aliases = options.aliases
        self.sensitive = options.sensitive

    def __repr__(self) -> str:
        return f"<lambda_task {self.name}>"

    # The slash leaves the name `self` to the parameters of tasks.

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function in this process and transaction: no queue, no record, no time limits."""
        return self.function(*args, **kwargs)

    def execute_on_commit(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle:
        """Send the task when the transaction commits, at once where none is open.

        The transaction on `default`, or on the one other database that has one open; `using(database=…)`
        names it. Returns a handle with the message id, the primary key of the record to be.

        Raises `InvalidArguments`, `UnknownQueue` and `MessageTooLarge` here, inside the caller's
        transaction; what the queue itself refuses raises boto3's exception after the commit. With
        LAMBDA_TASKS_OUTBOX the message is part of the transaction, and nothing is raised after the commit.
        """
        # Imported when something is sent: most processes that import tasks send none.
        from lambda_tasks import outgoing
        from lambda_tasks.commits import open_transaction
        from lambda_tasks.jobs import Job

        call = self._call(args, kwargs)
        database = self.database or open_transaction()
        job = Job.of_call(call, queue=self.queue, delay=self.delay, task=self, database=database)
        return outgoing.send_on_commit(job)

    def serialize(self, /, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """Return the invocation as a JSON-ready dict, checked as `execute_on_commit()` checks it.

        `SQSLambdaTask.model_validate(payload).execute_on_commit()` sends it later.
        """
        return self._invocation(args, kwargs).model_dump(mode="json")

    def using(
        self, *, delay: int | None = None, queue: str | None = None, database: str | None = None
    ) -> LambdaTaskWrapper[P, R]:
        """Return the task with another routing, and leave this one as it is.

        `delay` is in seconds, 0 to 900, and with LAMBDA_TASKS_OUTBOX up to a year; `queue` is a name in
        LAMBDA_TASKS_QUEUES; `database` is the alias in DATABASES whose COMMIT the message waits for.
        """
        if database is not None and database not in connections.settings:
            raise ValueError(
                f"database is {database!r}; give an alias in DATABASES ({', '.join(sorted(connections.settings))})."
            )
        changes = {name: value for name, value in (("delay", delay), ("queue", queue)) if value is not None}
        copy: LambdaTaskWrapper[P, R] = LambdaTaskWrapper.__new__(LambdaTaskWrapper)
        copy.__dict__.update(self.__dict__)
        copy._set_options(Options.of(**{**asdict(self.options), **changes}))
        copy.check_delays()
        if database is not None:
            copy.database = database
        return copy

    def check_delays(self) -> None:
        """Raise ValueError for a delay that the transport does not take, and no outbox keeps."""
        for name in ("delay", "retry_delay"):
            seconds = getattr(self, name)
            if seconds > MAX_DELAY:
                from lambda_tasks.strategies import longest_delay

                if seconds > longest_delay():
                    raise ValueError(too_long_delay(name, seconds))

    def timeouts(self) -> tuple[int, int]:
        """Return the soft and the hard timeout in seconds: the task's own, or the settings' defaults."""
        return app_settings.timeouts(self.soft_timeout, self.hard_timeout, of=self.name)

    def _invocation(self, args: tuple[object, ...], kwargs: dict[str, Any]) -> SQSLambdaTask:
        from lambda_tasks.messages import SQSLambdaTask, SQSLambdaTaskMessage

        call = self._call(args, kwargs)
        message = SQSLambdaTaskMessage(task_name=call.task_name, kwargs=call.kwargs)
        return SQSLambdaTask(message=message, delay=self.delay, queue=self.queue)

    def _call(self, args: tuple[object, ...], kwargs: dict[str, Any]) -> Invocation:
        if args:
            raise TypeError(f"{self.name} takes keyword arguments only; {len(args)} positional were given.")
        encoded = self.signature.encode(kwargs)
        if len(self.name) > MAX_NAME_LENGTH:
            from lambda_tasks.messages import SQSLambdaTaskMessage

            SQSLambdaTaskMessage(task_name=self.name, kwargs=encoded)  # raises, and says what is wrong
        return Invocation(self.name, encoded)


@overload
def lambda_task(function: Callable[P, R], /) -> LambdaTaskWrapper[P, R]: ...
@overload
def lambda_task(**options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], LambdaTaskWrapper[P, R]]: ...
def lambda_task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a task, with or without options.

    Options: `soft_timeout` and `hard_timeout` (seconds, 1 to 900; None for the settings' defaults),
    `queue` (a name in LAMBDA_TASKS_QUEUES), `delay` (seconds before the first run: 0 to 900, and with
    LAMBDA_TASKS_OUTBOX up to a year, as `retry_delay`),
    `ignore_errors` and `retry_on` (iterables of exception types), `retry_delay` (seconds, before
    jitter), `retry_backoff` (double `retry_delay` with each retry), `max_retries` (None for the
    setting), `singleton` (one run at a time), `on_crash` ("retry", or "fail" for work whose outside
    effects must never repeat), `expires_in` (seconds after which a message is not run any more),
    `aliases` (dotted paths that the task had before), `sensitive` (names of parameters whose values
    are masked in records and logs).

    Raises TypeError for a function whose parameters are not all keyword-only and annotated and for
    options of the wrong type; ValueError for options that cannot work.
    """
    if function is None:
        return lambda decorated: LambdaTaskWrapper(decorated, **options)
    return LambdaTaskWrapper(function, **options)
