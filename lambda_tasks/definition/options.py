"""The options of `@lambda_task`: their names, types, defaults and limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from lambda_tasks.definition import keys
from lambda_tasks.definition.atomicity import check_atomic
from lambda_tasks.definition.keys import ONE_DAY
from lambda_tasks.exceptions import exception_types, refuse_to_ignore_retries
from lambda_tasks.settings import delay_seconds, timeout_seconds, whole_number

if TYPE_CHECKING:
    from lambda_tasks.definition.groups import GroupOption
    from lambda_tasks.definition.keys import KeyOption, OnContention, OnDuplicate
    from lambda_tasks.definition.option_types import RecordOption
    from lambda_tasks.definition.retry import RetryPolicy
    from lambda_tasks.definition.schedules import Schedule
    from lambda_tasks.definition.steps import Step

_ON_CRASH: Final = ("retry", "fail")
_RECORD: Final = ("all", "failures", None)


# Not a dataclass: every process would compile its methods.
class Options:
    """The validated options of a task. All numbers except `max_retries` are seconds.

    Raises TypeError for a value of the wrong type, and ValueError for an invalid value.
    """

    soft_timeout: int | None = None
    hard_timeout: int | None = None
    queue: str = "default"
    group: GroupOption = None
    ignore_errors: tuple[type[BaseException], ...] = ()
    retry: RetryPolicy | Mapping[type[BaseException], RetryPolicy] | None = None
    retry_on: tuple[type[BaseException], ...] = ()
    retry_delay: int = 0
    retry_backoff: bool = False
    max_retries: int | None = None
    singleton: KeyOption = False
    max_concurrency: int | None = None
    on_contention: OnContention = "retry"
    max_wait: float = ONE_DAY
    unique: KeyOption = False
    on_duplicate: OnDuplicate = "return"
    unique_for: float = ONE_DAY
    delay: int = 0
    on_crash: Literal["retry", "fail"] = "retry"
    record: RecordOption = None
    expires_in: int | None = None
    aliases: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()
    atomic: bool = True
    schedule: tuple[Schedule, ...] = ()
    on_success: tuple[Step, ...] = ()
    on_failure: tuple[Step, ...] = ()

    def __init__(self, **given: Any) -> None:
        vars(self).update(_DEFAULTS, **given)
        self._check_timeouts()
        self._check_routing()
        self._check_errors()
        self._check_retries()
        self._check_expiry()
        self._check_aliases()
        self._check_policies()
        check_atomic(self.atomic)
        keys.check(self)
        if self.on_crash not in _ON_CRASH:
            raise ValueError(f"on_crash must be {' or '.join(map(repr, _ON_CRASH))}, not {self.on_crash!r}.")
        if self.record not in _RECORD:
            raise ValueError(f"record must be 'all', 'failures' or None, not {self.record!r}.")
        self.schedule = _schedules(self.schedule)
        for name in ("on_success", "on_failure"):
            setattr(self, name, follow_ups(getattr(self, name), name))

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Return the options, with iterables converted to tuples."""
        unknown = given.keys() - _DEFAULTS.keys()
        if unknown:
            from lambda_tasks.definition.hints import for_options  # for those who come from another library

            raise TypeError(
                f"Unknown options for @lambda_task: {', '.join(sorted(unknown))}. "
                f"The options are {', '.join(_DEFAULTS)}.{for_options(unknown)}"
            )
        for name in ("ignore_errors", "retry_on"):
            if name in given:
                given[name] = exception_types(given[name], name)
        if "aliases" in given:
            given["aliases"] = _names(given["aliases"])
        if "sensitive" in given:
            given["sensitive"] = _parameter_names(given["sensitive"])
        return cls(**given)

    def _check_timeouts(self) -> None:
        for name in ("soft_timeout", "hard_timeout"):
            if (value := getattr(self, name)) is not None:
                timeout_seconds(value, name)
        if self.soft_timeout is not None and self.hard_timeout is not None and self.soft_timeout >= self.hard_timeout:
            raise ValueError(
                f"soft_timeout must be shorter than hard_timeout ({self.hard_timeout}), not {self.soft_timeout}."
            )

    def _check_routing(self) -> None:
        if not isinstance(self.queue, str):
            raise TypeError(f"queue must be the name of a queue in LAMBDA_TASKS_QUEUES, not {self.queue!r}.")
        if not self.queue:
            raise ValueError("queue must be the name of a queue in LAMBDA_TASKS_QUEUES, not ''.")
        if self.group is not None:
            from lambda_tasks.definition.groups import check_option  # few tasks have groups

            check_option(self.group)
        delay_seconds(self.delay, "delay")

    def _check_errors(self) -> None:
        delay_seconds(self.retry_delay, "retry_delay")
        if self.retry_delay and not self.retry_on:
            raise ValueError(
                f"retry_delay must be 0 if retry_on is empty, not {self.retry_delay}. "
                "Add the exception types to retry to retry_on."
            )
        keys.refuse_lock_errors(self, self.retry_on, "retry_on")
        for error_type in self.retry_on:
            for ignored in self.ignore_errors:
                if issubclass(error_type, ignored):
                    raise TypeError(self._never_retried(error_type, ignored))

    @staticmethod
    def _never_retried(error_type: type[BaseException], ignored: type[BaseException]) -> str:
        if error_type is ignored:
            return (
                f"retry_on and ignore_errors must not have exception types in common, and both contain "
                f"{ignored.__name__}. Remove it from one of them."
            )
        return (
            f"retry_on must not contain {error_type.__name__}, because ignore_errors contains its base class "
            f"{ignored.__name__}, and ignored errors are never retried. Remove {error_type.__name__} from retry_on, or "
            f"replace {ignored.__name__} in ignore_errors by narrower types."
        )

    def _check_retries(self) -> None:
        if not isinstance(self.retry_backoff, bool):
            raise TypeError(
                f"retry_backoff must be True or False, not {self.retry_backoff!r}. Give the seconds in retry_delay."
            )
        if self.retry_backoff and not self.retry_delay:
            raise ValueError(
                "retry_backoff must be False if retry_delay is 0, because it doubles retry_delay with each retry. "
                "Set retry_on, and a retry_delay of 1 or more."
            )
        if self.max_retries is not None:
            whole_number(0)(self.max_retries, "max_retries")

    def _check_policies(self) -> None:
        refuse_to_ignore_retries(self.ignore_errors)
        if self.retry is not None:
            # Imported for the tasks that use it: the dataclass compiles its methods in every process.
            from lambda_tasks.definition.retry import checked_retry

            self.retry = checked_retry(**vars(self))
            types = self.retry if isinstance(self.retry, Mapping) else self.retry.on
            keys.refuse_lock_errors(self, types, "retry")

    def _check_expiry(self) -> None:
        if self.expires_in is None:
            return
        whole_number(1, unit="seconds")(self.expires_in, "expires_in")
        for name in ("delay", "retry_delay"):
            if (waiting := getattr(self, name)) >= self.expires_in:
                raise ValueError(
                    f"{name} must be shorter than expires_in ({self.expires_in}), not {waiting}. "
                    "A message that waits that long expires before a worker receives it."
                )

    def _check_aliases(self) -> None:
        if not self.aliases:
            return
        from lambda_tasks.wire.invocation import MAX_NAME_LENGTH, is_task_name  # few tasks have aliases

        for alias in self.aliases:
            if not is_task_name(alias) or len(alias) > MAX_NAME_LENGTH:
                raise ValueError(
                    f"aliases must contain dotted paths of at most {MAX_NAME_LENGTH} characters, such as "
                    f"'shop.mail.send', not {alias!r}."
                )


#: The names of all options, with their defaults.
_DEFAULTS: Final[dict[str, Any]] = {name: getattr(Options, name) for name in Options.__annotations__}
OPTION_NAMES: Final = tuple(_DEFAULTS)


def _schedules(value: object) -> tuple[Schedule, ...]:
    if value == ():
        return ()
    from lambda_tasks.definition.schedules import schedules_of  # most processes have no task with a schedule

    return schedules_of(value)


def follow_ups(value: object, name: str) -> tuple[Step, ...]:
    """Return the invocations in the value of the option `name`, which is `on_success` or `on_failure`."""
    if value == ():
        return ()
    from lambda_tasks.definition.steps import AFTER_FAILURE, AFTER_SUCCESS, steps_of  # few tasks are followed

    return steps_of(value, name, AFTER_SUCCESS if name == "on_success" else AFTER_FAILURE)


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f'aliases must be a tuple of dotted paths, as in aliases=("shop.mail.send",), not {value!r}.')
    names = tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"aliases must contain dotted paths as strings, not {name!r}.")
    return tuple(dict.fromkeys(names))


def _parameter_names(value: object) -> tuple[str, ...]:
    constraint = 'sensitive must be a tuple of parameter names, as in sensitive=("token",)'
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{constraint}, not {value!r}.")
    names = tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{constraint}. It contains {name!r}.")
    return tuple(dict.fromkeys(names))
