"""The task that the executor, the plugins and the registry use: a function with its name and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from lambda_tasks.definition import keys
from lambda_tasks.definition.options import Options
from lambda_tasks.definition.signatures import TaskSignature
from lambda_tasks.settings import app_settings

# A task has every option as an attribute, but is not a dataclass, which `dataclasses.asdict()` would turn into a dict.
if TYPE_CHECKING:
    from lambda_tasks.definition.retry import RetryPolicy

    _OptionAttributes = Options
else:
    _OptionAttributes = object


class Task(_OptionAttributes):
    """A function with the options of `@lambda_task` as attributes. `LambdaTaskWrapper` adds methods that send it."""

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.set_options(options)
        self.function = function
        self.is_coroutine = iscoroutinefunction(function)
        self.signature = TaskSignature(function, sensitive=options.sensitive)
        if options.schedule:
            from lambda_tasks.definition.schedules import check_schedules

            check_schedules(options.schedule, self.signature)
        #: The dotted path by which workers find the task.
        self.name: str = self.signature.name
        keys.check_parameters(self)

    def set_options(self, options: Options) -> None:
        """Copy every option to an attribute. Creating `options` has already validated them."""
        self.options = options
        self.__dict__.update(vars(options))
        #: Whether the decorator names invocations that follow the task.
        self.is_followed = bool(options.on_success or options.on_failure)
        #: Whether the age of a message matters, so that its retries have to carry the time of the first one.
        self.measures_age = options.expires_in is not None or any(
            policy.max_age is not None for policy in self._own_policies()
        )

    def timeouts(self) -> tuple[int, int]:
        """Return the soft and the hard timeout in seconds: the task's own, or the settings' defaults."""
        return app_settings.timeouts(self.soft_timeout, self.hard_timeout, of=self.name)

    def retried_types(self, error: BaseException) -> tuple[type[BaseException], ...]:
        """Return the exception types that decide whether `error` is retried: one of them must match it."""
        if self.retry is None:
            return self.retry_on
        if isinstance(self.retry, Mapping):
            return tuple(kind for kind in type(error).__mro__ if kind in self.retry)[:1]  # the most specific one
        return self.retry.on

    def retry_policy(self, error: BaseException) -> RetryPolicy:
        """Return the policy for a retry after `error`, for whatever reason the task is retried."""
        if isinstance(self.retry, Mapping):
            for kind in self.retried_types(error):
                return self.retry[kind]
        elif self.retry is not None:
            return self.retry
        return self._short_form()

    def retry_policies(self) -> list[RetryPolicy]:
        """Return the policies for the errors that the task raises; none if it is not retried."""
        return self._own_policies() or ([self._short_form()] if self.retry_on else [])

    def _own_policies(self) -> list[RetryPolicy]:
        if self.retry is None:
            return []
        return list(self.retry.values()) if isinstance(self.retry, Mapping) else [self.retry]

    def _short_form(self) -> RetryPolicy:
        # Imported for a retry, since a process that sends or runs plain tasks does not need it.
        from lambda_tasks.definition.retry import RetryPolicy

        return RetryPolicy(
            on=self.retry_on, max_retries=self.max_retries, delay=self.retry_delay, backoff=self.retry_backoff
        )
