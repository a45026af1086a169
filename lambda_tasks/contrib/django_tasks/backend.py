"""The backend that TASKS names. It imports no models, since tasks may be defined before these can be imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from django.core.checks import CheckMessage

from lambda_tasks.contrib.django_tasks.adapters import DjangoTask, adapter_of
from lambda_tasks.contrib.django_tasks.compat import (
    AnyTask,
    AnyTaskResult,
    BaseTaskBackend,
    InvalidTaskBackend,
    TaskResultDoesNotExist,
)
from lambda_tasks.contrib.django_tasks.options import options_of, refuse_queue
from lambda_tasks.database.coroutines import refuse_coroutine
from lambda_tasks.plugins import add_plugin
from lambda_tasks.recording.described import described, names

#: The plugin that sends Django's signals.
HOOKS: Final = "lambda_tasks.contrib.django_tasks.hooks"


class LambdaTasksBackend(BaseTaskBackend):
    """Sends Django's tasks through the library: on commit to the queue, and from there to its handler and records.

    OPTIONS: `queues`, a dict from queue names in QUEUES to those in LAMBDA_TASKS_QUEUES, for names that differ;
    `defaults`, a dict of options of `@lambda_task` for all tasks without an own value in `@lambda_options`.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = False

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.queue_names = self._dict_option("queues")
        self.defaults = self._dict_option("defaults")
        if unknown := dict.fromkeys(self.options.keys() - {"queues", "defaults"}):
            raise InvalidTaskBackend(
                f"OPTIONS of {alias!r} in TASKS must have only the keys queues and defaults, not {names(unknown)}."
            )
        try:
            refuse_queue(self.defaults, "defaults")
            options_of(type(self), self.defaults, queue="default")
        except (TypeError, ValueError) as error:
            raise InvalidTaskBackend(f"OPTIONS of {alias!r} in TASKS has invalid defaults: {error}") from None
        add_plugin(HOOKS)

    def _dict_option(self, name: str) -> dict[str, Any]:
        value = self.options.get(name, {})
        if not isinstance(value, dict):
            raise InvalidTaskBackend(
                f"{name} in OPTIONS of {self.alias!r} in TASKS must be a dict, not {described(value)}."
            )
        return value

    def validate_task(self, task: AnyTask) -> None:
        """Refuse what Django's base class refuses, and invalid options; register the task for workers."""
        super().validate_task(task)
        self.adapter_of(task)

    def adapter_of(self, task: AnyTask) -> DjangoTask:
        """Return what the executor runs for `task`."""
        return adapter_of(task, self.defaults, queue=self.queue_of(task))

    def queue_of(self, task: AnyTask) -> str:
        """Return the name in LAMBDA_TASKS_QUEUES of the queue of `task`."""
        return str(self.queue_names.get(task.queue_name, task.queue_name))

    def enqueue(  # type: ignore[override]  # the stubs demand the arguments of the task, which are not known here
        self, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AnyTaskResult:
        """Send a call when the caller's transaction commits, or now if none is open, and return its result.

        Raises in the caller's transaction: TypeError for arguments that are not JSON values or that the function does
        not take, `InvalidTask` for a task that the backend does not accept, `UnknownQueue`, `MessageTooLarge`, and
        `InvalidArguments` for a `run_after` that is too far away.
        """
        self.validate_task(task)
        refuse_coroutine("enqueue()", "aenqueue(…)")
        from lambda_tasks.contrib.django_tasks.sending import send

        return send(task, args, kwargs, adapter=self.adapter_of(task), queue=self.queue_of(task), sender=type(self))

    def get_result(self, result_id: str) -> AnyTaskResult:
        """Return the result with this id, from any process. Raise `TaskResultDoesNotExist` if there is none.

        Results exist from the commit of the call until the cleanup deletes their records. This makes two queries.
        """
        try:
            root_id = str(UUID(str(result_id)))
        except ValueError:
            raise TaskResultDoesNotExist(result_id) from None
        refuse_coroutine("get_result()", "aget_result(…)")
        from lambda_tasks.contrib.django_tasks.results import find_result

        return find_result(root_id)

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Return the messages of `manage.py check` about the queues, the store and the installed apps."""
        from lambda_tasks.contrib.django_tasks.checks import check_backend

        return [*super().check(**kwargs), *check_backend(self.alias, self.queues, self.queue_names)]
