"""The keys of tasks that are exclusive or unique: the task's name alone, or with values of its arguments.

The producer and the worker compute a key from what travels in the message, so they agree. A key contains a digest of
the values, and not the values themselves.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from uuid import UUID

from lambda_tasks.exceptions import LockError, is_lock_error_type
from lambda_tasks.settings import duration, whole_number

if TYPE_CHECKING:
    from typing import Protocol

    from lambda_tasks.definition.signatures import TaskSignature

    class Keyed(Protocol):
        """The options that this module checks and reads."""

        singleton: KeyOption
        max_concurrency: int | None
        on_contention: OnContention
        max_wait: float
        unique: KeyOption
        on_duplicate: OnDuplicate
        unique_for: float
        ignore_errors: tuple[type[BaseException], ...]

    class KeyedTask(Keyed, Protocol):
        """A task, as far as its keys depend on it."""

        name: str
        aliases: tuple[str, ...]
        sensitive: tuple[str, ...]
        signature: TaskSignature


KeyPart: TypeAlias = str | int | float
#: The value of `singleton` and `unique`: whether there is a key, and from which arguments it is made.
KeyOption: TypeAlias = bool | str | tuple[str, ...] | Callable[..., KeyPart | tuple[KeyPart, ...]]
OnContention: TypeAlias = Literal["retry", "wait", "skip"]
OnDuplicate: TypeAlias = Literal["return", "raise", "replace"]

#: Documented: the key under which a singleton task is locked. Values are appended after a colon, slots after a slash.
LOCK_KEY: Final = "lambda_tasks.singleton_lock.{task_name}"
#: The default of `max_wait` and `unique_for`, in seconds.
ONE_DAY: Final = 86_400

_ON_CONTENTION: Final = ("retry", "wait", "skip")
_ON_DUPLICATE: Final = ("return", "raise", "replace")
#: The bytes of the digest in the key of a lock. Two values with the same digest would only wait for each other.
_SHORT: Final = 16
_KEY_OPTIONS: Final = ("singleton", "unique")
#: The options that read arguments, with the reason why none of them may be sensitive.
_READING_OPTIONS: Final = {
    "singleton": "a digest may reveal a short value",
    "unique": "a digest may reveal a short value",
    "group": "SQS shows the group of a message",
}


# Checks of the options


def check(options: Keyed) -> None:
    """Refuse invalid values and combinations, and convert lists to tuples and durations to seconds."""
    for name in _KEY_OPTIONS:
        setattr(options, name, _key_option(getattr(options, name), name))
    for name in ("max_wait", "unique_for"):
        setattr(options, name, _seconds(getattr(options, name), name))
    _check_contention(options)
    _check_uniqueness(options)


def _key_option(value: object, name: str) -> object:
    if isinstance(value, bool) or callable(value):
        return value
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(part, str) and part for part in names):
        raise TypeError(
            f"{name} must be True or False, a parameter name, a tuple of parameter names, or a function of the task's "
            f"arguments, not {value!r}."
        )
    return value if isinstance(value, str) else tuple(names)


def _seconds(value: object, name: str) -> float:
    seconds = duration(value, name)
    if not seconds:
        raise ValueError(f"{name} must be longer than 0 seconds, not {value!r}.")
    return value if isinstance(value, int) else seconds  # errors show it as it was given


def _check_contention(options: Keyed) -> None:
    limit = options.max_concurrency
    if limit is not None:
        whole_number(1)(limit, "max_concurrency")
        if options.singleton is True and limit > 1:
            raise TypeError(
                f"max_concurrency must be 1 with singleton=True, not {limit}. Remove singleton=True for up to {limit} "
                'runs of the task at the same time, or lock per value, as in singleton="user_id".'
            )
    if options.on_contention not in _ON_CONTENTION:
        raise ValueError(f"on_contention must be {_listed(_ON_CONTENTION)}, not {options.on_contention!r}.")
    if options.on_contention != "retry" and not locks(options):
        raise TypeError(
            f"on_contention must be 'retry', its default, for a task without a lock, not {options.on_contention!r}. "
            "Set singleton or max_concurrency, or remove on_contention."
        )
    if options.max_wait != ONE_DAY and options.on_contention != "wait":
        raise TypeError(
            f"max_wait must not be set with on_contention={options.on_contention!r}, which does not wait. "
            "Set on_contention='wait', or remove max_wait."
        )
    if options.on_contention == "wait" and any(issubclass(kind, LockError) for kind in options.ignore_errors):
        raise TypeError(
            "ignore_errors must not contain LockError with on_contention='wait'. Remove it to wait for the lock, or "
            "set on_contention='skip' to skip the run while another run holds the lock."
        )


def _check_uniqueness(options: Keyed) -> None:
    if options.on_duplicate not in _ON_DUPLICATE:
        raise ValueError(f"on_duplicate must be {_listed(_ON_DUPLICATE)}, not {options.on_duplicate!r}.")
    if options.unique is not False:
        return
    for name, default in (("on_duplicate", "return"), ("unique_for", ONE_DAY)):
        if (value := getattr(options, name)) != default:
            raise TypeError(f"{name} must not be set without unique, but is {value!r}. Set unique, or remove {name}.")


def _listed(values: Iterable[str]) -> str:
    return " or ".join(map(repr, values))


def refuse_lock_errors(options: Keyed, types: Iterable[type[BaseException]], option: str) -> None:
    """Raise TypeError if `option` lists LockError among its `types` although the task has a lock."""
    if locks(options) and any(map(is_lock_error_type, types)):
        raise TypeError(
            f"{option} must not contain LockError for a task with singleton or max_concurrency. Remove it: "
            "on_contention says what a run does while another run holds the lock. (If ignore_errors contains "
            "LockError, the run is dropped.)"
        )


def check_parameters(task: Any) -> None:
    """Raise TypeError if a key or the group of `task` is made from a parameter that is missing or sensitive."""
    parameters = task.signature.parameters
    for option, danger in _READING_OPTIONS.items():
        value = getattr(task, option)
        if value is None or isinstance(value, bool):
            continue
        names, optional = _parameters_of(value, option, task.name)
        if unknown := [name for name in names if name not in parameters]:
            existing = ", ".join(parameters) or "none"
            raise TypeError(
                f"{option} must use parameters of {task.name}, not {', '.join(unknown)}. Its parameters: {existing}."
            )
        if hidden := [name for name in (*names, *optional) if name in task.sensitive]:
            raise TypeError(
                f"{option} must not use the sensitive parameter {', '.join(hidden)} of {task.name}, because "
                f"{danger}. Use another parameter, such as a primary key."
            )


def _parameters_of(value: KeyOption, option: str, task_name: str) -> tuple[list[str], list[str]]:
    """Return the names that a key needs, and those that a function takes in addition, with defaults."""
    if not callable(value):
        return list(_names(value)), []
    parameters = inspect.signature(value).parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise TypeError(
                f"{option} of {task_name} must be a function that takes the task's arguments by name, but its "
                f"parameter {parameter} is positional."
            )
    named = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    return (
        [parameter.name for parameter in named if parameter.default is parameter.empty],
        [parameter.name for parameter in named if parameter.default is not parameter.empty],
    )


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return value if isinstance(value, tuple) else ()


# Keys


def locks(options: Keyed) -> bool:
    """Return whether runs of the task need a lock."""
    return options.singleton is not False or options.max_concurrency is not None


def slots(
    task: KeyedTask, kwargs: Mapping[str, Any], arguments: Mapping[str, Any], *, root_id: str
) -> list[tuple[str, ...]]:
    """Return the keys of each lock of which a run needs one, in the order in which it tries them.

    A lock has one key for the task's name and one for each of its aliases, so messages with an old name, and workers
    of older versions, share at least one key with this worker. Of several locks, the first to try depends on
    `root_id`, so that most runs find a free one immediately.
    """
    digest = ""
    if task.singleton is not False and task.singleton is not True:
        digest = f":{_digest(_values(task, 'singleton', kwargs, arguments))}"
    keys = [f"{LOCK_KEY.format(task_name=name)}{digest}" for name in (task.name, *task.aliases)]
    count = task.max_concurrency or 1
    start = UUID(root_id).int % count if count > 1 else 0
    # The first slot has the key of a singleton, so that a changed limit counts the runs of workers without it.
    return [tuple(f"{key}/{slot}" if slot else key for key in keys) for slot in (*range(start, count), *range(start))]


def unique_key(task: KeyedTask, kwargs: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return the key of a call of a task with `unique`: 64 hexadecimal digits."""
    import hashlib

    values = [] if task.unique is True else _values(task, "unique", kwargs, arguments)
    return hashlib.sha256(_canonical([task.name, values]).encode()).hexdigest()


def _digest(values: list[Any]) -> str:
    import hashlib

    return hashlib.blake2b(_canonical(values).encode(), digest_size=_SHORT).hexdigest()


def _canonical(values: list[Any]) -> str:
    """Return JSON that is the same for equal values: 1.0 as 1, and the keys of objects in order."""
    return json.dumps(_normal(values), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _normal(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_normal(item) for item in value]
    if isinstance(value, dict):
        return {name: _normal(item) for name, item in value.items()}
    return value


def _values(task: KeyedTask, option: str, kwargs: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[Any]:
    """Return the values that `option` selects: JSON values of the message, or what its function returns."""
    chosen: KeyOption = getattr(task, option)
    if callable(chosen):
        return _returned(task, option, chosen, arguments)
    return [kwargs[name] if name in kwargs else task.signature.encoded_default(name) for name in _names(chosen)]


def _returned(
    task: KeyedTask, option: str, function: Callable[..., object], arguments: Mapping[str, Any]
) -> list[KeyPart]:
    returned: Any = call(task, function, arguments)
    parts: list[Any] = list(returned) if isinstance(returned, tuple) else [returned]
    for part in parts:
        if not isinstance(part, str | int | float) or part != part or part in (math.inf, -math.inf):
            raise TypeError(
                f"The function in {option} of {task.name} must return a string, a finite number or a tuple of them, "
                f"not a value of type {type(part).__name__}."
            )
    return parts


def call(task: KeyedTask, function: Callable[..., object], arguments: Mapping[str, Any]) -> object:
    """Call the function in an option with those decoded `arguments`, and defaults, that it takes."""
    defaults = {
        name: parameter.default
        for name, parameter in task.signature.parameters.items()
        if parameter.default is not parameter.empty
    }
    # A function with `**kwargs` gets every argument whose value a key may reveal.
    given = {name: value for name, value in (defaults | dict(arguments)).items() if name not in task.sensitive}
    accepted = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        given = {name: value for name, value in given.items() if name in accepted}
    return function(**given)
