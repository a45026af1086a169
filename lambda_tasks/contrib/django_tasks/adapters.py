"""Functions with Django's `@task`, as the registry and the executor know them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from django.conf import settings as django_settings

from lambda_tasks import registry
from lambda_tasks.contrib.django_tasks import compat
from lambda_tasks.contrib.django_tasks.calls import CallSignature
from lambda_tasks.contrib.django_tasks.options import declared_options, options_of
from lambda_tasks.decorators import check_delays
from lambda_tasks.definition.options import Options
from lambda_tasks.definition.task import Task
from lambda_tasks.exceptions import UnknownTask


class DjangoTask(Task):
    """A function with `@task`, with the options of its `@lambda_options` and of its backend."""

    signature: CallSignature

    def __init__(self, task: compat.AnyTask, options: Options) -> None:
        self.task = task
        self.declared = declared_options(task.func)
        super().__init__(_function_of(self), options)
        self.is_coroutine = iscoroutinefunction(task.func)
        if django_settings.configured:
            self.timeouts()
            self.check_delays()

    def check_delays(self) -> None:
        """Raise ValueError for a delay that the transport does not support."""
        check_delays(self)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def _signature_of(self, function: Callable[..., Any]) -> CallSignature:
        task = self.task
        return CallSignature(
            task.func, sensitive=self.sensitive, takes_context=task.takes_context, backend=task.backend
        )


def adapter_of(task: compat.AnyTask, defaults: Mapping[str, Any], *, queue: str) -> DjangoTask:
    """Return what the executor runs for `task`, and register it under the path of its function.

    `defaults` and `queue` are those of the backend, for a function that is not registered yet.
    """
    known = registry.known_task(task.module_path)
    if isinstance(known, DjangoTask) and known.task.func is task.func:
        if known.declared is declared_options(task.func):
            return known
        task = known.task  # as its module has defined it, without what a later using() has changed
    adapter = DjangoTask(task, options_of(task.func, defaults, queue=queue))
    registry.register(adapter)
    return adapter


def find_adapter(task_name: str) -> DjangoTask | None:
    """Return the Django task with this name or alias, importing its module if a message may do that; None without one.

    Its own backend may be another one, if a caller has chosen ours with `using(backend=…)`.
    """
    try:
        known = registry.find_task(task_name)
    except UnknownTask:
        module_name, _, name = task_name.rpartition(".")
        task = getattr(sys.modules.get(module_name), name, None)
        if not isinstance(task, compat.Task) or task.module_path != task_name:
            return None
        ours = (getattr(backend, "adapter_of", None) for backend in compat.task_backends.all())
        adapt = next(filter(None, ours), None)
        return None if adapt is None else adapt(task)
    return known if isinstance(known, DjangoTask) else None


def _function_of(adapter: DjangoTask) -> Callable[..., Any]:
    """Return a function that calls that of the task with the arguments of a message.

    Its code is named like the hook: `begin_at_task()` leaves it out of tracebacks.
    """
    function = adapter.task.func

    if iscoroutinefunction(function):

        @wraps(function)
        async def lambda_task_call(**encoded: Any) -> Any:
            args, kwargs = adapter.signature.passed(encoded)
            if adapter.task.takes_context:
                from asgiref.sync import sync_to_async

                args.insert(0, await sync_to_async(_context)())
            return compat.normalize_json(await function(*args, **kwargs))

    else:

        @wraps(function)
        def lambda_task_call(**encoded: Any) -> Any:
            args, kwargs = adapter.signature.passed(encoded)
            if adapter.task.takes_context:
                args.insert(0, _context())
            return compat.normalize_json(function(*args, **kwargs))

    return lambda_task_call


def _context() -> compat.AnyTaskContext:
    # Only a process that runs such a task needs it.
    from lambda_tasks.contrib.django_tasks.running import running_result
    from lambda_tasks.execution.strangers import watch_of_caller

    watch = watch_of_caller()
    assert watch is not None, "a function with a context is called by the executor"
    return compat.TaskContext(task_result=running_result(watch.run))
