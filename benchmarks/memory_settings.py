"""The settings of the other benchmarks, without a queue: what is sent stays in the process."""

from __future__ import annotations

from benchmarks.settings import *  # noqa: F403, as Django's documentation shows it
from benchmarks.settings import LOGGING

LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.memory.MemoryBackend"
# Nobody reads of each task that was lost, or of each message that another worker has.
LOGGING = {**LOGGING, "loggers": {"lambda_tasks": {"level": "ERROR"}}}
