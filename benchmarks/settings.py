"""Django settings for benchmarks: BENCH_DATABASE is `postgres` (the default) or `sqlite`."""

from __future__ import annotations

import os
import tempfile

from benchmarks import servers

#: Child processes use the same database.
NAME = os.environ.setdefault("BENCH_NAME", f"lambda_tasks_bench_{os.getpid()}")

if os.environ.get("BENCH_DATABASE", "postgres") == "sqlite":
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": f"{tempfile.gettempdir()}/{NAME}.sqlite3",
            "TEST": {"NAME": f"{tempfile.gettempdir()}/{NAME}.sqlite3"},
            # As Django's documentation recommends for production: readers do not wait for the writer.
            "OPTIONS": {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
        }
    }
else:
    DATABASES = {"default": servers.django_database("PostgreSQL", NAME)}

# As the page on deploying recommends, or Django's default.
kept = os.environ.get("BENCH_CONNECTIONS", "kept") == "kept"
DATABASES["default"].update(CONN_MAX_AGE=600 if kept else 0, CONN_HEALTH_CHECKS=kept)

INSTALLED_APPS = ["lambda_tasks", "benchmarks"]
SECRET_KEY = "only for benchmarks"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default"}
# Do not log tasks, because the log lines would be measured too.
LOGGING = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}
