"""Orders whose tasks follow each other. Each task takes an effect under an order number of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from lambda_tasks import FLOW_ID, RESULT, TASK_ID, chain, group
from lambda_tasks.decorators import lambda_task
from lambda_tasks.models import TaskFlow
from tests.simulation.shop.models import Order
from tests.simulation.shop.tasks import CHILD, Again, Broken, retry_number, take_effect

#: The differences between the order numbers of a task and of those that follow it, by the call and by its decorator.
CALL_SUCCESS, CALL_FAILURE, OWN_SUCCESS, OWN_FAILURE, LAST = (CHILD * place for place in range(1, 6))
#: The same for what follows a chain or a group. Its members are CHILD apart.
THEN, ON_FAILURE = OWN_SUCCESS, OWN_FAILURE


@lambda_task
def step(*, order: int, before: int | None = None) -> int:
    """Return the order, which the next step of a chain takes."""
    if before is not None and before != order - CHILD:
        raise ValueError(f"order {order} follows order {before}")
    take_effect(order)
    return order


@lambda_task
def failing_step(*, order: int, before: int | None = None) -> None:
    take_effect(order)
    raise Broken


@lambda_task(retry_on=(Again,))
def retried_step(*, order: int, before: int | None = None) -> int:
    take_effect(order)
    if retry_number() < 1:
        raise Again
    return order


@lambda_task
def follower(*, order: int, flow_id: UUID | None = None) -> None:
    """Take effect. `then` and `on_failure` of a flow must find it ended."""
    if flow_id is not None and TaskFlow.objects.get(pk=flow_id).ended_at is None:
        raise ValueError(f"order {order} follows a flow that has not ended")
    take_effect(order)


@lambda_task
def reported(*, task_id: UUID) -> None:
    """Follow a failed task that its decorator knows, and its call does not."""
    take_effect(order_of_task(task_id) + OWN_FAILURE)


#: The numbers of orders by the ids of their tasks, for while the database does not answer.
_known: dict[str, int] = {}


def remember_orders() -> None:
    placed = Order._default_manager.exclude(message_id=None)
    _known.update({str(message_id): number for message_id, number in placed.values_list("message_id", "number")})


def order_of_task(task_id: object) -> int:
    """Return the number of the order that a task with this id was sent for."""
    if str(task_id) not in _known:
        remember_orders()
    return _known[str(task_id)]


@lambda_task(on_success=follower.invocation(order=RESULT), on_failure=reported.invocation(task_id=TASK_ID))
def followed(*, order: int) -> int:
    take_effect(order)
    return order + OWN_SUCCESS


@lambda_task(on_success=follower.invocation(order=RESULT), on_failure=reported.invocation(task_id=TASK_ID))
def followed_failing(*, order: int) -> int:
    take_effect(order)
    raise Broken


def _after(task: Any, order: int) -> Any:
    last = follower.invocation(order=order + LAST)
    return task.using(
        on_success=follower.using(on_success=last).invocation(order=order + CALL_SUCCESS),
        on_failure=follower.invocation(order=order + CALL_FAILURE),
    ).execute_on_commit(order=order)


def _chain(order: int, tasks: tuple[Any, ...]) -> Any:
    first, *later = tasks
    steps = [task.invocation(order=order + CHILD * place, before=RESULT) for place, task in enumerate(later, 1)]
    failed = follower.invocation(order=order + ON_FAILURE, flow_id=FLOW_ID)
    return chain(first.invocation(order=order), *steps, on_failure=failed).execute_on_commit()


def _group(order: int, tasks: tuple[Any, ...]) -> Any:
    return group(
        [task.invocation(order=order + CHILD * place) for place, task in enumerate(tasks)],
        then=follower.invocation(order=order + THEN, flow_id=FLOW_ID),
        on_failure=follower.invocation(order=order + ON_FAILURE, flow_id=FLOW_ID),
    ).execute_on_commit()


@dataclass(frozen=True, slots=True)
class Family:
    """The tasks of one order: those that are ordered, and those that follow."""

    #: "call", "chain" or "group".
    shape: str
    members: tuple[Any, ...]

    def place(self, order: int) -> Any:
        """Send the tasks of an order on commit, and return the handle."""
        send: dict[str, Callable[[int, tuple[Any, ...]], Any]] = {"chain": _chain, "group": _group}
        if self.shape == "call":
            return _after(self.members[0], order)
        return send[self.shape](order, self.members)

    @property
    def sub_orders(self) -> list[int]:
        """The differences between the order number and those of the members."""
        return [CHILD * place for place in range(len(self.members))]


FAMILIES: Final = {
    "followed": Family("call", (followed,)),
    "followed_failing": Family("call", (followed_failing,)),
    "chained": Family("chain", (step, retried_step, step)),
    "chain_failing": Family("chain", (step, failing_step, step)),
    "grouped": Family("group", (step, step, step)),
    "group_failing": Family("group", (step, failing_step, step)),
    "group_retrying": Family("group", (step, retried_step, step)),
}
#: The names of the functions of these tasks.
TASKS: Final = frozenset(
    {"step", "failing_step", "retried_step", "follower", "reported", "followed", "followed_failing"}
)
