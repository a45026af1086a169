"""What the report contains: plain values that can be printed as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

#: What `lambda_tasks.contrib.celery` does with it; `unknown` is nothing of Celery.
Fate: TypeAlias = Literal["carried", "dropped", "refused", "unknown"]


@dataclass(frozen=True)
class Use:
    """An option, an attribute or a name of Celery: what the code says, and what to write in place of it."""

    name: str
    #: The source text of its value.
    value: str
    fate: Fate
    instead: str
    line: int


@dataclass(frozen=True)
class Note:
    """Something about a task or a call that a person has to decide."""

    line: int
    text: str


@dataclass(frozen=True)
class Parameter:
    """A parameter of a task, without `self` if it is bound."""

    name: str
    #: The source text of the annotation; empty without one.
    annotation: str = ""
    is_positional: bool = True
    is_variadic: bool = False
    is_required: bool = True


@dataclass(frozen=True)
class FoundTask:
    """A task in the code base."""

    name: str
    file: str
    line: int
    parameters: tuple[Parameter, ...] = ()
    options: tuple[Use, ...] = ()
    #: Attributes of `self` in a bound task.
    attributes: tuple[Use, ...] = ()
    notes: tuple[Note, ...] = ()
    #: Whether the function runs with `shared_task` of `lambda_tasks.contrib.celery` as it is.
    runs_unchanged: bool = True


@dataclass(frozen=True)
class Call:
    """A place where a task is sent, or a signature is made."""

    file: str
    line: int
    #: What is called, such as `delay` or `chord`.
    kind: str
    #: The task as the source names it.
    task: str
    fate: Fate
    #: What to write, as code if the task is known, and otherwise as a sentence.
    write: str
    options: tuple[Use, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Setting:
    """A setting that is probably Celery's, and its counterpart; empty if it has none."""

    file: str
    line: int
    name: str
    counterpart: str


@dataclass(frozen=True)
class Schedule:
    """An entry of a beat schedule, and the option of the task that replaces it; empty if it cannot be translated."""

    file: str
    line: int
    name: str
    task: str
    schedule: str
    write: str
    #: The arguments that beat passes, by name or by position.
    arguments: str = ""


@dataclass(frozen=True)
class Import:
    """A name that is imported from Celery."""

    file: str
    use: Use


@dataclass(frozen=True)
class Unread:
    """A file that cannot be read, and why."""

    file: str
    problem: str


@dataclass
class Report:
    """What a code base uses of Celery. `files` is the number of Python files that were read."""

    path: str
    files: int = 0
    tasks: list[FoundTask] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
