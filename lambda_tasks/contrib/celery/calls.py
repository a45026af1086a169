"""The options of `apply_async()`, and the task with which a call that has them is sent."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, TypedDict, TypeVar
from zoneinfo import ZoneInfo

from django.conf import settings as django_settings

from lambda_tasks.contrib.celery.parameters import EXPIRES
from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.definition.hints import PAGE, fate_of_call, for_call
from lambda_tasks.recording.described import described

R = TypeVar("R")


class CallOptions(TypedDict, total=False):
    """The keyword arguments of `apply_async()` after `args` and `kwargs`, for type checkers."""

    countdown: float | None
    eta: datetime | None
    expires: float | datetime | None
    queue: str | None
    #: A signature or a list of them, which take the result.
    link: Any
    # Accepted without an effect.
    ignore_result: bool
    serializer: str
    compression: Any
    retry: bool
    retry_policy: Any
    shadow: Any


def sender(
    task: LambdaTaskWrapper[Any, R], options: Mapping[str, Any]
) -> tuple[LambdaTaskWrapper[Any, R], dict[str, Any]]:
    """Return the task with the delay and the queue of a call, and the arguments that the call has in addition.

    `options` are those of `apply_async()` without `link`. Raises TypeError for an option that has no counterpart or
    has the wrong type, and ValueError for a delay that the transport does not support.
    """
    for name, value in options.items():
        if fate_of_call(name, value) == "refused":
            hint = for_call(name) or f"See {PAGE}."
            raise TypeError(f"{task.name} must not be called with {name}={value!r}. {hint}")
    delay = _delay(options.get("countdown"), options.get("eta"))
    queue = options.get("queue")
    changed = task if delay is None and queue is None else task.using(delay=delay, queue=queue)
    expires = _expires(options.get("expires"))
    return changed, {} if expires is None else {EXPIRES: expires}


def refuse_options(what: str, options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that belongs to a task of a chain or a group, and not to the whole."""
    for name, value in options.items():
        if name not in ("countdown", "eta") and fate_of_call(name, value) != "dropped":
            raise TypeError(
                f"{what} must not be sent with {name}={value!r}. Give the option to one of its tasks, as in "
                f"task.s(…).set({name}=…) ({PAGE})."
            )


def seconds_until(eta: datetime) -> int:
    """Return the whole seconds until `eta`, at least 0. A naive time is in CELERY_TIMEZONE, and by default in UTC."""
    aware = eta if eta.tzinfo else eta.replace(tzinfo=_timezone())
    return max(math.ceil(aware.timestamp() - time.time()), 0)


def whole_seconds(value: object, name: str) -> int:
    """Return a number of seconds rounded up, at least 0. Raise TypeError for anything but a number or a timedelta."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise TypeError(f"{name} must be a finite number of seconds, not {described(value)}.")
    return max(math.ceil(seconds), 0)


def _delay(countdown: object, eta: object) -> int | None:
    if countdown is not None and eta is not None:
        raise TypeError("countdown must not be combined with eta. Give one of them.")
    if countdown is not None:
        return whole_seconds(countdown, "countdown")
    if eta is None:
        return None
    if not isinstance(eta, datetime):
        raise TypeError(f"eta must be a datetime, not {described(eta)}. For a number of seconds, give countdown.")
    return seconds_until(eta)


def _expires(expires: object) -> float | None:
    if expires is None:
        return None
    ahead = seconds_until(expires) if isinstance(expires, datetime) else whole_seconds(expires, "expires")
    return time.time() + ahead


def _timezone() -> tzinfo:
    name = getattr(django_settings, "CELERY_TIMEZONE", None)
    return ZoneInfo(name) if isinstance(name, str) else name or timezone.utc
