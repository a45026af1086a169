"""The kinds of task that the page offers, and how each is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.db import transaction

from lambda_tasks import ERROR, FLOW_ID, RESULT, chain, group
from lambda_tasks.handles import TaskHandle
from lambda_tasks.tasks import cleanup_task_records, reap_lost_tasks
from shop import tasks
from shop.models import Order


@dataclass(frozen=True, slots=True)
class Kind:
    """One button. `send` is called in the transaction that places the order."""

    name: str
    title: str
    text: str
    send: Callable[[Order], list[TaskHandle[Any]]]
    #: Whether kind=everything sends it too.
    in_everything: bool = True


#: The task receives this value, but no record contains it.
CARD: Final = "4242 4242 4242 4242"


def count_stock_twice(order: Order) -> list[TaskHandle[Any]]:
    return [tasks.count_stock.execute_on_commit(order_id=order.pk) for _ in range(2)]


def load_two_trucks(order: Order) -> list[TaskHandle[Any]]:
    return [tasks.load_truck.execute_on_commit(order_id=order.pk, dock="north") for _ in range(2)]


def refresh_prices_twice(order: Order) -> list[TaskHandle[Any]]:
    handles = [tasks.refresh_prices.execute_on_commit(order_id=order.pk, warehouse="Oslo") for _ in range(2)]
    return [handle for handle in handles if handle.created]  # the second one is the handle of the first call


def send_and_cancel(order: Order) -> list[TaskHandle[Any]]:
    handle = tasks.send_coupon.using(delay=3).execute_on_commit(order_id=order.pk)
    transaction.on_commit(handle.cancel)
    return [handle]


def charge_or_apologize(order: Order) -> list[TaskHandle[Any]]:
    apology = tasks.apologize.invocation(order_id=order.pk, error=ERROR)
    charge = tasks.charge_card.using(on_failure=apology)
    return [charge.execute_on_commit(order_id=order.pk, card_number=CARD)]


def wrap_and_bill(order: Order) -> list[TaskHandle[Any]]:
    gift = chain(
        tasks.wrap_gift.invocation(order_id=order.pk),
        tasks.bill_gift.invocation(order_id=order.pk, cents=RESULT),
    )
    return gift.execute_on_commit().tasks()


def count_shelves(order: Order) -> list[TaskHandle[Any]]:
    shelves = group(
        [tasks.count_shelf.invocation(order_id=order.pk, shelf=shelf) for shelf in ("books", "games", "toys")],
        then=tasks.add_up_shelves.invocation(order_id=order.pk, group_id=FLOW_ID),
    )
    return shelves.execute_on_commit().tasks()


def send_and_roll_back(order: Order) -> list[TaskHandle[Any]]:
    tasks.send_receipt.execute_on_commit(order_id=order.pk, name=order.customer)
    transaction.set_rollback(True)
    return []


KINDS: Final = (
    Kind(
        "success",
        "Success",
        "The record contains the return value.",
        lambda order: [tasks.send_receipt.execute_on_commit(order_id=order.pk, name=order.customer)],
    ),
    Kind(
        "failure",
        "Failure",
        "The card is refused. The record contains the traceback without its number, the writes are rolled back, and an "
        "apology follows.",
        charge_or_apologize,
    ),
    Kind(
        "ignored",
        "Ignored",
        "The customer has unsubscribed, which is not an error: SUCCESS, with the traceback.",
        lambda order: [tasks.send_newsletter.execute_on_commit(order_id=order.pk)],
    ),
    Kind(
        "retry",
        "Retry",
        "The warehouse is busy twice. Each attempt has a record.",
        lambda order: [tasks.reserve_stock.execute_on_commit(order_id=order.pk)],
    ),
    Kind(
        "singleton",
        "Singleton",
        "Two counts start at the same time: one finds the lock taken and is retried.",
        count_stock_twice,
    ),
    Kind(
        "waiting",
        "Waiting",
        "Two trucks come to one dock: the second waits until the first is loaded.",
        load_two_trucks,
    ),
    Kind(
        "unique",
        "Unique",
        "Prices are refreshed twice in one request. The second call returns the handle of the first.",
        refresh_prices_twice,
    ),
    Kind(
        "cancelled",
        "Cancelled",
        "A coupon is sent with a delay, and cancelled before that has passed: it never runs.",
        send_and_cancel,
    ),
    Kind(
        "chain",
        "Chain",
        "A gift is wrapped, and then billed: the second task gets the result of the first.",
        wrap_and_bill,
    ),
    Kind(
        "group",
        "Group",
        "Three shelves are counted side by side. When the last is done, one more task adds them up.",
        count_shelves,
    ),
    Kind(
        "soft-timeout",
        "Soft timeout",
        "The report is interrupted, and returns what it has finished.",
        lambda order: [tasks.build_report.execute_on_commit(order_id=order.pk)],
    ),
    Kind(
        "hard-timeout",
        "Hard timeout",
        "The search ignores its soft limit, and is interrupted by its hard limit.",
        lambda order: [tasks.search_archive.execute_on_commit(order_id=order.pk)],
    ),
    Kind(
        "progress",
        "Progress",
        "An import of 20 rows reports how far it has come.",
        lambda order: [tasks.import_products.execute_on_commit(order_id=order.pk)],
    ),
    Kind(
        "async",
        "Async",
        "A coroutine fetches three rates concurrently.",
        lambda order: [tasks.fetch_rates.execute_on_commit(order_id=order.pk, currencies=["EUR", "NOK", "DOGE"])],
    ),
    Kind(
        "delay",
        "Delay",
        "A reminder that waits for 3 seconds.",
        lambda order: [tasks.send_reminder.using(delay=3).execute_on_commit(order_id=order.pk)],
    ),
    Kind(
        "tomorrow",
        "Tomorrow",
        "SQS delays messages by at most 15 minutes, so the outbox stores this reminder. The admin can send it now.",
        lambda order: [tasks.send_reminder.using(delay=24 * 3600).execute_on_commit(order_id=order.pk)],
        in_everything=False,
    ),
    Kind(
        "crash",
        "Crash",
        "The worker is killed while it packs. Another takes over, and there is one parcel.",
        lambda order: [tasks.pack_parcel.execute_on_commit(order_id=order.pk)],
    ),
    Kind(
        "rollback",
        "Rolled back",
        "The request enqueues a task and rolls back, so nothing is sent.",
        send_and_roll_back,
        in_everything=False,
    ),
    Kind(
        "cleanup",
        "Clean up",
        "The library's built-in task deletes the records that are older than a week.",
        lambda order: [cleanup_task_records.execute_on_commit()],
        in_everything=False,
    ),
    Kind(
        "reap",
        "Lost tasks",
        "Another built-in task recovers tasks whose worker and message are both gone.",
        lambda order: [reap_lost_tasks.execute_on_commit()],
        in_everything=False,
    ),
)


def chosen_kinds(name: str) -> list[Kind]:
    """Return the kind named `name`, or all kinds that "everything" includes. Return [] if `name` is unknown."""
    if name == "everything":
        return [kind for kind in KINDS if kind.in_everything]
    return [kind for kind in KINDS if kind.name == name]
