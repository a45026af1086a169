"""When a task runs by itself: `Cron` and `Every`, the values of the option `schedule`.

Times are whole seconds since 1970, which are the same in every time zone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Literal
from zoneinfo import ZoneInfo

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from lambda_tasks.definition.signatures import TaskSignature

#: The longest key of a schedule, which is the primary key of its row.
MAX_KEY_LENGTH: Final = 255
#: The most missed runs that `missed=` can ask for.
MAX_MISSED: Final = 1_000
#: Seconds after which a run counts as missed for `missed="skip"`: some more than the usual pauses between two processes
#: that start due runs.
ON_TIME: Final = 600
#: The longest interval of `Every`, in seconds.
MAX_INTERVAL: Final = 366 * 86_400
#: Seconds before `now` in which the latest runs are looked for first.
_FIRST_SPAN: Final = 3_600
#: An expression that matches a time at all matches one after this time: 2024, a leap year.
_ANY_TIME: Final = 1_704_067_200


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The base class of schedules.

    `kwargs` are the arguments of the task, and `queue` is a name in LAMBDA_TASKS_QUEUES, by default the task's queue.
    `name` identifies the schedule among those of its task; a schedule that keeps its name keeps its state.

    `missed` says what happens after a time in which nothing started the task: "once" runs it once for all missed runs,
    "skip" omits runs that are more than ten minutes late, and a number runs the latest missed ones, up to this number.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    queue: str | None = None
    name: str = ""
    missed: Literal["skip", "once"] | int = "once"

    def __post_init__(self) -> None:
        if not isinstance(self.kwargs, Mapping):
            raise TypeError(f'kwargs must be a dict of arguments, as in kwargs={{"days": 7}}, not {self.kwargs!r}.')
        if self.queue is not None:
            _check_text("queue", self.queue, "the name of a queue in LAMBDA_TASKS_QUEUES, or None")
            if not self.queue:
                raise ValueError("queue must be the name of a queue in LAMBDA_TASKS_QUEUES, or None, not ''.")
        _check_text("name", self.name, "a string")
        if self.name != self.name.strip() or not self.name.isprintable():
            raise ValueError(
                f"name must be printable and must not start or end with a space, as in name='nightly', "
                f"not {self.name!r}."
            )
        self._check_missed()

    def _check_missed(self) -> None:
        constraint = f'missed must be "skip", "once", or a number from 1 to {MAX_MISSED}, not {self.missed!r}.'
        if isinstance(self.missed, bool) or not isinstance(self.missed, int | str):
            raise TypeError(constraint)
        if self.missed not in ("skip", "once") and not (
            isinstance(self.missed, int) and 1 <= self.missed <= MAX_MISSED
        ):
            raise ValueError(constraint)

    @property
    def label(self) -> str:
        """The name, or a description that serves as the name."""
        return self.name or self.description

    @property
    @abstractmethod
    def description(self) -> str:
        """When the task runs, in a few words."""

    @abstractmethod
    def next_after(self, moment: int) -> int | None:
        """Return the first scheduled time after `moment`, or None if there is none."""

    @abstractmethod
    def latest(self, after: int, until: int, limit: int) -> list[int]:
        """Return the latest scheduled times after `after` and up to `until`, at most `limit`, the earliest first."""

    def to_run(self, due: list[int], now: int) -> list[int]:
        """Return those of the `due` times for which the task runs, as `missed` says."""
        if self.missed == "skip":
            return [moment for moment in due if now - moment <= ON_TIME]
        return due

    @property
    def most_runs(self) -> int:
        """How many due times can be made up for."""
        return self.missed if isinstance(self.missed, int) else 1


@dataclass(frozen=True)
class Cron(Schedule):
    """Run a task at the times of a cron expression: minute, hour, day of the month, month, and day of the week.

        @lambda_task(schedule=Cron("0 3 * * *", timezone="Europe/Berlin"))

    `timezone` is a name such as "Europe/Berlin"; by default, TIME_ZONE in the Django settings. On the nights when
    clocks change, tasks run as with Debian's cron: those with a fixed hour run once, and those with `*` in the hour or
    the minute follow real time.

    Raises ImproperlyConfigured if the extra `schedules` is not installed, TypeError for an argument of the wrong type,
    and ValueError for an invalid expression or an unknown time zone.
    """

    expression: str
    timezone: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text("expression", self.expression, 'a string, as in Cron("0 3 * * *")')
        if self.timezone is not None:
            _check_text("timezone", self.timezone, 'a name, as in timezone="Europe/Berlin"')
        object.__setattr__(self, "expression", " ".join(self.expression.split()))
        if self.timezone is not None:
            _zone(self.timezone)
        self._check_expression()

    def _check_expression(self) -> None:
        constraint = (
            f"expression must be a cron expression with five fields (minute, hour, day of the month, month, day of the "
            f'week), as in "0 3 * * *", not {self.expression!r}'
        )
        if len(self.expression.split()) != 5:  # a sixth field would be seconds, which the time of a change ignores
            raise ValueError(f"{constraint}.")
        error_type = _cronsim().CronSimError
        try:
            never = next(_runs(self.expression, _ANY_TIME, ZoneInfo("UTC")), None) is None
        except error_type as error:
            raise ValueError(f"{constraint}: {error}.") from None
        if never:
            raise ValueError(f"{constraint}, which never matches.")

    @property
    def description(self) -> str:
        return self.expression if self.timezone is None else f"{self.expression} {self.timezone}"

    def next_after(self, moment: int) -> int | None:
        return next(self._after(moment), None)

    def latest(self, after: int, until: int, limit: int) -> list[int]:
        span = _FIRST_SPAN
        while True:
            start = max(after, until - span)
            found = list(takewhile(lambda moment: moment <= until, self._after(start)))
            if len(found) >= limit or start == after:
                return found[-limit:]
            span *= 4  # an outage may be long, and only the latest times count

    def _after(self, moment: int) -> Iterator[int]:
        return _runs(self.expression, moment, _zone(self.timezone or settings.TIME_ZONE))


@dataclass(frozen=True, kw_only=True)
class Every(Schedule):
    """Run a task at a regular interval, which is the sum of the arguments.

        @lambda_task(schedule=Every(minutes=5))

    The times are multiples of the interval since 1970 in UTC, so that all processes agree: `Every(minutes=5)` runs at
    12:00, 12:05 and so on, and `Every(days=1)` at midnight UTC.

    Raises TypeError for an argument that is not an integer, and ValueError for an interval of less than a second or
    more than 366 days.
    """

    days: int = 0
    hours: int = 0
    minutes: int = 0
    seconds: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("days", "hours", "minutes", "seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, as in Every({name}=5), not {value!r}.")
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, not {value}.")
        if not 1 <= self.interval <= MAX_INTERVAL:
            raise ValueError(
                f"The interval of Every must be from 1 second to 366 days, not {self.interval} seconds. Pass days, "
                "hours, minutes or seconds, as in Every(minutes=5)."
            )

    @property
    def interval(self) -> int:
        """The interval in seconds."""
        return ((self.days * 24 + self.hours) * 60 + self.minutes) * 60 + self.seconds

    @property
    def description(self) -> str:
        return f"every {timedelta(seconds=self.interval)}"

    def next_after(self, moment: int) -> int | None:
        return (moment // self.interval + 1) * self.interval

    def latest(self, after: int, until: int, limit: int) -> list[int]:
        first = after // self.interval + 1
        last = until // self.interval
        return [number * self.interval for number in range(max(first, last - limit + 1), last + 1)]


def schedules_of(value: object) -> tuple[Schedule, ...]:
    """Return the value of the option `schedule` as a tuple, or raise TypeError or ValueError."""
    constraint = "schedule must be Cron(…), Every(…), or a list of them, as in schedule=Every(minutes=5)"
    if isinstance(value, Schedule):
        return (value,)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{constraint}, not {value!r}.")
    schedules = tuple(value)
    labels: set[str] = set()
    for schedule in schedules:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"{constraint}. It contains {schedule!r}.")
        label = schedule.label.casefold()  # MariaDB and MySQL compare keys without case
        if label in labels:
            raise TypeError(
                f"The schedules of a task must have different names. {schedule.label!r} occurs twice; pass name= to "
                "one of them."
            )
        labels.add(label)
    return schedules


def check_schedules(schedules: Iterable[Schedule], signature: TaskSignature) -> None:
    """Raise TypeError if a schedule does not pass the arguments that the task needs."""
    parameters = signature.parameters
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    for schedule in schedules:
        where = f"The schedule {schedule.label!r} of {signature.name}"
        if missing := sorted(required - schedule.kwargs.keys()):
            names = ", ".join(missing)
            raise TypeError(f"{where} must pass all required arguments. Add to its kwargs: {names}.")
        if unknown := sorted(schedule.kwargs.keys() - parameters.keys()):
            raise TypeError(
                f"{where} must only pass parameters of the task ({', '.join(parameters) or 'it has none'}), "
                f"not {', '.join(unknown)}."
            )
        if len(key := key_of(signature.name, schedule)) > MAX_KEY_LENGTH:
            raise ValueError(
                f"{where} must have a name with which its key has at most {MAX_KEY_LENGTH} characters, not {len(key)}. "
                "Pass a shorter name=."
            )


def _check_text(name: str, value: object, constraint: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {constraint}, not {value!r}.")


def key_of(task_name: str, schedule: Schedule) -> str:
    """Return the key of a schedule of the task, which operators use and which its row has."""
    return f"{task_name}:{schedule.label}"


def _runs(expression: str, after: int, zone: ZoneInfo) -> Iterator[int]:
    """Yield the times of a cron expression after `after`, each once.

    cronsim starts from the time of day. In the hour that is repeated in autumn, it would return times of its first
    pass for a start in the second.
    """
    for moment in _cronsim().CronSim(expression, datetime.fromtimestamp(after, zone)):
        if (run := int(moment.timestamp())) > after:
            after = run
            yield run


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):  # a directory, a path outside of the database, an unknown name
        raise ValueError(
            f'timezone must be the name of a time zone, as in timezone="Europe/Berlin", not {name!r}. If the name is '
            "right, this machine has no time zones: install tzdata, as the extra django-lambda-tasks[schedules] does."
        ) from None


def _cronsim() -> Any:
    try:
        import cronsim
    except ImportError:
        raise ImproperlyConfigured(
            "Cron needs the package cronsim, which is not installed. Install the extra "
            "django-lambda-tasks[schedules], or use Every, which needs no package."
        ) from None
    return cronsim
