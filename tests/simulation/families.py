"""Check what tasks promise that follow each other: each follower once, and rows that agree with the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from lambda_tasks.models import TaskFlow, TaskFlowMember, TaskRecord
from lambda_tasks.settings import app_settings
from tests.simulation.rules import Chains, Violation
from tests.simulation.shop.flows import (
    CALL_FAILURE,
    CALL_SUCCESS,
    FAMILIES,
    LAST,
    ON_FAILURE,
    OWN_FAILURE,
    OWN_SUCCESS,
    THEN,
    Family,
    order_of_task,
)
from tests.simulation.shop.models import Order
from tests.simulation.shop.tasks import CHILD

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Judges a task: its order, the name of its function, and whether it was cancelled, as `(name, sentence)`.
Judge = Callable[[int, str, bool], Iterator[tuple[str, str]]]
#: Faults after which a customer got an error. The message may arrive all the same.
_UNKNOWN: Final = frozenset({"answer to send lost", "SQS unavailable", "send rejected"})


def violations_of_family(
    world: World, number: int, kind: str, chains: Chains, effects: Mapping[int, int], judge: Judge
) -> Iterator[Violation]:
    """Yield the violations of an order whose tasks follow each other, apart from its first task."""
    family = FAMILIES[kind]
    if was_undone(world, number):
        if family.shape == "group":  # its members have failed, unless the error was about another order
            last = ON_FAILURE if chains.get(number + ON_FAILURE) else THEN
            for violation, sentence in judge(number + last, "follower", False):
                yield Violation(violation, f"what follows order {number} ({kind}), which may not be sent, {sentence}")
        return
    for place, name, cancelled in _that_must_run(world, number, family, chains):
        for violation, sentence in judge(number + place, name, cancelled):
            yield Violation(violation, f"task {place // CHILD} of order {number} ({kind}) {sentence}")
    must_run = {place for place, *_ in _that_must_run(world, number, family, chains)}
    for place in range(CHILD, LAST + 1, CHILD):
        if place not in must_run and (chains.get(number + place) or effects[number + place]):
            yield Violation("ghost", f"task {place // CHILD} of order {number} ({kind}) ran, and must not")
    if family.shape != "call":
        yield from _disagreements(world, number, family, chains)


def was_undone(world: World, number: int) -> bool:
    """Return whether the customer got an error from SQS, which deletes what follows or fails the members of a group."""
    faults = {strike.fault for strike in world.customer_strikes_of.get(number, ())}
    return not app_settings.outbox and bool(faults & _UNKNOWN)


def _succeeded(chains: Chains, order: int) -> bool:
    chain = chains.get(order)
    return bool(chain) and chain[-1].status == "SUCCESS"  # type: ignore[index]  # not empty


def _that_must_run(world: World, number: int, family: Family, chains: Chains) -> Iterator[tuple[int, str, bool]]:
    """Yield the tasks that must have run, apart from the first one: place, function, and whether it was cancelled."""
    cancelled = number in world.cancelled
    ran = [0]
    for place, task in zip(family.sub_orders[1:], family.members[1:], strict=True):
        if family.shape == "chain":
            if not _succeeded(chains, number + place - CHILD):
                break
            if cancelled and number + place not in chains:
                break  # it was cancelled before it was sent
        ran.append(place)
        yield place, task.name.rpartition(".")[2], cancelled
    done = len(ran) == len(family.members) and all(_succeeded(chains, number + place) for place in ran)
    if family.shape == "call":
        for place in (CALL_SUCCESS, OWN_SUCCESS, LAST) if done else (CALL_FAILURE, OWN_FAILURE):
            yield place, "reported" if place == OWN_FAILURE else "follower", False
    elif not done:
        yield ON_FAILURE, "follower", False
    elif family.shape == "group":
        yield THEN, "follower", False


def _started_after_cancelling(world: World, number: int, flow: TaskFlow, chains: Chains) -> Iterator[Violation]:
    """Yield the tasks that have started although their chain or group was cancelled before."""
    cancelled_at = flow.cancelled_at
    if cancelled_at is None or number in world.cancelled_with_faults:
        return
    for place in FAMILIES[world.placements[number].kind].sub_orders:
        for record in chains.get(number + place) or ():
            late = record.start_time is not None and record.start_time > cancelled_at
            if late and record.claim is not None and record.status == "SUCCESS":
                yield Violation("ghost", f"task {place // CHILD} of order {number} started after it was cancelled")


def _disagreements(world: World, number: int, family: Family, chains: Chains) -> Iterator[Violation]:
    """Yield the differences between the rows of a chain or a group and the records of its tasks."""
    kind = world.placements[number].kind
    flow_id = Order._default_manager.get(number=number).message_id
    flow = flow_id and TaskFlow.objects.filter(pk=flow_id).first()
    if not flow_id or not flow:
        yield Violation("lost", f"order {number} ({kind}) has no row")
        return
    members = list(TaskFlowMember.objects.filter(flow_id=flow_id).order_by("position"))
    statuses = [member.status for member in members]
    ends = [chain[-1].status if (chain := chains.get(number + place)) else "SKIPPED" for place in family.sub_orders]
    if statuses != ends:
        yield Violation("disagreeing", f"order {number} ({kind}) has counted {statuses}, and its tasks ended as {ends}")
    yield from _started_after_cancelling(world, number, flow, chains)
    if flow.ended_at is not None and flow.failed != any(end != "SUCCESS" for end in ends):
        yield Violation(
            "disagreeing", f"order {number} ({kind}) has failed={flow.failed}, and its tasks ended as {ends}"
        )


def unsettled(world: World) -> Iterator[Violation]:
    """Yield the flows that have not ended, or that owe something, although all activity has ended."""
    for flow in TaskFlow.objects.order_by("pk"):
        number = order_of_flow(flow)
        if flow.owed_since is not None:
            yield Violation("stuck", f"the {flow.kind} of order {number} owes {flow.owed}")
        elif flow.ended_at is None and (number is None or number in world.sent):
            yield Violation("stuck", f"the {flow.kind} of order {number} has not ended")


def order_of_flow(flow: TaskFlow) -> int | None:
    """Return the number of the order that has sent a flow; None if a follower has its own followers."""
    placed = Order._default_manager.filter(message_id=flow.pk).first()
    return None if placed is None else int(placed.number)


def order_of_member(record: TaskRecord) -> int | None:
    """Return the order of a member of a chain or a group that was cancelled before its message was sent."""
    for member in TaskFlowMember.objects.filter(pk=record.root_id or record.pk):
        return order_of_task(member.flow_id) + CHILD * int(member.position)
    return None
