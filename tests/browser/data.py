"""The rows of the site that the browser opens: a week of a shop, always the same, relative to now."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.contrib.auth.models import User
from django.utils import timezone

from lambda_tasks.models import OutboxMessage, TaskProgress, TaskRecord, TaskSchedule, TaskStatus
from lambda_tasks.recording.masking import MASK
from lambda_tasks.wire.ids import retry_id
from tests.browser.site import LOGIN, MARKUP

TRACEBACK: Final = """\
Traceback (most recent call last):
  File "/var/task/shop/tasks.py", line 38, in charge_card
    receipt = bank.charge(order.total, card_number)
  File "/var/task/shop/bank.py", line 112, in charge
    answer = session.post(f"{BANK}/charges", json=body, timeout=5)
  File "/var/lang/lib/python3.13/site-packages/requests/sessions.py", line 637, in post
    return self.request("POST", url, data=data, json=json, **kwargs)
  File "/var/lang/lib/python3.13/site-packages/requests/adapters.py", line 667, in send
    raise ConnectionError(err, request=request)
requests.exceptions.ConnectionError: the bank closed the connection

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/var/task/shop/tasks.py", line 40, in charge_card
    raise CardRefused(f"order {order_id} was not paid") from error
shop.tasks.CardRefused: order 4711 was not paid
"""
_BUSY: Final = """\
Traceback (most recent call last):
  File "/var/task/shop/tasks.py", line 57, in reserve_stock
    raise WarehouseBusy("the warehouse answers later")
shop.tasks.WarehouseBusy: the warehouse answers later
"""
#: Name of the task, share of the runs, seconds of waiting and of running, and the share of failures.
_KINDS: Final = (
    ("send_receipt", 40, 0.8, 0.4, 0.01),
    ("reserve_stock", 20, 2.5, 1.8, 0.08),
    ("charge_card", 15, 1.1, 2.6, 0.06),
    ("build_report", 8, 6.0, 34.0, 0.03),
    ("send_newsletter", 12, 4.0, 0.9, 0.0),
    ("fetch_rates", 5, 0.6, 3.2, 0.12),
)


def message_id(moment: datetime, number: int) -> UUID:
    """Return an id that tells when its task was called."""
    milliseconds = int(moment.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62 | number)


def fill(*, markup: bool) -> dict[str, UUID]:
    """Create the rows, with or without markup in every field, and return the ids of those that tests open, by name."""
    moment = timezone.now()
    User.objects.create_superuser(LOGIN[0], password=LOGIN[1])
    _fill_week(moment)
    keys = _fill_opened(moment)
    if not markup:
        TaskRecord.objects.filter(pk=keys.pop("markup")).delete()
    _fill_outbox(moment, MARKUP if markup else "the")
    TaskSchedule.objects.create(
        key="shop.tasks.water_plants:every 1:00:00",
        task_name="shop.tasks.water_plants",
        last_tick=int(moment.timestamp()) // 3600 * 3600,
    )
    return keys


def _fill_week(now: datetime) -> None:
    chance = random.Random(4711)
    records = []
    for number in range(1_200):
        name, _, waits, runs, failing = chance.choices(_KINDS, weights=[kind[1] for kind in _KINDS])[0]
        called = now - timedelta(seconds=120 + chance.triangular(0, 7 * 86_400, 0))
        start = called + timedelta(seconds=waits * chance.lognormvariate(0, 0.8))
        end = start + timedelta(seconds=runs * chance.lognormvariate(0, 0.6))
        failed = chance.random() < failing
        records.append(
            TaskRecord(
                id=message_id(called, number),
                task_name=f"shop.tasks.{name}",
                kwargs={"order_id": 4000 + number},
                status=TaskStatus.FAILED if failed else TaskStatus.SUCCESS,
                reason="error" if failed else "",
                start_time=start,
                end_time=min(end, now),
                traceback=(_BUSY if name == "reserve_stock" else TRACEBACK) if failed else None,
                result=None if failed else f"order {4000 + number} is done",
                queue="stock" if name == "reserve_stock" else "default",
            )
        )
    for each in records:
        each.root_id = each.pk
    TaskRecord.objects.bulk_create(records, batch_size=200)


def _record(key: UUID, **fields: Any) -> TaskRecord:
    values: dict[str, Any] = {"root_id": key, "queue": "default", "kwargs": {"order_id": 4711}}
    return TaskRecord.objects.create(id=key, **values | fields)


def _fill_opened(now: datetime) -> dict[str, UUID]:
    called = now - timedelta(seconds=90)
    names = ("failed", "retried", "running", "markup", "done", "waiting")
    keys = {name: message_id(called, 9_000 + number) for number, name in enumerate(names)}
    _record(
        keys["done"],
        task_name="shop.tasks.send_receipt",
        kwargs={"order_id": 4712, "name": "Alice"},
        status=TaskStatus.SUCCESS,
        result="Receipt for order 4712 sent to Alice.",
        start_time=now - timedelta(seconds=88),
        end_time=now - timedelta(seconds=87.6),
    )
    _record(
        keys["failed"],
        task_name="shop.tasks.charge_card",
        kwargs={"order_id": 4711, "card_number": MASK},
        status=TaskStatus.FAILED,
        reason="error",
        traceback=TRACEBACK,
        start_time=now - timedelta(seconds=60),
        end_time=now - timedelta(seconds=54.8),
    )
    _fill_chain(keys["retried"], now)
    _record(
        keys["waiting"],
        task_name="shop.tasks.reserve_stock",
        status=TaskStatus.RETRYING,
        reason="error",
        traceback=_BUSY,
        queue="stock",
        start_time=now - timedelta(seconds=80),
        end_time=now - timedelta(seconds=78),
    )
    _record(
        keys["running"],
        task_name="shop.tasks.import_products",
        kwargs={"order_id": 4713, "rows": 20},
        status=TaskStatus.RUNNING,
        start_time=now - timedelta(seconds=20),
        lease_until=now + timedelta(hours=1),
        claim=keys["running"],
    )
    TaskProgress.objects.create(id=keys["running"], done=13, total=20, note="row 13", updated_at=now)
    _record(
        keys["markup"],
        task_name=f"shop.tasks.{MARKUP}",
        kwargs={MARKUP: MARKUP},
        status=TaskStatus.FAILED,
        reason="error",
        traceback=f'Traceback …\n  File "{MARKUP}", line 1, in {MARKUP}\nshop.errors.{MARKUP}: {MARKUP}\n',
        result={MARKUP: MARKUP},
        queue=MARKUP,
        start_time=now - timedelta(seconds=70),
        end_time=now - timedelta(seconds=69),
    )
    return keys


def _fill_chain(root: UUID, now: datetime) -> None:
    """Create three attempts, the last of which has used up the retries."""
    for n_retries in range(3):
        start = now - timedelta(seconds=50 - 15 * n_retries)
        last = n_retries == 2
        told = "shop.tasks.reserve_stock failed after 2 retries, and its max_retries is 2."
        caused = "The above exception was the direct cause of the following exception:"
        gave_up = f"{_BUSY}\n{caused}\n\nlambda_tasks.exceptions.MaxRetriesExceededError: {told}\n"
        _record(
            root if not n_retries else UUID(retry_id(str(root), n_retries)),
            root_id=root,
            n_retries=n_retries,
            task_name="shop.tasks.reserve_stock",
            status=TaskStatus.FAILED if last else TaskStatus.RETRYING,
            reason="max_retries" if last else "error",
            traceback=gave_up if last else _BUSY,
            queue="stock",
            start_time=start,
            end_time=start + timedelta(seconds=2.1),
        )


def _fill_outbox(now: datetime, article: str) -> None:
    for number, due in enumerate((0, 3_600, None)):
        key = message_id(now - timedelta(minutes=number), 9_900 + number)
        OutboxMessage.objects.create(
            id=key,
            task_name=f"shop.tasks.{('send_receipt', 'send_reminder', 'send_coupon')[number]}",
            queue="default",
            body=f'{{"task_name": "shop.tasks.send_coupon", "kwargs": {{"order_id": {number}}}}}',
            attributes={"lambda_tasks.message_id": str(key), "lambda_tasks.root_id": str(key)},
            created_at=now - timedelta(minutes=number),
            run_at=now + timedelta(seconds=due) if due else None,
            due_at=None if due is None else now + timedelta(seconds=due),
            attempts=int(due is None),
            error="" if due is not None else f"ClientError: {article} message must be shorter than 1048576 bytes",
        )
