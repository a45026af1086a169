"""The books at rest: every committed order has exactly one effect, and its record says so."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lambda_tasks.models import OutboxMessage, TaskRecord, TaskStatus
from lambda_tasks.settings import app_settings
from tests.simulation.invocations import Strike
from tests.simulation.shop.models import Counter, Effect, Order
from tests.simulation.world import World

RUNNING, SUCCESS, FAILED, RETRYING = (
    str(TaskStatus.RUNNING),
    str(TaskStatus.SUCCESS),
    str(TaskStatus.FAILED),
    str(TaskStatus.RETRYING),
)

#: Points before which the task's function has not ended: a limit that passes there may fail the task.
_UNDER_LIMITS: Final = frozenset({"task:before_begin", "task:enter", "shop:inside"})
#: At these points a producer is committed and has sent nothing: who dies there loses the task, as documented.
_UNSENT: Final = frozenset({"enqueue:after_commit", "send:before"})
#: These are as bad wherever they meet it: it cannot send, or does not know that it should.
_UNSENDING: Final = frozenset({"send refused", "SQS away", "answer to COMMIT lost"})


@dataclass(frozen=True, slots=True)
class Expected:
    """How the chain of one kind of task ends where no fault decides otherwise."""

    effects: int
    end: str
    #: Text in the traceback of its last record.
    reason: str | None = None
    #: The number of retries; None for any.
    retries: int | None = 0


EXPECTED: Final = {
    "plain": Expected(1, SUCCESS),
    "retried": Expected(1, SUCCESS, retries=2),
    "moody": Expected(1, SUCCESS, retries=None),
    "failing": Expected(0, FAILED, "Broken"),
    "ignored": Expected(0, SUCCESS, "Unimportant"),
    "exiting": Expected(0, FAILED, "SystemExit"),
    "unserialisable": Expected(0, FAILED, "ResultNotSerializable"),
    "callback": Expected(1, SUCCESS),
    "unrepeatable": Expected(1, SUCCESS),
    "singleton": Expected(1, SUCCESS, retries=None),
    "singleton_retried": Expected(1, SUCCESS, retries=None),
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: its name in the report, and the sentence about it."""

    name: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Books:
    """What was found at rest."""

    orders: int
    rolled_back: int
    #: Committed, and never sent since their process was killed in between: documented, where there is no outbox.
    unsent: int
    takeovers: int
    violations: list[Violation]


def check(world: World) -> Books:
    """Check the books of `world`, in which nothing moves any more."""
    committed = set(Order._default_manager.values_list("number", flat=True))
    effects: Tally[int] = Tally(Effect._default_manager.values_list("order", flat=True))
    chains: defaultdict[int, list[TaskRecord]] = defaultdict(list)
    for record in TaskRecord.objects.order_by("n_retries"):
        chains[record.kwargs["order"]].append(record)

    violations = [Violation("accident", accident) for accident in world.figures.accidents]
    for message in OutboxMessage.objects.order_by("id"):
        state = "dead" if message.due_at is None else "waiting"
        violations.append(Violation("stuck", f"{message} is in the outbox, {state}: {message.error}"))
    unsent = 0
    for number, placement in world.placements.items():
        strikes = world.strikes_of.get(number, [])
        if number not in committed or number not in world.sent:
            if number in committed and not _was_cut_off(strikes):
                violations.append(
                    Violation("lost", f"order {number} ({placement.kind}; {_told(strikes)}) was never sent")
                )
            unsent += number in committed
            if effects[number] or chains[number]:
                violations.append(Violation("ghost", f"order {number} was not sent, and was worked on"))
            continue
        order = f"order {number} ({placement.kind}; {_told(strikes)})"
        violations += (
            Violation(name, f"{order} {sentence}")
            for name, sentence in _verdicts(EXPECTED[placement.kind], chains[number], effects[number], strikes)
        )
    violations += (Violation("needless", sentence) for sentence in world.figures.needless)
    counted = Counter._default_manager.get(name="singleton").value
    singletons = sum(effects[number] for number, placement in world.placements.items() if placement.kind == "singleton")
    if counted != singletons:
        violations.append(Violation("overlapped", f"{singletons} runs of the singleton counted to {counted}"))
    takeovers = sum(record.takeovers for chain in chains.values() for record in chain)
    return Books(
        orders=len(committed),
        rolled_back=len(world.placements) - len(committed),
        unsent=unsent,
        takeovers=takeovers,
        violations=violations,
    )


def _was_cut_off(strikes: list[Strike]) -> bool:
    """Tell whether a producer's process could not send what it had committed: with the outbox, somebody could."""
    return not app_settings.outbox and any(
        strike.fault in _UNSENDING or (strike.fault == "killed" and strike.point in _UNSENT) for strike in strikes
    )


def _told(strikes: list[Strike]) -> str:
    return ", ".join(map(str, strikes)) or "no fault"


def _verdicts(
    expected: Expected, chain: list[TaskRecord], effects: int, strikes: list[Strike]
) -> Iterator[tuple[str, str]]:
    """Say what is wrong with one order."""
    statuses = [record.status for record in chain]
    if not chain:
        yield "lost", "was sent, and has no record"
        return
    if RUNNING in statuses:
        yield "stuck", f"is still running: {statuses}"
        return
    if [record.n_retries for record in chain] != list(range(len(chain))) or set(statuses[:-1]) - {RETRYING}:
        yield "gap", f"has a broken chain: {statuses}"
    if statuses[-1] == RETRYING:
        yield "lost", f"waits for a retry that never came: {statuses}"
        return
    if effects > 1:
        yield "doubled", f"took effect {effects} times: {statuses}"
        return
    end = _allowed_end(expected, chain[-1], strikes)
    if end is None:
        name = "lost" if effects < expected.effects else "disagreeing"
        yield name, f"ended as {statuses} with {effects} effects: {(chain[-1].traceback or '')[-200:]}"
    elif effects != end.effects:
        yield ("lost" if effects < end.effects else "disagreeing"), f"ended as {statuses} with {effects} effects"
    elif end.retries is not None and len(chain) != end.retries + 1:
        yield "disagreeing", f"should have had {end.retries} retries: {statuses}"


def _allowed_end(expected: Expected, record: TaskRecord, strikes: list[Strike]) -> Expected | None:
    """Return which of the ways in which the order may end is the one of `record`, if any is."""
    allowed = [expected]
    if any(strike.fault == "limit over" and strike.point in _UNDER_LIMITS for strike in strikes):
        allowed.append(Expected(0, FAILED, "HardTimeLimitExceeded", retries=None))
    if strikes and record.task_name.endswith(".unrepeatable"):
        allowed += [Expected(0, FAILED, reason, retries=None) for reason in ("crashed", "lost")]
    return next((end for end in allowed if _fits(record, end)), None)


def _fits(record: TaskRecord, end: Expected) -> bool:
    if record.status != end.end:
        return False
    return record.traceback is None if end.reason is None else end.reason in (record.traceback or "")
