"""What a task with `bind=True` gets as `self`."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn
from uuid import UUID

from lambda_tasks.contrib.celery.calls import seconds_until, whole_seconds
from lambda_tasks.contrib.celery.results import AsyncResult
from lambda_tasks.contrib.celery.signatures import Signature
from lambda_tasks.contrib.celery.tasks import CallableSignature, CeleryTask
from lambda_tasks.definition.hints import OPTIONS, PAGE, for_attribute
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.exceptions import MaxRetriesExceededError, RetryLater
from lambda_tasks.execution.current import CurrentTask, current_task
from lambda_tasks.recording.described import described
from lambda_tasks.settings import app_settings, whole_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lambda_tasks.contrib.celery.calls import CallOptions

#: The keys of `meta` that progress has, and those that its note comes from.
_NUMBERS: Final = ("current", "total")
_NOTES: Final = ("status", "description", "message")


class Retry(RetryLater):
    """`self.retry()` raises it: the task runs again, as often as its `max_retries` allows."""

    __module__ = "lambda_tasks.contrib.celery"

    def __init__(self, delay: float | None = None, reason: str = "", max_retries: int | None = None) -> None:
        super().__init__(delay, reason)
        #: The limit of this call; None for LAMBDA_TASKS_MAX_RETRIES.
        self.max_retries = max_retries

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy(max_retries=self.max_retries)


class Request:
    """The invocation that runs: `self.request`."""

    def __init__(self, task: CeleryTask[Any, Any], arguments: Mapping[str, Any], *, called_directly: bool) -> None:
        self._task = task
        #: The arguments are passed by name.
        self.args: tuple[Any, ...] = ()
        self.kwargs = dict(arguments)
        self.called_directly = called_directly
        self.task: str = task.name

    @property
    def id(self) -> str | None:
        """The id of the first attempt, that of the result of `.delay()`; None if the task is called directly."""
        return None if self._current is None else self._current.root_id

    @property
    def correlation_id(self) -> str | None:
        return self.id

    @property
    def retries(self) -> int:
        """The number of retries before this attempt."""
        return 0 if self._current is None else self._current.attempt - 1

    @property
    def is_eager(self) -> bool:
        return app_settings.eager

    @property
    def delivery_info(self) -> dict[str, Any]:
        """The name of the queue, as `routing_key`."""
        return {} if self._current is None else {"routing_key": self._current.queue}

    @property
    def timelimit(self) -> tuple[int, int]:
        """The hard and the soft limit in seconds."""
        soft, hard = self._task.timeouts()
        return hard, soft

    @property
    def hostname(self) -> str:
        return socket.gethostname()

    @property
    def _current(self) -> CurrentTask | None:
        return None if self.called_directly else current_task()

    if not TYPE_CHECKING:  # otherwise type checkers would accept any name

        def __getattr__(self, name):
            raise AttributeError(
                f"self.request has no attribute {name!r}. current_task() has what a running task knows ({PAGE}).",
                name=name,
                obj=self,
            )


class Task:
    """The `self` of a task with `bind=True`. It knows its invocation, and cannot be changed or subclassed."""

    MaxRetriesExceededError = MaxRetriesExceededError

    def __init__(self, task: CeleryTask[Any, Any], arguments: Mapping[str, Any], called_directly: bool) -> None:
        known = {
            **task.translated.given,  # as in Celery, such as self.retry_backoff
            "_task": task,
            "request": Request(task, arguments, called_directly=called_directly),
            "name": task.name,
            "max_retries": task.translated.max_retries,
            "default_retry_delay": task.translated.retry_delay,
        }
        self.__dict__.update(known)

    if TYPE_CHECKING:
        _task: CeleryTask[Any, Any]
        request: Request
        name: str
        max_retries: int | None
        default_retry_delay: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError(f"{cls.__name__} must not be a subclass of Task. In place of it, {OPTIONS['base']} ({PAGE}).")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"{name} must not be set on self, which is new in each run. Keep the value in a module ({PAGE})."
        )

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> NoReturn:
        """Raise `Retry`, so that the task runs again with the same arguments, after its writes are rolled back.

        `countdown` is a number of seconds, and by default the task's `default_retry_delay`. Without the outbox, a
        longer delay than 15 minutes is shortened to that. `max_retries` replaces that of the task.

        After the last retry, or if the task is called directly, raises `exc`. Without it, raises
        `MaxRetriesExceededError`, or `Retry` if the task is called directly. Raises TypeError for other arguments.
        """
        given = {"args": args, "kwargs": kwargs, "throw": None if throw else throw, **options}
        for name in (name for name, value in given.items() if value is not None):
            raise TypeError(
                f"self.retry() must not have the argument {name}: a retry runs the same call again, and ends this run. "
                f"To send another call, send the task itself ({PAGE})."
            )
        limit = self.max_retries if max_retries is None else max_retries
        if limit is not None:
            whole_number(0)(limit, "max_retries")
        if not self.request.called_directly and limit is not None and self.request.retries >= limit:
            raise exc or MaxRetriesExceededError(f"{self.name} failed after {limit} retries, its max_retries.")
        later = Retry(self._delay(countdown, eta), "" if exc is None else f"{type(exc).__name__}: {exc}", limit)
        if exc is None:
            raise later
        if self.request.called_directly:
            raise exc
        raise later from exc

    def update_state(self, task_id: str | None = None, state: str | None = None, meta: Any = None) -> None:
        """Report progress: `meta={"current": 3, "total": 10, "status": "reading"}`, of which all but current may lack.

        `AsyncResult.info` and `TaskHandle.progress` return it. Raises TypeError for anything else.
        """
        current = current_task()
        keys = set(meta) if isinstance(meta, Mapping) else set()
        if task_id not in (None, self.request.id) or "current" not in keys or keys - {*_NUMBERS, *_NOTES}:
            raise TypeError(
                f'update_state() must have meta with current, and optionally total and status, as in meta={{"current": '
                f'3, "total": 10}}, not {described(meta)}. Other values belong into a model ({PAGE}).'
            )
        if current is not None and not self.request.called_directly:
            notes = [str(meta[key]) for key in _NOTES if meta.get(key)]
            current.progress(meta["current"], meta.get("total"), ": ".join(notes))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._task(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return self._task(*args, **kwargs)

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        return self._task.delay(*args, **kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        return self._task.apply_async(args, kwargs, **options)

    def s(self, *args: Any, **kwargs: Any) -> Signature[Any]:
        return self._task.s(*args, **kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature[Any]:
        return self._task.si(*args, **kwargs)

    @property
    def signature(self) -> CallableSignature[Any]:
        return self._task.signature

    def AsyncResult(self, task_id: str | UUID) -> AsyncResult[Any]:  # noqa: N802, Celery's name
        return self._task.AsyncResult(task_id)

    def _delay(self, countdown: float | None, eta: datetime | None) -> int:
        if eta is not None:
            return seconds_until(eta)
        return self.default_retry_delay if countdown is None else whole_seconds(countdown, "countdown")

    if not TYPE_CHECKING:  # otherwise type checkers would accept any name

        def __getattr__(self, name):
            hint = for_attribute(name) or f"See {PAGE}."
            raise AttributeError(
                f"self of a task with bind=True has no attribute {name!r}. {hint}", name=name, obj=self
            )
