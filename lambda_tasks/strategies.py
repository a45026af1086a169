"""The strategies that the settings choose: one transport, one lock, one store per process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, cast

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.settings import PREFIX, app_settings

if TYPE_CHECKING:
    from lambda_tasks.backends.base import BaseBackend
    from lambda_tasks.locks.base import BaseLock
    from lambda_tasks.stores.base import BaseStore

EAGER_BACKEND: Final = "lambda_tasks.backends.eager.EagerBackend"

#: The settings whose change makes another instance.
_RESTS_ON: Final = {
    "backend": {f"{PREFIX}BACKEND", f"{PREFIX}EAGER"},
    "lock": {f"{PREFIX}LOCK", f"{PREFIX}SINGLETON_CACHE", "CACHES"},
    # Its statements have the time zone of the connection in them.
    "store": {f"{PREFIX}STORE", "DATABASES", "USE_TZ", "TIME_ZONE"},
}

_instances: dict[str, Any] = {}
_building = threading.RLock()


def get_backend() -> BaseBackend:
    """Return the transport: LAMBDA_TASKS_BACKEND, or the eager one where LAMBDA_TASKS_EAGER is set."""
    return cast("BaseBackend", _instances.get("backend") or _build("backend"))


def get_lock() -> BaseLock:
    """Return the lock strategy: LAMBDA_TASKS_LOCK."""
    return cast("BaseLock", _instances.get("lock") or _build("lock"))


def get_store() -> BaseStore:
    """Return the store of records: LAMBDA_TASKS_STORE."""
    return cast("BaseStore", _instances.get("store") or _build("store"))


def _chosen(kind: str) -> tuple[str, dict[str, Any]]:
    if kind == "backend" and app_settings.eager:
        return EAGER_BACKEND, {}
    return cast("tuple[str, dict[str, Any]]", getattr(app_settings, kind))


def _build(kind: str) -> object:
    with _building:
        if kind not in _instances:
            path, options = _chosen(kind)
            _instances[kind] = _instance(f"{PREFIX}{kind.upper()}", path, options)
        return _instances[kind]


def _instance(setting: str, path: str, options: dict[str, Any]) -> object:
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
