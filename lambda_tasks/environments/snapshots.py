"""Take part in the snapshots of Lambda SnapStart, with the hooks of Lambda's own package `snapshot_restore_py`.

A snapshot is restored many times. It must contain no connection, no secret, and no state of a random number generator
that two environments would both continue.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from lambda_tasks.environments import preparing
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.secret_loader import PREFIX, forget_secrets

logger = get_logger("lambda_tasks.environments")


def register(boot: Callable[[], None]) -> None:
    """Register the functions below with Lambda, which calls them around a snapshot; log a warning if it cannot."""
    try:
        from snapshot_restore_py import register_after_restore, register_before_snapshot
    except ImportError:
        logger.warning(
            "The package snapshot-restore-py is not installed, so the process is not prepared before its snapshot. "
            "Use Lambda's own runtime for Python 3.12 or newer, or install awslambdaric 3 or newer."
        )
        return
    register_before_snapshot(before_snapshot, boot)
    register_after_restore(after_restore)


def before_snapshot(boot: Callable[[], None]) -> None:
    """Prepare the process, and close what a restored one cannot use.

    The values of references to secrets would stay in the snapshot as parts of Django's settings, so a process with
    references imports only what needs no settings. Its first invocation fetches the secrets and sets Django up.
    """
    forget_secrets()
    if any(name.startswith(PREFIX) for name in os.environ):
        preparing.import_without_settings()
    else:
        preparing.prepare(boot)
    preparing.release()


def after_restore() -> None:
    """Seed `random` again, and close what was opened between the two hooks."""
    random.seed()
    preparing.release()
