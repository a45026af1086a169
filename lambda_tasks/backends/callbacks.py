"""Transports of earlier versions, whose `send()` reports with the callback `taken`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from inspect import signature
from typing import Any

from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.sending.results import Kept, SendResult, Taken, Unsent, first_error, send_all


def accept_callbacks(backend_class: type) -> None:
    """Let `send()` be written, and called, with the callback `taken`, as in earlier versions."""
    written: Any = vars(backend_class).get("send")
    if written is None or getattr(written, "__isabstractmethod__", False):
        return
    has_callback = "taken" in signature(written).parameters

    @wraps(written)
    def send(self: Any, jobs: Sequence[Job], *, taken: Callable[[Job], None] | None = None) -> Any:
        results = _results_of_callbacks(self, written, jobs) if has_callback else written(self, jobs)
        if taken is None:
            return results
        failures = send_all(lambda _: results, jobs, taken=taken)
        if error := first_error(failures):
            raise error
        return None

    setattr(backend_class, "send", send)  # noqa: B010 (a class of any kind)


def _results_of_callbacks(backend: Any, send: Any, jobs: Sequence[Job]) -> Iterator[SendResult]:
    left = {job.message_id: job for job in jobs}
    taken: list[Job] = []
    error: Exception | None = None
    try:
        send(backend, jobs, taken=taken.append)
    except SoftTimeLimitExceeded:
        raise
    except Exception as raised:
        error = raised
    for job in taken:
        left.pop(job.message_id, None)
        yield Taken(job)
    if error is None and backend.keeps:
        yield from map(Kept, left.values())
    elif error is not None:
        yield from (Unsent(job, error) for job in left.values())
        if not left:
            raise error
