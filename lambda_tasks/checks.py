"""What `manage.py check` says about the settings, the strategies and the tasks.

Every process that sets Django up imports this module, and most of them check nothing: what only a check
needs is imported there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks import registry
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.settings import LambdaTasksSettings, Setting, app_settings


@register(Tags.compatibility)
def check_settings(**_: Any) -> list[CheckMessage]:
    """Report settings that cannot be used (E001), missing queues (E002), default limits that clash (E003)."""
    return [*_invalid_settings(), *_missing_queues()]


def _invalid_settings() -> Iterator[CheckMessage]:
    reported = set()
    for name, setting in vars(LambdaTasksSettings).items():
        if isinstance(setting, Setting) and (setting.is_set or name != "queues"):
            try:
                getattr(app_settings, name)
            except ImproperlyConfigured as error:
                reported.add(str(error))
                yield Error(str(error), id="lambda_tasks.E001")
    try:
        app_settings.timeouts(None, None, of="Every task without limits of its own")
    except ImproperlyConfigured as error:
        if str(error) not in reported:
            yield Error(str(error), id="lambda_tasks.E003")


def _unless_known(error: ImproperlyConfigured, check_id: str, obj: Any = None) -> Iterator[CheckMessage]:
    """Report `error`, unless it is only the echo of a setting that `_invalid_settings` reports."""
    if str(error) not in {message.msg for message in _invalid_settings()}:
        yield Error(str(error), obj=obj, id=check_id)


def _leaves_process() -> bool:
    from lambda_tasks.strategies import get_backend

    try:
        return get_backend().leaves_process
    except ImproperlyConfigured:
        return False  # E004 says so


def _missing_queues() -> Iterator[CheckMessage]:
    if _leaves_process() and not LambdaTasksSettings.queues.is_set:
        yield Error(
            "LAMBDA_TASKS_QUEUES is not set.",
            hint='Map queue names to SQS queue URLs: {"default": "https://sqs.…"}; or set LAMBDA_TASKS_EAGER = True '
            "where no queue is wanted.",
            id="lambda_tasks.E002",
        )


@register(Tags.compatibility)
def check_strategies(**_: Any) -> list[CheckMessage]:
    """Report strategies that cannot be made (E004), and what they say of themselves."""
    from lambda_tasks.strategies import get_backend, get_lock, get_store

    messages: list[CheckMessage] = []
    for get_strategy in (get_backend, get_lock, get_store):
        try:
            strategy = get_strategy()
            # Where everything runs in this process, any lock will do.
            if get_strategy is not get_lock or _leaves_process():
                messages += strategy.check()
        except ImproperlyConfigured as error:
            # The outbox may have met the store's before.
            messages += [each for each in _unless_known(error, "lambda_tasks.E004") if each not in messages]
    return messages


@register(Tags.compatibility)
def check_plugins(**_: Any) -> list[CheckMessage]:
    """Report plugins that cannot be loaded (E005)."""
    from lambda_tasks.plugins import load_plugins

    try:
        load_plugins()
    except ImproperlyConfigured as error:
        return [*_unless_known(error, "lambda_tasks.E005")]
    return []


@register(Tags.compatibility)
def check_tasks(**_: Any) -> list[CheckMessage]:
    """Report what is wrong with the tasks that are imported: queue, limits, delays (E007), annotations (E008)."""
    return [message for task in registry.registered_tasks() for message in _check_task(task)]


def _check_task(task: Any) -> Iterator[CheckMessage]:
    try:
        if (task.soft_timeout, task.hard_timeout) != (None, None):  # else E003 speaks for it
            task.timeouts()
        if LambdaTasksSettings.queues.is_set:
            app_settings.queue_url(task.queue, task_name=task.name)
        try:
            task.check_delays()
        except ValueError as error:
            yield Error(f"{task.name}: {error}", obj=task, id="lambda_tasks.E007")
    except ImproperlyConfigured as error:
        yield from _unless_known(error, "lambda_tasks.E007", obj=task)
    try:
        task.signature.check()
    except InvalidArguments as error:
        yield Error(str(error), obj=task, id="lambda_tasks.E008")


@register(deploy=True)
def check_deployment(**_: Any) -> list[CheckMessage]:
    """Warn of eager mode in production (W002)."""
    try:
        eager = app_settings.eager
    except ImproperlyConfigured:
        return []  # E001 says so
    if eager:
        return [
            Warning(
                "LAMBDA_TASKS_EAGER is True: tasks run inside of the requests that send them, without time limits.",
                hint="Remove it from the settings of production.",
                id="lambda_tasks.W002",
            )
        ]
    return []
