"""Check the options of the local worker, and word its warnings about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypedDict

from django.conf import settings

from lambda_tasks.local.event_source import MAX_BATCH_SIZE, MAX_PER_CALL
from lambda_tasks.local.holding import MAX_INVISIBLE
from lambda_tasks.settings import MAX_TIMEOUT, app_settings
from lambda_tasks.wire.visibility import MAX_BATCHING_WINDOW

if TYPE_CHECKING:
    from lambda_tasks.local.event_source import EventSource

#: The longest time for an invocation, in seconds, since SQS keeps a message invisible for twelve hours: a minute is
#: left for ending the invocation and its process.
MAX_FUNCTION_TIMEOUT: Final = MAX_INVISIBLE - 60
MAX_POLL_SECONDS: Final = 20
MAX_CONCURRENCY: Final = 1000


def default_timeout() -> int:
    """Return the default time for an invocation, in seconds: what the longest task may take."""
    # Without settings, the handler does not use Django.
    return app_settings.max_timeout if settings.configured else MAX_TIMEOUT


class OptionValues(TypedDict, total=False):
    """The keyword arguments of `LocalWorker` that become its `Options`."""

    concurrency: int
    batch_size: int
    batching_window: int
    one_by_one: bool
    function_timeout: float
    heartbeat: bool
    drain_seconds: float | None
    poll_seconds: int | None
    max_messages: int | None
    max_memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a worker, as `LocalWorker` describes them. An invalid value raises ValueError."""

    concurrency: int = 1
    batch_size: int = 10
    batching_window: int = 0
    one_by_one: bool = False
    function_timeout: float = field(default_factory=default_timeout)
    heartbeat: bool = False
    drain_seconds: float | None = None
    poll_seconds: int | None = None
    max_messages: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        check_number("concurrency", self.concurrency, 1, MAX_CONCURRENCY)
        check_batches(self.batch_size, self.batching_window)
        if not 0 < self.function_timeout <= MAX_FUNCTION_TIMEOUT:
            raise ValueError(
                f"function_timeout must be more than 0 and at most {MAX_FUNCTION_TIMEOUT} seconds, "
                f"not {self.function_timeout}."
            )
        check_seconds("drain_seconds", self.drain_seconds, zero=True)
        if self.poll_seconds is not None:
            check_number("poll_seconds", self.poll_seconds, 0, MAX_POLL_SECONDS)
            if self.drain_seconds is not None and self.poll_seconds >= self.drain_seconds:
                raise ValueError(
                    f"poll_seconds must be less than drain_seconds ({self.drain_seconds:g}), not {self.poll_seconds}: "
                    "the last poll ends before the worker does. Lower --poll, or raise --drain."
                )
        if self.max_messages is not None:
            check_number("max_messages", self.max_messages, 1, None)
        if self.max_memory is not None:
            check_number("max_memory", self.max_memory, 1, None)


def short_visibility(source: EventSource, function_timeout: float) -> str:
    """Return the warning about a queue whose messages may be redelivered while they run."""
    return (
        f"The visibility timeout of queue {source.name!r} is {source.visibility_timeout} s, less than the function's "
        f"timeout of {function_timeout:g} s. A batch that takes longer is redelivered while it runs. AWS rejects this "
        f"configuration. Raise the queue's visibility timeout."
    )


def short_function(queue: str, function_timeout: float, needed: float) -> str:
    """Return the warning about tasks whose limits are longer than an invocation."""
    return (
        f"The function's timeout of {function_timeout:g} s is shorter than the {needed:g} s that the longest task of "
        f"queue {queue!r} needs. Time limits are shortened to the remaining time of an invocation. Raise "
        "--function-timeout and the timeout of the function on AWS, or lower hard_timeout."
    )


def check_batches(batch_size: int, batching_window: int) -> None:
    """Raise ValueError for sizes and windows that Lambda would refuse."""
    check_number("batch_size", batch_size, 1, MAX_BATCH_SIZE)
    check_number("batching_window", batching_window, 0, MAX_BATCHING_WINDOW)
    if batch_size > MAX_PER_CALL and not batching_window:
        raise ValueError(
            f"batch_size must be at most {MAX_PER_CALL} without a batching_window, not {batch_size}. "
            "Lower it, or set batching_window."
        )


def too_much_memory(name: str, used: int, limit: int) -> str:
    """Return the warning about a process that is replaced."""
    return f"The process of {name} uses {used:,} MB, more than --max-memory {limit}, and is replaced."


def not_drained(seconds: float) -> str:
    """Return the warning about batches that outlast the end of the worker."""
    return (
        f"The running batches have not ended within {seconds:g} s, so their processes are killed, and their messages "
        "are handed back. Their tasks run again when their claims have expired."
    )


def check_seconds(name: str, value: float | None, *, zero: bool = False) -> None:
    """Raise ValueError for a number of seconds that is negative, or 0 unless `zero` allows it."""
    if value is not None and not (value >= 0 if zero else value > 0):
        raise ValueError(f"{name} must be {'at least' if zero else 'more than'} 0 seconds, or None, not {value:g}.")


def check_number(name: str, value: Any, low: int, high: int | None) -> None:
    """Raise ValueError unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        constraint = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise ValueError(f"{name} must be an integer {constraint}, not {value!r}.")
