"""`@lambda_options`: the options of `@lambda_task` for a function with Django's `@task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import isfunction
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lambda_tasks.contrib.django_tasks.compat import AnyTask, Task
from lambda_tasks.definition.option_types import TaskOptions
from lambda_tasks.definition.options import Options
from lambda_tasks.recording.described import described

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T", bound="Callable[..., Any] | AnyTask")

#: The attribute of a function that holds its options.
_ATTRIBUTE: Final = "_lambda_options"
_NONE: Final[dict[str, Any]] = {}
#: The options that a `retry` takes the place of.
_IN_RETRY: Final = frozenset({"retry_on", "retry_delay", "retry_backoff", "max_retries"})


def lambda_options(**options: Unpack[TaskOptions]) -> Callable[[T], T]:
    """Give a function with Django's `@task` options of `@lambda_task`, such as `retry_on` or `singleton`.

    Write it above or below `@task`. All options are accepted except `queue`: the `queue_name` of `@task` says it.
    `delay` applies if the task has no `run_after`.

    Raises TypeError for an option that does not exist or is of the wrong type, and for anything but a function or a
    task, and ValueError for an option with an invalid value.
    """
    refuse_queue(options, "@lambda_options")
    Options.of(**options)

    def decorate(decorated: T) -> T:
        function = decorated.func if isinstance(decorated, Task) else decorated
        if not isfunction(function):
            raise TypeError(f"@lambda_options decorates functions and Django's tasks, not {described(decorated)}.")
        setattr(function, _ATTRIBUTE, dict(options))
        if isinstance(decorated, Task):
            decorated.get_backend().validate_task(decorated)  # registers it again, with the options
        return decorated

    return decorate


def declared_options(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the options in the `@lambda_options` of a function: the same object, as long as they are the same."""
    declared: dict[str, Any] = getattr(function, _ATTRIBUTE, _NONE)
    return declared


def refuse_queue(options: Mapping[str, Any], where: str) -> None:
    """Raise TypeError if the options name a queue."""
    if "queue" in options:
        raise TypeError(f"{where} must not contain queue, but has {options['queue']!r}. Use queue_name of @task.")


def options_of(function: Callable[..., Any], defaults: Mapping[str, Any], *, queue: str) -> Options:
    """Return the options of a function: those of its `@lambda_options`, then the `defaults` of its backend."""
    own = declared_options(function)
    replaced = _IN_RETRY if own.get("retry") is not None else frozenset()
    if own.keys() & _IN_RETRY:
        replaced = frozenset({"retry"})
    chosen = {name: value for name, value in defaults.items() if name not in replaced}
    return Options.of(**{**chosen, **own, "queue": queue})
