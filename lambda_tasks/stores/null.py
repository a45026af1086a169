"""A store that does not record anything, for tasks whose outcome does not matter."""

from __future__ import annotations

from django.db import DEFAULT_DB_ALIAS

from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Claim, Claimed, Outcome
from lambda_tasks.stores.base import BaseStore


class NullStore(BaseStore):
    """Run every delivery without a record. A message that SQS delivers twice runs twice.

    Option: `database`, the alias in whose transactions tasks run.
    """

    def __init__(self, *, database: str = DEFAULT_DB_ALIAS) -> None:
        self._database = database

    @property
    def database(self) -> str:
        return self._database

    def claim(self, run: Run) -> Claim:
        return Claimed()

    def record(self, run: Run, outcome: Outcome) -> None:
        return None

    def release(self, run: Run) -> None:
        return None

    def has_succeeded(self, run: Run) -> bool:
        return False
