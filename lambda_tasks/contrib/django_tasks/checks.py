"""What `manage.py check` reports about the backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from django.core.checks import CheckMessage, Error, Warning

from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.settings import LambdaTasksSettings, app_settings
from lambda_tasks.strategies import get_store


def check_backend(alias: str, queues: Collection[str], queue_names: Mapping[str, str]) -> list[CheckMessage]:
    """Report queues without a URL (E040), and a store whose results cannot be read (W040)."""
    return [*_check_queues(alias, queues, queue_names), *_check_store(alias)]


def _check_queues(alias: str, queues: Collection[str], queue_names: Mapping[str, str]) -> list[CheckMessage]:
    try:
        if app_settings.eager or not LambdaTasksSettings.queues.is_set:
            return []  # reported as E002, unless no queue is needed
        known = app_settings.queues
    except InvalidSetting:
        return []  # reported as E001
    wanted = {name: queue_names.get(name, name) for name in {*queues, *queue_names}}
    return [
        Error(
            f"Queue {name!r} of {alias!r} in TASKS is {queue!r} in LAMBDA_TASKS_QUEUES, which has no such queue.",
            hint=f'Add its URL there, or map the name: "OPTIONS": {{"queues": {{{name!r}: "default"}}}}.',
            id="lambda_tasks.E040",
        )
        for name, queue in sorted(wanted.items())
        if queue not in known
    ]


def _check_store(alias: str) -> list[CheckMessage]:
    try:
        store = get_store()
    except InvalidSetting:
        return []  # reported as E003
    if store.keeps_records:
        return []
    return [
        Warning(
            f"The results of {alias!r} in TASKS stay READY, because {type(store).__name__} in LAMBDA_TASKS_STORE does "
            "not write TaskRecord.",
            hint="Use ORMStore, or do not read results.",
            id="lambda_tasks.W040",
        )
    ]
