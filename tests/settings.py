"""Django settings for the tests: every server that could be had, and SQLite.

TEST_DATABASE (`sqlite`, `postgres` or `mariadb`) chooses what `default` is; without it, PostgreSQL
where there is one. The aliases `sqlite`, `postgres` and `mariadb` are there beside it, each with a
database of its own, as far as their servers are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

from tests import services
from tests.services import Missing, Server

# mypy's plugin and makemigrations read these settings too: only a test run starts servers.
TEST_RUN: Final = "pytest" in sys.modules
# What the run must have is known before started servers put their addresses into the environment.
ANNOUNCED: Final = services.announced()
SERVERS: Final = services.find_all(start=TEST_RUN)

# The run's directory; child processes share it, and with it the names of the databases.
if TEST_RUN and "TEST_RUN" not in os.environ:
    os.environ["TEST_RUN"] = str(services.directory_of_this_process())
RUN: Final = os.environ.get("TEST_RUN", "")
# What the run names on servers that other runs may use at the same time.
PREFIX: Final = Path(RUN).name or "lambda-tasks"


# Databases

if isinstance(SERVERS["MariaDB"], Server):
    # PyMySQL is a wheel of pure Python; mysqlclient would have to be compiled.
    import pymysql

    pymysql.install_as_MySQLdb()

SERVER_OF_ALIAS: Final = {"postgres": "PostgreSQL", "mariadb": "MariaDB"}


def _database(kind: str, *, alias: str) -> dict[str, Any]:
    if kind == "sqlite":
        # A file, not memory: threads and processes must meet the same data.
        name = f"{RUN}/{alias}.sqlite3" if RUN else ":memory:"
        options = {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"}
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": name,
            "OPTIONS": options,
            "TEST": {"NAME": name},
        }
    server = SERVERS[SERVER_OF_ALIAS[kind]]
    if isinstance(server, Missing):
        raise RuntimeError(f"TEST_DATABASE={kind}, but {server}")
    return services.django_database(server, name=f"{PREFIX}_{alias}".replace("-", "_").lower())


def _default_kind() -> str:
    kind = os.environ.get("TEST_DATABASE")
    if not kind:
        return "postgres" if isinstance(SERVERS["PostgreSQL"], Server) else "sqlite"
    if kind not in {"sqlite", *SERVER_OF_ALIAS}:
        raise RuntimeError(f"TEST_DATABASE={kind!r}; give sqlite, postgres or mariadb, or leave it out.")
    return kind


DATABASES = {
    "default": _database(_default_kind(), alias="default"),
    "sqlite": _database("sqlite", alias="sqlite"),
    **{
        alias: _database(alias, alias=alias)
        for alias, name in SERVER_OF_ALIAS.items()
        if isinstance(SERVERS[name], Server)
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Django's own apps get their tables without their migrations: that takes a third of the time.
MIGRATION_MODULES = dict.fromkeys(("admin", "auth", "contenttypes", "sessions"))


# Caches


def _redis_cache(backend: str) -> dict[str, Any]:
    server = SERVERS["Redis"]
    if isinstance(server, Missing):
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": backend}
    # A prefix of its own, so that runs side by side on one server do not take each other's locks.
    return {"BACKEND": backend, "LOCATION": server.url, "KEY_PREFIX": PREFIX}


CACHES = {
    "default": _redis_cache("django_redis.cache.RedisCache"),
    "core": _redis_cache("django.core.cache.backends.redis.RedisCache"),
    "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "locmem"},
    # The test runner makes the table, in each database.
    "database": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache_table"},
    "dummy": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
}


# The library

LAMBDA_TASKS_QUEUES = {
    "default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default",
    "other": "https://sqs.eu-west-1.amazonaws.com/123456789012/other",
}
LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.memory.MemoryBackend"

# Nothing reaches the real AWS: no profile of the developer's, keys that open nothing, and for every
# service an address where nobody listens. The fixture `sqs` puts a server of its own in its place.
for _variable in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN"):
    os.environ.pop(_variable, None)
os.environ.update(
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="eu-west-1",
    AWS_REGION="eu-west-1",
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    AWS_EC2_METADATA_DISABLED="true",
    AWS_ENDPOINT_URL="http://127.0.0.1:9",
    # The servers of the tests are on this machine, whatever proxy it uses for others.
    NO_PROXY="127.0.0.1,localhost",
    no_proxy="127.0.0.1,localhost",
)


# The rest of a Django project, with the admin

SECRET_KEY = "only for tests"
DEBUG = False
ALLOWED_HOSTS = ["testserver", "127.0.0.1"]
USE_TZ = True
TIME_ZONE = "UTC"
ROOT_URLCONF = "tests.urls"
STATIC_URL = "/static/"
# From Django 6.1 on sending mail wants it; earlier versions do not know it.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "lambda_tasks",
    "tests.app",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
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
