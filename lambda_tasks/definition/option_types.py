"""The options of `@lambda_task` as type checkers see them. Other processes need not import them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    from lambda_tasks.definition.groups import GroupOption
    from lambda_tasks.definition.keys import KeyOption, OnContention, OnDuplicate
    from lambda_tasks.definition.retry import RetryPolicy
    from lambda_tasks.definition.schedules import Schedule
    from lambda_tasks.definition.steps import Step

ExceptionTypes: TypeAlias = Iterable[type[BaseException]]
#: Which invocations leave a record; None for the setting's value.
RecordOption: TypeAlias = Literal["all", "failures"] | None


class OptionsWithoutRetries(TypedDict, total=False):
    """The keyword arguments of `@lambda_task` that say nothing about retries, for type checkers."""

    soft_timeout: int | None
    hard_timeout: int | None
    queue: str
    group: GroupOption
    ignore_errors: ExceptionTypes
    singleton: KeyOption | list[str]
    max_concurrency: int | None
    on_contention: OnContention
    max_wait: int | float | timedelta
    unique: KeyOption | list[str]
    on_duplicate: OnDuplicate
    unique_for: int | float | timedelta
    delay: int
    on_crash: Literal["retry", "fail"]
    record: RecordOption
    expires_in: int | None
    aliases: Iterable[str]
    sensitive: tuple[str, ...] | list[str]
    atomic: bool
    schedule: Schedule | Iterable[Schedule]
    on_success: Step | Iterable[Step]
    on_failure: Step | Iterable[Step]


class TaskOptions(OptionsWithoutRetries, total=False):
    """The keyword arguments of `@lambda_task` and `LambdaTaskWrapper`, for type checkers."""

    retry: RetryPolicy | Mapping[type[BaseException], RetryPolicy] | None
    retry_on: ExceptionTypes
    retry_delay: int
    retry_backoff: bool
    max_retries: int | None
