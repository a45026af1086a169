"""The strategies that the settings choose: one transport, one lock, one store per process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, cast

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.settings import MAX_KEPT_DELAY, PREFIX, app_settings

if TYPE_CHECKING:
    from lambda_tasks.backends.base import BaseBackend
    from lambda_tasks.locks.base import BaseLock
    from lambda_tasks.stores.base import BaseStore

EAGER_BACKEND: Final = "lambda_tasks.backends.eager.EagerBackend"
OUTBOX_BACKEND: Final = "lambda_tasks.backends.outbox.OutboxBackend"

#: The settings whose change makes another instance.
_RESTS_ON: Final = {
    "backend": {f"{PREFIX}BACKEND", f"{PREFIX}EAGER", f"{PREFIX}OUTBOX"},
    "lock": {f"{PREFIX}LOCK", f"{PREFIX}SINGLETON_CACHE", "CACHES"},
    "store": {f"{PREFIX}STORE", "DATABASES"},
}

_instances: dict[str, Any] = {}
_building = threading.RLock()


def get_backend() -> BaseBackend:
    """Return the transport: LAMBDA_TASKS_BACKEND, behind the outbox if LAMBDA_TASKS_OUTBOX is set.

    Where LAMBDA_TASKS_EAGER is set, the eager one and no outbox.
    """
    return cast("BaseBackend", _instances.get("backend") or _build("backend"))


def get_lock() -> BaseLock:
    """Return the lock strategy: LAMBDA_TASKS_LOCK."""
    return cast("BaseLock", _instances.get("lock") or _build("lock"))


def get_store() -> BaseStore:
    """Return the store of records: LAMBDA_TASKS_STORE."""
    return cast("BaseStore", _instances.get("store") or _build("store"))


def longest_delay() -> int:
    """Return how many seconds a job may be delayed: in eager mode, which waits for none, as many as in production."""
    # By its name, since tasks may be decorated before models can be imported.
    if app_settings.outbox or app_settings.backend[0] == OUTBOX_BACKEND:
        return MAX_KEPT_DELAY
    if not app_settings.eager:
        return get_backend().max_delay
    path, _ = app_settings.backend
    return cast(int, import_string(path).max_delay)


def _chosen(kind: str) -> tuple[str, dict[str, Any]]:
    chosen: tuple[str, dict[str, Any]] = getattr(app_settings, kind)
    if kind != "backend":
        return chosen
    if app_settings.eager:
        return EAGER_BACKEND, {}
    path, options = chosen
    if app_settings.outbox and path != OUTBOX_BACKEND:
        return OUTBOX_BACKEND, {"transport": {"BACKEND": path, "OPTIONS": options}}
    return chosen


def _build(kind: str) -> object:
    with _building:
        if kind not in _instances:
            path, options = _chosen(kind)
            _instances[kind] = instance(f"{PREFIX}{kind.upper()}", path, options)
        return _instances[kind]


def instance(setting: str, path: str, options: dict[str, Any]) -> object:
    """Return a strategy that `setting` names; raises `InvalidSetting` for what cannot be made."""
    try:
        strategy = import_string(path)
    except ImportError as error:
        raise InvalidSetting(f"{setting} names {path!r}, which cannot be imported: {error}") from error
    try:
        return strategy(**options)
    except TypeError as error:
        raise InvalidSetting(
            f"{setting} gives {path!r} the OPTIONS {sorted(options)}, which it refuses: {error}"
        ) from error


def forget_strategies(*, setting: str, **_: object) -> None:
    """Drop the instance that rests on a setting when that changes, as in `override_settings`."""
    for kind, settings in _RESTS_ON.items():
        if setting in settings:
            with _building:
                _instances.pop(kind, None)


setting_changed.connect(forget_strategies, dispatch_uid="lambda_tasks.strategies")
