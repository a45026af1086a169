"""The values of the columns `status` and `reason` of a record."""

from __future__ import annotations

from django.db import models


class TaskStatus(models.TextChoices):
    """The status of an invocation. All except RUNNING are final."""

    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    RETRYING = "RETRYING"


class TaskReason(models.TextChoices):
    """Why an invocation has its status. Empty while it runs, and for a SUCCESS of the function that is kept."""

    #: SUCCESS: the function raised an exception of a type in `ignore_errors`.
    IGNORED = "ignored"
    #: SUCCESS: the function did not run, because `on_contention="skip"`, and another run held the lock.
    SKIPPED = "skipped"
    #: SUCCESS: the function did not run, because a later call with the same unique key replaced this one.
    REPLACED = "replaced"
    #: SUCCESS: the function has returned, and the record is deleted soon, because of `record="failures"`.
    NOT_KEPT = "not_kept"
    #: RETRYING or FAILED: the function raised an exception.
    ERROR = "error"
    #: FAILED: the last retry that `max_retries` or `max_age` allows has failed.
    MAX_RETRIES = "max_retries"
    #: RETRYING or FAILED: another run held the lock, or the lock server was unavailable.
    LOCK = "lock"
    #: RETRYING: the function asked to be retried later.
    RETRY_LATER = "retry_later"
    SOFT_TIMEOUT = "soft_timeout"
    HARD_TIMEOUT = "hard_timeout"
    #: FAILED: the message was older than `expires_in`, so the function did not run.
    EXPIRED = "expired"
    #: FAILED: it was cancelled before it ran, or the function ended because of that.
    CANCELLED = "cancelled"
    #: FAILED: workers died while they ran it.
    CRASHED = "crashed"
    #: FAILED: its worker died, and the message was not redelivered.
    LOST = "lost"
    #: FAILED: the function ended its own transaction, or the return value cannot be stored.
    BROKEN = "broken"
