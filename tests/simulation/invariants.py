"""Check a world after all activity: every committed order must have one effect and a matching record."""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from django.db import connection

from lambda_tasks.database.clock import from_now
from lambda_tasks.models import OutboxMessage, TaskReason, TaskRecord, TaskStatus
from lambda_tasks.settings import app_settings
from lambda_tasks.stores.orm import _ENDED_BY_RETRY, _FORGOTTEN
from tests.simulation.families import order_of_member, unsettled, violations_of_family
from tests.simulation.invocations import Strike
from tests.simulation.rules import Violation, latest_orders, violations_of_options
from tests.simulation.shop.flows import FAMILIES, OWN_FAILURE, order_of_task
from tests.simulation.shop.models import Counter, Effect, Order, Span
from tests.simulation.shop.tasks import CHILD, LIMIT, NOT_YET, VALUES
from tests.simulation.world import FORGED, Placement, World

RUNNING, SUCCESS, FAILED, RETRYING = (
    str(TaskStatus.RUNNING),
    str(TaskStatus.SUCCESS),
    str(TaskStatus.FAILED),
    str(TaskStatus.RETRYING),
)

#: Failpoints before the end of the task's function, where exceeding a limit may fail the task.
_UNDER_LIMITS: Final = frozenset({"task:before_begin", "task:enter", "shop:inside", "enqueue:before_commit"})
#: Failpoints where a producer has committed and sent nothing. If it dies there, it loses the task, as documented.
_UNSENT: Final = frozenset({"enqueue:after_commit", "send:before"})
#: Faults that have the same effect at every failpoint: the producer cannot send, or does not know that it should.
_UNSENDING: Final = frozenset({"send rejected", "SQS unavailable", "answer to COMMIT lost"})


@dataclass(frozen=True, slots=True)
class Expected:
    """The end of a chain of one kind of task, unless a fault changes it."""

    effects: int
    end: str
    #: Text in the traceback of its last record.
    reason: str | None = None
    #: The number of retries; None for any.
    retries: int | None = 0
    #: The reason in the records of invocations that ended with a retry, and text in their tracebacks; None for any.
    retried: tuple[str, str] | None = None
    #: Whether a run that did not succeed may have taken effect, because its writes commit as it goes.
    repeats: bool = False


#: Why a task is retried that waits for its lock instead: only because Redis, or an older worker, is out of reach.
_NOT_WAITED: Final = (TaskReason.LOCK, "LockUnavailable")

EXPECTED: Final = {
    "plain": Expected(1, SUCCESS),
    "retried": Expected(1, SUCCESS, retries=2, retried=(TaskReason.ERROR, "Again")),
    "with_policy": Expected(1, SUCCESS, retries=2, retried=(TaskReason.ERROR, "Again")),
    "exhausted": Expected(0, FAILED, "MaxRetriesExceededError", retries=2, retried=(TaskReason.ERROR, "Again")),
    "later": Expected(1, SUCCESS, retries=2, retried=(TaskReason.RETRY_LATER, f"RetryLater: {NOT_YET}")),
    "moody": Expected(1, SUCCESS, retries=None),
    "failing": Expected(0, FAILED, "Broken"),
    "ignored": Expected(0, SUCCESS, "Unimportant"),
    "exiting": Expected(0, FAILED, "SystemExit"),
    "unserialisable": Expected(0, FAILED, "ResultNotSerializable"),
    "callback": Expected(1, SUCCESS),
    "spawning": Expected(1, SUCCESS),
    "rolling_back": Expected(0, FAILED, "TransactionBroken"),
    "unrepeatable": Expected(1, SUCCESS),
    "singleton": Expected(1, SUCCESS, retries=None),
    "singleton_retried": Expected(1, SUCCESS, retries=None),
    "committing": Expected(1, SUCCESS, repeats=True),
    "committing_once": Expected(1, SUCCESS),
    "keyed": Expected(1, SUCCESS, retries=None),
    "limited": Expected(1, SUCCESS, retries=None),
    "waiting": Expected(1, SUCCESS, retries=None, retried=_NOT_WAITED),
    "impatient": Expected(0, FAILED, "and its max_wait is", retries=None, retried=_NOT_WAITED),
    "skipping": Expected(1, SUCCESS, retries=None),
    "unique": Expected(1, SUCCESS),
    "replacing": Expected(1, SUCCESS),
    "postponed": Expected(1, SUCCESS),
    "brief": Expected(1, SUCCESS),
    "djangos": Expected(1, SUCCESS, retries=1, retried=(TaskReason.ERROR, "Again")),
    "large": Expected(1, SUCCESS, retries=1, retried=(TaskReason.ERROR, "Again")),
    # Of tasks that follow each other, the first one.
    "followed": Expected(1, SUCCESS),
    "followed_failing": Expected(0, FAILED, "Broken"),
    "chained": Expected(1, SUCCESS),
    "chain_failing": Expected(1, SUCCESS),
    "grouped": Expected(1, SUCCESS),
    "group_failing": Expected(1, SUCCESS),
    "group_retrying": Expected(1, SUCCESS),
}
#: The ends of the other tasks of orders, by the names of their functions.
EXPECTED_OF_OTHERS: Final = {
    "step": Expected(1, SUCCESS),
    "failing_step": Expected(0, FAILED, "Broken"),
    "retried_step": Expected(1, SUCCESS, retries=1, retried=(TaskReason.ERROR, "Again")),
    "follower": Expected(1, SUCCESS),
    "reported": Expected(1, SUCCESS),
}
#: The kinds of tasks that customers order in random worlds, unless the command names some. A further kind would make
#: other worlds of the same seeds.
USUAL: Final = tuple(kind for kind in EXPECTED if kind not in ("djangos", "large", "brief"))
#: The end of a task that was cancelled.
CANCELLED: Final = Expected(0, FAILED, "TaskCancelled", retries=None)


@dataclass(frozen=True, slots=True)
class Books:
    """The results for one world."""

    orders: int
    rolled_back: int
    #: Committed and never sent, because their process was killed in between: documented without the outbox.
    unsent: int
    takeovers: int
    violations: list[Violation]
    #: The effects of periodic tasks.
    ticks: int = 0


def check(world: World) -> Books:
    """Check the invariants of `world` after all activity has ended."""
    committed = set(Order._default_manager.values_list("number", flat=True))
    effects: Tally[int] = Tally(Effect._default_manager.values_list("order", flat=True))
    latest = latest_orders()
    chains = _chains(world, latest)

    violations = [Violation("accident", accident) for accident in world.figures.accidents]
    for message in OutboxMessage.objects.order_by("id"):
        state = "dead" if message.due_at is None else "waiting"
        violations.append(Violation("stuck", f"{message} is in the outbox, {state}: {message.error}"))
    unsent = 0
    calls = Order._default_manager.exclude(message_id=None)
    duplicates = {order.number: order for order in calls if latest.get(order.message_id) != order.number}
    for number, placement in world.placements.items():
        strikes = world.strikes_of.get(number, [])
        if number in duplicates:
            order_of_call = duplicates[number]
            holder = latest.get(order_of_call.message_id)
            violations += _duplicate_verdicts(world, order_of_call, holder, chains, effects)
            continue
        if number not in committed or not (number in world.sent or number in world.cancelled):
            if number in committed and not _was_cut_off(strikes):
                violations.append(
                    Violation("lost", f"order {number} ({placement.kind}; {_told(strikes)}) was never sent")
                )
            unsent += number in committed
            if effects[number] or chains[number]:
                violations.append(Violation("ghost", f"order {number} was not sent, but has effects or records"))
            continue
        order = f"order {number} ({placement.kind}; {_told(strikes)})"
        violations += (
            Violation(name, f"{order} {sentence}")
            for name, sentence in _verdicts(_ends(world, placement), chains[number], effects[number], strikes)
            if not (placement.kind == "brief" and not chains[number] and effects[number] == 1)  # it is forgotten
        )
        violations += _of_others(world, placement, order, chains, effects)
    violations += unsettled(world)
    violations += _remembered()
    violations += (
        Violation("forged", f"a forged message took effect {times} times as order {number}")
        for number, times in effects.items()
        if number >= FORGED
    )
    violations += (Violation("needless", sentence) for sentence in world.figures.needless)
    counted = Counter._default_manager.get(name="singleton").value
    singletons = sum(effects[number] for number, placement in world.placements.items() if placement.kind == "singleton")
    if counted != singletons:
        violations.append(Violation("overlapped", f"{singletons} runs of the singleton task counted to {counted}"))
    violations += _overlaps()
    violations += violations_of_options(world, chains)
    takeovers = sum(record.takeovers for chain in chains.values() for record in chain)
    return Books(
        orders=len(committed),
        rolled_back=len(world.placements) - len(committed),
        unsent=unsent,
        takeovers=takeovers,
        violations=violations,
    )


def _remembered() -> Iterator[Violation]:
    """Yield the successes that a project keeps although it has no use for them: those that ended long ago."""
    ended_before = from_now(-app_settings.forget_after)
    for record in TaskRecord.objects.filter(reason=TaskReason.NOT_KEPT, end_time__lt=ended_before):
        yield Violation("stuck", f"{record} should be forgotten")


def _of_others(
    world: World,
    placement: Placement,
    order: str,
    chains: defaultdict[int, list[TaskRecord]],
    effects: Tally[int],
) -> Iterator[Violation]:
    """Yield the violations of the tasks that the task of an order has enqueued, or that follow it."""
    number = placement.number
    if placement.kind == "spawning":
        child = number + CHILD
        succeeded = any(record.status == SUCCESS for record in chains[number])
        strikes, own = world.strikes_of.get(number, []), world.strikes_of.get(child, [])
        for name, sentence in _child_verdicts(succeeded, chains[child], effects[child], strikes, own):
            yield Violation(name, f"the task that {order} enqueued {sentence}")
    if placement.kind in FAMILIES:

        def judge(of_task: int, name: str, cancelled: bool) -> Iterator[tuple[str, str]]:
            ends = [EXPECTED_OF_OTHERS[name], *([CANCELLED] if cancelled else [])]
            return _verdicts(ends, chains[of_task], effects[of_task], world.strikes_of.get(of_task, []))

        yield from violations_of_family(world, number, placement.kind, chains, effects, judge)


def _chains(world: World, latest: dict[object, int]) -> defaultdict[int, list[TaskRecord]]:
    """Return the records of each order, the first invocation first."""
    chains: defaultdict[int, list[TaskRecord]] = defaultdict(list)
    for record in TaskRecord.objects.order_by("n_retries"):
        replaced = record.reason == TaskReason.REPLACED  # its record has no arguments
        chains[latest[record.pk] if replaced else _order_of_record(world, record)].append(record)
    return chains


def _order_of_record(world: World, record: TaskRecord) -> int:
    """Return the order of a record, which may lack its arguments if it was cancelled before a worker knew them."""
    if "order" in record.kwargs:
        return int(record.kwargs["order"])
    if "task_id" in record.kwargs:
        return order_of_task(record.kwargs["task_id"]) + OWN_FAILURE
    member = order_of_member(record)
    return world.order_of_root[str(record.root_id)] if member is None else member


def _ends(world: World, placement: Placement) -> list[Expected]:
    """Return the ends of an order without a fault, first that of an order that is not cancelled."""
    expected = EXPECTED[placement.kind]
    if placement.number in world.prevented:
        return [CANCELLED]
    if placement.number in world.cancelled:
        return [expected, replace(CANCELLED, repeats=expected.repeats)]
    return [expected]


def _duplicate_verdicts(
    world: World,
    order: Order,
    holder: int | None,
    chains: dict[int, list[TaskRecord]],
    effects: Tally[int],
) -> Iterator[Violation]:
    """Yield the violations of an order whose call shares the invocation of another order, which has its arguments."""
    if holder is None:
        yield Violation("lost", f"order {order.number} is a duplicate of an order that was rolled back")
        return
    if effects[order.number] or chains.get(order.number):
        yield Violation("doubled", f"order {order.number} is a duplicate of order {holder}, but ran")
    chain, strikes = chains.get(holder), world.strikes_of.get(holder, [])
    # A worker that was struck may have written its end long before its COMMIT.
    if chain and not strikes and chain[-1].end_time is not None and chain[-1].end_time < order.placed_at:
        yield Violation("lost", f"order {order.number} is a duplicate of order {holder}, which had ended")


def _overlaps() -> Iterator[Violation]:
    """Yield the tasks of which more runs were active at a time than their locks allow, even if Redis loses them."""
    if connection.vendor != "postgresql":
        return  # other databases do not hold the lock in the transaction
    changes: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for span in Span._default_manager.all():
        changes[span.key] += [(span.began, 1), (span.ended, -1)]
    for key, times in changes.items():
        active = most = 0
        for _, change in sorted(times):
            active += change
            most = max(most, active)
        limit = LIMIT if key == "limited" else 1
        if most > limit:
            yield Violation("overlapped", f"{most} runs of {key} were active at the same time, and {limit} may be")


def _was_cut_off(strikes: list[Strike]) -> bool:
    """Return whether a producer could not send its committed messages. With the outbox, a relay sends them."""
    return not app_settings.outbox and any(
        strike.fault in _UNSENDING or (strike.fault == "killed" and strike.point in _UNSENT) for strike in strikes
    )


def _child_verdicts(
    succeeded: bool, chain: list[TaskRecord], effects: int, parent: list[Strike], own: list[Strike]
) -> Iterator[tuple[str, str]]:
    """Yield the violations of a task that another task enqueued; `succeeded` is the success of that task."""
    if not succeeded:
        if chain or effects:
            yield "ghost", "runs although its parent was rolled back"
    elif chain or effects or not _may_lose_child(parent):
        yield from _verdicts([EXPECTED["plain"]], chain, effects, own)


def _may_lose_child(strikes: list[Strike]) -> bool:
    """Return whether the worker could not send the tasks of its task. After one lost answer to COMMIT it can."""
    harmless = [strike.fault for strike in strikes] == ["answer to COMMIT lost"]
    return not app_settings.outbox and bool(strikes) and not harmless


def _told(strikes: list[Strike]) -> str:
    return ", ".join(map(str, strikes)) or "no fault"


def _verdicts(
    ends: list[Expected], chain: list[TaskRecord], effects: int, strikes: list[Strike]
) -> Iterator[tuple[str, str]]:
    """Yield the violations of one order, which has one of `ends` unless a fault changes it."""
    expected = ends[0]
    statuses = [record.status for record in chain]
    if not chain:
        # A record that was forgotten may have told of the first effect.
        yield ("doubled" if effects > 1 else "lost"), f"was sent, took effect {effects} times, and has no record"
        return
    if RUNNING in statuses:
        yield "stuck", f"is still running: {statuses}"
        return
    if [record.n_retries for record in chain] != list(range(len(chain))) or set(statuses[:-1]) - {RETRYING}:
        yield "gap", f"has a broken chain: {statuses}"
    yield from _unexpected_retries(expected, chain)
    if statuses[-1] == RETRYING:
        yield "lost", f"waits for a retry that never arrived: {statuses}"
        return
    if effects > 1 and not expected.repeats:
        yield "doubled", f"took effect {effects} times: {statuses}"
        return
    end = _allowed_end(ends, chain[-1], strikes)
    if end is None:
        name = "lost" if effects < expected.effects else "disagreeing"
        yield name, f"ended as {statuses} with {effects} effects: {(chain[-1].traceback or '')[-200:]}"
    elif effects < end.effects or (effects > end.effects and not end.repeats):
        yield ("lost" if effects < end.effects else "disagreeing"), f"ended as {statuses} with {effects} effects"
    elif end.retries is not None and len(chain) != end.retries + 1:
        yield "disagreeing", f"should have had {end.retries} retries: {statuses}"


def _unexpected_retries(expected: Expected, chain: list[TaskRecord]) -> Iterator[tuple[str, str]]:
    """Yield the records of retried invocations that do not show why they were retried.

    A worker that died after it had sent the retry could not record it, so the retry recorded that instead. It does so,
    too, if a crash of the server has lost the record.
    """
    if expected.retried is None:
        return
    reason, text = expected.retried
    for record in chain:
        shown = record.traceback or ""
        if (
            record.status == RETRYING
            and not (record.reason == reason and text in shown)
            and shown not in (_ENDED_BY_RETRY, _FORGOTTEN)
        ):
            yield "disagreeing", f"was retried because of {record.reason!r}: {shown[-200:]}"


def _allowed_end(ends: list[Expected], record: TaskRecord, strikes: list[Strike]) -> Expected | None:
    """Return the allowed end that matches `record`, or None."""
    allowed = [*ends]
    kind = record.task_name.rpartition(".")[2]
    if any(strike.fault == "limit exceeded" and strike.point in _UNDER_LIMITS for strike in strikes):
        stands = ends[0].repeats or kind == "committing_once"
        allowed.append(Expected(0, FAILED, "HardTimeLimitExceeded", retries=None, repeats=stands))
    if strikes and kind in ("unrepeatable", "committing_once"):
        own = kind == "committing_once"  # it may have taken effect before it failed
        allowed += [Expected(0, FAILED, reason, retries=None, repeats=own) for reason in ("crashed", "lost")]
    if kind == "impatient":
        allowed.append(Expected(1, SUCCESS, retries=None))  # a fault has lost the lock that another run holds
    if record.reason == TaskReason.SKIPPED:
        allowed.append(Expected(0, SUCCESS, "LockError", retries=None))
    if record.reason == TaskReason.REPLACED and _has_successor(record):
        allowed = [Expected(0, SUCCESS)]
    return next((end for end in allowed if _fits(record, end)), None)


def _has_successor(record: TaskRecord) -> bool:
    """Return whether a later order with the same unique key was placed."""
    order = Order._default_manager.get(message_id=record.pk, created=True)
    later = Order._default_manager.filter(kind=order.kind, placed_at__gt=order.placed_at)
    return any(number % VALUES == order.number % VALUES for number in later.values_list("number", flat=True))


def _fits(record: TaskRecord, end: Expected) -> bool:
    if record.status != end.end:
        return False
    return record.traceback is None if end.reason is None else end.reason in (record.traceback or "")
