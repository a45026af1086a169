"""The world of one run: customers who place orders, a queue, workers that die, and a simulated clock."""

from __future__ import annotations

import gc
import json
import uuid
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from django.db import connections, transaction
from django.db.models import F, Q

from lambda_tasks import maintenance, registry
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.definition.keys import LOCK_KEY
from lambda_tasks.flows.handles import FlowHandle
from lambda_tasks.handler import boot, handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.models import (
    CancelRequest,
    EnqueuedTask,
    OutboxMessage,
    StoredArguments,
    TaskFlow,
    TaskFlowMember,
    TaskReason,
    TaskRecord,
    TaskStatus,
    UniqueKey,
)
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE
from lambda_tasks.wire.ids import retry_id
from tests.simulation.faults import FROZEN
from tests.simulation.invocations import Process, Strike
from tests.simulation.queue import Message, Queue
from tests.simulation.shop import tasks
from tests.simulation.shop.flows import FAMILIES, OWN_FAILURE, TASKS, order_of_task
from tests.simulation.shop.models import Counter, Effect, Order, Span
from tests.simulation.transport import FileBackend, SendFailed, locks

#: Seconds that are longer than any lease in this world.
PAST_ANY_LEASE: Final = 700.0
#: Deliveries after which the simulation gives up on a world whose activity does not end.
MAX_ROUNDS: Final = 400
#: Deliveries after which time passes in steps of at least LONG_STEP seconds.
PATIENT_ROUNDS: Final = 60
LONG_STEP: Final = 120.0
#: How often an impatient task is sent at most. It is sent about ten times until its longest wait is over.
MAX_SENDS: Final = 30
#: Seconds for which the lock of impatient tasks is held: longer than any world lasts.
HELD_FOR: Final = 10_000_000
#: The lowest order number of forged messages, which must never take effect.
FORGED: Final = 90_000
#: Parts of the errors with which PostgreSQL and MariaDB end a statement that has waited too long for a lock.
_LOCK_TIMEOUTS: Final = ("due to lock timeout", "(1205,")
#: The remaining time of an invocation, in milliseconds.
_TIME_LEFT: Final = 900_000


_MODELS: Final = (
    *(Order, Effect, Counter, Span, TaskRecord, OutboxMessage, CancelRequest, UniqueKey, TaskFlow, TaskFlowMember),
    *(EnqueuedTask, StoredArguments),
)
_ENDED: Final = (TaskStatus.SUCCESS, TaskStatus.FAILED)


class Abandoned(Exception):
    """Roll back the customer's transaction."""


@dataclass(frozen=True, slots=True)
class Placement:
    """An order of a customer; `how` is "commit", "roll back" or "savepoint"."""

    number: int
    kind: str
    how: str = "commit"


class Context:
    """The part of Lambda's context that the handler uses."""

    def get_remaining_time_in_millis(self) -> int:
        return _TIME_LEFT


@dataclass(slots=True)
class Invocation:
    """A process and its messages. Customers and relays have no messages."""

    process: Process
    batch: list[Message] = field(default_factory=list)
    #: The orders that a customer places, or cancels.
    orders: tuple[int, ...] = ()
    cancels: bool = False

    @property
    def about(self) -> list[int]:
        return [*self.orders, *map(order_of, self.batch)]


@dataclass(slots=True)
class Figures:
    """Counts of events in a world, for the report."""

    deliveries: int = 0
    relays: int = 0
    #: Messages that were sent to the queue again under the same id.
    sent_again: int = 0
    duplicates: int = 0
    redrives: int = 0
    #: Messages of ended tasks that were deleted before their worker acknowledged them.
    dropped: int = 0
    forged: int = 0
    #: Crashes of the database server, and the claims that it lost in them.
    crashes: int = 0
    forgotten: int = 0
    #: Successes that the maintenance has deleted at the end.
    forgotten_successes: int = 0
    #: Attempts to cancel an order, and those that prevented its task from starting.
    cancels: int = 0
    prevented: int = 0
    struck: Tally[Strike] = field(default_factory=Tally)
    #: Descriptions of messages that were handed back without a fault.
    needless: list[str] = field(default_factory=list)
    #: Descriptions of processes that hung or raised an exception.
    accidents: list[str] = field(default_factory=list)


class World:
    """A world of customers, a queue and workers, from `execute_on_commit()` to the end of all activity."""

    def __init__(self, folder: Path, *, visibility_timeout: float = 120) -> None:
        self.queue = Queue(visibility_timeout)
        self.figures = Figures()
        self.placements: dict[int, Placement] = {}
        #: The faults that affected an order.
        self.strikes_of: dict[int, list[Strike]] = {}
        #: The orders that a customer has cancelled, perhaps without success, and those whose task must not take effect.
        self.cancelled: set[int] = set()
        self.prevented: set[int] = set()
        #: Those that a process with a fault has cancelled, too. If it is frozen, it commits later than it says.
        self.cancelled_with_faults: set[int] = set()
        #: Those of which a message was dropped.
        self.dropped: set[int] = set()
        self.order_of_root: dict[str, int] = {}
        #: The faults of the customers, by their orders.
        self.customer_strikes_of: dict[int, list[Strike]] = {}
        self.sent: set[int] = set()
        self._sent_ids: Tally[str] = Tally()
        #: Whether a message was sent so often that it would be sent without end.
        self._endless = False
        #: Orders whose messages were delivered again without a fault in their worker.
        self.repeated: set[int] = set()
        self.frozen: list[Invocation] = []
        self._file = folder / "sent.jsonl"
        for file in folder.iterdir():
            file.unlink()
        self._file.touch()
        self._read = 0
        FileBackend.file = self._file
        FileBackend.unavailable = False
        locks().lose_all()
        for model in _MODELS:
            model._base_manager.all()._raw_delete(model._base_manager.db)
        Counter._default_manager.create(name="singleton")

    # Customers

    def place(self, placements: Sequence[Placement], strikes: Sequence[Strike] = ()) -> Process:
        """Place orders in a new process, each in a separate transaction."""
        self.placements |= {placement.number: placement for placement in placements}
        if any(placement.kind == "impatient" for placement in placements):
            key = LOCK_KEY.format(task_name=tasks.impatient.name)
            locks().acquire(key, token="another", timeout=HELD_FOR)
        process = Process(lambda: place_orders(placements), strikes)
        self.go_on(Invocation(process, orders=tuple(placement.number for placement in placements)))
        return process

    def cancel(self, order: int, strikes: Sequence[Strike] = ()) -> Process | None:
        """Cancel the task of an order in a new process; do nothing if its message is unknown."""
        roots = [root for root, number in self._roots() if number == order]
        if not roots:
            return None
        self.order_of_root[roots[0]] = order
        self.cancelled.add(order)
        if strikes:
            self.cancelled_with_faults.add(order)
        self.figures.cancels += 1
        kind = self.placements[order].kind
        process = Process(lambda: cancel_flow(order) if kind in FAMILIES else cancel_task(roots[0]), strikes)
        self.go_on(Invocation(process, orders=(order,), cancels=True))
        return process

    def cancellable(self) -> list[int]:
        """Return the orders whose messages are known, except those that may share one invocation."""
        known = {order for _, order in self._roots() if order in self.placements}
        return sorted(order for order in known if self.placements[order].kind not in tasks.UNIQUE)

    def _roots(self) -> Iterator[tuple[str, int]]:
        """Yield the ids of first invocations, with their orders."""
        for message in [*self.queue.messages.values(), *self.queue.deleted.values()]:
            if not message.forged:
                yield message.attributes[ROOT_ID_ATTRIBUTE], order_of(message)
        for row in OutboxMessage.objects.order_by("id"):
            yield row.attributes[ROOT_ID_ATTRIBUTE], order_in(row.body)

    # Forged messages

    def forge(self, message: Message, claims: str) -> None:
        """Put a forged message on the queue that refers to the invocation of `message`.

        `claims` is "retry" for its first retry under a new id, "derived" for its first retry under the id that this
        retry would have, and "same" for the invocation itself.
        """
        invocation = message.attributes[MESSAGE_ID_ATTRIBUTE]
        retries = 0 if claims == "same" else 1
        own_id = {"retry": str(uuid.uuid4()), "derived": retry_id(invocation, 1), "same": invocation}[claims]
        self.figures.forged += 1
        shape = {
            "task_name": tasks.forged.name,
            "kwargs": {"order": FORGED + self.figures.forged},
            "n_retries": retries,
        }
        attributes = {MESSAGE_ID_ATTRIBUTE: own_id, ROOT_ID_ATTRIBUTE: invocation}
        self.queue.add(json.dumps(shape), attributes).forged = True

    # The outbox

    def relay(self, strikes: Sequence[Strike] = ()) -> Process:
        """Send the outbox in a new process, with the maintenance event of an EventBridge schedule."""
        process = Process(lambda: handler({maintenance.EVENT_FIELD: maintenance.MAINTENANCE}, Context()), strikes)
        self.figures.relays += 1
        self.go_on(Invocation(process))
        return process

    def seconds_to_relay(self) -> float | None:
        """Return the seconds until the next message of the outbox is due, or None if the outbox is empty."""
        waiting = OutboxMessage.objects.filter(due_at__isnull=False).annotate(now=DatabaseNow())
        rows: list[tuple[Any, Any]] = list(waiting.order_by("due_at").values_list("due_at", "now")[:1])
        return max(float((rows[0][0] - rows[0][1]).total_seconds()), 0.0) if rows else None

    def lose_sqs(self, *, unavailable: bool) -> None:
        """Make SQS unavailable for every process that starts later, or available again."""
        FileBackend.unavailable = unavailable

    # Workers

    def deliver(
        self, messages: Iterable[Message], strikes: Sequence[Strike] = (), *, answer_arrives: bool = True
    ) -> Process:
        """Invoke the handler with `messages`, and process its answer if it arrives."""
        invocation = self.invoke(messages, strikes)
        self.go_on(invocation, answer_arrives=answer_arrives)
        return invocation.process

    def invoke(self, messages: Iterable[Message], strikes: Sequence[Strike] = ()) -> Invocation:
        """Start the handler with `messages` without waiting for it."""
        batch = self.queue.receive(messages)
        event = {"Records": [message.as_record() for message in batch]}
        self.figures.deliveries += len(batch)
        return Invocation(Process(lambda: handler(event, Context()), strikes), batch)

    def go_on(self, invocation: Invocation, *, answer_arrives: bool = True) -> None:
        """Wait until a worker freezes or ends, and process its answer if it arrives."""
        if invocation.process.state == "running":
            invocation.process.run()
        if invocation.process.state == "frozen":
            self.frozen.append(invocation)
            self._note(invocation)
        else:
            self._ended(invocation, answer_arrives=answer_arrives)

    def thaw(self, invocation: Invocation, *, answer_arrives: bool = True) -> None:
        """Let a frozen worker continue. It is not aware that time has passed."""
        self.frozen.remove(invocation)
        invocation.process.thaw()
        if invocation.process.state == "frozen":
            self.frozen.append(invocation)
        else:
            self._ended(invocation, answer_arrives=answer_arrives)

    def _ended(self, invocation: Invocation, *, answer_arrives: bool) -> None:
        process = invocation.process
        self._note(invocation)
        expected = _may_raise(invocation) or self._waited_for_another(invocation)
        if process.state == "hung" or (process.state == "raised" and not expected):
            self.figures.accidents.append(
                f"{_who(invocation)} {process.state} after {process.reached[-1:]} ({_strikes(process)}): "
                f"{process.error}; also frozen: {[_strikes(invocation.process) for invocation in self.frozen]}"
            )
        self.figures.struck.update(process.struck)
        self.collect()
        if invocation.cancels and process.answer:
            self.figures.prevented += 1
            self.prevented.update(invocation.orders)
        if not invocation.batch:
            return
        if process.state == "answered" and not process.struck:
            self._look_for_needless_returns(invocation)
        if not answer_arrives:
            self.repeated.update(map(order_of, invocation.batch))
        self.queue.settle(invocation.batch, process.answer if answer_arrives else None)

    def _waited_for_another(self, invocation: Invocation) -> bool:
        """Return whether a customer has waited too long for a row that a frozen process has locked.

        That is a unique key of another customer, or the flow that a customer cancels while a worker ends its task.
        """
        frozen = any(invocation.cancels or (other.orders and not other.cancels) for other in self.frozen)
        timed_out = any(text in str(invocation.process.error) for text in _LOCK_TIMEOUTS)
        return frozen and timed_out and bool(invocation.orders)

    def _look_for_needless_returns(self, invocation: Invocation) -> None:
        """Report messages that were handed back although their orders had no fault and no copy."""
        returned = {failure["itemIdentifier"] for failure in invocation.process.answer["batchItemFailures"]}
        for message in invocation.batch:
            order = order_of(message)
            # A process that cancels the order may be frozen, with its flow locked.
            known = order in self.repeated or message.forged or self._strikes_around(order)
            if message.raw_id in returned and not known:
                self.figures.needless.append(f"order {order} was handed back without a fault")

    def _strikes_around(self, order: int) -> list[Strike]:
        """Return the faults that affected an order, or the order to whose tasks it belongs."""
        return [*self.strikes_of.get(order, []), *self.strikes_of.get(order % tasks.CHILD, [])]

    def _note(self, invocation: Invocation) -> None:
        for order in invocation.about:
            self.strikes_of.setdefault(order, []).extend(invocation.process.struck)
            if invocation.orders and not invocation.cancels:
                self.customer_strikes_of.setdefault(order, []).extend(invocation.process.struck)

    def messages_of(self, order: int) -> list[Message]:
        """Return the visible messages of an order; of an order with several tasks, the first one that is visible."""
        messages = [message for message in self.queue.visible() if order_of(message) % tasks.CHILD == order]
        if self.placements[order].kind in FAMILIES:
            return messages[:1]
        return [message for message in messages if order_of(message) == order]

    def drop(self, messages: Iterable[Message]) -> None:
        """Delete messages whose tasks have ended, as an operator who purges the queue does.

        What follows these tasks is left to the maintenance. It cannot know the decorator of a task that was cancelled
        before anything but its id was known.
        """
        for message in list(messages):
            ended = TaskRecord.objects.filter(pk=message.attributes[MESSAGE_ID_ATTRIBUTE])
            if ended.filter(status__in=_ENDED, task_name__gt="").exists():
                self.queue.messages.pop(message.raw_id, None)
                self.dropped.add(order_of(message) % tasks.CHILD)
                self.figures.dropped += 1

    # Forgetting

    def forget(self) -> None:
        """Forget successes in a new process, after a time after which no copy of their messages comes back."""
        self.pass_time(app_settings.forget_after)
        before = TaskRecord.objects.filter(reason=TaskReason.NOT_KEPT).count()
        self.relay()
        self.figures.forgotten_successes += before - TaskRecord.objects.filter(reason=TaskReason.NOT_KEPT).count()

    # Time

    def collect(self) -> None:
        """Put the messages on the queue that were sent since the last call."""
        with self._file.open() as lines:
            lines.seek(self._read)
            for line in lines:
                sent = json.loads(line)
                message = self.queue.add(sent["body"], sent["attributes"], sent["delay"])
                self.sent.add(order_of(message))
                message_id = sent["attributes"][MESSAGE_ID_ATTRIBUTE]
                if message_id in self._sent_ids:
                    self.figures.sent_again += 1
                    self.repeated.add(order_of(message))
                self._sent_ids[message_id] += 1
                # A crash of the database may lose how long a task has waited.
                most = MAX_SENDS * (1 + self.figures.crashes)
                if kind_of(message) == "impatient" and self._sent_ids[message_id] > most:
                    self._endless = True
            self._read = lines.tell()

    def pass_time(self, seconds: float) -> None:
        """Let time pass for the queue, for leases, which expire earlier by the database's clock, and for the outbox.

        Skip records that an open transaction is writing, which cannot be taken over anyway, and messages that a
        relay holds, which other relays do not send anyway.
        """
        self.queue.now += seconds
        locks().pass_time(seconds)
        with transaction.atomic():
            running = (
                TaskRecord.objects.select_for_update(skip_locked=True)
                .filter(status=TaskStatus.RUNNING, lease_until__isnull=False)
                .values_list("pk", flat=True)
            )
            TaskRecord.objects.filter(pk__in=list(running)).update(
                lease_until=F("lease_until") - timedelta(seconds=seconds),
                waiting_since=F("waiting_since") - timedelta(seconds=seconds),
            )
            waiting = OutboxMessage.objects.select_for_update(skip_locked=True).values_list("pk", flat=True)
            OutboxMessage.objects.filter(pk__in=list(waiting)).update(
                due_at=F("due_at") - timedelta(seconds=seconds), run_at=F("run_at") - timedelta(seconds=seconds)
            )
            _age_flows(timedelta(seconds=seconds))
            _age_successes(timedelta(seconds=seconds))

    def come_to_rest(self) -> None:
        """Deliver without further faults until all activity has ended."""
        self.lose_sqs(unavailable=False)
        maintained = False
        for round_ in range(MAX_ROUNDS):
            if visible := self.queue.visible():
                self.deliver(visible[:10])
                maintained = False
            elif self.frozen:
                self.thaw(self.frozen[0])
            elif (next_relay := self.seconds_to_relay()) == 0:
                self.relay()
            elif (next_change := self._next_change(next_relay)) is not None:
                # Tasks that wait for a lock come back every few seconds, until its holder's message is back.
                self.pass_time(max(next_change, 0 if round_ < PATIENT_ROUNDS else LONG_STEP))
            elif self.queue.dead:
                self.figures.redrives += len(self.queue.dead)
                self.queue.redrive()
                self.pass_time(PAST_ANY_LEASE)
            elif not maintained and _open_flows().exists():
                self.figures.needless += self._left_without_fault()
                self.pass_time(PAST_ANY_LEASE)
                self.relay()
                maintained = True
            elif TaskRecord.objects.filter(reason=TaskReason.NOT_KEPT).exists():
                self.forget()
            else:
                return
            if self._endless:
                break
        self.figures.accidents.append(f"{len(self.queue.messages)} messages are delivered without end")

    def _left_without_fault(self) -> Iterator[str]:
        """Describe the flows that are left to the maintenance although no fault affected them."""
        for flow in _open_flows().order_by("pk"):
            order = Order._default_manager.filter(message_id=flow.pk).values_list("number", flat=True).first()
            struck = any(self.strikes_of[number] for number in self.strikes_of if number % tasks.CHILD == order)
            if order in self.sent and not struck and order not in self.cancelled | self.dropped:
                yield f"the {flow.kind} of order {order} was left to the maintenance without a fault"

    def _next_change(self, next_relay: float | None) -> float | None:
        """Return the seconds until a message becomes visible or is due in the outbox, or None."""
        next_visible = self.queue.next_change()
        changes = [] if next_visible is None else [next_visible - self.queue.now]
        return min(changes if next_relay is None else [*changes, next_relay], default=None)

    def close(self) -> None:
        """Kill the processes that are still frozen."""
        for invocation in self.frozen:
            invocation.process.kill()
        connections.close_all()


def points_of(folder: Path, kind: str) -> list[str]:
    """Return the failpoints that the first invocation of a task of this kind reaches, each once, in order.

    If tasks follow each other, these are the failpoints of all of them.
    """
    if kind in FAMILIES:
        return list(dict.fromkeys(point for points in points_by_turn(folder, kind) for point in points))
    world = World(folder)
    world.place([Placement(1, kind)])
    process = world.deliver(world.queue.visible())
    world.come_to_rest()
    return list(dict.fromkeys(process.reached))


def points_by_turn(folder: Path, kind: str) -> list[list[str]]:
    """Return the failpoints that each message of an order with several tasks reaches, in the order of delivery."""
    world = World(folder)
    world.place([Placement(1, kind)])
    turns = []
    while messages := world.messages_of(1):
        turns.append(list(dict.fromkeys(world.deliver(messages).reached)))
        world.pass_time(PAST_ANY_LEASE)
    return turns


def family_of(message: Message, world: World) -> str:
    """Return the kind of the order to which a message belongs: for a follower, that of the order that it follows."""
    kind = kind_of(message)
    return world.placements[order_of(message) % tasks.CHILD].kind if kind in TASKS else kind


def kind_of(message: Message) -> str:
    """Return the kind of a message's order, which is the name of its task's function."""
    name: str = json.loads(message.body)["task_name"]
    return name.rpartition(".")[2]


def warm_up() -> None:
    """Import modules, load plugins and build the models of arguments once, before processes are forked."""
    boot()
    for task in registry.registered_tasks():
        if task.name.startswith("tests.simulation.shop.") and "order" in task.signature.parameters:
            task.signature.decode(task.signature.encode({"order": 1}))
    get_backend()
    gc.collect()
    gc.freeze()


def order_of(message: Message) -> int:
    """Return the number of a message's order."""
    return order_in(message.body)


@lru_cache(maxsize=4_096)
def order_in(body: str) -> int:
    """Return the number of the order in the body of a message."""
    content = json.loads(body)
    if "stored" in content:
        return int(FileBackend.file.with_name(content["stored"]["key"]).read_text())
    kwargs: dict[str, Any] = content["kwargs"]
    return int(kwargs["order"]) if "order" in kwargs else order_of_task(kwargs["task_id"]) + OWN_FAILURE


def place_orders(placements: Iterable[Placement]) -> None:
    for placement in placements:
        place_order(placement)


def place_order(placement: Placement) -> None:
    """Write the order and send its task in one transaction, like a view."""
    send = sending(placement.kind)
    try:
        with transaction.atomic():
            if placement.how == "savepoint":
                _place_in_savepoint(placement, send)
                return
            Order._default_manager.create(number=placement.number, kind=placement.kind)
            handle = send(order=placement.number)
            is_flow = isinstance(handle, FlowHandle)
            created = {
                "message_id": handle.flow_id if is_flow else handle.message_id,
                "created": is_flow or handle.created,
            }
            Order._default_manager.filter(number=placement.number).update(**created)
            if placement.how == "roll back":
                raise Abandoned
    except Abandoned:
        pass
    except SendFailed:
        if app_settings.outbox:
            raise
        # As documented, the caller gets the error after the commit.


def sending(kind: str) -> Callable[..., Any]:
    """Return the function that sends the tasks of an order and returns their handle."""
    if kind in FAMILIES:
        return FAMILIES[kind].place
    task: Any = getattr(tasks, kind)
    if kind == "djangos":
        return lambda *, order: TaskHandle.from_id(task.enqueue(order).id)
    send: Callable[..., TaskHandle] = task.execute_on_commit
    return send


def _place_in_savepoint(placement: Placement, send: Callable[..., Any]) -> None:
    """Roll back a savepoint with the order and its message, and commit the transaction."""
    try:
        with transaction.atomic():
            Order._default_manager.create(number=placement.number, kind=placement.kind)
            send(order=placement.number)
            raise Abandoned
    except Abandoned:
        return


def cancel_task(root_id: str) -> bool:
    """Cancel a task, and return whether this has prevented it, or its next retry, from starting."""
    if not TaskHandle(root_id).cancel():
        return False
    if not CancelRequest.objects.filter(pk=root_id).exists():
        return True  # without a request, no worker would notice that it was cancelled
    return bool(TaskRecord.objects.chain(root_id).filter(reason=TaskReason.CANCELLED, claim=None).exists())


def cancel_flow(order: int) -> bool:
    """Cancel the tasks of an order, and return whether its only task never starts."""
    placed = Order._default_manager.get(number=order)
    if FAMILIES[placed.kind].shape == "call":
        return cancel_task(str(placed.message_id))
    FlowHandle(str(placed.message_id)).cancel()
    return False


def _open_flows() -> Any:
    """Return the flows that have not ended, or that owe something."""
    return TaskFlow.objects.filter(Q(ended_at=None) | Q(owed_since__isnull=False))


def _age_flows(passed: timedelta) -> None:
    """Let time pass for flows and for the records of their tasks, except those that an open transaction is writing."""
    if not TaskFlow.objects.exists():
        return
    flows = list(TaskFlow.objects.select_for_update(skip_locked=True).values_list("pk", flat=True))
    TaskFlow.objects.filter(pk__in=flows).update(
        created_at=F("created_at") - passed, owed_since=F("owed_since") - passed
    )
    roots = [*TaskFlow.objects.values_list("pk", flat=True), *TaskFlowMember.objects.values_list("pk", flat=True)]
    ended = TaskRecord.objects.filter(Q(pk__in=roots) | Q(root_id__in=roots), status__in=_ENDED)
    records = list(ended.select_for_update(skip_locked=True).values_list("pk", flat=True))
    TaskRecord.objects.filter(pk__in=records).update(end_time=F("end_time") - passed)


def _age_successes(passed: timedelta) -> None:
    """Let time pass for the successes that are forgotten later, except those that an open transaction is writing."""
    ended = TaskRecord.objects.filter(reason=TaskReason.NOT_KEPT)
    records = list(ended.select_for_update(skip_locked=True).values_list("pk", flat=True))
    TaskRecord.objects.filter(pk__in=records).update(
        start_time=F("start_time") - passed, end_time=F("end_time") - passed
    )


def points_of_customer(folder: Path, kind: str = "plain") -> list[str]:
    """Return the failpoints that a customer reaches who orders twice, in order."""
    process = World(folder).place([Placement(1, kind), Placement(1 + tasks.VALUES, kind)])
    return list(dict.fromkeys(process.reached))


def _may_raise(invocation: Invocation) -> bool:
    """Return whether an exception of a process is expected: customers and relays get database errors."""
    struck = bool(invocation.process.struck)
    unsent = SendFailed.__name__ in str(invocation.process.error) and not invocation.cancels
    return not invocation.batch and struck and not unsent


def _who(invocation: Invocation) -> str:
    if invocation.batch:
        return "a worker"
    return "a customer" if invocation.orders else "a relay"


def _strikes(process: Process) -> str:
    return ", ".join(map(str, process.struck)) or f"no fault; planned: {', '.join(map(str, process.strikes))}"


__all__ = ["FROZEN", "Context", "Figures", "Invocation", "Placement", "World", "order_of"]
