"""Fixtures of real servers, and the report of which of them a run used.

A test asks for `postgres`, `mariadb`, `redis_server` or `redis_url` and is skipped, by name, where the
server is missing. One that asks for `database` runs once on each database; a marker says more:
`@pytest.mark.databases("sqlite", "postgres", transaction=True)`.
"""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import boto3
import pytest
from django.apps import apps
from django.conf import settings as django_settings
from django.db import connections, transaction
from django.test import TransactionTestCase
from moto.server import ThreadedMotoServer

from tests import services
from tests.services import Missing, Server

USED: Final[set[str]] = set()
NAME_OF_VENDOR: Final = {"postgresql": "PostgreSQL", "mysql": "MariaDB"}


# Which servers a run had, and whether that was enough


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Notice which database servers the tests themselves ask; making the tables does not count."""

    def notice(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        USED.add(NAME_OF_VENDOR[context["connection"].vendor])
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for connection in connections.all():
            if connection.vendor in NAME_OF_VENDOR and NAME_OF_VENDOR[connection.vendor] not in USED:
                stack.enter_context(connection.execute_wrapper(notice))
        return (yield)


def problems(config: pytest.Config) -> list[str]:
    part_of_suite = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or any(
        config.getoption(option) for option in ("keyword", "markexpr", "collectonly", "maxfail")
    )
    return services.problems(
        django_settings.SERVERS,
        announced=django_settings.ANNOUNCED,
        used=USED,
        whole_suite=not part_of_suite,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and problems(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("servers")
    for name, server in django_settings.SERVERS.items():
        unused = isinstance(server, Server) and name not in USED
        terminalreporter.line(f"{server}{', not used' if unused else ''}")
    for problem in problems(config):
        terminalreporter.line(f"FAILED, since CI=true: {problem}", red=True)


# Servers


def _needed(name: str) -> Server:
    server: Server | Missing = django_settings.SERVERS[name]
    if isinstance(server, Missing):
        pytest.skip(str(server))
    return server


@pytest.fixture
def postgres() -> Server:
    """The PostgreSQL server; its database has the alias `postgres`."""
    return _needed("PostgreSQL")


@pytest.fixture
def mariadb() -> Server:
    """The MariaDB server; its database has the alias `mariadb`."""
    return _needed("MariaDB")


@pytest.fixture
def redis_server() -> Server:
    """The Redis (or Valkey) server behind the caches `default` and `core`."""
    server = _needed("Redis")
    USED.add(server.name)
    return server


@pytest.fixture
def redis_url(redis_server: Server) -> str:
    return redis_server.url


# Tests on several databases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-database",
        choices=("sqlite", "postgres", "mariadb"),
        help="of the tests that run once on each database, run those on this one",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `database` once on each alias, with access to it and to `default`."""
    if "database" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("databases") or pytest.mark.databases().mark
    aliases = marker.args or ("sqlite", *django_settings.SERVER_OF_ALIAS)
    if metafunc.config.getoption("only_database"):
        aliases = tuple(alias for alias in aliases if alias == metafunc.config.getoption("only_database"))
    metafunc.parametrize(
        "database",
        [pytest.param(alias, marks=_marks(alias, **marker.kwargs)) for alias in aliases],
        indirect=True,
    )


def _marks(alias: str, **options: Any) -> list[pytest.MarkDecorator]:
    if alias in django_settings.DATABASES:
        return [pytest.mark.django_db(databases=sorted({alias, "default"}), **options)]
    return [pytest.mark.skip(reason=str(django_settings.SERVERS[django_settings.SERVER_OF_ALIAS[alias]]))]


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """The alias of the database that this run of the test is about."""
    alias: str = request.param
    return alias


@pytest.fixture(scope="session", autouse=True)
def _a_test_that_commits_is_cleaned_up_by_deleting_rows() -> Iterator[None]:
    """Django would truncate every table and set up its own apps anew, which takes a hundred times as long."""

    def delete_rows(case: Any) -> None:
        for alias in case._databases_names(include_mirrors=False):
            with connections[alias].constraint_checks_disabled(), transaction.atomic(using=alias):
                for model in apps.get_models(include_auto_created=True):
                    if model._meta.label not in {"contenttypes.ContentType", "auth.Permission"}:
                        model._base_manager.using(alias)._raw_delete(alias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", delete_rows)
        yield


# SQS


@dataclass(frozen=True, slots=True)
class Sqs:
    """An SQS server on this machine with the queues of the settings, empty at the start of each test."""

    endpoint: str
    queues: dict[str, str]
    client: Any

    def receive(self, queue: str = "default", *, limit: int = 10) -> list[dict[str, Any]]:
        """Take up to `limit` messages (10 at most) that are visible now, with all their attributes."""
        response = self.client.receive_message(
            QueueUrl=self.queues[queue],
            MaxNumberOfMessages=limit,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
            WaitTimeSeconds=0,
        )
        messages: list[dict[str, Any]] = response.get("Messages", [])
        return messages

    def bodies(self, queue: str = "default") -> list[Any]:
        """Take what is visible now and return the bodies, decoded."""
        return [json.loads(message["Body"]) for message in self.receive(queue)]

    def depth(self, queue: str = "default") -> dict[str, int]:
        """Return how many messages are `visible`, `delayed` and `in_flight`."""
        attributes = self.client.get_queue_attributes(QueueUrl=self.queues[queue], AttributeNames=["All"])["Attributes"]
        return {
            "visible": int(attributes["ApproximateNumberOfMessages"]),
            "delayed": int(attributes["ApproximateNumberOfMessagesDelayed"]),
            "in_flight": int(attributes["ApproximateNumberOfMessagesNotVisible"]),
        }


@pytest.fixture(scope="session")
def _sqs_endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def _sqs_client(_sqs_endpoint: str) -> Any:
    config = boto3.session.Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
    return boto3.client("sqs", endpoint_url=_sqs_endpoint, config=config)


@pytest.fixture
def sqs(_sqs_endpoint: str, _sqs_client: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sqs]:
    """A real SQS server over HTTP, which the library sends to: its queues, addresses and transport are set."""
    _forget_queues(_sqs_endpoint)
    queues = {name: _sqs_client.create_queue(QueueName=name)["QueueUrl"] for name in ("default", "other")}
    monkeypatch.setenv("AWS_ENDPOINT_URL", _sqs_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", _sqs_endpoint)
    settings.LAMBDA_TASKS_QUEUES = queues
    settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
    yield Sqs(_sqs_endpoint, queues, _sqs_client)
    _forget_queues(_sqs_endpoint)  # moto's servers of one process have them in common, as those that pages start


def _forget_queues(endpoint: str) -> None:
    reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(reset, timeout=20).close()
