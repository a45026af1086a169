"""Settings of the example: eager by default; over SQS where EXAMPLE_QUEUES names the queues."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent

#: What `demo.py` sets: queue names and URLs as a JSON object, and where the databases are kept.
QUEUES: dict[str, str] = json.loads(os.environ.get("EXAMPLE_QUEUES", "{}"))
STATE = Path(os.environ.get("EXAMPLE_STATE", BASE_DIR))


# The library

# On PostgreSQL, "lambda_tasks.contrib.postgres" before it: time limits then end queries in the server too.
LAMBDA_TASKS_PLUGINS = ["shop.lambda_plugins"]
# A message is a row of the request's transaction until SQS has it: none is lost while SQS is down, and each may be
# delayed for as long as it likes. In eager mode nothing is sent, so nothing is kept.
LAMBDA_TASKS_OUTBOX = True
LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT = 20
LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT = 25

if QUEUES:
    LAMBDA_TASKS_QUEUES = QUEUES
else:
    # Tasks run in the request that sends them, right after its commit: no AWS, no worker.
    LAMBDA_TASKS_EAGER = True


# Databases and caches


def sqlite(name: str, **options: Any) -> dict[str, Any]:
    """Return a database in a file that several processes may write to."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": STATE / name,
        "OPTIONS": {
            "timeout": 20,  # seconds that a writer waits for another one
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            **options,
        },
    }


# The mode of transactions stays DEFERRED here: in IMMEDIATE each task would hold SQLite's only write lock
# from its first line to its last, and no two tasks would ever run side by side.
DATABASES = {"default": sqlite("db.sqlite3")}

if QUEUES:
    # Workers share the lock of singleton tasks, so it must be in a cache that they share. This one needs
    # no server; yours is more likely Redis. A database of its own keeps it out of the tasks' transactions.
    DATABASES["cache"] = sqlite("cache.sqlite3", transaction_mode="IMMEDIATE")
    DATABASE_ROUTERS = ["webshop.routers.CacheRouter"]
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"}}

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


# A Django project as any other

DEBUG = True
SECRET_KEY = "only for the example"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "webshop.urls"
STATIC_URL = "/static/"
USE_TZ = True
TIME_ZONE = "UTC"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "lambda_tasks",
    "shop",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)-7s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        name: {"handlers": ["console"], "level": "INFO", "propagate": False} for name in ("lambda_tasks", "shop")
    },
}
