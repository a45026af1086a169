"""Check what the options of tasks promise beyond one effect for each order: cancelling, unique keys and locks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.contrib.django_tasks.compat import task_backends
from lambda_tasks.models import CancelRequest, EnqueuedTask, TaskReason, TaskRecord, TaskStatus
from tests.simulation.faults import FROZEN
from tests.simulation.shop.models import Order, Span
from tests.simulation.shop.tasks import VALUES

if TYPE_CHECKING:
    from tests.simulation.world import World

#: The tasks whose waiting call gets the arguments of a later one.
REWRITTEN: Final = ("replacing", "postponed")
#: Faults after which a key is free although the message of its call was sent.
_FREEING: Final = frozenset({"answer to send lost", "SQS unavailable", "send rejected"})
#: The prefixes of the failpoints that a customer reaches.
_OF_CUSTOMERS: Final = ("enqueue:", "unique:", "outbox:", "send:", "relay:")
#: The statuses of a run that was not prevented.
_STARTED: Final = frozenset({str(TaskStatus.SUCCESS), str(TaskStatus.RETRYING)})

Chains = Mapping[int, list[TaskRecord]]


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated invariant: its name in the report, and a description."""

    name: str
    sentence: str


def violations_of_options(world: World, chains: Chains) -> Iterator[Violation]:
    yield from _cancelled_runs(chains)
    yield from _shared_keys(world, chains)
    yield from _replaced_runs(world, chains)
    yield from _results(chains)
    for span in Span._default_manager.filter(robbed=True):
        yield Violation("overlapped", f"a run of {span.key} lost its lock before its time was over")


def latest_orders() -> dict[object, int]:
    """Return the order whose arguments each invocation has, by the id of the invocation.

    That is the order whose call created it, unless the task's calls rewrite a message that waits.
    """
    found: dict[object, int] = {}
    for order in Order._default_manager.filter(message_id__isnull=False).order_by("placed_at", "created"):
        if order.created or order.kind in REWRITTEN:
            found[order.message_id] = order.number
    return found


def _cancelled_runs(chains: Chains) -> Iterator[Violation]:
    """Yield the runs that have started although the end of their chain had been requested before."""
    requests = {request.root_id: request.requested_at for request in CancelRequest.objects.all()}
    for number, chain in chains.items():
        for record in chain:
            requested_at = requests.get(record.root_id) if record.root_id else None
            late = requested_at is not None and record.start_time is not None and record.start_time > requested_at
            if late and record.claim is not None and record.status in _STARTED:
                yield Violation("ghost", f"order {number} started again after it was cancelled: {record.status}")


def _results(chains: Chains) -> Iterator[Violation]:
    """Yield the results of Django's tasks that do not tell what became of the call.

    A call whose customer was killed before its message left stays READY, as documented without the outbox.
    """
    calls = {call.kwargs["order"]: str(call.pk) for call in EnqueuedTask.objects.all()}
    committed = set(Order._default_manager.values_list("number", flat=True))
    for number in calls.keys() - committed:
        yield Violation("ghost", f"order {number} was rolled back, but has a result")
    for order in Order._default_manager.filter(kind="djangos"):
        chain = chains.get(order.number)
        if not chain:
            continue
        result: Any = task_backends["default"].get_result(str(chain[0].root_id))
        wanted = "SUCCESSFUL" if chain[-1].status == TaskStatus.SUCCESS else str(chain[-1].status)
        if (str(result.status.value), result.args) != (wanted, [order.number]):
            yield Violation("disagreeing", f"the result of order {order.number} is {result.status}, not {wanted}")


def _shared_keys(world: World, chains: Chains) -> Iterator[Violation]:
    """Yield the calls that were sent although an earlier call with the same unique key had not ended."""
    for earlier, later in _calls_with_one_key("unique"):
        chain = chains.get(earlier.number)
        freed = any(strike.fault in _FREEING for strike in world.strikes_of.get(earlier.number, []))
        # A customer that was frozen may have found the key free long after it had placed its order.
        if not chain or freed or _customer_was_struck(world, later):
            continue
        ended = chain[-1].end_time
        if ended is None or ended > later.placed_at:
            yield Violation("doubled", f"order {later.number} was sent, but order {earlier.number} has its unique key")


def _replaced_runs(world: World, chains: Chains) -> Iterator[Violation]:
    """Yield the calls that ran, although no worker had claimed them when a later call replaced them."""
    for earlier, later in _calls_with_one_key("replacing"):
        chain = chains.get(earlier.number)
        # Other faults release a claim, and the next one has a later start.
        released = {strike.fault for strike in world.strikes_of.get(earlier.number, [])} - {"killed", FROZEN}
        if not chain or released or chain[0].takeovers or _customer_was_struck(world, later):
            continue
        first = chain[0]
        started = first.start_time
        if first.reason != TaskReason.REPLACED and started is not None and started > later.placed_at:
            yield Violation("doubled", f"order {earlier.number} ran although order {later.number} had replaced it")


def _customer_was_struck(world: World, order: Order) -> bool:
    return any(strike.point.startswith(_OF_CUSTOMERS) for strike in world.strikes_of.get(order.number, []))


def _calls_with_one_key(kind: str) -> Iterator[tuple[Order, Order]]:
    """Yield each pair of orders that have an invocation of their own and the same key, the earlier one first."""
    calls: defaultdict[int, list[Order]] = defaultdict(list)
    for order in Order._default_manager.filter(kind=kind, created=True).order_by("placed_at"):
        calls[order.number % VALUES].append(order)
    for orders in calls.values():
        yield from combinations(orders, 2)
