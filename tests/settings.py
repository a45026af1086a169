"""Django settings for the tests, with SQLite and every available server.

TEST_DATABASE (`sqlite`, `postgres` or `mariadb`) selects the database of `default`. Without it, `default` is
PostgreSQL if it is available. The aliases `sqlite`, `postgres` and `mariadb` are additional, separate databases,
if their servers are available.

TEST_QUICK=1, as `make test` sets it, has `default` and SQLite alone, and leaves thorough tests out.
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
QUICK: Final = bool(os.environ.get("TEST_QUICK"))
# Each process of a parallel run has its own databases, Redis database and directory.
if TEST_RUN:
    services.separate_worker()
# Determine the required servers before started servers add their addresses to the environment.
ANNOUNCED: Final = services.announced()
SERVERS: Final = services.find_all(start=TEST_RUN)

# The run's directory. Child processes share it, and therefore the names of the databases.
if TEST_RUN and "TEST_RUN" not in os.environ:
    os.environ["TEST_RUN"] = str(services.directory_of_this_process())
RUN: Final = os.environ.get("TEST_RUN", "")
# The prefix of the run's names on servers that other runs may use at the same time.
PREFIX: Final = Path(RUN).name or "lambda-tasks"


# Databases

if isinstance(SERVERS["MariaDB"], Server):
    # PyMySQL is pure Python, while mysqlclient would have to be compiled.
    import pymysql

    pymysql.install_as_MySQLdb()

SERVER_OF_ALIAS: Final = {"postgres": "PostgreSQL", "mariadb": "MariaDB"}


def _database(kind: str, *, alias: str) -> dict[str, Any]:
    if kind == "sqlite":
        # Use a file, not memory, because threads and processes must share the data.
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
        raise RuntimeError(f"TEST_DATABASE must be sqlite, postgres or mariadb, not {kind!r}, or be unset.")
    return kind


DEFAULT_KIND: Final = _default_kind()
DATABASES = {
    "default": _database(DEFAULT_KIND, alias="default"),
    "sqlite": _database("sqlite", alias="sqlite"),
    **{
        alias: _database(alias, alias=alias)
        for alias, name in SERVER_OF_ALIAS.items()
        if isinstance(SERVERS[name], Server) and (not QUICK or alias == DEFAULT_KIND)
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Create the tables of Django's own apps without migrations, which takes a third of the time.
MIGRATION_MODULES = dict.fromkeys(("admin", "auth", "contenttypes", "sessions"))


# Caches


def _redis_cache(backend: str) -> dict[str, Any]:
    server = SERVERS["Redis"]
    if isinstance(server, Missing):
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": backend}
    # Use a separate prefix, so that parallel runs on one server do not acquire each other's locks.
    return {"BACKEND": backend, "LOCATION": server.url, "KEY_PREFIX": PREFIX}


CACHES = {
    "default": _redis_cache("django_redis.cache.RedisCache"),
    "core": _redis_cache("django.core.cache.backends.redis.RedisCache"),
    "locmem": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "locmem"},
    # The test runner creates the table in each database.
    "database": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache_table"},
    "dummy": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
}


# The library

LAMBDA_TASKS_QUEUES = {
    "default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default",
    "other": "https://sqs.eu-west-1.amazonaws.com/123456789012/other",
}
LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.memory.MemoryBackend"

# Prevent all access to the real AWS: drop the developer's profile, and set invalid keys and a closed address for every
# service. The fixture `sqs` sets the address of its own server.
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
    # The test servers are on this machine, so do not use a proxy for them.
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
# Django 6.1 and later require this setting to send mail; earlier versions ignore it.
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
