"""`RetryPolicy`: which errors are retried, how often, for how long, and after which delays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from lambda_tasks.exceptions import RetryLater, exception_types
from lambda_tasks.foundation.forks import random
from lambda_tasks.settings import MAX_DELAY, MAX_KEPT_DELAY, duration, whole_number

#: The factor of `backoff=True`.
DOUBLING: Final = 2.0
#: The least and the most seconds that `jitter=True` adds to a delay that does not grow.
LEAST_JITTER: Final = 1
MOST_JITTER: Final = 5
#: The options that a policy replaces, with their defaults.
_SHORT_FORM: Final[Mapping[str, object]] = {
    "retry_on": (),
    "retry_delay": 0,
    "retry_backoff": False,
    "max_retries": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a task is retried. Policies are immutable, so several tasks can share one.

        patient = RetryPolicy(on=(CrmBusy, ConnectionError), delay=30, backoff=True, max_age=timedelta(hours=6))

        @lambda_task(retry=patient)

    - `on`: the exception types after which the task is retried, with their subclasses. It may be left out in a mapping
      from exception types to policies.
    - `max_retries`: the number of retries; None for LAMBDA_TASKS_MAX_RETRIES.
    - `max_age`: no retry starts later than this after the first invocation was sent. None for no limit.
    - `delay`: the time before the first retry.
    - `backoff`: the factor by which the delay grows with each retry; True for 2.
    - `max_delay`: the longest delay to which it grows, and for which an exception can ask. Without it, delays grow up
      to 900 seconds, or up to `delay` if that is longer.
    - `jitter`: the random part of the delay: True, False, or a fraction from 0 to 1.

    Times are numbers of seconds or timedeltas. The retry number n, counted from 0, waits for this time, rounded up to
    whole seconds and at most 900 seconds if neither `delay` nor `max_delay` is longer:

        grown = min(delay * backoff**n, max_delay)
        jitter=True, without backoff:  grown + a whole number from 1 to 5
        jitter=True, with backoff:     a whole number from 1 to grown
        jitter=0.25:                   grown * a number from 1 to 1.25
        jitter=False:                  grown

    Raises TypeError for a value of the wrong type, and ValueError for an invalid value.
    """

    on: tuple[type[BaseException], ...] = ()
    max_retries: int | None = None
    max_age: float | timedelta | None = None
    delay: float | timedelta = 0
    max_delay: float | timedelta | None = None
    backoff: float | bool = False
    jitter: float | bool = True

    def __post_init__(self) -> None:
        # The class is frozen, and a list must not make it mutable.
        object.__setattr__(self, "on", exception_types(self.on, "on"))
        if self.max_retries is not None:
            whole_number(0)(self.max_retries, "max_retries")
        self._check_times()
        _number(self.backoff, "backoff", low=1, high=1000)
        _number(self.jitter, "jitter", low=0, high=1)
        if self.factor > 1 and not self.seconds:
            raise ValueError(
                f"backoff must be False if delay is 0, because it multiplies the delay, not {self.backoff!r}. "
                "Set a delay, as in delay=1."
            )

    def _check_times(self) -> None:
        delay = duration(self.delay, "delay")
        if self.max_delay is not None and duration(self.max_delay, "max_delay") < delay:
            raise ValueError(f"max_delay must not be shorter than delay ({self.delay}), not {self.max_delay}.")
        if self.max_age is not None and duration(self.max_age, "max_age") <= delay:
            raise ValueError(
                f"max_age must be longer than delay ({self.delay}), not {self.max_age}. "
                "A retry that waits that long would never start."
            )

    @property
    def seconds(self) -> float:
        """The delay before the first retry, without jitter, in seconds."""
        return duration(self.delay, "delay")

    @property
    def factor(self) -> float:
        """The factor from one delay to the next; 1 if delays do not grow."""
        return DOUBLING if self.backoff is True else float(self.backoff or 1)

    @property
    def age_limit(self) -> float:
        """The value of `max_age` in seconds, or infinity."""
        return math.inf if self.max_age is None else duration(self.max_age, "max_age")

    @property
    def longest_delay(self) -> float:
        """The longest delay in seconds, without jitter."""
        if self.max_delay is not None:
            return duration(self.max_delay, "max_delay")
        return max(self.seconds, MAX_DELAY)

    @property
    def longest_wait(self) -> int:
        """The longest delay in seconds, with jitter. It exceeds the limit of SQS only if the policy itself does."""
        return MAX_KEPT_DELAY if self.longest_delay > MAX_DELAY else MAX_DELAY

    @property
    def longest_request(self) -> float:
        """The longest delay in seconds for which an exception can ask."""
        return MAX_KEPT_DELAY if self.max_delay is None else self.longest_delay

    def grown(self, n_retries: int) -> float:
        """Return the delay of the next retry after `n_retries` retries, without jitter, in seconds."""
        try:
            return min(self.seconds * self.factor**n_retries, self.longest_delay)
        except OverflowError:
            return self.longest_delay

    def random_delay(self, n_retries: int) -> int:
        """Return the delay of the next retry after `n_retries` retries, with jitter, in whole seconds."""
        seconds = self.grown(n_retries)
        if self.jitter is not True:
            seconds *= random.uniform(1, 1 + self.jitter)
        elif self.factor > 1:
            return random.randint(1, max(math.ceil(seconds), 1))
        else:
            seconds += self.spread()
        return min(math.ceil(seconds), self.longest_wait)

    @staticmethod
    def spread() -> int:
        """Return random seconds that spread out tasks that failed at the same time."""
        return round(random.uniform(LEAST_JITTER, MOST_JITTER))

    def shortest_delay(self, n_retries: int) -> float:
        """Return the shortest value of `random_delay()`, in seconds."""
        if self.jitter is not True:
            return self.grown(n_retries)
        return LEAST_JITTER if self.factor > 1 else min(self.grown(n_retries) + LEAST_JITTER, self.longest_wait)

    def average_delay(self, n_retries: int) -> float:
        """Return the average of `random_delay()`, in seconds, without its rounding."""
        seconds = self.grown(n_retries)
        if self.jitter is not True:
            return seconds * (1 + self.jitter / 2)
        return (LEAST_JITTER + seconds) / 2 if self.factor > 1 else seconds + (LEAST_JITTER + MOST_JITTER) / 2

    def average_span(self, of_all: int) -> float:
        """Return how many seconds a chain of failing retries waits on average, up to one year.

        `of_all` is the number of retries of a task without a limit of its own.
        """
        max_retries = of_all if self.max_retries is None else self.max_retries
        most = min(self.age_limit, MAX_KEPT_DELAY)
        span = 0.0
        for number in range(max_retries):
            pause = self.average_delay(number)
            if self.factor == 1 or self.grown(number) == self.longest_delay:  # all later delays are equal
                return min(span + (max_retries - number) * pause, most)
            span += pause
            if span >= most:
                return most
        return span


Retry: TypeAlias = RetryPolicy | Mapping[type[BaseException], RetryPolicy]


def checked_retry(
    retry: object,
    *,
    ignore_errors: tuple[type[BaseException], ...],
    expires_in: int | None,
    **others: Any,
) -> Retry:
    """Return the option `retry` as an immutable value, or raise an error if it contradicts the other options."""
    if short := [name for name, default in _SHORT_FORM.items() if others[name] != default]:
        raise TypeError(
            f"retry must not be combined with {', '.join(short)}, which {'are' if len(short) > 1 else 'is'} its short "
            "form. Put everything into the policy: "
            "RetryPolicy(on=retry_on, delay=retry_delay, backoff=retry_backoff, max_retries=max_retries)."
        )
    checked = _policy_or_policies(retry)
    for policy in (checked,) if isinstance(checked, RetryPolicy) else checked.values():
        if expires_in is not None and policy.seconds >= expires_in:
            raise ValueError(
                f"The delay of a retry must be shorter than expires_in ({expires_in}), not {policy.delay}. "
                "A message that waits that long expires before a worker receives it."
            )
    _check_types(checked.on if isinstance(checked, RetryPolicy) else checked, ignore_errors)
    return checked


def _policy_or_policies(retry: object) -> Retry:
    if isinstance(retry, RetryPolicy):
        if not retry.on:
            raise TypeError(
                "retry must be a policy that lists exception types in `on`, as in RetryPolicy(on=(ConnectionError,)), "
                f"not {retry!r}. If the task only raises RetryLater, list that: on=(RetryLater,)."
            )
        return retry
    constraint = "retry must be a RetryPolicy, or a mapping from exception types to policies"
    if not isinstance(retry, Mapping):
        raise TypeError(f"{constraint}, not {retry!r}.")
    if not retry:
        raise ValueError(f"{constraint}, not an empty one. To retry nothing, leave the option out.")
    for error_type, policy in retry.items():
        if not (isinstance(error_type, type) and issubclass(error_type, BaseException)):
            raise TypeError(f"{constraint}. It contains the key {error_type!r}.")
        if not isinstance(policy, RetryPolicy):
            raise TypeError(f"{constraint}. For {error_type.__name__} it contains {policy!r}.")
        if policy.on and not issubclass(error_type, policy.on):
            raise TypeError(
                f"retry maps {error_type.__name__} to a policy for other exceptions "
                f"({', '.join(kind.__name__ for kind in policy.on)}). Leave out `on`: the key replaces it."
            )
    return MappingProxyType(dict(retry))


def _check_types(types: Iterable[type[BaseException]], ignored: tuple[type[BaseException], ...]) -> None:
    for error_type in types:
        if issubclass(error_type, ignored) and not issubclass(error_type, RetryLater):
            cause = next(kind.__name__ for kind in ignored if issubclass(error_type, kind))
            raise TypeError(
                f"retry must not name {error_type.__name__}, because ignore_errors contains {cause}, which is checked "
                "first, so the task would never be retried. Remove one of them."
            )


def _number(value: object, name: str, *, low: float, high: float) -> None:
    if isinstance(value, bool):
        return
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be True, False or a number from {low} to {high}, not {value!r}.")
    if not low <= value <= high:
        raise ValueError(f"{name} must be True, False or a number from {low} to {high}, not {value!r}.")
