"""A task with the methods of Celery's tasks in addition to those of `@lambda_task`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar
from uuid import UUID

from lambda_tasks.contrib.celery.parameters import Parameters
from lambda_tasks.contrib.celery.results import AsyncResult
from lambda_tasks.contrib.celery.signatures import Signature
from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.definition.signatures import TaskSignature
from lambda_tasks.handles import TaskHandle
from lambda_tasks.logging import TaskLoggerAdapter

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lambda_tasks.contrib.celery.calls import CallOptions
    from lambda_tasks.contrib.celery.options import Translated
    from lambda_tasks.definition.options import Options

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class CeleryTask(LambdaTaskWrapper[P, R_co]):
    """A task that `shared_task` has defined. It can be sent as in Celery, and as a task with `@lambda_task`."""

    delay: Delay[P, R_co]
    signature: CallableSignature[R_co]

    def __init__(
        self,
        parameters: Parameters,
        translated: Translated,
        new_self: Callable[[CeleryTask[Any, Any], Mapping[str, Any], bool], object] | None,
    ) -> None:
        self.parameters = parameters
        self.translated = translated
        self._new_self = new_self
        super().__init__(parameters.keyword_only(self._run), **translated.options)

    def set_options(self, options: Options) -> None:
        super().set_options(options)
        self.delay = Delay(self)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function in this process and transaction: no queue, no record, no time limits."""
        leading = self._leading(kwargs, called_directly=True)
        result: R_co = self.parameters.function(*leading, *args, **kwargs)
        return result

    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function, as calling the task does."""
        return self(*args, **kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R_co]:
        """Send the task when the transaction commits, or immediately without a transaction.

        `countdown` is a number of seconds, and `eta` a datetime, in CELERY_TIMEZONE or UTC if it is naive. Both are
        limited to 15 minutes without the outbox. `expires` is a number of seconds or a datetime, `queue` a name in
        LAMBDA_TASKS_QUEUES, and `link` a signature or a list of them.

        Raises the errors of `execute_on_commit()`, and TypeError for an option that has no counterpart.
        """
        return Signature(self, self.parameters, tuple(args or ()), dict(kwargs or {})).apply_async(**options)

    def delay_on_commit(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R_co]:
        """Send the task when the transaction commits, as `delay()` does."""
        return self.delay(*args, **kwargs)

    def apply_async_on_commit(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R_co]:
        """Send the task when the transaction commits, as `apply_async()` does."""
        return self.apply_async(args, kwargs, **options)

    def s(self, *args: Any, **kwargs: Any) -> Signature[R_co]:
        """Return a call as a value, which takes the result of the task before as its first argument."""
        return Signature(self, self.parameters, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature[R_co]:
        """Return a call as a value, which does not take the result of the task before."""
        return Signature(self, self.parameters, args, kwargs, immutable=True)

    def _signature_of(self, function: Callable[..., Any]) -> CallableSignature[R_co]:
        return CallableSignature(function, self)

    def AsyncResult(self, task_id: str | UUID) -> AsyncResult[R_co]:  # noqa: N802, Celery's name
        """Return the result of a call of this task, by its id."""
        handle: TaskHandle[R_co] = TaskHandle(TaskHandle.from_id(task_id).message_id, task=self)
        return AsyncResult(handle)

    def _run(self, arguments: Mapping[str, Any]) -> Any:
        return self.parameters.lambda_task_call(self._leading(arguments, called_directly=False), arguments)

    def _leading(self, arguments: Mapping[str, Any], *, called_directly: bool) -> tuple[object, ...]:
        return () if self._new_self is None else (self._new_self(self, arguments, called_directly),)


class CallableSignature(TaskSignature, Generic[R_co]):
    """The attribute `signature`: the parameters of the function, which returns a call as a value when it is called."""

    def __init__(self, function: Callable[..., Any], task: CeleryTask[Any, R_co]) -> None:
        super().__init__(function, sensitive=task.sensitive)
        self._task = task

    def __call__(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Unpack[CallOptions],
    ) -> Signature[R_co]:
        """Return a call as a value, with options of `apply_async()`."""
        task = self._task
        return Signature(task, task.parameters, tuple(args), dict(kwargs or {}), options, immutable=immutable)


class Delay(int, Generic[P, R_co]):
    """The attribute `delay`: the option, a number of seconds, which sends the task when it is called."""

    def __new__(cls, task: CeleryTask[P, R_co]) -> Delay[P, R_co]:
        return super().__new__(cls, task.options.delay)

    def __init__(self, task: CeleryTask[P, R_co]) -> None:
        self._task = task

    def __reduce__(self) -> tuple[object, ...]:
        return int, (int(self),)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R_co]:
        """Send the task when the transaction commits, or immediately without a transaction."""
        send: Callable[..., TaskHandle[R_co]] = self._task.execute_on_commit
        return AsyncResult(send(**self._task.parameters.named(args, kwargs)))


def get_task_logger(name: str) -> TaskLoggerAdapter:
    """Return the logger `name`, whose lines begin with the id of the running task."""
    return TaskLoggerAdapter(logging.getLogger(name), {})
