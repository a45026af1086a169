"""Split what is too large for one request or one statement."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def parts_of(
    items: Iterable[T], size_of: Callable[[T], int], *, most_size: float, most_items: int = sys.maxsize
) -> Iterator[list[T]]:
    """Yield `items` in order, in lists of at most `most_items` whose sizes add up to at most `most_size`.

    An item that is larger than `most_size` has a list of its own.
    """
    part: list[T] = []
    size = 0
    for item in items:
        own_size = size_of(item)
        if part and (len(part) == most_items or size + own_size > most_size):
            yield part
            part, size = [], 0
        part.append(item)
        size += own_size
    if part:
        yield part
