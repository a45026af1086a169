"""`shared_task`, which defines a task as Celery's decorator of this name does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, TypeVar, overload

from lambda_tasks.contrib.celery.advice import advice
from lambda_tasks.contrib.celery.bound import Task
from lambda_tasks.contrib.celery.options import CeleryOptions, translated
from lambda_tasks.contrib.celery.parameters import Parameters
from lambda_tasks.contrib.celery.tasks import CeleryTask

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
R = TypeVar("R")

#: The frames from the warning to the module of the task.
_TO_MODULE: Final = 3


@overload
def shared_task(function: Callable[P, R], /) -> CeleryTask[P, R]: ...
@overload
def shared_task(
    *, bind: Literal[True], **options: Unpack[CeleryOptions]
) -> Callable[[Callable[Concatenate[Any, P], R]], CeleryTask[P, R]]: ...
@overload
def shared_task(
    *, bind: Literal[False] = False, **options: Unpack[CeleryOptions]
) -> Callable[[Callable[P, R]], CeleryTask[P, R]]: ...
def shared_task(function: Callable[..., Any] | None = None, /, *, bind: bool = False, **options: Any) -> Any:
    """Make a function a task, with the options of Celery or without, and warn with what to write instead.

    Parameters may be positional, and without annotations, for any JSON value. The options of Celery that have a meaning
    here are translated, with Celery's defaults; those without an effect are accepted. All options of `@lambda_task`
    except those about retries may be added. The docs list them: docs/howto/from-celery.md.

    Raises TypeError for an option without a counterpart and for a function with variadic parameters, and the errors of
    `@lambda_task`.
    """
    if function is None:
        return lambda decorated: _define(decorated, bind, options)
    return _define(function, bind, options)


def _define(function: Callable[..., Any], is_bound: bool, options: dict[str, Any]) -> CeleryTask[Any, Any]:
    parameters = Parameters(function, is_bound=is_bound)
    result = translated(options, name=parameters.name, is_bound=is_bound)
    task: CeleryTask[Any, Any] = CeleryTask(parameters, result, Task if is_bound else None)
    warnings.warn(advice(parameters, task.translated.options), DeprecationWarning, stacklevel=_TO_MODULE)
    return task
