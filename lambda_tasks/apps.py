"""The Django app."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Tags, register
from django.utils.translation import gettext_lazy as _

#: The logger that exists with the first of the library's others. See `lambda_tasks.recording.lines`.
SENTINEL: Final = "lambda_tasks._sentinel"
#: The backend of Django's tasks, which is loaded only if the settings name it.
DJANGO_TASKS: Final = "lambda_tasks.contrib.django_tasks"


def _when_run(name: str) -> Callable[..., list[CheckMessage]]:
    """Return a system check that imports the library's check of this name when it is run."""

    def check(**options: Any) -> list[CheckMessage]:
        from lambda_tasks.operations import checks

        messages: list[CheckMessage] = getattr(checks, name)(**options)
        return messages

    return check


#: The system checks, with their tags, and whether they need `--deploy`.
_CHECKS: Final[tuple[tuple[Callable[..., list[CheckMessage]], tuple[str, ...], bool], ...]] = (
    (_when_run("check_settings"), (Tags.compatibility,), False),
    (_when_run("check_strategies"), (Tags.compatibility,), False),
    (_when_run("check_databases"), (Tags.compatibility,), False),
    (_when_run("check_durability"), (Tags.database,), False),
    (_when_run("check_plugins"), (Tags.compatibility,), False),
    (_when_run("check_tasks"), (Tags.compatibility,), False),
    (_when_run("check_deployment"), (), True),
    (_when_run("check_tables"), (Tags.database,), False),
)


class LambdaTasksConfig(AppConfig):
    name = "lambda_tasks"
    verbose_name = _("Lambda tasks")
    default_auto_field = "django.db.models.BigAutoField"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        enable_loggers(configured=_disables_loggers())  # early: `django.setup()` has just configured logging

    def ready(self) -> None:
        from lambda_tasks.exceptions import InvalidSetting
        from lambda_tasks.settings import app_settings

        for check, tags, deploy in _CHECKS:
            register(check, *tags, deploy=deploy)  # does nothing when it is repeated
        if any(path.startswith(f"{DJANGO_TASKS}.") for path in _task_backends()):
            from lambda_tasks.plugins import add_plugin

            add_plugin(f"{DJANGO_TASKS}.hooks")  # now, since a message may arrive before its task is imported
        try:
            if app_settings.plugins or app_settings.context:
                from lambda_tasks.plugins import load_plugins

                load_plugins()  # at startup, so that a misspelt hook does not raise an error at the first task
        except InvalidSetting:
            # `manage.py check` reports it together with all other findings.
            if sys.argv[1:2] != ["check"]:
                raise


def _task_backends() -> list[str]:
    """Return the dotted paths of the backends in TASKS, as far as the setting is valid. Django reports the rest."""
    configured = getattr(django_settings, "TASKS", None)
    if not isinstance(configured, dict):
        return []
    return [str(params.get("BACKEND", "")) for params in configured.values() if isinstance(params, dict)]


def _disables_loggers() -> bool:
    """Return whether Django has called `dictConfig` in a way that disables existing loggers, which is its default."""
    configuration = django_settings.LOGGING
    if not (django_settings.LOGGING_CONFIG and configuration and isinstance(configuration, dict)):
        return False
    return bool(configuration.get("disable_existing_loggers", True))


def enable_loggers(*, configured: bool = False) -> None:
    """Enable the library's loggers after `dictConfig` has disabled them, and not those that a project has disabled.

    Unless `disable_existing_loggers` is False, `dictConfig` disables all existing loggers that LOGGING does not name.
    On Lambda, the handler is imported before Django is set up, so nearly all of the library's loggers exist by then.
    A project that sets `disabled` on a logger does not do so on the sentinel. With `configured`, a configuration has
    disabled loggers that existed before the sentinel did.
    """
    if configured or _were_disabled():
        for name, logger in list(logging.root.manager.loggerDict.items()):
            ours = name == "lambda_tasks" or name.startswith("lambda_tasks.")
            if ours and isinstance(logger, logging.Logger):
                logger.disabled = False
    if os.environ.get("LAMBDA_TASKS_LOCAL_WORKER"):
        from lambda_tasks.logging import show_outcomes_locally

        show_outcomes_locally()


def _were_disabled() -> bool:
    sentinel = logging.root.manager.loggerDict.get(SENTINEL)
    return isinstance(sentinel, logging.Logger) and sentinel.disabled
