"""The world of one run: customers who place orders, a queue, workers that die, and a clock that nobody waits for."""

from __future__ import annotations

import gc
import json
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from django.db import connections, transaction
from django.db.models import F

from lambda_tasks import maintenance, registry
from lambda_tasks.handler import boot, handler
from lambda_tasks.jobs import MESSAGE_ID_ATTRIBUTE
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import DatabaseNow, OutboxMessage, TaskRecord, TaskStatus
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_backend
from tests.simulation.faults import FROZEN
from tests.simulation.invocations import Process, Strike
from tests.simulation.queue import Message, Queue
from tests.simulation.shop import tasks
from tests.simulation.shop.models import Counter, Effect, Order
from tests.simulation.transport import FileBackend, SendFailed, locks

#: Seconds that a lease may last in this world, and then some.
PAST_ANY_LEASE: Final = 700.0
#: Deliveries after which a world that does not come to rest is given up.
MAX_ROUNDS: Final = 400
#: Deliveries after which time passes in longer steps, in seconds, than from one message to the next.
PATIENT_ROUNDS: Final = 60
LONG_STEP: Final = 120.0
#: Milliseconds that an invocation has.
_TIME_LEFT: Final = 900_000


class Abandoned(Exception):
    """The customer's transaction is rolled back."""


@dataclass(frozen=True, slots=True)
class Placement:
    """An order as a customer places it: `how` is "commit", "roll back" or "savepoint"."""

    number: int
    kind: str
    how: str = "commit"


class Context:
    """The part of Lambda's context that the handler asks for."""

    def get_remaining_time_in_millis(self) -> int:
        return _TIME_LEFT


@dataclass(slots=True)
class Invocation:
    """A process, and the messages that it was given: none for a customer, and for a relay."""

    process: Process
    batch: list[Message] = field(default_factory=list)
    #: The orders that a customer places.
    orders: tuple[int, ...] = ()

    @property
    def about(self) -> list[int]:
        return [*self.orders, *map(order_of, self.batch)]


@dataclass(slots=True)
class Figures:
    """What happened in a world, for the report."""

    deliveries: int = 0
    relays: int = 0
    #: Messages that came to the queue again under their own id.
    sent_again: int = 0
    duplicates: int = 0
    redrives: int = 0
    #: How often the database's server crashed, and how many claims it had forgotten afterwards.
    crashes: int = 0
    forgotten: int = 0
    struck: Tally[Strike] = field(default_factory=Tally)
    #: Sentences about messages that were handed back although nothing had gone wrong.
    needless: list[str] = field(default_factory=list)
    #: Sentences about processes that hung or let an exception out.
    accidents: list[str] = field(default_factory=list)


class World:
    """Everything between a call of `execute_on_commit()` and rest."""

    def __init__(self, folder: Path, *, visibility_timeout: float = 120) -> None:
        self.queue = Queue(visibility_timeout)
        self.figures = Figures()
        self.placements: dict[int, Placement] = {}
        #: The faults that an order met on its way.
        self.strikes_of: dict[int, list[Strike]] = {}
        self.sent: set[int] = set()
        self._sent_ids: set[str] = set()
        #: Orders whose messages came again for other reasons than a fault in their worker.
        self.repeated: set[int] = set()
        self.frozen: list[Invocation] = []
        self._file = folder / "sent.jsonl"
        for file in folder.iterdir():
            file.unlink()
        self._file.touch()
        self._read = 0
        FileBackend.file = self._file
        FileBackend.away = False
        locks().forget_everything()
        for model in (Order, Effect, Counter, TaskRecord, OutboxMessage):
            model._base_manager.all()._raw_delete(model._base_manager.db)
        Counter._default_manager.create(name="singleton")

    # Customers

    def place(self, placements: Sequence[Placement], strikes: Sequence[Strike] = ()) -> Process:
        """Place orders in a process of their own, each in a transaction of its own."""
        self.placements |= {placement.number: placement for placement in placements}
        process = Process(lambda: place_orders(placements), strikes)
        self.go_on(Invocation(process, orders=tuple(placement.number for placement in placements)))
        return process

    # The outbox

    def relay(self, strikes: Sequence[Strike] = ()) -> Process:
        """Have a schedule of EventBridge's ask for maintenance: what waits in the outbox is sent."""
        process = Process(lambda: handler({maintenance.EVENT_FIELD: maintenance.MAINTENANCE}, Context()), strikes)
        self.figures.relays += 1
        self.go_on(Invocation(process))
        return process

    def seconds_to_relay(self) -> float | None:
        """Return when the next message of the outbox is due; None if there is none."""
        waiting = OutboxMessage.objects.filter(due_at__isnull=False).annotate(now=DatabaseNow())
        for due_at, now in waiting.order_by("due_at").values_list("due_at", "now")[:1]:
            return max(float((due_at - now).total_seconds()), 0.0)
        return None

    def lose_sqs(self, *, away: bool) -> None:
        """Let SQS go away for every process that starts from now on, or come back."""
        FileBackend.away = away

    # Workers

    def deliver(
        self, messages: Iterable[Message], strikes: Sequence[Strike] = (), *, answer_arrives: bool = True
    ) -> Process:
        """Invoke the handler with `messages`, and act on its answer if that arrives."""
        invocation = self.invoke(messages, strikes)
        self.go_on(invocation, answer_arrives=answer_arrives)
        return invocation.process

    def invoke(self, messages: Iterable[Message], strikes: Sequence[Strike] = ()) -> Invocation:
        """Start the handler with `messages`, and do not wait for it."""
        batch = self.queue.receive(messages)
        event = {"Records": [message.as_record() for message in batch]}
        self.figures.deliveries += len(batch)
        return Invocation(Process(lambda: handler(event, Context()), strikes), batch)

    def go_on(self, invocation: Invocation, *, answer_arrives: bool = True) -> None:
        """Wait until a worker freezes or ends, and act on its answer if that arrives."""
        if invocation.process.state == "running":
            invocation.process.run()
        if invocation.process.state == "frozen":
            self.frozen.append(invocation)
            for order in invocation.about:
                self._note(invocation.process, order)
        else:
            self._ended(invocation, answer_arrives=answer_arrives)

    def thaw(self, invocation: Invocation, *, answer_arrives: bool = True) -> None:
        """Let a frozen worker go on: it does not know that time has passed."""
        self.frozen.remove(invocation)
        invocation.process.thaw()
        if invocation.process.state == "frozen":
            self.frozen.append(invocation)
        else:
            self._ended(invocation, answer_arrives=answer_arrives)

    def _ended(self, invocation: Invocation, *, answer_arrives: bool) -> None:
        process = invocation.process
        for order in invocation.about:
            self._note(process, order)
        if process.state == "hung" or (process.state == "raised" and not _may_raise(invocation)):
            self.figures.accidents.append(
                f"{_who(invocation)} {process.state} after {process.reached[-1:]} ({_strikes(process)}): "
                f"{process.error}; frozen beside it: {[_strikes(invocation.process) for invocation in self.frozen]}"
            )
        self.figures.struck.update(process.struck)
        self.collect()
        if not invocation.batch:
            return
        if process.state == "answered" and not process.struck:
            self._look_for_needless_returns(invocation)
        if not answer_arrives:
            self.repeated.update(map(order_of, invocation.batch))
        self.queue.settle(invocation.batch, process.answer if answer_arrives else None)

    def _look_for_needless_returns(self, invocation: Invocation) -> None:
        """Notice what was handed back of orders that no fault has met so far, and of which there is no copy."""
        returned = {failure["itemIdentifier"] for failure in invocation.process.answer["batchItemFailures"]}
        for message in invocation.batch:
            order = order_of(message)
            if message.raw_id in returned and order not in self.repeated and not self.strikes_of.get(order):
                self.figures.needless.append(f"order {order} was handed back, and nothing had gone wrong")

    def _note(self, process: Process, order: int) -> None:
        self.strikes_of.setdefault(order, []).extend(process.struck)

    def messages_of(self, order: int) -> list[Message]:
        """Return the messages about an order that can be received now."""
        return [message for message in self.queue.visible() if order_of(message) == order]

    # Time, and what moves in it

    def collect(self) -> None:
        """Put on the queue what was sent since."""
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
                self._sent_ids.add(message_id)
            self._read = lines.tell()

    def pass_time(self, seconds: float) -> None:
        """Let time pass: for the queue, for leases, which end so much earlier by the database's clock, and the outbox.

        A record that an open transaction is writing cannot be taken over whatever its lease says, and a
        message that a relay holds is not sent by another one however long it is due.
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
                lease_until=F("lease_until") - timedelta(seconds=seconds)
            )
            waiting = OutboxMessage.objects.select_for_update(skip_locked=True).values_list("pk", flat=True)
            OutboxMessage.objects.filter(pk__in=list(waiting)).update(
                due_at=F("due_at") - timedelta(seconds=seconds), run_at=F("run_at") - timedelta(seconds=seconds)
            )

    def come_to_rest(self) -> None:
        """Deliver without further faults until nothing moves any more."""
        self.lose_sqs(away=False)
        for round_ in range(MAX_ROUNDS):
            if visible := self.queue.visible():
                self.deliver(visible[:10])
            elif self.frozen:
                self.thaw(self.frozen[0])
            elif (next_relay := self.seconds_to_relay()) == 0:
                self.relay()
            elif (next_change := self._next_change(next_relay)) is not None:
                # Those that wait for a lock come again every few seconds, until its holder's message is back.
                self.pass_time(max(next_change, 0 if round_ < PATIENT_ROUNDS else LONG_STEP))
            elif self.queue.dead:
                self.figures.redrives += len(self.queue.dead)
                self.queue.redrive()
                self.pass_time(PAST_ANY_LEASE)
            else:
                return
        self.figures.accidents.append(f"{len(self.queue.messages)} messages do not come to rest")

    def _next_change(self, next_relay: float | None) -> float | None:
        """Return the seconds until a message becomes visible, or is to be relayed; None if there is none."""
        next_visible = self.queue.next_change()
        changes = [] if next_visible is None else [next_visible - self.queue.now]
        return min(changes if next_relay is None else [*changes, next_relay], default=None)

    def close(self) -> None:
        """End what is still frozen."""
        for invocation in self.frozen:
            invocation.process.kill()
        connections.close_all()


def points_of(folder: Path, kind: str) -> list[str]:
    """Return the points that the first invocation of a task of this kind comes to, each once, in their order."""
    world = World(folder)
    world.place([Placement(1, kind)])
    process = world.deliver(world.queue.visible())
    world.come_to_rest()
    return list(dict.fromkeys(process.reached))


def kind_of(message: Message) -> str:
    """Return the kind of the order that a message is about: the name of its task's function."""
    name: str = json.loads(message.body)["task_name"]
    return name.rpartition(".")[2]


def warm_up() -> None:
    """Do once what every forked process would do again: imports, plugins, the models of arguments."""
    boot()
    for task in registry.registered_tasks():
        if task.name.startswith(tasks.__name__):
            SQSLambdaTaskMessage.from_body(json.dumps(task.serialize(order=1)["message"]))
            task.signature.decode({"order": 1})
    get_backend()
    gc.collect()
    gc.freeze()


def order_of(message: Message) -> int:
    """Return the number of the order that a message is about."""
    order: Any = json.loads(message.body)["kwargs"]["order"]
    return int(order)


def place_orders(placements: Iterable[Placement]) -> None:
    for placement in placements:
        place_order(placement)


def place_order(placement: Placement) -> None:
    """Do what a view does: write the order and send its task, in one transaction."""
    send: Callable[..., object] = getattr(tasks, placement.kind).execute_on_commit
    try:
        with transaction.atomic():
            if placement.how == "savepoint":
                _place_in_savepoint(placement, send)
                return
            Order._default_manager.create(number=placement.number, kind=placement.kind)
            send(order=placement.number)
            if placement.how == "roll back":
                raise Abandoned
    except Abandoned:
        pass
    except SendFailed:
        if app_settings.outbox:
            raise
        # Documented: after the commit the caller hears that it could not be sent.


def _place_in_savepoint(placement: Placement, send: Callable[..., object]) -> None:
    """The savepoint is rolled back, and with it the order and its message; the transaction commits."""
    try:
        with transaction.atomic():
            Order._default_manager.create(number=placement.number, kind=placement.kind)
            send(order=placement.number)
            raise Abandoned
    except Abandoned:
        return


def points_of_customer(folder: Path) -> list[str]:
    """Return the points that a customer comes to, in their order."""
    process = World(folder).place([Placement(1, "plain")])
    return list(dict.fromkeys(process.reached))


def _may_raise(invocation: Invocation) -> bool:
    """Tell whether what a process raised is no surprise: customers and relays hear of the database's troubles."""
    struck = bool(invocation.process.struck)
    return not invocation.batch and struck and SendFailed.__name__ not in str(invocation.process.error)


def _who(invocation: Invocation) -> str:
    if invocation.batch:
        return "a worker"
    return "a customer" if invocation.orders else "a relay"


def _strikes(process: Process) -> str:
    return ", ".join(map(str, process.struck)) or f"not struck; told to: {', '.join(map(str, process.strikes))}"


__all__ = ["FROZEN", "Context", "Figures", "Invocation", "Placement", "World", "order_of"]
