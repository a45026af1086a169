"""Django settings of the soak test (`tests.faults.soak`), for the program itself and its workers.

The program passes values that it determines at the start through the environment.
"""

from __future__ import annotations

import json
import os

DATABASES = {"default": json.loads(os.environ["SOAK_DATABASE"])}
INSTALLED_APPS = ["lambda_tasks", "tests.app"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "only for tests"
USE_TZ = True

LAMBDA_TASKS_QUEUES = {"default": os.environ["SOAK_QUEUE"]}
# moto is slow on busy machines, and a message that it does not accept in time would be lost, as documented.
LAMBDA_TASKS_BACKEND = {
    "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
    "OPTIONS": {"read_timeout": 20, "max_attempts": 5},
}
LAMBDA_TASKS_PLUGINS = ["tests.faults.soak_tasks.Soaked"]
# A task whose workers are killed repeatedly is unlucky here, not a poison pill.
LAMBDA_TASKS_MAX_TAKEOVERS = 1_000
