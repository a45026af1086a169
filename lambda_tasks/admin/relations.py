"""Other invocations to which the page of a record links, by kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.utils.functional import Promise

    from lambda_tasks.models import TaskRecord


@dataclass(frozen=True, slots=True)
class Related:
    """Another invocation: the text of the link and its address."""

    text: str
    url: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of relation, such as "Run again as", with the invocations that have it."""

    label: str | Promise
    related: list[Related] = field(default_factory=list)


def of(record: TaskRecord, site: str) -> list[Relation]:
    """Return the relations of a record that the database knows, with links to the admin `site`.

    Add a new kind of relation here.
    """
    return []
