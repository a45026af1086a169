"""How an invocation can end, and what a store can answer to a claim: values, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task returned; its writes and its SUCCESS are committed together."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """The task raised something that its `ignore_errors` lists: SUCCESS, with its writes rolled back."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Retry:
    """The task is to be run again as a new invocation, `delay` seconds from now at the earliest."""

    error: BaseException
    delay: int = 0

    def __post_init__(self) -> None:
        delay: object = self.delay  # a plugin's, whatever its annotations say
        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
            raise ValueError(f"The delay of a retry is {self.delay!r}; give whole seconds, 0 or more.")


@dataclass(frozen=True, slots=True)
class Failed:
    """The task is over without success; its writes are rolled back."""

    error: BaseException


Outcome: TypeAlias = Succeeded | Ignored | Retry | Failed


@dataclass(frozen=True, slots=True)
class Skipped:
    """The message asked for what an earlier delivery has finished already; nothing was run."""

    reason: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """The invocation is ours. `takeovers` counts the workers that died holding it."""

    takeovers: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The invocation has ended before, with this status."""

    status: str


@dataclass(frozen=True, slots=True)
class Busy:
    """Another worker holds the invocation, for at most so many seconds more unless it renews."""

    seconds: float


Claim: TypeAlias = Claimed | Finished | Busy


@dataclass(frozen=True, slots=True)
class Lost:
    """An invocation that stands as RUNNING, though the lease of whoever had it is long over."""

    message_id: str
    root_id: str
    task_name: str
    #: The arguments as the record has them.
    kwargs: dict[str, Any] = field(repr=False)
    n_retries: int
    #: How often it was given up before.
    takeovers: int
    #: The queue that it came from; empty where that is not recorded.
    queue: str
    #: The claim of the holder, None where it was given back.
    claim: str | None = field(repr=False)
    #: When its last holder began, in seconds since 1970.
    started_at: float | None = None
