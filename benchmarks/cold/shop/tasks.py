"""Twenty tasks, as typical projects have them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from lambda_tasks.decorators import lambda_task


@lambda_task
def send_receipt(*, order_id: int, email: str) -> None: ...


@lambda_task(retry_on=(OSError,), retry_delay=30)
def charge_card(*, order: UUID, amount: Decimal | None = None) -> None: ...


@lambda_task(soft_timeout=20, hard_timeout=30)
def refund_card(*, keys: list[int], since: datetime | None = None) -> None: ...


@lambda_task(singleton=True)
def reserve_stock(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...


@lambda_task(queue="default", max_retries=3)
def release_stock(*, order_id: int, email: str) -> None: ...


@lambda_task
def print_label(*, order: UUID, amount: Decimal | None = None) -> None: ...


@lambda_task(retry_on=(OSError,), retry_delay=30)
def book_carrier(*, keys: list[int], since: datetime | None = None) -> None: ...


@lambda_task(soft_timeout=20, hard_timeout=30)
def track_parcel(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...


@lambda_task(singleton=True)
def remind_basket(*, order_id: int, email: str) -> None: ...


@lambda_task(queue="default", max_retries=3)
def ask_review(*, order: UUID, amount: Decimal | None = None) -> None: ...


@lambda_task
def resize_picture(*, keys: list[int], since: datetime | None = None) -> None: ...


@lambda_task(retry_on=(OSError,), retry_delay=30)
def index_product(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...


@lambda_task(soft_timeout=20, hard_timeout=30)
def drop_product(*, order_id: int, email: str) -> None: ...


@lambda_task(singleton=True)
def import_prices(*, order: UUID, amount: Decimal | None = None) -> None: ...


@lambda_task(queue="default", max_retries=3)
def export_orders(*, keys: list[int], since: datetime | None = None) -> None: ...


@lambda_task
def sum_sales(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...


@lambda_task(retry_on=(OSError,), retry_delay=30)
def close_day(*, order_id: int, email: str) -> None: ...


@lambda_task(soft_timeout=20, hard_timeout=30)
def check_fraud(*, order: UUID, amount: Decimal | None = None) -> None: ...


@lambda_task(singleton=True)
def merge_customers(*, keys: list[int], since: datetime | None = None) -> None: ...


@lambda_task(queue="default", max_retries=3)
def forget_customer(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...
