"""An invocation as data, with the arguments whose values are known only when it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, fields
from typing import Any, Final

from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.recording.described import described
from lambda_tasks.settings import MAX_KEPT_DELAY
from lambda_tasks.wire.attributes import is_group
from lambda_tasks.wire.invocation import Invocation


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The argument of an invocation whose value is known only when it is sent."""

    name: str

    def __repr__(self) -> str:
        return self.name.upper()


# `Any`, so that type checkers accept them for parameters of every type.
#: The result of the task before.
RESULT: Final[Any] = Placeholder("result")
#: The id of the task before: that of its handle.
TASK_ID: Final[Any] = Placeholder("task_id")
#: The error of the failed task, as a string such as "ValueError: the address is invalid".
ERROR: Final[Any] = Placeholder("error")
#: The id of the chain or the group.
FLOW_ID: Final[Any] = Placeholder("flow_id")

#: The placeholders that have a value in each place.
AFTER_SUCCESS: Final = frozenset({"result", "task_id"})
AFTER_FAILURE: Final = frozenset({"task_id", "error"})
IN_FLOW: Final = frozenset({"flow_id"})

_FIELDS: Final = frozenset({"task_name", "kwargs", "takes", "queue", "delay", "group", "on_success", "on_failure"})


@dataclass(frozen=True)
class Step:
    """An invocation that is not sent yet: its task by name, its arguments as JSON values, and what follows it."""

    task_name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: The names of the other arguments, with the names of the placeholders that give them their values.
    takes: Mapping[str, str] = field(default_factory=dict)
    queue: str = "default"
    #: Seconds before a worker may receive it.
    delay: int = 0
    #: The message group of `using(group=…)`. Without it, the task's option selects the group when it is sent.
    group: str | None = None
    on_success: tuple[Step, ...] = ()
    on_failure: tuple[Step, ...] = ()

    def serialize(self) -> dict[str, Any]:
        """Return the invocation as a dict of JSON values, from which `deserialize()` creates an equal one."""
        own = {
            "task_name": self.task_name,
            "kwargs": dict(self.kwargs),
            "takes": dict(self.takes),
            "queue": self.queue,
            "delay": self.delay,
            "group": self.group,
            "on_success": [step.serialize() for step in self.on_success],
            "on_failure": [step.serialize() for step in self.on_failure],
        }
        return {name: value for name, value in own.items() if value or name == "task_name"}

    @property
    def is_followed(self) -> bool:
        return bool(self.on_success or self.on_failure)

    def message(self, values: Mapping[str, Any]) -> Invocation:
        """Return the message of the invocation, with the `values` of placeholders."""
        return Invocation(self.task_name, {**self.kwargs, **self.taken_from(values)})

    def taken_from(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that get their values from placeholders."""
        return {argument: values[placeholder] for argument, placeholder in self.takes.items()}

    def refuse_placeholders_except(self, known: Set[str], place: str) -> None:
        """Raise `InvalidArguments` if the invocation takes a value that does not exist in its place."""
        for argument, placeholder in self.takes.items():
            if placeholder not in known:
                usable = ", ".join(sorted(name.upper() for name in known)) or "none"
                raise InvalidArguments(
                    f"Argument {argument} of {self.task_name} is {placeholder.upper()}, which has no value {place}. "
                    f"Placeholders with a value there: {usable}."
                )


def steps_of(value: object, name: str, known: Set[str]) -> tuple[Step, ...]:
    """Return the invocations in the value of the option `name`; `known` are the placeholders with a value there.

    Raises TypeError for anything but invocations, and `InvalidArguments` for another placeholder.
    """
    steps: tuple[object, ...]
    if isinstance(value, Step):
        steps = (value,)
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        steps = tuple(value)
    else:
        raise TypeError(_must_be_invocations(name, value))
    return tuple(_checked(step, name, known) for step in steps)


def _checked(step: object, name: str, known: Set[str]) -> Step:
    if not isinstance(step, Step):
        raise TypeError(_must_be_invocations(name, step))
    step.refuse_placeholders_except(known, f"in {name}")
    # Without the additional fields of a subclass, so that an invocation equals the one that is read from its JSON.
    return Step(**{each.name: getattr(step, each.name) for each in fields(Step)})


def _must_be_invocations(name: str, value: object) -> str:
    is_task = hasattr(value, "invocation")
    given = f"the task {getattr(value, 'name', '')}: call its invocation(…)" if is_task else described(value)
    subject = f"The{name[3:]}" if name.startswith("the ") else name  # an option keeps its lower case
    return f"{subject} must be an invocation, as in task.invocation(order_id=1), or a list of invocations, not {given}."


def read(data: object, kind: type[Step] = Step, *, where: str = "The invocation") -> Step:
    """Return the invocation in `data`, which `Step.serialize()` has returned. Raise ValueError for anything else."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a JSON object, not {type(data).__name__}.")
    if unknown := data.keys() - _FIELDS:
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(map(repr, unknown)))}.")
    call = Invocation(data.get("task_name", ""), data.get("kwargs", {}))
    problem = call.problem() if "task_name" in data else "task_name: is missing"
    if problem:
        raise ValueError(f"{where} is invalid: {problem}.")
    return kind(
        task_name=call.task_name,
        kwargs=call.kwargs,
        takes=_takes(data.get("takes", {}), where),
        queue=_queue(data.get("queue", "default"), where),
        delay=_delay(data.get("delay", 0), where),
        group=_group(data.get("group"), where),
        on_success=_followers(data, "on_success", where),
        on_failure=_followers(data, "on_failure", where),
    )


def _takes(takes: object, where: str) -> dict[str, str]:
    known = AFTER_SUCCESS | AFTER_FAILURE | IN_FLOW
    valid = isinstance(takes, Mapping) and all(
        isinstance(name, str) and value in known for name, value in takes.items()
    )
    if not valid:
        raise ValueError(f"{where} has takes that are not an object of {', '.join(sorted(known))}.")
    return dict(takes)  # type: ignore[call-overload, no-any-return]  # a mapping


def _queue(queue: object, where: str) -> str:
    if not isinstance(queue, str) or not queue:
        raise ValueError(f"{where} must have the name of a queue in queue, not {described(queue)}.")
    return queue


def _delay(delay: object, where: str) -> int:
    if isinstance(delay, bool) or not isinstance(delay, int) or not 0 <= delay <= MAX_KEPT_DELAY:
        raise ValueError(f"{where} must have a delay from 0 to {MAX_KEPT_DELAY} seconds, not {described(delay)}.")
    return delay


def _group(group: object, where: str) -> str | None:
    if group is not None and not is_group(group):
        raise ValueError(f"{where} must have a message group that SQS accepts in group, not {described(group)}.")
    return group  # type: ignore[return-value]  # a string


def _followers(data: Mapping[Any, Any], name: str, where: str) -> tuple[Step, ...]:
    steps = data.get(name, [])
    if not isinstance(steps, list):
        raise ValueError(f"{where} must have a list in {name}, not {type(steps).__name__}.")
    return tuple(read(step, where=f"{where}, in {name},") for step in steps)
