"""Create the transport, the lock and the store that the settings name, once per process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.foundation.forks import ForkSafeLock
from lambda_tasks.recording.described import described, names, without_secrets
from lambda_tasks.settings import MAX_DELAY, MAX_KEPT_DELAY, PREFIX, app_settings

if TYPE_CHECKING:
    from lambda_tasks.backends.base import BaseBackend
    from lambda_tasks.locks.base import BaseLock
    from lambda_tasks.stores.base import BaseStore

EAGER_BACKEND: Final = "lambda_tasks.backends.eager.EagerBackend"
NOOP_BACKEND: Final = "lambda_tasks.backends.noop.NoopBackend"
SQS_BACKEND: Final = "lambda_tasks.backends.sqs.SQSBackend"
OUTBOX_BACKEND: Final = "lambda_tasks.backends.outbox.OutboxBackend"

#: The settings on which each strategy depends. After a change, a new instance is created.
_DEPENDS_ON: Final = {
    "backend": {f"{PREFIX}BACKEND", f"{PREFIX}EAGER", f"{PREFIX}NOOP_EXECUTION", f"{PREFIX}OUTBOX"},
    "lock": {f"{PREFIX}LOCK", f"{PREFIX}SINGLETON_CACHE", "CACHES"},
    "store": {f"{PREFIX}STORE", "DATABASES"},
}

#: The base class of the strategies in a setting, as a dotted path, since the strategies import this module.
_BASES: Final = {
    f"{PREFIX}BACKEND": "lambda_tasks.backends.base.BaseBackend",
    f"{PREFIX}LOCK": "lambda_tasks.locks.base.BaseLock",
    f"{PREFIX}STORE": "lambda_tasks.stores.base.BaseStore",
}

_instances: dict[str, Any] = {}
_building = ForkSafeLock()


def get_backend() -> BaseBackend:
    """Return the transport in LAMBDA_TASKS_BACKEND, behind the outbox if LAMBDA_TASKS_OUTBOX is set.

    If LAMBDA_TASKS_EAGER is set, return the eager transport without an outbox. If LAMBDA_TASKS_NOOP_EXECUTION is set,
    return the transport that discards jobs.
    """
    backend: BaseBackend = _instances.get("backend") or _build("backend")
    return backend


def sends_directly() -> bool:
    """Return whether the transport is SQS without an outbox, without importing it."""
    return _chosen("backend")[0] == SQS_BACKEND


def get_lock() -> BaseLock:
    """Return the lock strategy in LAMBDA_TASKS_LOCK."""
    lock: BaseLock = _instances.get("lock") or _build("lock")
    return lock


def get_store() -> BaseStore:
    """Return the store of records in LAMBDA_TASKS_STORE."""
    store: BaseStore = _instances.get("store") or _build("store")
    return store


def longest_delay() -> int:
    """Return the maximum delay of a job in seconds. Modes that do not wait have the limit of production."""
    # Compare the path, since tasks may be decorated before models can be imported.
    if app_settings.outbox or app_settings.backend[0] == OUTBOX_BACKEND:
        return MAX_KEPT_DELAY
    if not (app_settings.eager or app_settings.noop_execution):
        return get_backend().max_delay
    path, _ = app_settings.backend
    return int(getattr(strategy_class(f"{PREFIX}BACKEND", path), "max_delay", MAX_DELAY))  # it may be a function


def _chosen(kind: str) -> tuple[str, dict[str, Any]]:
    chosen: tuple[str, dict[str, Any]] = getattr(app_settings, kind)
    if kind != "backend":
        return chosen
    if app_settings.noop_execution:
        return NOOP_BACKEND, {}
    if app_settings.eager:
        return EAGER_BACKEND, {}
    path, options = chosen
    if app_settings.outbox and path != OUTBOX_BACKEND:
        return OUTBOX_BACKEND, {"transport": {"BACKEND": path, "OPTIONS": options}}
    return chosen


def _build(kind: str) -> Any:
    with _building:
        if kind not in _instances:
            path, options = _chosen(kind)
            _instances[kind] = instance(f"{PREFIX}{kind.upper()}", path, options)
        return _instances[kind]


def instance(setting: str, path: str, options: dict[str, Any]) -> object:
    """Return the strategy that `setting` names, or raise `InvalidSetting` if it cannot be created.

    The error does not quote options that may be secrets, and its cause does not either.
    """
    make = strategy_class(setting, path)
    try:
        made = make(**options)
    except ImproperlyConfigured:
        raise
    except Exception as error:
        reason = _said(error)
        told = without_secrets(reason, options)
        raise InvalidSetting(
            f"{setting} passes the OPTIONS {names(options)} to {described(path)}, which rejects them: {told}"
        ) from (error if told == reason else None)
    if not isinstance(made, import_string(_BASES[setting])):  # a function may return any object
        raise InvalidSetting(f"{setting} must name a subclass of {_BASES[setting]}, not {described(make)}.")
    return made


def strategy_class(setting: str, path: str) -> Any:
    """Return the class that `setting` names, or the function that creates an instance.

    Raises `InvalidSetting` if it does not exist or is of the wrong type.
    """
    try:
        found = import_string(path)
    except Exception as error:  # importing its module can raise any exception
        if apps.apps_ready and not apps.is_installed("lambda_tasks"):
            raise InvalidSetting('INSTALLED_APPS must contain "lambda_tasks". Add it, and run migrate.') from error
        shown = described(path)
        if shown != repr(path):  # the error would quote the path
            raise InvalidSetting(f"{setting} must be a dotted path, not {shown}.") from None
        raise InvalidSetting(f"{setting} names {shown}, which cannot be imported: {_said(error)}") from error
    fits = issubclass(found, import_string(_BASES[setting])) if isinstance(found, type) else callable(found)
    if not fits:
        raise InvalidSetting(f"{setting} must name a subclass of {_BASES[setting]}, not {described(found)}.")
    return found


def _said(error: Exception) -> str:
    if isinstance(error, ImportError | TypeError):  # their messages are clear without the type
        return str(error)
    return f"{type(error).__name__}: {error}"


def forget_all() -> None:
    """Discard all instances, and with them their clients. The next use creates new ones."""
    with _building:
        _instances.clear()


def forget_strategies(*, setting: str, **_: object) -> None:
    """Discard the instances that depend on a setting when it changes, as in `override_settings`."""
    for kind, settings in _DEPENDS_ON.items():
        if setting in settings:
            with _building:
                _instances.pop(kind, None)


setting_changed.connect(forget_strategies, dispatch_uid="lambda_tasks.strategies")
