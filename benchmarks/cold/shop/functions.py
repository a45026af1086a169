"""Twenty plain functions, as typical projects have them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID


def send_receipt(*, order_id: int, email: str) -> None: ...


def charge_card(*, order: UUID, amount: Decimal | None = None) -> None: ...


def refund_card(*, keys: list[int], since: datetime | None = None) -> None: ...


def reserve_stock(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...


def release_stock(*, order_id: int, email: str) -> None: ...


def print_label(*, order: UUID, amount: Decimal | None = None) -> None: ...


def book_carrier(*, keys: list[int], since: datetime | None = None) -> None: ...


def track_parcel(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...


def remind_basket(*, order_id: int, email: str) -> None: ...


def ask_review(*, order: UUID, amount: Decimal | None = None) -> None: ...


def resize_picture(*, keys: list[int], since: datetime | None = None) -> None: ...


def index_product(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...


def drop_product(*, order_id: int, email: str) -> None: ...


def import_prices(*, order: UUID, amount: Decimal | None = None) -> None: ...


def export_orders(*, keys: list[int], since: datetime | None = None) -> None: ...


def sum_sales(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...


def close_day(*, order_id: int, email: str) -> None: ...


def check_fraud(*, order: UUID, amount: Decimal | None = None) -> None: ...


def merge_customers(*, keys: list[int], since: datetime | None = None) -> None: ...


def forget_customer(*, name: str, tags: dict[str, str], dry_run: bool = False) -> None: ...
