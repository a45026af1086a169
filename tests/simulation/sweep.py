"""Inject every fault at every failpoint that each kind of task reaches, one combination at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Final

from lambda_tasks.backends.batches import LONGEST_PAUSE
from lambda_tasks.definition.keys import LOCK_KEY
from lambda_tasks.failpoints import POINTS
from lambda_tasks.settings import app_settings
from tests.simulation.faults import FAULTS, FROZEN
from tests.simulation.invariants import EXPECTED, check
from tests.simulation.invocations import Strike
from tests.simulation.report import Report
from tests.simulation.shop import tasks
from tests.simulation.shop.flows import FAMILIES
from tests.simulation.shop.tasks import UNIQUE, VALUES
from tests.simulation.transport import locks
from tests.simulation.world import (
    PAST_ANY_LEASE,
    Placement,
    World,
    points_by_turn,
    points_of,
    points_of_customer,
)

#: The number of orders in one world. Each singleton task runs in a separate world.
CHUNK: Final = 25

#: The number of messages that one invocation gets if no fault strikes it.
_BATCH_SIZE: Final = 10
_ALL_FAULTS: Final = (*FAULTS, FROZEN)
_NEED_REDIS: Final = frozenset({"locks lost", "Redis unavailable"})
_WITHOUT_REDIS: Final = tuple(fault for fault in _ALL_FAULTS if fault not in _NEED_REDIS)
_NEED_SEND: Final = frozenset({"send rejected", "SQS unavailable", "answer to send lost"})
#: The kinds of tasks that have a lock, and that are unique.
LOCKED: Final = ("singleton", "singleton_retried", "keyed", "limited", "waiting", "impatient", "skipping")
#: The failpoints of a task that waits for its lock.
WAIT_POINTS: Final = tuple(point for point in POINTS if point.startswith("wait:"))
#: The failpoints of a process that relays the outbox.
RELAY_POINTS: Final = tuple(point for point in POINTS if point.startswith("relay:"))
#: The failpoints of a process that cancels an order.
CANCEL_POINTS: Final = tuple(point for point in POINTS if point.startswith("cancel:"))
#: The failpoints at which the faults of the later tasks of an order strike.
_OF_LATER_TASKS: Final = ("claim:after", "task:enter", "finish:", "settle:", "flow:", "send:", "relay:", "batch:before")
#: The failpoints of the end of a task that others follow, after its COMMIT.
_ENDED: Final = ("flow:after_commit", "flow:last_member", "flow:sent")
#: The orders of which a customer places one with each fault.
_PLACED: Final = ("followed", "chained", "grouped")
#: The failpoints of a process that cancels a chain or a group.
_CANCEL_FLOW: Final = ("cancel:before_write", "cancel:after_write", "flow:after_end", "flow:last_member", "flow:sent")
#: Failpoints after the commit of a customer's transaction, where the customer must not get an exception.
_AFTER_COMMIT: Final = frozenset({"enqueue:after_commit", "send:before", "send:after", *RELAY_POINTS})


@dataclass(frozen=True, slots=True)
class Case:
    """One order, and the faults of its invocations, in order."""

    kind: str
    producer: tuple[Strike, ...] = ()
    relay: tuple[Strike, ...] = ()
    deliveries: tuple[tuple[Strike, ...], ...] = ()
    #: The faults of a process that cancels the order after these deliveries.
    cancel: tuple[Strike, ...] = ()
    #: Whether another invocation holds the lock of the task during the first delivery.
    held: bool = False
    #: The number of orders, for tasks that are unique.
    orders: int = 1
    #: Whether the message is deleted after its last delivery, so that only the maintenance can do what is left.
    dropped: bool = False

    @property
    def last(self) -> Strike:
        """The last fault."""
        return (self.cancel or (self.deliveries[-1] if self.deliveries else ()) or self.relay or self.producer)[-1]

    @property
    def alone(self) -> bool:
        """Whether the order needs its own world, because a singleton's lock would block other orders."""
        return self.kind in LOCKED or self.kind in UNIQUE


def sweep(
    folder: Path,
    *,
    kinds: Sequence[str] = (),
    prefixes: Sequence[str] = (),
    faults: Sequence[str] = (),
    part: int = 0,
    parts: int = 1,
) -> Report:
    """Run every case, or every `parts`-th case from `part`, and return the report.

    `kinds` selects kinds of tasks. `prefixes` selects cases whose last fault is at a failpoint with one of these
    prefixes, and `faults` those whose last fault is one of these.
    """
    report = Report()
    every = _cases(folder, kinds or list(EXPECTED))
    chosen = [case for case in every if case.last.point.startswith(tuple(prefixes) or "")]
    cases = [case for case in chosen if not faults or case.last.fault in faults][part::parts]
    numbers = count(1)
    for chunk in _chunks(cases):
        _run(folder, [(next(numbers), case) for case in chunk], report)
    return report


def _cases(folder: Path, kinds: Sequence[str]) -> Iterator[Case]:
    yield from _first_invocations({kind: points_of(folder, kind) for kind in kinds if kind not in FAMILIES})
    for kind in kinds:
        if kind in FAMILIES:
            yield from _families(kind, points_by_turn(folder, kind))
        if kind in _PLACED:
            yield from _customers(kind, points_of_customer(folder, kind))
    yield from (case for case in _later_invocations() if case.kind in kinds)
    yield from _customers("plain", points_of_customer(folder))
    for kind in UNIQUE:
        if kind in kinds:
            points = [point for point in points_of_customer(folder, kind) if point.startswith("unique:")]
            yield from _customers(kind, points, orders=2)
    if "large" in kinds:
        points = [point for point in points_of_customer(folder, "large") if point.startswith("arguments:")]
        yield from _customers("large", points)
    yield from (case for case in _cancellations() if case.kind in kinds)
    if app_settings.outbox:
        yield from _relays()


def _first_invocations(points_of: dict[str, list[str]]) -> Iterator[Case]:
    for kind, points in points_of.items():
        for point, fault in product(points, _ALL_FAULTS):
            if fault in _NEED_REDIS and kind not in LOCKED:
                continue
            if fault in _NEED_SEND and "retry:before_send" not in points:
                continue
            yield Case(kind, deliveries=((Strike(point, fault),),))


def _families(kind: str, turns: list[list[str]]) -> Iterator[Case]:
    """Yield cases with a fault in each of the tasks of an order."""
    for turn, points in enumerate(turns):
        unstruck = ((),) * turn
        reached = [point for point in points if not turn or point.startswith(_OF_LATER_TASKS)]
        for point, fault in product(reached, _WITHOUT_REDIS):
            yield Case(kind, deliveries=(*unstruck, (Strike(point, fault),)))
        for point, fault in product(
            [point for point in points if point in _ENDED], ("killed", "SQS unavailable", FROZEN)
        ):
            yield Case(kind, deliveries=(*unstruck, (Strike(point, fault),)), dropped=True)


def _later_invocations() -> Iterator[Case]:
    """Yield cases that need a second invocation, or an earlier fault."""
    died = (Strike("task:enter", "killed"),)
    for fault in _ALL_FAULTS:
        yield Case("plain", deliveries=(died, (Strike("claim:before_takeover", fault),)))
        yield Case("plain", deliveries=(died, (Strike("finish:before_commit", fault),)))
        if not app_settings.outbox:  # with the outbox, retries are never rejected
            unsent = Strike("retry:before_send", "send rejected")
            yield Case("retried", deliveries=((unsent, Strike("release:before", fault)),))
        lost = Strike("finish:before_commit", "session ended")
        yield Case("plain", deliveries=((lost, Strike("release:before", fault)),))
        for point in WAIT_POINTS:
            yield Case("waiting", deliveries=((Strike(point, fault),),), held=True)


def _customers(kind: str, points: list[str], *, orders: int = 1) -> Iterator[Case]:
    for point, fault in product(points, _WITHOUT_REDIS):
        yield Case(kind, producer=(Strike(point, fault),), orders=orders)


def _cancellations() -> Iterator[Case]:
    """Yield cases with a fault in a process that cancels an order before, or after, a worker has started it."""
    unsent = (Strike("send:before", "send rejected"),) if app_settings.outbox else ()
    died = (Strike("task:enter", "killed"),)
    again = (Strike("settle:after_write", "killed"),)
    for fault in _WITHOUT_REDIS:
        for point in ("cancel:before_write", "cancel:after_write"):
            yield Case("plain", producer=unsent, cancel=(Strike(point, fault),))
            yield Case("retried", deliveries=(again,), cancel=(Strike(point, fault),))
        for kind in ("plain", "committing", "committing_once"):
            yield Case(kind, deliveries=(died,), cancel=(Strike("cancel:after_request", fault),))
        for kind, turns, point in product(_PLACED, range(3), _CANCEL_FLOW):
            if turns < 2 or kind != "followed":
                yield Case(kind, producer=unsent, deliveries=((),) * turns, cancel=(Strike(point, fault),))


def _relays() -> Iterator[Case]:
    """Yield cases with a fault in the relay, after a customer was killed or its message was rejected."""
    for unsent in (Strike("enqueue:after_commit", "killed"), Strike("send:before", "send rejected")):
        for point, fault in product(RELAY_POINTS, _WITHOUT_REDIS):
            yield Case("plain", producer=(unsent,), relay=(Strike(point, fault),))


def _chunks(cases: Sequence[Case]) -> Iterator[list[Case]]:
    yield from ([case] for case in cases if case.alone)
    together = [case for case in cases if not case.alone]
    for start in range(0, len(together), CHUNK):
        yield together[start : start + CHUNK]


def _run(folder: Path, cases: list[tuple[int, Case]], report: Report) -> None:
    world = World(folder)
    try:
        _place(world, cases)
        for turn in range(max(len(case.deliveries) for _, case in cases)):
            if turn:
                world.pass_time(PAST_ANY_LEASE)
            _deliver(world, cases, turn)
        for number, case in cases:
            if case.cancel:
                world.cancel(number, case.cancel)
        if app_settings.outbox:
            world.relay()  # skips the messages that frozen processes hold
        if world.frozen:
            # Other workers take over from the frozen workers, which then continue.
            world.pass_time(PAST_ANY_LEASE)
            for message in world.queue.visible():
                world.deliver([message])
        world.come_to_rest()
        report.add(check(world), world.figures)
    finally:
        world.close()


def _deliver(world: World, cases: list[tuple[int, Case]], turn: int) -> None:
    due = [(number, case) for number, case in cases if turn < len(case.deliveries)]
    _deliver_together(world, [number for number, case in due if not case.deliveries[turn]])
    for number, case in due:
        if not case.deliveries[turn]:
            continue
        messages = world.messages_of(number)
        with _lock_held(case.kind) if case.held and not turn else nullcontext():
            world.deliver(messages, case.deliveries[turn])
        if case.dropped and turn == len(case.deliveries) - 1:
            world.drop(messages)


def _deliver_together(world: World, orders: Sequence[int]) -> None:
    """Deliver the messages of orders that no fault strikes in this turn."""
    messages = [message for order in orders for message in world.messages_of(order)]
    for start in range(0, len(messages), _BATCH_SIZE):
        world.deliver(messages[start : start + _BATCH_SIZE])


@contextmanager
def _lock_held(kind: str) -> Iterator[None]:
    """Hold the lock of a task as another invocation does."""
    key = LOCK_KEY.format(task_name=getattr(tasks, kind).name)
    locks().acquire(key, token="another", timeout=PAST_ANY_LEASE)
    try:
        yield
    finally:
        locks().release(key, token="another")


def _place(world: World, cases: list[tuple[int, Case]]) -> None:
    world.place([Placement(number, case.kind) for number, case in cases if not case.producer])
    for number, case in cases:
        if case.producer:
            placements = [Placement(number + VALUES * turn, case.kind) for turn in range(case.orders)]
            customer = world.place(placements, case.producer)
            if customer.state == "raised" and case.producer[-1].point in _AFTER_COMMIT:
                world.figures.accidents.append(f"a customer got an exception after its commit: {customer.error}")
        if case.relay:
            world.pass_time(LONGEST_PAUSE)
            world.relay(case.relay)
