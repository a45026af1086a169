"""Django settings of the simulated shop: real servers, found or started in the same way as for the tests."""

from __future__ import annotations

import os
from typing import Final

from tests import services
from tests.services import Missing, Server

SERVERS: Final = services.find_all(start=True)
#: `postgres` or `mariadb`.
KIND: Final = os.environ.get("SIMULATION_DATABASE", "postgres")
#: Whether COMMIT waits for the disk ("on"), which is needed if the server will crash.
COMMITS: Final = os.environ.get("SIMULATION_COMMITS", "off")
#: Whether customers write messages to the outbox.
OUTBOX: Final = os.environ.get("SIMULATION_OUTBOX", "no") == "yes"
#: The name of this run on servers that other runs may use at the same time.
NAME: Final = f"simulation_{os.getpid()}"


def _server(name: str) -> Server:
    server = SERVERS[name]
    if isinstance(server, Missing):
        raise SystemExit(f"The simulation requires this server. {server}")
    return server


if KIND == "mariadb":
    import pymysql

    pymysql.install_as_MySQLdb()

REDIS_URL: Final = _server("Redis").url

SECRET_KEY = "only for the simulation"
USE_TZ = True
INSTALLED_APPS = ["lambda_tasks", "tests.simulation.shop"]
DATABASES = {
    "default": services.django_database(
        _server({"postgres": "PostgreSQL", "mariadb": "MariaDB"}[KIND]),
        name=NAME,
    )
}
# A worker that was frozen before its claim may wait for another worker that is frozen before its COMMIT. These
# timeouts limit the wait.
DATABASES["default"]["OPTIONS"] |= (
    {"init_command": "SET SESSION innodb_lock_wait_timeout = 2"}
    if KIND == "mariadb"
    else {"options": f"-c synchronous_commit={COMMITS} -c lock_timeout=2000"}
)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/simulation"}
LAMBDA_TASKS_BACKEND = "tests.simulation.transport.FileBackend"
LAMBDA_TASKS_OUTBOX = OUTBOX
LAMBDA_TASKS_LOCK = {
    "BACKEND": "tests.simulation.transport.PrefixedRedisLock",
    "OPTIONS": {"url": REDIS_URL, "prefix": NAME},
}
LAMBDA_TASKS_STORE = {
    "BACKEND": "lambda_tasks.stores.orm.ORMStore",
    "OPTIONS": {"durable_claims": os.environ.get("SIMULATION_DURABLE_CLAIMS", "yes") == "yes"},
}
TASKS = {"default": {"BACKEND": "lambda_tasks.contrib.django_tasks.LambdaTasksBackend"}}
# Long, because a process must not exceed its limits while it is frozen: only faults let time pass.
LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT = 500
LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT = 600
# Workers die more often here than with any real task. Other tests cover the limit.
LAMBDA_TASKS_MAX_TAKEOVERS = 1_000
