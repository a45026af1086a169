"""Translate the options of Celery's decorator into those of `@lambda_task`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.contrib.celery.calls import whole_seconds
from lambda_tasks.definition.hints import PAGE, fate_of_option, for_options
from lambda_tasks.definition.option_types import OptionsWithoutRetries
from lambda_tasks.definition.options import OPTION_NAMES
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.exceptions import RetryLater, exception_types
from lambda_tasks.recording.described import described
from lambda_tasks.settings import app_settings, whole_number
from lambda_tasks.wire.invocation import is_task_name

if TYPE_CHECKING:
    from lambda_tasks.definition.option_types import ExceptionTypes

#: Celery's defaults. Times are seconds.
MAX_RETRIES: Final = 3
RETRY_DELAY: Final = 180
_BACKOFF_MAX: Final = 600
#: Seconds between a soft and a hard limit of which Celery has only one.
_GRACE: Final = 30
#: The options of `@lambda_task` about retries, which follow from those of Celery.
_RETRIES: Final = frozenset({"retry", "retry_on", "retry_delay"})


class CeleryOptions(OptionsWithoutRetries, total=False):
    """The keyword arguments of `shared_task` except `bind`, for type checkers."""

    name: str
    expires: float | None
    time_limit: float | None
    soft_time_limit: float | None
    max_retries: int | None
    default_retry_delay: float
    autoretry_for: ExceptionTypes
    dont_autoretry_for: ExceptionTypes
    retry_kwargs: Mapping[str, Any]
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    acks_late: bool
    reject_on_worker_lost: bool
    # Accepted without an effect.
    ignore_result: bool
    store_errors_even_if_ignored: bool
    track_started: bool
    send_events: bool
    shared: bool
    typing: bool
    acks_on_failure_or_timeout: bool
    pydantic: bool
    serializer: str
    compression: str


@dataclass(frozen=True)
class Translated:
    """The options of `@lambda_task`, and what `self.retry()` needs to know."""

    options: dict[str, Any]
    #: None for LAMBDA_TASKS_MAX_RETRIES.
    max_retries: int | None
    retry_delay: int
    #: The options of Celery as they were given, which are attributes of `self` too.
    given: dict[str, Any]


def translated(given: Mapping[str, Any], *, name: str, is_bound: bool) -> Translated:
    """Return the options of `@lambda_task` for those of Celery that the task `name` has.

    Raises TypeError for an option of Celery that has no counterpart, or whose value has none.
    """
    celery = {option: value for option, value in given.items() if fate_of_option(option, value) == "carried"}
    ours = {option: value for option, value in given.items() if option not in celery and _is_kept(option, value, name)}
    options = {**ours, **_limits(celery), **_routing(celery, ours, name), **_crashes(celery)}
    max_retries = _max_retries(celery.get("max_retries", MAX_RETRIES))
    delay = whole_seconds(celery.get("default_retry_delay", RETRY_DELAY), "default_retry_delay")
    policies = _policies(celery, max_retries, delay)
    if is_bound:
        policies[RetryLater] = RetryPolicy(max_retries=max_retries, delay=delay, jitter=False)
    if policies:
        options["retry"] = _shortest(policies)
    return Translated(options, max_retries, delay, celery)


def _is_kept(option: str, value: Any, name: str) -> bool:
    """Return whether an option is one of `@lambda_task`, not one without an effect. Raise TypeError for others."""
    if fate_of_option(option, value) == "dropped":
        return False
    if option in OPTION_NAMES and option not in _RETRIES:
        return True
    if option in _RETRIES:
        remedy = f" Use Celery's options for retries, or @lambda_task ({PAGE})."
    else:
        remedy = for_options([option]) or f" See {PAGE}."
    raise TypeError(f"shared_task must not have the option {option}={described(value)} on {name}.{remedy}")


def _limits(celery: Mapping[str, Any]) -> dict[str, int]:
    soft, hard = (celery.get(name) for name in ("soft_time_limit", "time_limit"))
    limits = {}
    if hard is not None:
        limits["hard_timeout"] = whole_seconds(hard, "time_limit")
        # Celery has no soft limit then: leave as much of the time as possible.
        limits["soft_timeout"] = max(limits["hard_timeout"] - 1, 1)
    if soft is not None:
        limits["soft_timeout"] = whole_seconds(soft, "soft_time_limit")
        limits.setdefault("hard_timeout", max(min(limits["soft_timeout"] + _GRACE, app_settings.max_timeout), 1))
    return limits


def _routing(celery: Mapping[str, Any], ours: Mapping[str, Any], name: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if celery.get("queue") is not None:
        options["queue"] = celery["queue"]
    if celery.get("expires") is not None:
        options["expires_in"] = whole_seconds(celery["expires"], "expires")
    former = celery.get("name")
    if former is not None and former != name and is_task_name(former):
        options["aliases"] = (*ours.get("aliases", ()), former)
    return options


def _crashes(celery: Mapping[str, Any]) -> dict[str, str]:
    """Return what Celery says about a worker that dies: with early acknowledgement, a task does not run again."""
    early = celery.get("acks_late") is False or celery.get("reject_on_worker_lost") is False
    return {"on_crash": "fail"} if early else {}


def _max_retries(number: int | None) -> int | None:
    if number is not None:
        whole_number(0)(number, "max_retries")
    return number


def _policies(celery: Mapping[str, Any], max_retries: int | None, delay: int) -> dict[type[BaseException], RetryPolicy]:
    """Return the policies for `autoretry_for`, which `retry_kwargs` changes."""
    retry_kwargs = dict(celery.get("retry_kwargs") or {})
    max_retries = _max_retries(retry_kwargs.pop("max_retries", max_retries))
    countdown = retry_kwargs.pop("countdown", None)
    if retry_kwargs:
        raise TypeError(
            f"retry_kwargs must contain max_retries and countdown only, not {', '.join(sorted(retry_kwargs))} ({PAGE})."
        )
    retried = exception_types(celery.get("autoretry_for", ()), "autoretry_for")
    excluded = exception_types(celery.get("dont_autoretry_for", ()), "dont_autoretry_for")
    policy = _policy(celery, max_retries, delay if countdown is None else whole_seconds(countdown, "countdown"))
    policies = {error: policy for error in retried if not issubclass(error, excluded)}
    if policies:
        never = RetryPolicy(max_retries=0)
        policies.update({error: never for error in excluded if issubclass(error, tuple(policies))})
    return policies


def _policy(celery: Mapping[str, Any], max_retries: int | None, delay: int) -> RetryPolicy:
    backoff = celery.get("retry_backoff", False)
    if backoff is False or backoff == 0:
        return RetryPolicy(max_retries=max_retries, delay=delay, jitter=False)
    factor = 1 if backoff is True else whole_seconds(backoff, "retry_backoff")
    longest = whole_seconds(celery.get("retry_backoff_max", _BACKOFF_MAX), "retry_backoff_max")
    return RetryPolicy(
        max_retries=max_retries,
        delay=min(factor, longest),
        backoff=True,
        max_delay=longest,
        jitter=bool(celery.get("retry_jitter", True)),
    )


def _shortest(policies: dict[type[BaseException], RetryPolicy]) -> Any:
    """Return one policy for all exception types if they have the same, and otherwise the mapping."""
    first, *others = policies.values()
    if any(other != first for other in others):
        return policies
    return RetryPolicy(
        on=tuple(policies),
        max_retries=first.max_retries,
        delay=first.delay,
        max_delay=first.max_delay,
        backoff=first.backoff,
        jitter=first.jitter,
    )
