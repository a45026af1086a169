"""Start periodic tasks when they are due, and pause, resume and list their schedules.

`fire_due()` may run in any number of processes at the same time. For each scheduled time, called a tick, it sends a
message whose id is derived from the task, the schedule and the time, so that the tick runs once, however often it is
sent. The table `TaskSchedule` has the time of the latest tick of each schedule.

With the outbox, the messages and the new time are written in one transaction. Without it, the messages are sent before
the new time is committed: a process that dies in between sends the ticks again, and never omits one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from django.db import connections, transaction

from lambda_tasks import failpoints, registry
from lambda_tasks.database.clock import EpochNow, epoch_now
from lambda_tasks.database.commits import open_transaction
from lambda_tasks.database.dividing import divided
from lambda_tasks.database.errors import DATABASE_ERRORS
from lambda_tasks.definition.groups import group_if_valid
from lambda_tasks.definition.schedules import key_of
from lambda_tasks.exceptions import DuplicateTask
from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.models import TaskRecord, TaskSchedule
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.sending import outgoing
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.models import QuerySet

    from lambda_tasks.definition.schedules import Schedule
    from lambda_tasks.definition.task import Task
    from lambda_tasks.handles import TaskHandle

logger = get_logger("lambda_tasks.schedules")

#: A time: seconds since 1970, or a datetime. None is the database's time.
Moment: TypeAlias = float | datetime | None

#: How far back, in seconds, and among how many ticks the tick of a lost task is looked for.
_SEARCHED_SECONDS: Final = 30 * 86_400
_SEARCHED_TICKS: Final = 20_000
#: The number of schedules in one INSERT, whose keys and names have up to 255 characters each.
_BATCH_SIZE: Final = 20
#: How far after the start of a run its tick may be, since some databases store local time.
_SEARCHED_AHEAD: Final = 2 * 3_600


@dataclass(frozen=True, slots=True)
class Entry:
    """One schedule of a task. `key` identifies it: `shop.tasks.report:0 3 * * *`."""

    key: str
    task: Task
    schedule: Schedule

    def job(self, tick: int, database: str) -> Job:
        """Return the job of a tick. It is the first of its chain, and the same for every process."""
        tick_id = ids.tick_id(self.task.name, self.schedule.label, tick)
        return self._job(tick_id, tick, database)

    def extra_job(self, moment: int, database: str) -> Job:
        """Return a job in addition to the ticks."""
        return self._job(ids.new_message_id(), moment, database)

    def _job(self, message_id: str, moment: int, database: str) -> Job:
        message = Invocation(self.task.name, self.task.signature.encode(self.schedule.kwargs))
        return Job(
            message,
            message_id,
            root_id=message_id,
            queue=self.schedule.queue or self.task.queue,
            task=self.task,
            scheduled_for=float(moment),
            group=group_if_valid(self.task, message),
            database=database,
        )


@dataclass(slots=True)
class Fired:
    """How many ticks were sent, and how many schedules failed. The next `fire_due()` tries these again."""

    sent: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.sent + self.failed

    def __str__(self) -> str:
        schedules = "1 schedule" if self.failed == 1 else f"{self.failed} schedules"
        return f"{self.sent} started" + (f", {schedules} failed." if self.failed else ".")


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a schedule: its last and its next tick in seconds since 1970, and the status of the last record."""

    key: str
    task_name: str
    description: str
    queue: str
    paused: bool
    last: int | None
    last_status: str | None
    next: int | None


def entries(*, discover: bool = True) -> dict[str, Entry]:
    """Return the schedules of all tasks by their keys. With `discover`, import the apps' `tasks` modules first."""
    tasks = registry.discover_tasks() if discover else registry.registered_tasks()
    found = (Entry(key_of(task.name, schedule), task, schedule) for task in tasks for schedule in task.schedule)
    return {entry.key: entry for entry in found}


def fire_due(now: Moment = None, *, seconds: float = float("inf"), discover: bool = True) -> Fired:
    """Send the ticks that are due, and return how many.

    A schedule that is seen for the first time starts now: its first tick is the next one. Errors of one schedule, such
    as an unavailable queue, are logged, and do not affect the others. After `seconds`, no further schedule is fired.

    If no task has a schedule, the database is not queried.
    """
    deadline = monotonic() + seconds
    fired = Fired()
    known = entries(discover=discover)
    if not known:
        return fired
    moment, states = _read(known, now)
    for key, state in states.items():
        upcoming = known[key].schedule.next_after(state.last_tick)
        if state.paused or upcoming is None or upcoming > moment:
            continue
        if monotonic() >= deadline:
            break
        _fire_alone(known[key], state, moment, fired)
    return fired


def pause(key: str, now: Moment = None) -> list[str]:
    """Pause a schedule, or all schedules of the task with this name, and return their keys.

    Its ticks are omitted until `resume()`. A tick that was sent before still runs. Raise ValueError for an unknown key.
    """
    chosen = _chosen(key)
    _create(chosen, now)
    for some in divided(chosen):
        _rows().filter(pk__in=some).update(paused=True)
    return list(chosen)


def resume(key: str, now: Moment = None) -> list[str]:
    """Resume a schedule, or all schedules of the task with this name, and return their keys.

    The ticks of the pause count as omitted, not as missed. Raise ValueError for an unknown key.
    """
    chosen = _chosen(key)
    for some in divided(chosen):
        _rows().filter(pk__in=some, paused=True).update(paused=False, last_tick=_stored(now))
    return list(chosen)


def run_now(key: str, now: Moment = None) -> list[TaskHandle[Any]]:
    """Send the task of a schedule once, in addition to its ticks, and return the handles.

    It is sent when the transaction commits. It gets the schedule's arguments and queue, and `now` as its scheduled
    time. A name of a task sends it once for each of its schedules. Raise ValueError for an unknown key. A unique task
    is called like by `execute_on_commit()`, so its `on_duplicate` decides while an earlier call waits or runs.
    """
    chosen = _chosen(key)
    database = open_transaction()
    moment = _seconds(now)
    return [outgoing.send_on_commit(entry.extra_job(moment, database)) for entry in chosen.values()]


def list_schedules(now: Moment = None) -> list[Status]:
    """Return the state of every schedule, sorted by key. The next tick of a paused schedule is None."""
    known = entries()
    if not known:
        return []
    rows = {row.key: row for some in divided(known) for row in _rows().filter(pk__in=some)}
    moment = _seconds(now)
    last = {key: row.last_tick for key, row in rows.items() if is_tick(known[key].schedule, row.last_tick)}
    statuses = _statuses(known, last)
    listed = []
    for key, entry in sorted(known.items()):
        row = rows.get(key)
        paused = row is not None and row.paused
        following = None if paused else entry.schedule.next_after(moment if row is None else row.last_tick)
        listed.append(
            Status(
                key=key,
                task_name=entry.task.name,
                description=entry.schedule.description,
                queue=entry.schedule.queue or entry.task.queue,
                paused=paused,
                last=last.get(key),
                last_status=statuses.get(key),
                next=following,
            )
        )
    return listed


def is_tick(schedule: Schedule, moment: int) -> bool:
    """Return whether a stored time is a tick. A new or resumed schedule has the time of its start instead."""
    return schedule.next_after(moment - 1) == moment


def scheduled_time(task: Task, root_id: str, started_at: float | None) -> float | None:
    """Return the time of the tick whose id is `root_id`; None if it is not a recent tick of the task.

    Records do not contain the time. The id that a tick would have tells whether it is the one.
    """
    until = _seconds(started_at) + _SEARCHED_AHEAD
    for schedule in task.schedule:
        for tick in schedule.latest(until - _SEARCHED_SECONDS, until, _SEARCHED_TICKS):
            if ids.tick_id(task.name, schedule.label, tick) == root_id:
                return float(tick)
    return None


def _read(known: dict[str, Entry], now: Moment) -> tuple[int, dict[str, TaskSchedule]]:
    """Return the time and the states of the `known` schedules, in their order. Create the missing ones.

    Reading them is one query, unless their keys are long or many.
    """
    timed: Any = _rows().annotate(now=EpochNow())
    rows: dict[str, Any] = {row.key: row for some in divided(known) for row in timed.filter(pk__in=some)}
    states = {key: rows[key] for key in known if key in rows}  # the database returns rows in any order
    if missing := {key: entry for key, entry in known.items() if key not in states}:
        _create(missing, now)
    moment = _seconds(now) if now is not None else max((row.now for row in states.values()), default=0)
    return moment, states


def _create(chosen: dict[str, Entry], now: Moment) -> None:
    """Create the rows that are missing. A concurrent process may create them, too."""
    rows = [TaskSchedule(key=key, task_name=entry.task.name, last_tick=_stored(now)) for key, entry in chosen.items()]
    _rows().bulk_create(rows, ignore_conflicts=True, batch_size=_BATCH_SIZE)


def _fire_alone(entry: Entry, state: TaskSchedule, now: int, fired: Fired) -> None:
    """Fire one schedule. Log its errors, so that they do not affect others."""
    try:
        fired.sent += _fire(entry, state, now)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if isinstance(error, DATABASE_ERRORS) and not connections[get_store().database].is_usable():
            raise  # the other schedules would fail, too
        logger.exception("%s is due and could not be sent. The next attempt sends it under the same id.", entry.key)
        fired.failed += 1


def _fire(entry: Entry, state: TaskSchedule, now: int) -> int:
    schedule = entry.schedule
    found = schedule.latest(state.last_tick, now, schedule.most_runs + 1)
    ticks = schedule.to_run(found[-schedule.most_runs :], now)
    database = get_store().database
    jobs = [entry.job(tick, database) for tick in ticks]
    sent = _send(jobs, partial(_move, state, found[-1]), state)
    if sent is None:
        return 0
    failpoints.reached("schedule:moved")
    logger.info("%s was sent for %s.", entry.key, ", ".join(map(_shown, ticks)) or "none of its missed times")
    if len(found) > len(ticks):
        logger.info("%s has missed earlier times, and omits them (missed=%r).", entry.key, schedule.missed)
    return sent


def _send(jobs: Sequence[Job], move: partial[bool], state: TaskSchedule) -> int | None:
    """Send `jobs` and move the schedule on. Return how many were sent, or None if another process sends them."""
    backend = get_backend()
    if not (backend.keeps or backend.leaves_process):
        # The tasks may run here, so no transaction may be open around them.
        failpoints.reached("schedule:due")
        sent = _send_accepted(jobs)
        failpoints.reached("schedule:sent")
        return sent if move() else None
    with transaction.atomic(using=get_store().database):
        # The update comes first, because on SQLite only a writer can be sure to commit.
        if not _locked(state) or not move():
            return None
        failpoints.reached("schedule:due")
        sent = _send_accepted(jobs)
        failpoints.reached("schedule:sent")
    return sent


def _send_accepted(jobs: Sequence[Job]) -> int:
    """Send those of `jobs` that no earlier call of a unique task stands for, and return how many.

    A transport that keeps jobs sends them with the commit, and any other sends them now.
    """
    for job in jobs:
        outgoing.prepare(job)
    leaving: list[Job] = []
    leave = outgoing.leave_on_commit if get_backend().keeps else leaving.append
    sent = sum(_accept(job, leave) for job in jobs)
    if leaving:
        outgoing.dispatch(leaving)
    return sent


def _accept(job: Job, leave: Callable[[Job], object]) -> bool:
    """Return whether the job leaves: not if its task has `unique`, and an earlier call waits or runs."""
    try:
        handle = outgoing.accept(job, leave)
    except DuplicateTask as duplicate:
        handle = duplicate.handle
    if not handle.created:
        logger.info("%s is not sent: %s, which waits or runs, has its unique key.", job.task_name, handle.message_id)
    return handle.created


def _locked(state: TaskSchedule) -> bool:
    """Lock the row of a schedule. Return False if another process is firing it."""
    if not connections[get_store().database].features.has_select_for_update_skip_locked:
        return True
    return _rows().select_for_update(skip_locked=True).filter(pk=state.pk).values_list("pk").first() is not None


def _move(state: TaskSchedule, tick: int) -> bool:
    """Write the new time. Return False if the schedule has moved, or was paused, since `state` was read."""
    unchanged = _rows().filter(pk=state.pk, last_tick=state.last_tick, paused=False)
    return bool(unchanged.update(last_tick=tick))


def _chosen(key: str) -> dict[str, Entry]:
    known = entries()
    if key in known:
        return {key: known[key]}
    if of_task := {each: entry for each, entry in known.items() if entry.task.name == key}:
        return of_task
    names = ", ".join(map(repr, sorted(known))) or "there are none"
    raise ValueError(f"The key must be that of a schedule or the name of its task ({names}), not {key!r}.")


def _statuses(known: dict[str, Entry], last: dict[str, int]) -> dict[str, str]:
    key_of_id = {ids.tick_id(known[key].task.name, known[key].schedule.label, tick): key for key, tick in last.items()}
    rows = TaskRecord.objects.using(get_store().database).values_list("pk", "status")
    return {key_of_id[str(pk)]: status for some in divided(key_of_id) for pk, status in rows.filter(pk__in=some)}


def _rows() -> QuerySet[TaskSchedule]:
    rows: QuerySet[TaskSchedule] = TaskSchedule.objects.using(get_store().database)
    return rows


def _seconds(moment: Moment) -> int:
    if moment is None:
        return epoch_now(get_store().database)
    return int(moment.timestamp() if isinstance(moment, datetime) else moment)


def _stored(now: Moment) -> int | EpochNow:
    return EpochNow() if now is None else _seconds(now)


def _shown(tick: int) -> str:
    return f"{datetime.fromtimestamp(tick).astimezone():%Y-%m-%d %H:%M:%S%z}"
