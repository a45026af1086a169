"""One task of every kind. Arguments are keyword-only and annotated."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from uuid import UUID

from lambda_tasks import Every, FlowHandle, RetryPolicy, current_task, lambda_task
from lambda_tasks.logging import task_logger
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from shop.models import OrderEvent


class CardRefused(Exception):
    """The bank refuses the payment."""


class Unsubscribed(Exception):
    """The customer has unsubscribed from the newsletter."""


class WarehouseBusy(Exception):
    """The warehouse will answer later."""


@lambda_task
def send_receipt(*, order_id: int, name: str) -> str:
    """Success: the record contains the return value."""
    OrderEvent.objects.create(order_id=order_id, text="receipt sent")
    task_logger.info("sending a receipt to %s", name)
    return f"Receipt for order {order_id} sent to {name}."


@lambda_task(sensitive=("card_number",))
def charge_card(*, order_id: int, card_number: str) -> None:
    """Failure: the traceback is recorded, without the card number, and the event is rolled back."""
    OrderEvent.objects.create(order_id=order_id, text="card charged")
    raise CardRefused(f"The bank refused the card {card_number} for order {order_id}.")


@lambda_task
def apologize(*, order_id: int, error: str) -> str:
    """Follow: sent when `charge_card` has failed, in the transaction that records it."""
    OrderEvent.objects.create(order_id=order_id, text="apology sent")
    return f"Apologized for: {error}"


@lambda_task(ignore_errors=(Unsubscribed,))
def send_newsletter(*, order_id: int) -> None:
    """Ignored: the record says SUCCESS and keeps the traceback; the event is rolled back."""
    OrderEvent.objects.create(order_id=order_id, text="newsletter sent")
    raise Unsubscribed(f"The customer of order {order_id} has unsubscribed.")


#: Tasks that need the warehouse can share it.
WHEN_BUSY = RetryPolicy(on=(WarehouseBusy,), delay=2, backoff=True, max_retries=8)


@lambda_task(retry=WHEN_BUSY)
def reserve_stock(*, order_id: int) -> str:
    """Retry: the warehouse is busy twice, and the task is sent again each time, with increasing delays."""
    OrderEvent.objects.create(order_id=order_id, text="stock reserved")
    attempt = current_task().attempt
    if attempt < 3:
        raise WarehouseBusy(f"The warehouse was busy, attempt {attempt}.")
    return f"Reserved on attempt {attempt}."


@lambda_task(singleton=True, queue="stock")
def count_stock(*, order_id: int) -> str:
    """Singleton: while one run counts, a second run ends immediately and is retried."""
    time.sleep(2.5)
    OrderEvent.objects.create(order_id=order_id, text="stock counted")
    return "Counted, while no other run was counting."


@lambda_task(singleton="dock", on_contention="wait", queue="stock")
def load_truck(*, order_id: int, dock: str) -> str:
    """Waiting: a dock has room for one truck. A second run for the same dock waits, without a retry."""
    time.sleep(1)
    OrderEvent.objects.create(order_id=order_id, text="truck loaded")
    return f"Loaded at dock {dock}."


@lambda_task(unique="warehouse")
def refresh_prices(*, order_id: int, warehouse: str) -> str:
    """Unique: a call while an earlier one waits or runs returns the handle of the earlier one."""
    OrderEvent.objects.create(order_id=order_id, text="prices refreshed")
    return f"Refreshed the prices of {warehouse}."


@lambda_task
def send_coupon(*, order_id: int) -> None:
    """Cancelled: the request cancels it before a worker receives it, so it never runs."""
    OrderEvent.objects.create(order_id=order_id, text="coupon sent")


@lambda_task(soft_timeout=1, hard_timeout=3)
def build_report(*, order_id: int) -> dict[str, int | bool]:
    """Soft timeout: the limit interrupts the task, which returns what it has finished."""
    pages = 0
    try:
        for pages in range(1, 31):  # noqa: B007 - used after the loop
            time.sleep(0.1)
        complete = True
    except SoftTimeLimitExceeded:
        complete = False
    OrderEvent.objects.create(order_id=order_id, text="report built")
    return {"pages": pages, "complete": complete}


@lambda_task(atomic=False)
def import_products(*, order_id: int, rows: int = 20) -> int:
    """Progress: the page and the admin show a bar while the task runs.

    SQLite has one writer, so a task reports there only with `atomic=False`.
    """
    task = current_task()
    for row in range(rows):
        if task is not None:
            task.progress(row, total=rows, note=f"row {row + 1}")
        time.sleep(0.1)
    OrderEvent.objects.create(order_id=order_id, text="products imported")
    if task is not None:
        task.progress(rows, total=rows)
    return rows


@lambda_task(soft_timeout=1, hard_timeout=2)
def search_archive(*, order_id: int) -> str:
    """Hard timeout: the task ignores its soft limit, and is interrupted by its hard limit."""
    end = time.monotonic() + 4  # ends in eager mode too, which has no limits
    while time.monotonic() < end:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(0.1)
    OrderEvent.objects.create(order_id=order_id, text="archive searched")
    return "Found nothing in 4 seconds."


@lambda_task
async def fetch_rates(*, order_id: int, currencies: list[str]) -> dict[str, float]:
    """Async: the ORM calls of a coroutine are in the same transaction as its SUCCESS."""

    async def rate(currency: str) -> float:
        await asyncio.sleep(0.2)  # all calls wait concurrently
        return len(currency) / 2

    rates = await asyncio.gather(*map(rate, currencies))
    await OrderEvent.objects.acreate(order_id=order_id, text="rates fetched")
    return dict(zip(currencies, rates, strict=True))


@lambda_task
def send_reminder(*, order_id: int) -> str:
    """Delay: an ordinary task, sent with `send_reminder.using(delay=3)` or with a delay of a day."""
    OrderEvent.objects.create(order_id=order_id, text="reminder sent")
    return "Reminded after the requested delay."


@lambda_task(schedule=Every(hours=1))
def water_plants() -> str:
    """Periodic: sent every hour, without a call, while a relay or a worker runs."""
    return "Watered."


@lambda_task
def wrap_gift(*, order_id: int) -> int:
    """Chain, first task: its result is an argument of the next one."""
    OrderEvent.objects.create(order_id=order_id, text="gift wrapped")
    return 350


@lambda_task
def bill_gift(*, order_id: int, cents: int) -> str:
    """Chain, second task: sent when the first has succeeded."""
    OrderEvent.objects.create(order_id=order_id, text="gift billed")
    return f"Billed {cents} cents for the wrapping."


@lambda_task
def count_shelf(*, order_id: int, shelf: str) -> int:
    """Group: one task per shelf, in any order."""
    OrderEvent.objects.create(order_id=order_id, text="shelf counted")
    return len(shelf)


@lambda_task
def add_up_shelves(*, order_id: int, group_id: UUID) -> str:
    """Then: sent once, when the last shelf is counted."""
    OrderEvent.objects.create(order_id=order_id, text="shelves added up")
    return f"{sum(FlowHandle.from_id(group_id).results())} items on all shelves."


@lambda_task(queue="parcels", soft_timeout=3, hard_timeout=4)
def pack_parcel(*, order_id: int) -> str:
    """Crash: the demo kills the worker process; another process takes over and packs one parcel."""
    OrderEvent.objects.create(order_id=order_id, text="parcel packed")
    time.sleep(1.5)
    return "Packed one parcel."
