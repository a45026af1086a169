"""System checks of the settings, the strategies and the tasks.

`lambda_tasks.apps` registers them, and imports this module when they run, which most processes do not do.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import ERROR, CheckMessage, Error, Info, Warning
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks import registry
from lambda_tasks.definition import importable
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.recording.described import described, without_secrets
from lambda_tasks.settings import PREFIX, LambdaTasksSettings, Setting, app_settings

#: The beginning of names that are meant as settings of the library, including those with a misspelt prefix.
_OUR_NAMES: Final = "LAMBDA_TASK"
#: The directories in which installers put packages.
_PACKAGE_DIRECTORIES: Final = {"site-packages", "dist-packages"}

#: The usual prefix of Celery's settings in those of Django.
_CELERY: Final = "CELERY_"
#: The seconds for which a task may be retried, on average, before the checks mention it.
LONG_CHAIN: Final = 86_400


def check_settings(**_: Any) -> list[CheckMessage]:
    """Report invalid (E001), missing (E002), contradictory (E003) and unknown (W005) settings.

    Also report NOOP mode (W006) and unsigned messages (W007), and name the counterparts of Celery's settings (I002).
    """
    return [
        *_invalid_settings(),
        *_missing_queues(),
        *_unknown_settings(),
        *_discarded_tasks(),
        *_unsigned_messages(),
        *_celery_settings(),
    ]


def _settings() -> dict[str, Setting[Any]]:
    return {name: setting for name, setting in vars(LambdaTasksSettings).items() if isinstance(setting, Setting)}


def _invalid_settings() -> Iterator[CheckMessage]:
    reported = set()
    for name, setting in _settings().items():
        if setting.is_set or name != "queues":
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


def _unknown_settings() -> Iterator[CheckMessage]:
    from lambda_tasks.definition.hints import for_former_setting

    known = {setting.name for setting in _settings().values()}
    for name in sorted(set(dir(django_settings)) - known):
        if name.startswith(_OUR_NAMES) and name.isupper():
            former, guess = for_former_setting(name), _closest_setting(name)
            # With another prefix, the setting may belong to the project.
            if guess or name.startswith(PREFIX):
                yield Warning(
                    f"{name} is not a setting of django-lambda-tasks, so the library does not read it.",
                    hint=former
                    or (
                        f"Did you mean {guess}?"
                        if guess
                        else f"Remove it. The settings are {', '.join(sorted(known))}."
                    ),
                    id="lambda_tasks.W005",
                )


def _celery_settings() -> Iterator[CheckMessage]:
    """Name the counterparts of Celery's settings, in one message."""
    names = {name: name.removeprefix(_CELERY) for name in dir(django_settings) if name.startswith(_CELERY)}
    if not names:
        return
    from lambda_tasks.definition.hints import SETTINGS

    if found := {name: SETTINGS[short] for name, short in sorted(names.items()) if short in SETTINGS}:
        yield Info(
            f"{', '.join(found)} are read by Celery only.",
            hint=f"The counterparts are {'; '.join(f'{theirs}: {ours}' for theirs, ours in found.items())}. "
            "Silence this message while both libraries are in use.",
            id="lambda_tasks.I002",
        )


def _discarded_tasks() -> Iterator[CheckMessage]:
    try:
        discards = app_settings.noop_execution
    except ImproperlyConfigured:
        return  # reported as E001
    # Django's test runners, and pytest-django, add `outbox` to this module, and set DEBUG = False.
    tested = hasattr(sys.modules.get("django.core.mail"), "outbox")
    if discards and not django_settings.DEBUG and not tested:
        yield Warning(
            "LAMBDA_TASKS_NOOP_EXECUTION is True: tasks and retries are discarded, and never run.",
            hint="Remove LAMBDA_TASKS_NOOP_EXECUTION from the settings, unless this process runs tests.",
            id="lambda_tasks.W006",
        )


def _unsigned_messages() -> Iterator[CheckMessage]:
    try:
        accepts = app_settings.accept_unsigned is True and app_settings.signing_keys
    except ImproperlyConfigured:
        return  # reported as E001
    if accepts:
        yield Warning(
            "LAMBDA_TASKS_ACCEPT_UNSIGNED is True: workers run messages without a signature, so that "
            "LAMBDA_TASKS_SIGNING_KEYS protects nothing.",
            hint="Remove LAMBDA_TASKS_ACCEPT_UNSIGNED when all senders have a key. Until then, set it to a datetime "
            "with a time zone, after which it has no effect.",
            id="lambda_tasks.W007",
        )


#: How similar a misspelt setting is to the real one: all names look alike a little.
_SIMILAR: Final = 0.7


def _closest_setting(name: str) -> str | None:
    from difflib import get_close_matches

    # Without the prefix, which all settings have in common.
    word = name.removeprefix(_OUR_NAMES).removeprefix("S").removeprefix("_").lower()
    longer = [each for each in _settings() if each.endswith(f"_{word}")]
    close = longer or get_close_matches(word, _settings(), n=1, cutoff=_SIMILAR)
    return f"{PREFIX}{close[0].upper()}" if close else None


def _unless_known(error: ImproperlyConfigured, check_id: str, obj: Any = None) -> Iterator[CheckMessage]:
    """Report `error`, unless `_invalid_settings()` reports the same error."""
    if str(error) not in {message.msg for message in _invalid_settings()}:
        yield Error(str(error), obj=obj, id=check_id)


def _leaves_process() -> bool:
    from lambda_tasks.strategies import get_backend

    try:
        return get_backend().leaves_process
    except ImproperlyConfigured:
        return False  # reported as E004


def _missing_queues() -> Iterator[CheckMessage]:
    if _leaves_process() and not LambdaTasksSettings.queues.is_set:
        yield Error(
            "LAMBDA_TASKS_QUEUES is not set.",
            hint='Map queue names to SQS queue URLs: {"default": "https://sqs.…"}. To run tasks without a queue, set '
            "LAMBDA_TASKS_EAGER = True.",
            id="lambda_tasks.E002",
        )


def check_strategies(**_: Any) -> list[CheckMessage]:
    """Report strategies that cannot be created (E004), and the messages of their own checks."""
    from lambda_tasks.strategies import get_backend, get_lock, get_store

    registry.import_tasks_of_apps()
    messages: list[CheckMessage] = []
    for get_strategy in (get_backend, get_lock, get_store):
        try:
            strategy = get_strategy()
            messages += _check_lock(strategy) if get_strategy is get_lock else strategy.check()
        except Exception as error:
            if not isinstance(error, ImproperlyConfigured):
                error = ImproperlyConfigured(_failed_check(get_strategy, error))
            # Checking the outbox may already have reported the store's error.
            messages += [each for each in _unless_known(error, "lambda_tasks.E004") if each not in messages]
    return messages


def _check_lock(lock: Any) -> list[CheckMessage]:
    """Return the messages of the lock, but no warnings if no task uses it."""
    if not _leaves_process():
        return []  # any lock is sufficient
    is_used = any(task.singleton for task in registry.registered_tasks())
    return [message for message in lock.check() if is_used or message.is_serious(ERROR)]


def _failed_check(get_strategy: Any, error: Exception) -> str:
    setting = f"{PREFIX}{get_strategy.__name__.removeprefix('get_').upper()}"
    path, options = getattr(app_settings, setting.removeprefix(PREFIX).lower())
    reason = without_secrets(f"{type(error).__name__}: {error}", options)
    return f"{setting} names {described(path)}, whose check() must return a list of messages. It raised {reason}"


def check_databases(**_: Any) -> list[CheckMessage]:
    """Report databases of records and outboxes that do not commit (E020), or that pool unchecked connections (W020)."""
    from lambda_tasks.operations.database_settings import check_entries

    return list(check_entries())


def check_durability(databases: Collection[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Report databases whose server may lose committed tasks in a crash (W021). Runs only with `--database`."""
    from lambda_tasks.operations.database_settings import check_sessions

    return list(check_sessions(databases or ()))


def check_plugins(**_: Any) -> list[CheckMessage]:
    """Report plugins that cannot be loaded (E005)."""
    from lambda_tasks.plugins import load_plugins

    try:
        load_plugins()
    except ImproperlyConfigured as error:
        return [*_unless_known(error, "lambda_tasks.E005")]
    return []


def check_tasks(**_: Any) -> list[CheckMessage]:
    """Report problems of tasks: queue, limits, delays (E007), annotations (E008), module (E009, W004, W026), retries
    (I001), schedules (E010, W027).

    The checks first import the modules in which workers look for tasks, since Django itself may not have done so.
    """
    failed = registry.import_tasks_of_apps()
    messages = [message for module_name, error in failed.items() for message in _failed_import(module_name, error)]
    tasks = registry.registered_tasks()
    return [*messages, *(message for task in tasks for message in _check_task(task)), *_long_chains(tasks)]


def _long_chains(tasks: Iterable[Any]) -> Iterator[CheckMessage]:
    try:
        of_all = app_settings.max_retries
    except ImproperlyConfigured:
        return  # reported as E001
    for task in tasks:
        spans = [policy.average_span(of_all) for policy in task.retry_policies()]
        if (span := min(max(spans, default=0), task.expires_in or math.inf)) > LONG_CHAIN:
            yield Info(
                f"{task.name} is retried for {span / LONG_CHAIN:.1f} days if it always fails.",
                hint="Limit its retries with max_retries or max_age, or with LAMBDA_TASKS_MAX_RETRIES.",
                obj=task,
                id="lambda_tasks.I001",
            )


def _failed_import(module_name: str, error: Exception) -> Iterator[CheckMessage]:
    reason = f"{module_name} cannot be imported: {type(error).__name__}: {error} ({_place(error)})"
    if isinstance(error, ModuleNotFoundError) and _is_installed(module_name):
        yield Warning(
            f"{reason}. Workers do not find its tasks.",
            hint=f"If you need these tasks, install {error.name!r}. The module may also belong to another task queue.",
            id="lambda_tasks.W004",
        )
    elif not isinstance(error, ImproperlyConfigured) or [*_unless_known(error, "lambda_tasks.E009")]:
        yield Error(f"{reason}. Workers do not find its tasks.", hint="Correct the error.", id="lambda_tasks.E009")


def _is_installed(module_name: str) -> bool:
    """Return whether the module is part of an installed package and not of the project."""
    config = apps.get_containing_app_config(module_name)
    return config is not None and not _PACKAGE_DIRECTORIES.isdisjoint(Path(config.path).parts)


def _place(error: Exception) -> str:
    """Return the file and the line that raised `error`, or that called the library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    own = str(Path(__file__).parent.parent)
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [
        frame for frame in frames if not frame.filename.startswith((own, "<frozen")) and frame.name != "import_module"
    ]
    last = (foreign or list(frames))[-1]
    return f"{last.filename}:{last.lineno}"


def _check_task(task: Any) -> Iterator[CheckMessage]:
    try:
        if (task.soft_timeout, task.hard_timeout) != (None, None):  # the defaults are reported as E003
            task.timeouts()
        if LambdaTasksSettings.queues.is_set or not _leaves_process():  # otherwise E002
            app_settings.refuse_unknown_queue(task.queue, task_name=task.name)
        try:
            task.check_delays()
        except ValueError as error:
            yield Error(f"{task.name}: {error}", obj=task, id="lambda_tasks.E007")
    except ImproperlyConfigured as error:
        yield from _unless_known(error, "lambda_tasks.E007", obj=task)
    module_name = task.function.__module__
    try:
        # Sending a task that is defined inside a function raises an error.
        reserved = "." not in task.function.__qualname__ and importable.is_reserved(module_name)
    except ImproperlyConfigured:
        reserved = False  # reported as E001
    if reserved:
        yield Warning(
            f"{task.name}: a worker refuses to import {module_name} for a message, because the name is reserved for "
            "scripts, tests, migrations or configuration.",
            hint="Move the task to an ordinary module, or name the module in LAMBDA_TASKS_MODULES.",
            obj=task,
            id="lambda_tasks.W026",
        )
    try:
        task.signature.check()
    except InvalidArguments as error:
        yield Error(str(error), obj=task, id="lambda_tasks.E008")
        return
    if task.schedule:
        from lambda_tasks.operations.schedule_checks import check_schedules_of

        yield from check_schedules_of(task)


def check_deployment(**_: Any) -> list[CheckMessage]:
    """Warn of eager mode in production (W002)."""
    try:
        eager = app_settings.eager
    except ImproperlyConfigured:
        return []  # reported as E001
    if eager:
        return [
            Warning(
                "LAMBDA_TASKS_EAGER is True: tasks run inside the requests that enqueue them, without time limits.",
                hint="Remove LAMBDA_TASKS_EAGER from the production settings.",
                id="lambda_tasks.W002",
            )
        ]
    return []


def check_tables(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Report record tables with a wrong schema (E021), or from an earlier published version (W022, W023)."""
    from django.db import connections, router

    from lambda_tasks.models import TaskRecord

    aliases = [alias for alias in databases or () if router.allow_migrate_model(alias, TaskRecord)]
    return [message for alias in aliases for message in _check_table(connections[alias], TaskRecord._meta.db_table)]


def _check_table(connection: Any, table: str) -> Iterator[CheckMessage]:
    from lambda_tasks.database import online, published

    if not online.column_names(connection, table):
        return  # `migrate` has not created it yet
    where = f"Table {table} of database {connection.alias!r}"
    if problem := published.misfit(connection, table):
        yield Error(
            f"{where} is not a table of django-lambda-tasks: {problem}.", hint=published.REMEDY, id="lambda_tasks.E021"
        )
    elif published.is_unfinished(connection, table):
        yield Warning(
            f"{where} was created by an earlier version of django-lambda-tasks, and no task can run with it.",
            hint="Make a backup and run migrate, which upgrades the table in place and keeps all records.",
            id="lambda_tasks.W022",
        )
    elif statuses := published.old_statuses(connection, table):
        yield Warning(
            f"{where} contains records with the status {' and '.join(statuses)}, written after the upgrade by workers "
            "that still run version 0.8.",
            hint=f"Stop these workers, and run: {published.renaming(statuses, table)}",
            id="lambda_tasks.W023",
        )
