"""The settings of the other benchmarks, without a queue: messages stay in the process."""

from __future__ import annotations

from benchmarks.settings import *  # noqa: F403, as Django's documentation shows it
from benchmarks.settings import LOGGING

LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.memory.MemoryBackend"
# Do not log each lost task, or each message that is running in another worker.
LOGGING = {**LOGGING, "loggers": {"lambda_tasks": {"level": "ERROR"}}}
