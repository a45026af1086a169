"""One task of every kind. Arguments are keyword-only, and annotated with what may be sent."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from lambda_tasks.decorators import lambda_task
from lambda_tasks.logging import current_message_id, task_logger
from lambda_tasks.models import TaskRecord
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from shop.models import OrderEvent


class CardRefused(Exception):
    """The bank does not pay."""


class Unsubscribed(Exception):
    """The customer wants no newsletter."""


class WarehouseBusy(Exception):
    """The warehouse will answer later."""


@lambda_task
def send_receipt(*, order_id: int, name: str) -> str:
    """Success: what the function returns is the record's result."""
    OrderEvent.objects.create(order_id=order_id, text="receipt sent")
    task_logger.info("sending a receipt to %s", name)
    return f"Receipt for order {order_id} sent to {name}."


@lambda_task(sensitive=("card_number",))
def charge_card(*, order_id: int, card_number: str) -> None:
    """Failure: the traceback is recorded, without the card number, and the event is rolled back."""
    OrderEvent.objects.create(order_id=order_id, text="card charged")
    raise CardRefused(f"The bank refused the card {card_number} for order {order_id}.")


@lambda_task(ignore_errors=(Unsubscribed,))
def send_newsletter(*, order_id: int) -> None:
    """Ignored: the record says SUCCESS and keeps the traceback; the event is rolled back."""
    OrderEvent.objects.create(order_id=order_id, text="newsletter sent")
    raise Unsubscribed(f"Order {order_id} wants no newsletter.")


@lambda_task(retry_on=(WarehouseBusy,), retry_delay=2, retry_backoff=True, max_retries=8)
def reserve_stock(*, order_id: int) -> str:
    """Retry: twice the warehouse is busy, each time the task is sent again, and later if it goes on."""
    OrderEvent.objects.create(order_id=order_id, text="stock reserved")
    attempt = TaskRecord.objects.get(pk=current_message_id()).n_retries + 1
    if attempt < 3:
        raise WarehouseBusy(f"The warehouse was busy, attempt {attempt}.")
    return f"Reserved at attempt {attempt}."


@lambda_task(singleton=True, queue="stock")
def count_stock(*, order_id: int) -> str:
    """Singleton: while one run counts, another one gives up at once and is retried."""
    time.sleep(2.5)
    OrderEvent.objects.create(order_id=order_id, text="stock counted")
    return "Counted, with nobody else in the way."


@lambda_task(soft_timeout=1, hard_timeout=3)
def build_report(*, order_id: int) -> dict[str, int | bool]:
    """Soft timeout: the task is told that its time is over, and hands in what it has."""
    pages = 0
    try:
        for pages in range(1, 31):  # noqa: B007 - the number is needed after the loop
            time.sleep(0.1)
        complete = True
    except SoftTimeLimitExceeded:
        complete = False
    OrderEvent.objects.create(order_id=order_id, text="report built")
    return {"pages": pages, "complete": complete}


@lambda_task(soft_timeout=1, hard_timeout=2)
def search_archive(*, order_id: int) -> str:
    """Hard timeout: the task does not listen to the soft one, and is interrupted."""
    end = time.monotonic() + 4  # so that it ends in eager mode too, where no limits hold
    while time.monotonic() < end:
        with suppress(SoftTimeLimitExceeded):
            time.sleep(0.1)
    OrderEvent.objects.create(order_id=order_id, text="archive searched")
    return "Found nothing in 4 seconds."


@lambda_task
async def fetch_rates(*, order_id: int, currencies: list[str]) -> dict[str, float]:
    """Async: a coroutine, whose ORM calls are in the same transaction as its SUCCESS."""

    async def rate(currency: str) -> float:
        await asyncio.sleep(0.2)  # all of them wait at the same time
        return len(currency) / 2

    rates = await asyncio.gather(*map(rate, currencies))
    await OrderEvent.objects.acreate(order_id=order_id, text="rates fetched")
    return dict(zip(currencies, rates, strict=True))


@lambda_task
def send_reminder(*, order_id: int) -> str:
    """Delay: an ordinary task, which is sent with `send_reminder.using(delay=3)`, or for tomorrow."""
    OrderEvent.objects.create(order_id=order_id, text="reminder sent")
    return "Reminded, no sooner than was asked for."


@lambda_task(queue="parcels", soft_timeout=3, hard_timeout=4)
def pack_parcel(*, order_id: int) -> str:
    """Crash: the demo kills the process that runs it; another one takes it over, and packs one parcel."""
    OrderEvent.objects.create(order_id=order_id, text="parcel packed")
    time.sleep(1.5)
    return "Packed one parcel."
