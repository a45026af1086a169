"""Fixtures for real servers, and the report of the servers that a run has used.

A test that requests `postgres`, `mariadb`, `redis_server` or `redis_url` is skipped, with the reason, if the server
is missing. A test that requests `database` runs once on each database. A marker selects databases and options:
`@pytest.mark.databases("sqlite", "postgres", transaction=True)`.
"""

from __future__ import annotations

import gc
import json
import logging
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import boto3
import pytest
from botocore.loaders import JSONFileLoader
from django.apps import apps
from django.conf import settings as django_settings
from django.db import connections, transaction
from django.test import TransactionTestCase
from hypothesis import settings as hypothesis_settings
from moto.server import ThreadedMotoServer

from lambda_tasks import plugins, registry, strategies
from tests import rewriting, services
from tests.batch import Batch, start_batch
from tests.services import Missing, Server

USED: Final[set[str]] = set()
#: The fixtures of pytest-django that give access to a database, as its marker does.
DATABASE_FIXTURES: Final = {"db", "transactional_db", "django_db_reset_sequences", "django_db_serialized_rollback"}
NAME_OF_VENDOR: Final = {"postgresql": "PostgreSQL", "mysql": "MariaDB"}

# On a busy machine, an example may take any time.
hypothesis_settings.register_profile("untimed", deadline=None)
hypothesis_settings.load_profile("untimed")


# The servers that a run has used, and those that it needs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Record which database servers the tests themselves query. Creating the tables does not count."""

    def notice(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        USED.add(NAME_OF_VENDOR[context["connection"].vendor])
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for connection in connections.all():
            if connection.vendor in NAME_OF_VENDOR and NAME_OF_VENDOR[connection.vendor] not in USED:
                stack.enter_context(connection.execute_wrapper(notice))
        return (yield)


def problems(config: pytest.Config) -> list[str]:
    part_of_suite = (
        django_settings.QUICK
        or config.args_source is not pytest.Config.ArgsSource.TESTPATHS
        or any(config.getoption(option) for option in ("keyword", "markexpr", "collectonly", "maxfail"))
    )
    return services.problems(
        django_settings.SERVERS,
        announced=django_settings.ANNOUNCED,
        used=USED,
        whole_suite=not part_of_suite,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the test modules once, before a parallel run of the whole suite starts its workers."""
    config = session.config
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        rewriting.fill_cache(config)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without the garbage collector, which would visit ten thousand tests again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["used servers"] = sorted(USED)  # for the controlling process of a parallel run, which checks them
    elif exitstatus == pytest.ExitCode.OK and problems(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the servers that a worker of a parallel run has used."""
    USED.update(getattr(node, "workeroutput", {}).get("used servers", ()))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape surrogates in captured output, because a worker of a parallel run cannot send them."""
    return _without_surrogates((yield))


def _without_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(_without_surrogates, value))
    return value


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Do nothing: the settings already name the databases of each worker, so pytest-django must not."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("servers")
    for name, server in django_settings.SERVERS.items():
        unused = isinstance(server, Server) and name not in USED
        terminalreporter.line(f"{server}{', not used' if unused else ''}")
    if django_settings.QUICK:
        terminalreporter.line(
            "This was the quick run: one database, and no tests that kill processes or take long. "
            "`make test-all` runs everything."
        )
    if config.getoption("after_quick"):
        terminalreporter.line("Tests marked `once` were left out where the quick run of `make test` runs them.")
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
    """Return the PostgreSQL server, whose database has the alias `postgres`."""
    return _needed("PostgreSQL")


@pytest.fixture
def mariadb() -> Server:
    """Return the MariaDB server, whose database has the alias `mariadb`."""
    return _needed("MariaDB")


@pytest.fixture
def redis_server() -> Server:
    """Return the Redis (or Valkey) server of the caches `default` and `core`."""
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
        help="run tests that run once on each database only on this one",
    )
    parser.addoption(
        "--after-quick",
        action="store_true",
        help="leave out tests marked `once` that the quick run has run on the same database",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the quick run does not run, or what it has run already."""
    if django_settings.QUICK:
        left_out = [item for item in items if item.get_closest_marker("thorough")]
    elif config.getoption("after_quick"):
        left_out = [item for item in items if _quick_run_is_enough(item)]
    else:
        return
    config.hook.pytest_deselected(items=left_out)
    kept = set(items).difference(left_out)
    items[:] = [item for item in items if item in kept]


def _quick_run_is_enough(item: pytest.Item) -> bool:
    """Whether the quick run has run the test on the same database, and the versions do not matter."""
    assert isinstance(item, pytest.Function)
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return (
        item.get_closest_marker("once") is not None
        and item.get_closest_marker("thorough") is None
        and parameters.get("database", django_settings.DEFAULT_KIND) == django_settings.DEFAULT_KIND
        and not {"postgres", "mariadb"} & set(item.fixturenames)
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that requests `database` once on each alias, with access to it and to `default`."""
    if "database" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("databases") or pytest.mark.databases().mark
    aliases = marker.args or ("sqlite", *django_settings.SERVER_OF_ALIAS)
    if only := metafunc.config.getoption("only_database"):
        aliases = tuple(alias for alias in aliases if alias == only)
    elif django_settings.QUICK:
        aliases = tuple(alias for alias in aliases if alias == django_settings.DEFAULT_KIND) or aliases[:1]
    metafunc.parametrize(
        "database",
        [pytest.param(alias, marks=_marks(alias, **marker.kwargs)) for alias in aliases],
        indirect=True,
    )


def _marks(alias: str, **options: Any) -> list[pytest.MarkDecorator]:
    if alias in django_settings.DATABASES:
        return [pytest.mark.django_db(databases=sorted({alias, "default"}), **options)]
    server = django_settings.SERVERS[django_settings.SERVER_OF_ALIAS[alias]]
    return [pytest.mark.skip(reason=str(server) if isinstance(server, Missing) else "the quick run has one database")]


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """Return the alias of the database for this run of the test."""
    alias: str = request.param
    return alias


@pytest.fixture(scope="session", autouse=True)
def _a_test_that_commits_is_cleaned_up_by_deleting_rows() -> Iterator[None]:
    """Delete rows after each test. Django would truncate every table and set up its own apps again, which is slow.

    Connections stay open for the next test, because opening one costs more than most tests. Django would close them.
    """
    kept = {"contenttypes.ContentType", "auth.Permission"}
    models = apps.get_models(include_auto_created=True)
    tables = [model._meta.db_table for model in models if model._meta.managed and model._meta.label not in kept]

    def delete_rows(case: Any) -> None:
        for alias in case._databases_names(include_mirrors=False):
            with (
                connections[alias].constraint_checks_disabled(),
                transaction.atomic(using=alias),
                connections[alias].cursor() as cursor,
            ):
                # PostgreSQL takes all statements at once, the others one at a time.
                statements = [f"DELETE FROM {connections[alias].ops.quote_name(table)}" for table in tables]
                for statement in ["; ".join(statements)] if connections[alias].vendor == "postgresql" else statements:
                    cursor.execute(statement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", delete_rows)
        patch.setattr(TransactionTestCase, "_should_reload_connections", _has_connection_with_errors)
        yield


def _has_connection_with_errors(case: TransactionTestCase) -> bool:
    """Whether a connection must not be used by the next test."""
    return any(connection.errors_occurred for connection in connections.all(initialized_only=True))


@pytest.fixture(autouse=True)
def _no_connection_without_database_access(request: pytest.FixtureRequest) -> None:
    """Close the connections before a test without access to a database. It could not ask whether they are usable."""
    if not request.node.get_closest_marker("django_db") and not DATABASE_FIXTURES & set(request.fixturenames):
        for connection in connections.all(initialized_only=True):
            if not connection.in_atomic_block:  # that of a Django TestCase
                connection.close()


# Periodic tasks


@pytest.fixture(autouse=True)
def _schedules_end_with_their_test() -> Iterator[None]:
    """Forget tasks with a schedule after each test. The maintenance event of another test would start them."""
    yield
    for name, task in list(registry._tasks.items()):
        if task.schedule:
            del registry._tasks[name]


# Plugins


@pytest.fixture(autouse=True)
def _added_plugins_end_with_their_test() -> Iterator[None]:
    """Remove the plugins that parts of the library have added after each test. Another test may count the hooks."""
    yield
    while plugins._added:
        path = plugins._added.pop()
        if plugins.manager.has_plugin(path):
            plugins.manager.unregister(name=path)


# Transports


@pytest.fixture(autouse=True)
def _messages_end_with_their_test() -> Iterator[None]:
    """Empty the memory transport after each test. Another test would run the messages, too."""
    yield
    getattr(strategies._instances.get("backend"), "jobs", []).clear()


# SQS


@pytest.fixture(scope="session", autouse=True)
def _botocore_reads_its_data_once() -> Iterator[None]:
    """Read each of botocore's JSON files once per process. Each session would read them again, for 0.1 seconds."""
    read, data = JSONFileLoader.load_file, {}

    def load_file(self: JSONFileLoader, file_path: str) -> Any:
        if file_path not in data:
            data[file_path] = read(self, file_path)
        return data[file_path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", load_file)
        yield


@dataclass(frozen=True, slots=True)
class Sqs:
    """An SQS server on this machine with the queues of the settings, empty at the start of each test."""

    endpoint: str
    queues: dict[str, str]
    client: Any

    def receive(self, queue: str = "default", *, limit: int = 10) -> list[dict[str, Any]]:
        """Receive up to `limit` visible messages (10 at most) with all their attributes."""
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
        """Receive the visible messages, and return their decoded bodies."""
        return [json.loads(message["Body"]) for message in self.receive(queue)]

    def depth(self, queue: str = "default") -> dict[str, int]:
        """Return the number of messages that are `visible`, `delayed` and `in_flight`."""
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
    """Run a real SQS server over HTTP, and set the queues, addresses and transport of the library to it."""
    _forget_queues(_sqs_endpoint)
    queues = {name: _sqs_client.create_queue(QueueName=name)["QueueUrl"] for name in ("default", "other")}
    monkeypatch.setenv("AWS_ENDPOINT_URL", _sqs_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", _sqs_endpoint)
    settings.LAMBDA_TASKS_QUEUES = queues
    settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
    yield Sqs(_sqs_endpoint, queues, _sqs_client)
    _forget_queues(_sqs_endpoint)  # shared by all moto servers of a process, also by those of documentation pages


@pytest.fixture
def batch(sqs: Sqs, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Add the queue `large` to the settings, whose tasks are jobs of AWS Batch, in the server of `sqs`."""
    batch = start_batch(monkeypatch)
    arns = {"job_queue_arn": batch.job_queue, "job_definition_arn": batch.job_definition}
    settings.LAMBDA_TASKS_QUEUES = {**sqs.queues, "large": arns}
    return batch


def _forget_queues(endpoint: str) -> None:
    reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(reset, timeout=20).close()
