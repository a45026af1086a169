"""Do the work of a cold start before the first message, and close what copies of the process must not share."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from django.apps import apps
from django.conf import settings as django_settings
from django.core.cache import caches
from django.db import connections

from lambda_tasks import registry, strategies
from lambda_tasks.database.errors import end_session, pool_of
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.settings import app_settings

logger = get_logger("lambda_tasks.environments")

#: Set by the entry point of Managed Instances, which prepares the process after it has imported the project's handler.
postponed = False

#: Modules that the first task with arguments of many types, and the first request to AWS, would import.
_ARGUMENTS: Final = ("pydantic",)
_AWS: Final = ("boto3", "botocore.config", "botocore.exceptions")
#: Modules that read no settings, for a process whose settings need secrets that it must not have yet.
_WITHOUT_SETTINGS: Final = (*_ARGUMENTS, *_AWS, "django.db.models")


def begin(boot: Callable[[], None]) -> None:
    """Prepare the process while `lambda_tasks.handler` is imported, if it knows its settings.

    Do nothing while other code is setting Django up: its `ready()` methods may import the handler.
    """
    if postponed:
        return
    if not (apps.ready or django_settings.configured):
        if "DJANGO_SETTINGS_MODULE" not in os.environ:
            logger.warning(
                "Django is set up in the first invocation and not before it, because DJANGO_SETTINGS_MODULE was not "
                "set when lambda_tasks.handler was imported. Set it in the configuration of the function."
            )
            return
    elif not apps.ready:
        return
    prepare(boot)


def prepare(boot: Callable[[], None]) -> None:
    """Set Django up, and import the tasks, the strategies and what the first messages need.

    `boot` does what no message can run without, and its errors propagate. Other errors are left to the message that
    needs the missing part: until then, nothing is wrong.
    """
    boot()
    connections.all()  # imports the drivers, and connects to nothing
    registry.discover_tasks()
    for get in (strategies.get_store, strategies.get_lock, strategies.get_backend):
        with suppress(Exception):
            get()
    _import(_ARGUMENTS)
    if not (app_settings.eager or app_settings.noop_execution):
        _import(_AWS)


def import_without_settings() -> None:
    """Import what needs no settings, and therefore no secrets."""
    _import(_WITHOUT_SETTINGS)


def release() -> None:
    """Close database connections and their pools, and discard caches, strategies with their clients, and credentials.

    A copy of the process would share their sockets with the original, or find them dead.
    """
    if apps.ready:
        for connection in connections.all(initialized_only=True):
            end_session(connection)
            if pool_of(connection) is not None:
                connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL's alone has pools
        for alias in caches:
            with suppress(AttributeError):  # this thread has not used it
                del caches[alias]
        strategies.forget_all()
    if "boto3" in sys.modules:
        sys.modules["boto3"].DEFAULT_SESSION = None  # type: ignore[attr-defined]  # a module without types


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        with suppress(ImportError):
            importlib.import_module(module)
