"""Test helpers for projects that use the library: collect enqueued tasks, and run them.

    with collect_tasks() as queue:
        with queue.commit():              # only in tests that run inside a transaction
            client.post("/register/")
        queue.assert_enqueued(send_welcome_email, user_id=1)
        queue.run_until_idle()            # through the real handler; raises the error of a task that failed

With pytest, the fixture `lambda_tasks_queue` returns the same kind of queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambda_tasks.real_aws import RealQueueRefused, allow_real_queues, refuse_real_queues
    from lambda_tasks.testing.collecting import FAKEREDIS_LOCK, MEMORY_BACKEND, collect_tasks
    from lambda_tasks.testing.queue import TaskQueue

__all__ = [
    "FAKEREDIS_LOCK",
    "MEMORY_BACKEND",
    "RealQueueRefused",
    "TaskQueue",
    "allow_real_queues",
    "collect_tasks",
    "refuse_real_queues",
]

#: The module of each name. It is loaded on first use, since every run of pytest imports the package for its plugin.
_MODULES = {
    "FAKEREDIS_LOCK": "lambda_tasks.testing.collecting",
    "MEMORY_BACKEND": "lambda_tasks.testing.collecting",
    "RealQueueRefused": "lambda_tasks.real_aws",
    "TaskQueue": "lambda_tasks.testing.queue",
    "allow_real_queues": "lambda_tasks.real_aws",
    "collect_tasks": "lambda_tasks.testing.collecting",
    "refuse_real_queues": "lambda_tasks.real_aws",
}

if not TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
