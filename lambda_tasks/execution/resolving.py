"""Find the task of a message, and enforce time limits while its module is imported."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from lambda_tasks import registry
from lambda_tasks.database.errors import close_broken_connections
from lambda_tasks.exceptions import Redeliver
from lambda_tasks.limits.alarms import KILL_GRACE, TimeLimits
from lambda_tasks.plugins import first, hooks
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task

#: Seconds until a message is redelivered after the import of its module took too long.
SLOW_IMPORT_PAUSE = 60.0
#: Seconds that an import gets even if the invocation is about to end.
_SHORTEST = 0.1


def resolve(task_name: str, deadline: float | None = None) -> Task:
    """Return the task, importing its module under the default time limits if it is not imported yet.

    The limits are shortened to end before `deadline`, which is a time by `time.monotonic()`. They apply only in the
    main thread. Raise `UnknownTask` for an unknown name, and `Redeliver` if the import exceeds a limit.
    """
    if registry.known_task(task_name) is not None or threading.current_thread() is not threading.main_thread():
        return _resolve_with_hooks(task_name)
    soft, hard = app_settings.timeouts(None, None, of="Importing a task's module")
    limits = TimeLimits(*_shortened(soft, hard, deadline))
    try:
        with limits, limits.armed():
            return _resolve_with_hooks(task_name)
    except Exception as error:
        if not limits.interrupted:
            raise
        raise Redeliver(
            f"importing the module of {task_name!r} exceeded its time limit of {limits.soft_timeout:g} s; "
            "move slow work out of the top level of the module",
            visible_in=SLOW_IMPORT_PAUSE,
        ) from error
    finally:
        if limits.interrupted:
            # The limit may have interrupted a query.
            close_broken_connections()


def _resolve_with_hooks(task_name: str) -> Task:
    return first(hooks().lambda_task_resolve, task_name=task_name)  # type: ignore[no-any-return]  # the default never returns None


def _shortened(soft: float, hard: float, deadline: float | None) -> tuple[float, float]:
    if deadline is None:
        return soft, hard
    left = max(deadline - time.monotonic() - KILL_GRACE, _SHORTEST)
    return (soft, hard) if left >= hard else (min(soft, 0.9 * left), left)
