"""Count calls of Python functions: a measure of CPU time that does not depend on the machine."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import lambda_tasks

PACKAGE: Final = str(Path(lambda_tasks.__file__).parent)


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count, by name, the calls of the library's functions and those that they make, while the `with` block runs.

    Calls inside of Django and of drivers depend on their versions and do not count. Comprehensions and generator
    expressions do not either, because Python 3.12 has no functions for most of them.
    """
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and not frame.f_code.co_name.startswith("<") and (_is_ours(frame) or _is_ours(frame.f_back)):
            calls[f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"] += 1

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(PACKAGE)
