"""What every database stores: limits for text and JSON that hold on all of them."""

from __future__ import annotations

from typing import Final

#: Characters of a text (a traceback) that are kept, half from its head and half from its tail.
MAX_TEXT: Final = 100_000
#: Bytes of JSON in a result. MariaDB hangs up on a statement of more than 16 MiB (max_allowed_packet),
#: and a column is no place for more.
MAX_JSON: Final = 4 * 1024 * 1024
#: Levels of lists and dicts in JSON: MariaDB stores 31, and the reader of a message's body goes no
#: deeper than 200.
MAX_DEPTH: Final = 30


def storable(text: str, *, max_length: int = MAX_TEXT) -> str:
    """Return `text` without what databases refuse: NUL and lone surrogates are escaped, length is capped."""
    if len(text) > max_length:
        head, tail = max_length // 2, max_length - max_length // 2
        text = f"{text[:head]}\n… {len(text) - max_length} characters left out …\n{text[-tail:]}"
    return text.replace("\x00", r"\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def depth(value: object) -> int:
    """Return how many levels of lists and dicts `value` has, itself included."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0
