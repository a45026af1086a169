"""`manage.py check`: a case triggers every check id, every id is documented, and checks never raise."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core import mail
from django.core.checks import CheckMessage, Error, Info, Warning
from django.core.checks.registry import registry as registered
from django.db import connections
from django.db.utils import ConnectionHandler
from django.test import override_settings

import lambda_tasks
from lambda_tasks import registry
from lambda_tasks.apps import LambdaTasksConfig
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.contrib.django_tasks import LambdaTasksBackend
from lambda_tasks.database import published
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.definition.schedules import Every
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.models import TaskRecord
from lambda_tasks.operations import checks, database_settings
from lambda_tasks.operations.checks import check_durability
from lambda_tasks.strategies import OUTBOX_BACKEND, get_store
from tests.project.test_settings import TABLE, unset

__all__ = ["unset"]

PACKAGE = Path(lambda_tasks.__file__).parent
PAGE = PACKAGE.parent / "docs/reference/checks.md"

LOCAL_CACHE = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}


class QueueOfAnotherProcess(MemoryBackend):
    leaves_process = True


class BackendWithCheck(MemoryBackend):
    """A transport with a check of its own."""

    def check(self) -> list[CheckMessage]:
        return [Warning("The pigeons are tired.", id="pigeons.W001")]


class NoOutboxes:
    """A router that does not allow the outbox table."""

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool | None:
        return False if model_name == "outboxmessage" else None


REAL_QUEUE = f"{__name__}.QueueOfAnotherProcess"
MEMORY = "lambda_tasks.backends.memory.MemoryBackend"


class Misspelt:
    @hookimpl
    def lambda_task_stated(self, run: Any) -> None: ...


@contextmanager
def only(*tasks: LambdaTaskWrapper[..., Any]) -> Iterator[None]:
    """Register these tasks only, because other test modules define broken ones."""
    registry.import_tasks_of_apps()  # the checks would register tasks whose modules were not imported before
    known = dict(registry._tasks)
    registry._tasks.clear()
    registry._tasks.update({task.name: task for task in tasks})
    try:
        yield
    finally:
        registry._tasks.clear()
        registry._tasks.update(known)


def messages(*tasks: LambdaTaskWrapper[..., Any], deploy: bool = False, **settings: Any) -> list[CheckMessage]:
    """Return the library's check messages with these settings and tasks."""
    with override_settings(**settings), only(*tasks):
        return said(deploy=deploy)


def said(*, deploy: bool = False) -> list[CheckMessage]:
    """Run the checks that the library has registered with Django."""
    ours = [check for check in registered.get_checks(deploy) if check.__module__ == LambdaTasksConfig.__module__]
    return [message for check in ours for message in check(app_configs=None)]


def without_queues() -> list[CheckMessage]:
    with override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE):
        del django_settings.LAMBDA_TASKS_QUEUES
        return messages()


def of_django_tasks(store: str, queue: str) -> list[CheckMessage]:
    """Return the messages of the backend of Django's tasks, which Django asks for them."""
    with override_settings(LAMBDA_TASKS_STORE=store):
        return LambdaTasksBackend("default", {"QUEUES": [queue]}).check()


def task_on(**options: Any) -> LambdaTaskWrapper[..., Any]:
    @lambda_task(**options)
    def send() -> None: ...

    return send


def with_schedule(**options: Any) -> list[CheckMessage]:
    def send(*, number: int = 1) -> None: ...

    send.__module__ = "tests.app.tasks"  # which is imported to start periodic tasks
    return messages(lambda_task(schedule=Every(minutes=5, **options))(send))


def in_management_command() -> list[CheckMessage]:
    task = task_on()
    task.function.__module__, task.function.__qualname__ = "tests.app.management.commands.wipe", "send"
    return messages(task)


def with_short_limit() -> list[CheckMessage]:
    """Use a soft timeout that fits the default hard timeout at decoration, but not at the check."""
    return messages(
        task_on(soft_timeout=100), LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=50, LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=9
    )


def with_long_delay(name: str) -> list[CheckMessage]:
    """Define the task while the outbox is enabled, which accepts the delay."""
    with override_settings(LAMBDA_TASKS_OUTBOX=True):
        short_form = {"retry_on": (OSError,), "max_retries": 5} if name == "retry_delay" else {}
        task = task_on(**{name: 3600}, **short_form)
    return messages(task)


def with_long_delay_of_policy(**times: int) -> list[CheckMessage]:
    with override_settings(LAMBDA_TASKS_OUTBOX=True):
        task = task_on(retry=RetryPolicy(on=(OSError,), max_retries=5, **times))
    return messages(task)


def with_outbox(**options: Any) -> list[CheckMessage]:
    options = {"transport": MEMORY, **options}
    return messages(LAMBDA_TASKS_BACKEND={"BACKEND": OUTBOX_BACKEND, "OPTIONS": options})


@contextmanager
def app_with_tasks(source: str, *, inside: str = "", **settings: Any) -> Iterator[None]:
    """Install an app whose `tasks` module has this source, below the directory `inside` of an empty directory."""
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        package = Path(directory, inside, "checked_shop")
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "tasks.py").write_text(textwrap.dedent(source))
        patch.syspath_prepend(str(package.parent))
        known = dict(registry._tasks)
        try:
            with override_settings(INSTALLED_APPS=[*django_settings.INSTALLED_APPS, "checked_shop"], **settings):
                yield
        finally:
            registry._tasks.clear()
            registry._tasks.update(known)
            for name in [name for name in sys.modules if name.partition(".")[0] == "checked_shop"]:
                del sys.modules[name]


def with_broken_module(source: str, **options: Any) -> list[CheckMessage]:
    with app_with_tasks(source, **options):
        return messages()


def with_queues_unset(*tasks: LambdaTaskWrapper[..., Any]) -> list[CheckMessage]:
    with override_settings(LAMBDA_TASKS_EAGER=True):
        del django_settings.LAMBDA_TASKS_QUEUES
        return messages(*tasks)


def with_model() -> list[CheckMessage]:
    @lambda_task
    def send(*, record: TaskRecord) -> None: ...

    return messages(send)


def with_database(*, outbox: bool = False, **settings: Any) -> list[CheckMessage]:
    """Keep the records, or only the outbox, in a database with these settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setitem(connections["sqlite"].settings_dict, name, value)
        if outbox:
            return with_outbox(databases=["sqlite"])
        store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": "sqlite"}}
        return messages(LAMBDA_TASKS_STORE=store)


def with_unsafe_durability() -> list[CheckMessage]:
    """Make SQLite report a bad setting; TestDurability asks real servers."""
    connection = connections["sqlite"]

    class Cursor:
        def execute(self, sql: str) -> None: ...

        def fetchone(self) -> tuple[str]:
            return ("off",)

    store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": "sqlite"}}
    with pytest.MonkeyPatch.context() as patch, override_settings(LAMBDA_TASKS_STORE=store):
        patch.setitem(database_settings._SETTINGS, "sqlite", (("journal", "SELECT 'off'", ("off",)),))
        patch.setattr(connection, "cursor", lambda: nullcontext(Cursor()))
        return check_durability(["sqlite", "default"])


def with_table(state: str, *statements: str) -> list[CheckMessage]:
    """Check a database whose table an earlier version or another program has created."""
    file = PACKAGE.parent / f"tests/upgrades/{state}-sqlite.json"
    made = json.loads(file.read_text())["schema"] if state else []
    connection: Any = ConnectionHandler({"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})[
        "default"
    ]
    # pytest-django refuses connections here, and Django uses the connection of this alias to detect JSON support.
    connection.ensure_connection = lambda: None
    connection.features.supports_json_field = True
    connection.connect()
    with closing(connection.connection):  # Django does not close an in-memory database
        with connection.cursor() as cursor:
            for sql in (*made, *statements):
                cursor.execute(sql)
        return [*checks._check_table(connection, TaskRecord._meta.db_table)]


def after_upgrade(status: str) -> list[CheckMessage]:
    columns = (f"{name} text" for name in sorted(published.COMMON | set(published.ADDED)))
    return with_table(
        "",
        f"CREATE TABLE lambda_tasks_taskrecord ({', '.join(columns)})",
        f"INSERT INTO lambda_tasks_taskrecord (id, status) VALUES ('1', '{status}')",
    )


def with_queue(url: str) -> list[CheckMessage]:
    return messages(
        LAMBDA_TASKS_BACKEND="lambda_tasks.backends.sqs.SQSBackend",
        LAMBDA_TASKS_QUEUES={"default": url},
        LAMBDA_TASKS_SINGLETON_CACHE="database",
    )


def discarding() -> list[CheckMessage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(mail, "outbox")  # which Django's test runners add
        return messages(LAMBDA_TASKS_NOOP_EXECUTION=True)


def without_region() -> list[CheckMessage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_DEFAULT_REGION")
        return with_queue("http://localhost:4566/000000000000/shop")


#: How to trigger each id, and the expected message. An id has a list of cases.
CASES: dict[str, list[tuple[Callable[[], list[CheckMessage]], str]]] = {
    "E001": [
        (
            lambda: messages(LAMBDA_TASKS_MAX_RETRIES=-1),
            "MAX_RETRIES must be an integer of .* 0, not -1",
        ),
        (
            lambda: messages(LAMBDA_TASKS_EAGER="yes", deploy=True),
            "EAGER must be True or False, not 'yes'",
        ),
        (
            lambda: messages(LAMBDA_TASKS_QUEUES={"other": "x"}),
            r"must contain a queue named 'default'. It contains \['other'\]",
        ),
        (
            lambda: messages(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=901),
            "SOFT_TIMEOUT must be a whole number of seconds from 1 to 900, not 901",
        ),
        (
            lambda: messages(LAMBDA_TASKS_LOCK=5, LAMBDA_TASKS_BACKEND=REAL_QUEUE),
            "LAMBDA_TASKS_LOCK must be a dotted path or .*, not 5",
        ),
        (
            lambda: messages(LAMBDA_TASKS_PLUGINS="shop.plugins"),
            "PLUGINS must be a list, not 'shop.plugins'",
        ),
        (
            lambda: messages(LAMBDA_TASKS_SINGLETON_CACHE="", LAMBDA_TASKS_BACKEND=REAL_QUEUE),
            "LAMBDA_TASKS_SINGLETON_CACHE must be a non-empty string, not ''",
        ),
    ],
    "E002": [(without_queues, "LAMBDA_TASKS_QUEUES is not set")],
    "E003": [
        (
            lambda: messages(task_on(), LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=300),
            "Every task without limits of its own would have a soft timeout of 300 s, which must be shorter",
        )
    ],
    "E004": [
        (
            lambda: messages(
                LAMBDA_TASKS_STORE={
                    "BACKEND": "lambda_tasks.stores.orm.ORMStore",
                    "OPTIONS": {"database": "recods", "durable_claims": False},
                }
            ),
            "The database of LAMBDA_TASKS_STORE must be an alias in DATABASES .*default.*, not 'recods'",
        ),
        (
            lambda: messages(LAMBDA_TASKS_BACKEND="shop.Pigeons"),
            "BACKEND names 'shop.Pigeons', which cannot be imported",
        ),
        (lambda: messages(LAMBDA_TASKS_LOCK="shop.Padlock"), "LOCK names 'shop.Padlock', which cannot be imported"),
        (
            lambda: messages(
                LAMBDA_TASKS_STORE={"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"alias": "x"}}
            ),
            r"STORE passes the OPTIONS \['alias'\] to 'lambda_tasks.stores.orm.ORMStore', which rejects them",
        ),
        (
            lambda: messages(LAMBDA_TASKS_OUTBOX=True, LAMBDA_TASKS_BACKEND="shop.Pigeons"),
            "names 'shop.Pigeons', which",
        ),
        (
            lambda: with_outbox(databases=[]),
            r"which rejects them: databases must be a list of aliases in DATABASES, not \[\]",
        ),
        (
            lambda: with_outbox(databases="default"),
            "which rejects them: databases must be a list of aliases in DATABASES, not 'default'",
        ),
        (
            lambda: with_outbox(databases=["default", "orders"]),
            "the outbox database 'orders', which is not in DATABASES",
        ),
        (lambda: with_outbox(alias="x"), r"the OPTIONS \['alias', 'transport'\] to .*, which rejects them"),
        (lambda: with_outbox(transport=5), "which rejects them: transport must be a dotted path or .*, not 5"),
        (lambda: with_outbox(transport="shop.Pigeons"), "BACKEND names 'shop.Pigeons', which cannot be imported"),
        (lambda: with_outbox(transport={"BACKEND": MEMORY, "OPTIONS": {"wings": 2}}), r"OPTIONS \['wings'\]"),
        (lambda: with_outbox(transport=OUTBOX_BACKEND), "transport must be a transport other than an outbox"),
        (
            lambda: with_outbox(transport="builtins.dict"),
            "must name a subclass of .*BaseBackend, not the class builtins.di",
        ),
        (
            lambda: messages(LAMBDA_TASKS_OUTBOX=True, LAMBDA_TASKS_STORE="shop.Store"),
            "STORE names 'shop.Store', which cannot be imported",
        ),
        (
            lambda: messages(
                LAMBDA_TASKS_OUTBOX=True,
                LAMBDA_TASKS_STORE={
                    "BACKEND": "lambda_tasks.stores.orm.ORMStore",
                    "OPTIONS": {"database": "recods"},
                },
            ),
            "The database of LAMBDA_TASKS_STORE must be an alias in DATABASES .*, not 'recods'",
        ),
        (
            lambda: messages(LAMBDA_TASKS_OUTBOX=True, DATABASE_ROUTERS=[f"{__name__}.NoOutboxes"]),
            "DATABASE_ROUTERS do not allow the outbox table in 'default'",
        ),
    ],
    "E005": [
        (lambda: messages(LAMBDA_TASKS_PLUGINS=[Misspelt]), "a hook that does not exist: .*lambda_task_stated"),
        (lambda: messages(LAMBDA_TASKS_PLUGINS=["shop.plugins"]), "contains 'shop.plugins', which cannot be used"),
    ],
    "E006": [
        (
            lambda: messages(LAMBDA_TASKS_BACKEND=REAL_QUEUE, LAMBDA_TASKS_SINGLETON_CACHE="locks"),
            "uses the cache 'locks', which is not in CACHES",
        )
    ],
    "E007": [
        (
            lambda: messages(task_on(queue="mail")),
            "Queue 'mail' is not in LAMBDA_TASKS_QUEUES .* queue= on .*send",
        ),
        (
            lambda: with_queues_unset(task_on(queue="mail")),
            "Queue 'mail' does not exist: without LAMBDA_TASKS_QUEUES, the only queue is 'default'.* queue= on .*send",
        ),
        (with_short_limit, "send would have a soft timeout of 100 s, .* its hard timeout of 50 s"),
        (lambda: with_long_delay("delay"), "send: delay must be .* not 3600. .* set LAMBDA_TASKS_OUTBOX = True"),
        (
            lambda: with_long_delay("retry_delay"),
            "send: retry_delay must be .* not 3600. .* set LAMBDA_TASKS_OUTBOX = True",
        ),
        (lambda: with_long_delay_of_policy(delay=3600), "The longest delay in retry must be .* not 3600. .*_OUTBOX"),
        (lambda: with_long_delay_of_policy(max_delay=901), "The longest delay in retry must be .* not 901. .*_OUTBOX"),
    ],
    "E009": [
        (
            lambda: with_broken_module("import json\n\nfrom checked_shop import orders\n"),
            r"cannot import name 'orders' from 'checked_shop' .*/checked_shop/tasks\.py:3\)\. Workers do not find",
        ),
        (lambda: with_broken_module("import ordres\n"), r"No module named 'ordres' \(.*/checked_shop/tasks\.py:1\)"),
        (lambda: with_broken_module("def send(:\n"), r"SyntaxError: .* \(.*/checked_shop/tasks\.py:1\)"),
        (
            lambda: with_broken_module("\nraise KeyError('x')\n", inside="site-packages"),
            r"cannot be imported: KeyError: 'x' \(.*/checked_shop/tasks\.py:2\)",
        ),
        (lambda: with_broken_module("import sys\nsys.exit(3)\n"), r"called sys\.exit\(3\) during its import"),
        (
            # The decorator's own frames do not help.
            lambda: with_broken_module(
                """
                from lambda_tasks.decorators import lambda_task

                @lambda_task(hard_timeout=60)
                def send() -> None: ...
                """
            ),
            r"\.send would have a soft timeout of 270 s, .* soft_timeout=54, hard_timeout=60 .*/tasks\.py:[45]\)",
        ),
    ],
    "W004": [
        (
            lambda: with_broken_module("import celry\n", inside="site-packages"),
            r"checked_shop.tasks cannot be imported: ModuleNotFoundError: No module named 'celry' \(.*/tasks\.py:1\)",
        )
    ],
    "W005": [
        (
            lambda: messages(LAMBDA_TASKS_ZYX=True),
            "LAMBDA_TASKS_ZYX is not a setting of django-lambda-tasks",
        ),
        (lambda: messages(LAMBDA_TASKS_QUEUE={}), "LAMBDA_TASKS_QUEUE is not a setting"),
        (lambda: messages(LAMBDA_TASK_EAGER=True), "LAMBDA_TASK_EAGER is not a setting"),
    ],
    "E008": [(with_model, "The annotations of .*send include a type that cannot be converted to JSON: .*TaskRecord")],
    "E030": [
        (
            lambda: with_queue("shop"),
            r"QUEUES\['default'\] must be the URL of a queue, not its name 'shop'",
        ),
    ],
    "E040": [
        (
            lambda: of_django_tasks("lambda_tasks.stores.orm.ORMStore", "urgent"),
            "Queue 'urgent' of 'default' in TASKS is 'urgent' in LAMBDA_TASKS_QUEUES, which has no such queue",
        )
    ],
    "W040": [
        (
            lambda: of_django_tasks("lambda_tasks.stores.null.NullStore", "default"),
            "results of 'default' in TASKS stay READY, because NullStore in LAMBDA_TASKS_STORE does not write",
        )
    ],
    "W030": [(without_region, r"LAMBDA_TASKS_QUEUES\['default'\] is a URL without an AWS region")],
    "W031": [
        (
            lambda: with_queue("https://sqs.eu-west-1.amazonaws.con/123456789012/shop"),
            "has a host that looks like AWS, but belongs to no partition",
        )
    ],
    "E010": [
        (
            lambda: with_schedule(kwargs={"number": "one"}),
            "send: the schedule 'every 0:05:00' cannot send its task. Invalid arguments for .*send: number",
        ),
        (lambda: with_schedule(queue="mail"), "cannot send its task. Queue 'mail' is not in LAMBDA_TASKS_QUEUES"),
    ],
    "E020": [
        (lambda: with_database(AUTOCOMMIT=False), r"DATABASES\['sqlite'\]\['AUTOCOMMIT'\] must be True, not False"),
        (lambda: with_database(outbox=True, AUTOCOMMIT=False), r"DATABASES\['sqlite'\]\['AUTOCOMMIT'\] must be True"),
    ],
    "W020": [
        (
            lambda: with_database(OPTIONS={"pool": True}),
            r"DATABASES\['sqlite'\] has a connection pool without CONN_HEA",
        ),
    ],
    "W021": [
        (
            with_unsafe_durability,
            "Database 'sqlite' has journal=off: a crash of its server may undo tasks that were acknowledged",
        ),
    ],
    "W001": [
        (
            lambda: messages(task_on(singleton=True), LAMBDA_TASKS_BACKEND=REAL_QUEUE, CACHES=LOCAL_CACHE),
            "uses the cache 'default', which workers do not share: .*LocMemCache",
        )
    ],
    "E021": [
        (
            lambda: with_table("", "CREATE TABLE lambda_tasks_taskrecord (id integer PRIMARY KEY, kwargs text)"),
            "of database 'default' is not a table of django-lambda-tasks: it lacks the column end_time, n_retries",
        ),
        (lambda: with_table("0.1.6", "ALTER TABLE lambda_tasks_taskrecord ADD note text"), "its column note would be"),
    ],
    "W022": [
        (lambda: with_table("0.1.6"), "was created by an earlier version of django-lambda-tasks"),
        (lambda: with_table("0.8.1"), "was created by an earlier version of django-lambda-tasks"),
    ],
    "W023": [(lambda: after_upgrade("SUCCEEDED"), "contains records with the status SUCCEEDED")],
    "W003": [
        (
            lambda: messages(
                LAMBDA_TASKS_STORE={
                    "BACKEND": "lambda_tasks.stores.orm.ORMStore",
                    "OPTIONS": {"database": "sqlite", "durable_claims": False},
                }
            ),
            "durable_claims=False, which database 'sqlite' does not support",
        )
    ],
    "W007": [
        (
            lambda: messages(LAMBDA_TASKS_SIGNING_KEYS=["k" * 32], LAMBDA_TASKS_ACCEPT_UNSIGNED=True),
            "LAMBDA_TASKS_ACCEPT_UNSIGNED is True: workers run messages without a signature",
        )
    ],
    "W006": [(discarding, "LAMBDA_TASKS_NOOP_EXECUTION is True: tasks and retries are discarded")],
    "W002": [(lambda: messages(LAMBDA_TASKS_EAGER=True, deploy=True), "LAMBDA_TASKS_EAGER is True: tasks run inside")],
    "W027": [
        (
            lambda: messages(task_on(schedule=Every(minutes=5))),
            "send has a schedule, but no `tasks` module of an installed app imports tests.operations.test_checks",
        )
    ],
    "W026": [(in_management_command, "a worker refuses to import tests.app.management.commands.wipe")],
    "I002": [(lambda: messages(CELERY_BROKER_URL="sqs://"), "CELERY_BROKER_URL are read by Celery only")],
    "I001": [
        (lambda: messages(task_on(retry_on=[OSError], retry_delay=30)), "send is retried for 1.1 days if it always"),
        (lambda: messages(task_on(retry=RetryPolicy(on=(OSError,), delay=900))), "send is retried for 30.1 days"),
        (
            lambda: messages(task_on(retry={OSError: RetryPolicy(max_retries=1), KeyError: RetryPolicy(delay=60)})),
            "send is retried for 2.1 days",
        ),
    ],
}


def ids_in_the_code() -> set[str]:
    return {id for file in PACKAGE.rglob("*.py") for id in re.findall(r'"lambda_tasks\.([EWI]\d+)"', file.read_text())}


@pytest.mark.parametrize(
    ("id", "bring_about", "sentence"),
    [(id, bring_about, sentence) for id, cases in CASES.items() for bring_about, sentence in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_problem_is_reported_once_with_its_id(
    id: str, bring_about: Callable[[], list[CheckMessage]], sentence: str
) -> None:
    [message] = bring_about()
    assert message.id == f"lambda_tasks.{id}"
    assert isinstance(message, {"E": Error, "W": Warning, "I": Info}[id[0]])
    assert re.search(sentence, message.msg)


@pytest.mark.parametrize(
    "changes",
    [
        {"LAMBDA_TASKS_ACCEPT_UNSIGNED": True},
        {"LAMBDA_TASKS_SIGNING_KEYS": ["k" * 32]},
        {
            "LAMBDA_TASKS_SIGNING_KEYS": ["k" * 32],
            "LAMBDA_TASKS_ACCEPT_UNSIGNED": datetime(2100, 1, 1, tzinfo=timezone.utc),
        },
    ],
    ids=["without-keys", "not-accepted", "until-a-time"],
)
def test_unsigned_messages_are_reported_only_without_an_end(changes: dict[str, Any]) -> None:
    assert messages(**changes) == []


def test_every_id_has_a_case() -> None:
    assert ids_in_the_code() == set(CASES)


def test_page_has_a_section_for_each_id() -> None:
    assert set(re.findall(r"^### `lambda_tasks\.([EWI]\d+)`", PAGE.read_text(), re.MULTILINE)) == ids_in_the_code()


class TestNoProblems:
    def test_valid_settings_and_tasks_are_not_reported(self) -> None:
        @lambda_task(queue="other", soft_timeout=5, hard_timeout=6)
        def send(*, number: int) -> None: ...

        assert messages(send, deploy=True) == []

    @pytest.mark.parametrize(
        "options",
        [
            {"retry_on": [OSError]},
            {"retry_on": [OSError], "retry_delay": 29, "max_retries": 2700},
            {"retry_on": [OSError], "retry_delay": 900, "expires_in": 86_400},
            {"retry": RetryPolicy(on=(OSError,), delay=900, max_age=86_400)},
            {"retry": RetryPolicy(on=(OSError,), delay=30, backoff=True, max_retries=100)},
            {"singleton": True},
        ],
        ids=str,
    )
    def test_retries_of_a_day_are_not_reported(self, options: dict[str, Any]) -> None:
        assert messages(task_on(**options)) == []

    def test_eager_mode_needs_no_queues_or_shared_cache(self) -> None:
        with override_settings(CACHES=LOCAL_CACHE):
            assert with_queues_unset(task_on(singleton=True)) == []

    def test_local_cache_without_singletons_is_not_reported(self) -> None:
        assert messages(task_on(), LAMBDA_TASKS_BACKEND=REAL_QUEUE, CACHES=LOCAL_CACHE) == []

    @pytest.mark.parametrize("name", ["LAMBDA_TASK_ROLE_ARN", "LAMBDA_TASKS_QUEUES", "lambda_tasks_queue", "LAMBDA"])
    def test_other_names_are_not_reported(self, name: str) -> None:
        assert messages(**{name: django_settings.LAMBDA_TASKS_QUEUES}) == []

    def test_eager_mode_is_reported_only_before_deployment(self) -> None:
        assert messages(LAMBDA_TASKS_EAGER=True) == []

    @pytest.mark.parametrize("alias", ["database", "core"])
    def test_shared_cache_is_not_reported(self, alias: str) -> None:
        if django_settings.CACHES[alias]["BACKEND"].endswith("LocMemCache"):
            pytest.skip("no Redis")
        assert messages(LAMBDA_TASKS_BACKEND=REAL_QUEUE, LAMBDA_TASKS_SINGLETON_CACHE=alias) == []

    def test_long_delays_are_not_reported_with_the_outbox(self) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            task = task_on(delay=3600, retry_delay=1000, retry_on=(OSError,), max_retries=5)
        assert messages(task, LAMBDA_TASKS_OUTBOX=True) == []
        assert messages(task, LAMBDA_TASKS_OUTBOX=True, LAMBDA_TASKS_EAGER=True) == []

    def test_pool_with_health_checks_is_not_reported(self) -> None:
        assert with_database(OPTIONS={"pool": True}, CONN_HEALTH_CHECKS=True) == []

    def test_atomic_requests_are_not_reported(self) -> None:
        assert with_database(ATOMIC_REQUESTS=True) == []

    def test_outbox_with_options_is_not_reported(self) -> None:
        assert with_outbox(databases=["default", "sqlite"]) == []


@pytest.mark.databases("postgres", "mariadb")
class TestDurability:
    """The server reports whether COMMIT waits for the disk."""

    def check(self, database: str, *databases: str) -> list[CheckMessage]:
        store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
        with override_settings(LAMBDA_TASKS_STORE=store):
            return check_durability(list(databases))

    def replace_queries(self, database: str, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
        """Replace the queries for the server's settings by constants."""
        vendor = connections[database].vendor
        asked = [(name, f"SELECT '{settings[name]}'", bad) for name, _, bad in database_settings._SETTINGS[vendor]]
        monkeypatch.setitem(database_settings._SETTINGS, vendor, tuple(asked))

    def test_forgetful_server_is_reported(self, database: str) -> None:
        with connections[database].cursor() as cursor:
            if connections[database].vendor == "postgresql":
                cursor.execute("SET LOCAL synchronous_commit TO off")
            else:
                cursor.execute("SELECT @@innodb_flush_log_at_trx_commit")
                if str(cursor.fetchone()[0]) == "1":
                    pytest.skip("this server waits for its disk, and only its administrator may change that")
        [message] = self.check(database, database)
        assert re.search("synchronous_commit=off|innodb_flush_log_at_trx_commit=[02]", message.msg)

    def test_durable_server_is_not_reported(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        on = {"synchronous_commit": "on", "fsync": "on", "innodb_flush_log_at_trx_commit": "1"}
        self.replace_queries(database, monkeypatch, **on)
        assert self.check(database, database) == []

    def test_other_databases_are_not_queried(self, database: str) -> None:
        assert self.check(database, "sqlite") == []
        assert self.check(database) == []


class TestModulesOfTasks:
    """The checks import the `tasks` modules of all apps, so their result does not depend on earlier imports."""

    SINGLETON = """
        from lambda_tasks.decorators import lambda_task

        @lambda_task(singleton=True, queue="mail")
        def send() -> None: ...
    """

    @pytest.mark.parametrize("check", [checks.check_tasks, checks.check_strategies], ids=lambda check: check.__name__)
    def test_each_check_finds_tasks_that_nothing_has_imported(self, check: Callable[..., list[CheckMessage]]) -> None:
        expected = "E007" if check is checks.check_tasks else "W001"
        with (
            override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE, CACHES=LOCAL_CACHE),
            app_with_tasks(self.SINGLETON),
        ):
            assert "checked_shop.tasks" not in sys.modules
            assert f"lambda_tasks.{expected}" in [message.id for message in check(app_configs=None)]

    def test_only_tasks_modules_are_imported(self) -> None:
        with app_with_tasks(self.SINGLETON):
            package = Path(import_module("checked_shop").__path__[0])
            for name in ("settings", "scripts", "test_tasks", "jobs"):
                (package / f"{name}.py").write_text("raise SystemExit")
            registry.import_tasks_of_apps()
            assert {name for name in sys.modules if name.startswith("checked_shop.")} == {"checked_shop.tasks"}

    def test_failed_import_is_not_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        assert [message.id for message in with_broken_module("import ordres\n")] == ["lambda_tasks.E009"]
        assert caplog.records == []

    def test_settings_problem_is_not_repeated_per_module(self) -> None:
        found = with_broken_module(self.SINGLETON, LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=0)
        assert [message.id for message in found] == ["lambda_tasks.E001"]


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("LAMBDA_TASKS_QUEUE", "LAMBDA_TASKS_QUEUES"),
        ("LAMBDA_TASKS_RETRIES", "LAMBDA_TASKS_MAX_RETRIES"),
        ("LAMBDA_TASKS_HARD_TIMEOUT", "LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT"),
        ("LAMBDA_TASKSEAGER", "LAMBDA_TASKS_EAGER"),
        ("LAMBDA_TASK_STORE", "LAMBDA_TASKS_STORE"),
    ],
)
def test_hint_guesses_the_misspelt_setting(name: str, guess: str) -> None:
    [message] = messages(**{name: True})
    assert message.hint == f"Did you mean {guess}?"


@pytest.mark.parametrize("name", ["LAMBDA_TASKS_ZYX", "LAMBDA_TASKS_RETENTION_DAYS"])
def test_hint_lists_the_settings_without_a_guess(name: str) -> None:
    [message] = messages(**{name: True})
    assert re.fullmatch("Remove it. The settings are .*LAMBDA_TASKS_EAGER, .*LAMBDA_TASKS_STORE, .*", str(message.hint))


class TestSeveralProblems:
    def test_each_problem_is_reported(self) -> None:
        found = messages(
            task_on(queue="mail"),
            LAMBDA_TASKS_MAX_RETRIES=-1,
            LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=300,
            LAMBDA_TASKS_STORE="shop.Store",
        )
        assert sorted(str(message.id)[-4:] for message in found) == ["E001", "E003", "E004", "E007"]

    def test_wrong_queue_and_annotation_are_both_reported(self) -> None:
        @lambda_task(queue="mail")
        def send(*, record: TaskRecord) -> None: ...

        found = messages(send)
        assert [message.id for message in found] == ["lambda_tasks.E007", "lambda_tasks.E008"]
        assert {message.obj for message in found} == {send}

    def test_settings_problem_is_not_repeated_per_task(self) -> None:
        tasks = [task_on(), task_on(queue="other"), task_on(soft_timeout=5, hard_timeout=6)]
        for name, value in (("LAMBDA_TASKS_QUEUES", {}), ("LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT", 0)):
            assert [message.id for message in messages(*tasks, **{name: value})] == ["lambda_tasks.E001"]

    @pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in TABLE.items() for value in row[2]])
    def test_setting_values_never_make_checks_raise(self, name: str, value: Any) -> None:
        found = messages(task_on(), deploy=True, **{name: value})
        assert "lambda_tasks.E001" in {message.id for message in found}
        assert any(name in message.msg for message in found)


def test_strategy_adds_its_own_checks() -> None:
    with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.BackendWithCheck"):
        assert "pigeons.W001" in {message.id for message in said()}


@pytest.mark.usefixtures("unset")
def test_unconfigured_project_is_told_only_of_queues() -> None:
    with only(), override_settings(CACHES={"default": django_settings.CACHES["database"]}):
        assert [message.id for message in said(deploy=True)] == ["lambda_tasks.E002"]


def test_checks_leave_the_strategies_usable() -> None:
    messages(LAMBDA_TASKS_STORE="shop.Store")
    assert get_store().database
