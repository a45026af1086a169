"""Divide the keys of a statement, so that its text stays short, however many rows it is about.

After a statement of more than 16 KB, RDS Proxy does not share the session with other clients until its connection is
closed. The drivers write the keys into the text of the statement, also those of an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Final, TypeVar

from django.db.models import QuerySet

from lambda_tasks.foundation.parts import parts_of

K = TypeVar("K")

#: The most bytes of the keys of one statement. About 2 KB are left for its other parts.
MAX_KEYS: Final = 14_000
#: The most bytes around a key: its quotes, its type, and the comma.
_AROUND: Final = 10
#: How far the batches of `oldest_first()` overlap, since SQLite compares times as strings, some of which have fewer
#: digits.
_OVERLAP: Final = timedelta(seconds=1)


def divided(keys: Iterable[K]) -> Iterator[list[K]]:
    """Yield the keys, each a string or a UUID, in parts that a short statement can contain."""
    return parts_of(keys, _size, most_size=MAX_KEYS)


def _size(key: object) -> int:
    text = str(key)
    return len(text.encode()) + text.count("'") + text.count("\\") + _AROUND


def oldest_first(rows: QuerySet[Any], column: str, size: int, spared: set[Any]) -> Iterator[list[Any]]:
    """Yield the keys of `rows` in batches of `size`, those with the earliest time in `column` first.

    The caller deletes the rows of each batch, except those that it adds to `spared`. They are not yielded again, and
    they leave the set when no later query finds them. Deleted rows remain in the index until the commit, so each batch
    is searched after the previous one.
    """
    ordered = left = rows.order_by(column).values_list("pk", column)
    times: dict[Any, Any] = {}
    while batch := [row for row in left[: size + len(spared)] if row[0] not in spared][:size]:
        yield [key for key, _ in batch]
        last = batch[-1][1]
        left = ordered.filter(**{f"{column}__gte": last - _OVERLAP})
        times.update(batch)
        times = {key: time for key, time in times.items() if key in spared and time >= last - 2 * _OVERLAP}
        spared.intersection_update(times)
