"""Settings of the example: eager by default, and over SQS if EXAMPLE_QUEUES names the queues."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent

#: `demo.py` sets these: queue names and URLs as a JSON object, and the directory of the databases.
QUEUES: dict[str, str] = json.loads(os.environ.get("EXAMPLE_QUEUES", "{}"))
STATE = Path(os.environ.get("EXAMPLE_STATE", BASE_DIR))


# The library

# On PostgreSQL, add "lambda_tasks.contrib.postgres" before it: time limits then also cancel queries on the server.
LAMBDA_TASKS_PLUGINS = ["shop.lambda_plugins"]
# A message is a row of the request's transaction until SQS accepts it: no message is lost while SQS is unavailable,
# and delays may be up to a year. In eager mode, no messages are sent or stored.
LAMBDA_TASKS_OUTBOX = True
LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT = 20
LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT = 25

if QUEUES:
    LAMBDA_TASKS_QUEUES = QUEUES
else:
    # Tasks run in the request that sends them, right after its commit, without AWS or workers.
    LAMBDA_TASKS_EAGER = True
    # Eager mode checks the names of queues, and does not use their URLs.
    LAMBDA_TASKS_QUEUES = {
        name: f"https://sqs.eu-west-1.amazonaws.com/123456789012/{name}" for name in ("default", "stock", "parcels")
    }


# Databases and caches


def sqlite(name: str, **options: Any) -> dict[str, Any]:
    """Return an SQLite database that several processes may write to."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": STATE / name,
        "OPTIONS": {
            "timeout": 20,  # seconds that a writer waits for another writer
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            **options,
        },
    }


# The transaction mode stays DEFERRED here. With IMMEDIATE, each task would hold SQLite's only write lock
# from start to end, and two tasks would never run in parallel.
DATABASES = {"default": sqlite("db.sqlite3")}

if QUEUES:
    # The lock of singleton tasks must be in a cache that all workers share. This cache does not need a server;
    # a real project more likely uses Redis. A separate database keeps the lock out of the tasks' transactions.
    DATABASES["cache"] = sqlite("cache.sqlite3", transaction_mode="IMMEDIATE")
    DATABASE_ROUTERS = ["webshop.routers.CacheRouter"]
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"}}

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


# The usual settings of a Django project

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
