"""What `manage.py check` says: every id is brought about, documented, and never raises instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.checks.registry import registry as registered
from django.test import override_settings

import lambda_tasks
from lambda_tasks import registry
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import OUTBOX_BACKEND, get_store
from tests.test_settings import TABLE, unset

__all__ = ["unset"]

PACKAGE = Path(lambda_tasks.__file__).parent
PAGE = PACKAGE.parent / "docs/reference/checks.md"

LOCAL_CACHE = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}


class QueueOfAnotherProcess(MemoryBackend):
    leaves_process = True


class Outspoken(MemoryBackend):
    """A transport that has something to say of its own."""

    def check(self) -> list[CheckMessage]:
        return [Warning("The pigeons are tired.", id="pigeons.W001")]


class NoOutboxes:
    """A router that keeps the table out."""

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool | None:
        return False if model_name == "outboxmessage" else None


REAL_QUEUE = f"{__name__}.QueueOfAnotherProcess"
MEMORY = "lambda_tasks.backends.memory.MemoryBackend"


class Misspelt:
    @hookimpl
    def lambda_task_stated(self, run: Any) -> None: ...


@contextmanager
def only(*tasks: LambdaTaskWrapper[..., Any]) -> Iterator[None]:
    """Let these be the only tasks that are known: other modules of tests have broken ones."""
    known = dict(registry._tasks)
    registry._tasks.clear()
    registry._tasks.update({task.name: task for task in tasks})
    try:
        yield
    finally:
        registry._tasks.clear()
        registry._tasks.update(known)


def messages(*tasks: LambdaTaskWrapper[..., Any], deploy: bool = False, **settings: Any) -> list[CheckMessage]:
    """Return what the library has to say with those settings and tasks."""
    with override_settings(**settings), only(*tasks):
        return said(deploy=deploy)


def said(*, deploy: bool = False) -> list[CheckMessage]:
    """Run the checks that the library has registered with Django."""
    checks = (check for check in registered.get_checks(deploy) if check.__module__ == "lambda_tasks.checks")
    return [message for check in checks for message in check(app_configs=None)]


def without_queues() -> list[CheckMessage]:
    with override_settings(LAMBDA_TASKS_BACKEND=REAL_QUEUE):
        del django_settings.LAMBDA_TASKS_QUEUES
        return messages()


def task_on(**options: Any) -> LambdaTaskWrapper[..., Any]:
    @lambda_task(**options)
    def send() -> None: ...

    return send


def with_short_limit() -> list[CheckMessage]:
    """Its soft timeout fits the default hard one when it is decorated, and not any more when it is checked."""
    return messages(
        task_on(soft_timeout=100), LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=50, LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=9
    )


def with_long_delay(name: str) -> list[CheckMessage]:
    """It was defined while the outbox would have kept it."""
    with override_settings(LAMBDA_TASKS_OUTBOX=True):
        task = task_on(**{name: 3600}, **({"retry_on": (OSError,)} if name == "retry_delay" else {}))
    return messages(task)


def with_outbox(**options: Any) -> list[CheckMessage]:
    options = {"transport": MEMORY, **options}
    return messages(LAMBDA_TASKS_BACKEND={"BACKEND": OUTBOX_BACKEND, "OPTIONS": options})


def with_model() -> list[CheckMessage]:
    @lambda_task
    def send(*, record: TaskRecord) -> None: ...

    return messages(send)


#: How each id is brought about, and what it says. Several of one id stand in a list.
CASES: dict[str, list[tuple[Callable[[], list[CheckMessage]], str]]] = {
    "E001": [
        (lambda: messages(LAMBDA_TASKS_MAX_RETRIES=-1), "LAMBDA_TASKS_MAX_RETRIES is -1; give a whole number of 0"),
        (lambda: messages(LAMBDA_TASKS_EAGER="yes", deploy=True), "LAMBDA_TASKS_EAGER is 'yes'; give True or False"),
        (
            lambda: messages(LAMBDA_TASKS_QUEUES={"other": "x"}),
            r"has the queues \['other'\]; add the one named 'default'",
        ),
        (
            lambda: messages(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=901),
            "SOFT_TIMEOUT is 901; give a whole number of 1 to 900",
        ),
        (
            lambda: messages(LAMBDA_TASKS_LOCK=5, LAMBDA_TASKS_BACKEND=REAL_QUEUE),
            "LAMBDA_TASKS_LOCK is 5; give a dotted",
        ),
        (lambda: messages(LAMBDA_TASKS_PLUGINS="shop.plugins"), "LAMBDA_TASKS_PLUGINS is 'shop.plugins'; give a list"),
        (
            lambda: messages(LAMBDA_TASKS_SINGLETON_CACHE="", LAMBDA_TASKS_BACKEND=REAL_QUEUE),
            "LAMBDA_TASKS_SINGLETON_CACHE is ''; give a text",
        ),
    ],
    "E002": [(without_queues, "LAMBDA_TASKS_QUEUES is not set")],
    "E003": [
        (
            lambda: messages(task_on(), LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=300),
            "Every task without limits of its own would have a soft timeout of 300 s and a hard timeout of 300 s",
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
            "LAMBDA_TASKS_STORE names database 'recods', which is not in DATABASES .*default",
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
            r"STORE gives 'lambda_tasks.stores.orm.ORMStore' the OPTIONS \['alias'\], which it refuses",
        ),
        (
            lambda: messages(LAMBDA_TASKS_OUTBOX=True, LAMBDA_TASKS_BACKEND="shop.Pigeons"),
            "names 'shop.Pigeons', which",
        ),
        (lambda: with_outbox(databases=[]), r"which it refuses: databases is \[\]; give a list of aliases"),
        (lambda: with_outbox(databases="default"), "which it refuses: databases is 'default'; give a list of aliases"),
        (
            lambda: with_outbox(databases=["default", "orders"]),
            "the outbox database 'orders', which is not in DATABASES",
        ),
        (lambda: with_outbox(alias="x"), r"the OPTIONS \['alias', 'transport'\], which it refuses"),
        (lambda: with_outbox(transport=5), "which it refuses: transport is 5; give a dotted path"),
        (lambda: with_outbox(transport="shop.Pigeons"), "BACKEND names 'shop.Pigeons', which cannot be imported"),
        (lambda: with_outbox(transport={"BACKEND": MEMORY, "OPTIONS": {"wings": 2}}), r"OPTIONS \['wings'\]"),
        (lambda: with_outbox(transport=OUTBOX_BACKEND), "name a transport that is no outbox itself"),
        (lambda: with_outbox(transport="builtins.dict"), "name a transport that is no outbox itself"),
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
            "LAMBDA_TASKS_STORE names database 'recods', which is not in DATABASES",
        ),
        (
            lambda: messages(LAMBDA_TASKS_OUTBOX=True, DATABASE_ROUTERS=[f"{__name__}.NoOutboxes"]),
            "The outbox is to be kept in 'default', where DATABASE_ROUTERS do not allow its table",
        ),
    ],
    "E005": [
        (lambda: messages(LAMBDA_TASKS_PLUGINS=[Misspelt]), "a hook that does not exist: .*lambda_task_stated"),
        (lambda: messages(LAMBDA_TASKS_PLUGINS=["shop.plugins"]), "has 'shop.plugins', which cannot be used"),
    ],
    "E006": [
        (
            lambda: messages(LAMBDA_TASKS_BACKEND=REAL_QUEUE, LAMBDA_TASKS_SINGLETON_CACHE="locks"),
            "uses the cache 'locks', which is not in CACHES",
        )
    ],
    "E007": [
        (lambda: messages(task_on(queue="mail")), "Queue 'mail' is not in LAMBDA_TASKS_QUEUES .* fix queue= on .*send"),
        (with_short_limit, "send would have a soft timeout of 100 s and a hard timeout of 50 s"),
        (lambda: with_long_delay("delay"), "send: delay is 3600; .* or set LAMBDA_TASKS_OUTBOX = True"),
        (lambda: with_long_delay("retry_delay"), "send: retry_delay is 3600; .* or set LAMBDA_TASKS_OUTBOX = True"),
    ],
    "E008": [(with_model, "The annotations of .*send include a type that cannot travel as JSON: .*TaskRecord")],
    "W001": [
        (
            lambda: messages(LAMBDA_TASKS_BACKEND=REAL_QUEUE, CACHES=LOCAL_CACHE),
            "uses the cache 'default', which workers do not share: .*LocMemCache",
        )
    ],
    "W003": [
        (
            lambda: messages(
                LAMBDA_TASKS_STORE={
                    "BACKEND": "lambda_tasks.stores.orm.ORMStore",
                    "OPTIONS": {"database": "sqlite", "durable_claims": False},
                }
            ),
            "durable_claims=False, which database 'sqlite' cannot keep",
        )
    ],
    "W002": [(lambda: messages(LAMBDA_TASKS_EAGER=True, deploy=True), "LAMBDA_TASKS_EAGER is True: tasks run inside")],
}


def ids_in_the_code() -> set[str]:
    return {id for file in PACKAGE.rglob("*.py") for id in re.findall(r'"lambda_tasks\.([EW]\d+)"', file.read_text())}


@pytest.mark.parametrize(
    ("id", "bring_about", "sentence"),
    [(id, bring_about, sentence) for id, cases in CASES.items() for bring_about, sentence in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_once_and_by_its_id(
    id: str, bring_about: Callable[[], list[CheckMessage]], sentence: str
) -> None:
    [message] = bring_about()
    assert message.id == f"lambda_tasks.{id}"
    assert isinstance(message, Error if id.startswith("E") else Warning)
    assert re.search(sentence, message.msg)


def test_every_id_in_the_code_is_brought_about_here() -> None:
    assert ids_in_the_code() == set(CASES)


def test_every_id_has_its_section_on_the_page_and_no_other() -> None:
    assert set(re.findall(r"^### `lambda_tasks\.([EW]\d+)`", PAGE.read_text(), re.MULTILINE)) == ids_in_the_code()


class TestNothingWrong:
    def test_settings_and_tasks_that_work_are_not_mentioned(self) -> None:
        @lambda_task(queue="other", soft_timeout=5, hard_timeout=6)
        def send(*, number: int) -> None: ...

        assert messages(send, deploy=True) == []

    def test_eager_mode_needs_no_queues_and_no_shared_cache(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True, CACHES=LOCAL_CACHE):
            del django_settings.LAMBDA_TASKS_QUEUES
            assert messages(task_on(queue="mail")) == []

    def test_eager_mode_is_only_worth_a_word_before_a_deployment(self) -> None:
        assert messages(LAMBDA_TASKS_EAGER=True) == []

    @pytest.mark.parametrize("alias", ["database", "core"])
    def test_a_cache_that_workers_share_is_not_mentioned(self, alias: str) -> None:
        if django_settings.CACHES[alias]["BACKEND"].endswith("LocMemCache"):
            pytest.skip("no Redis")
        assert messages(LAMBDA_TASKS_BACKEND=REAL_QUEUE, LAMBDA_TASKS_SINGLETON_CACHE=alias) == []

    def test_long_delays_are_not_mentioned_where_the_outbox_keeps_them(self) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            task = task_on(delay=3600, retry_delay=1000, retry_on=(OSError,))
        assert messages(task, LAMBDA_TASKS_OUTBOX=True) == []
        assert messages(task, LAMBDA_TASKS_OUTBOX=True, LAMBDA_TASKS_EAGER=True) == []

    def test_an_outbox_with_options_is_not_mentioned(self) -> None:
        assert with_outbox(databases=["default", "sqlite"]) == []


class TestSeveralThingsWrong:
    def test_each_is_said(self) -> None:
        found = messages(
            task_on(queue="mail"),
            LAMBDA_TASKS_MAX_RETRIES=-1,
            LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=300,
            LAMBDA_TASKS_STORE="shop.Store",
        )
        assert sorted(str(message.id)[-4:] for message in found) == ["E001", "E003", "E004", "E007"]

    def test_a_task_has_both_a_wrong_queue_and_a_wrong_annotation(self) -> None:
        @lambda_task(queue="mail")
        def send(*, record: TaskRecord) -> None: ...

        found = messages(send)
        assert [message.id for message in found] == ["lambda_tasks.E007", "lambda_tasks.E008"]
        assert {message.obj for message in found} == {send}

    def test_what_is_wrong_with_the_settings_is_not_repeated_for_each_task(self) -> None:
        tasks = [task_on(), task_on(queue="other"), task_on(soft_timeout=5, hard_timeout=6)]
        for name, value in (("LAMBDA_TASKS_QUEUES", {}), ("LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT", 0)):
            assert [message.id for message in messages(*tasks, **{name: value})] == ["lambda_tasks.E001"]

    @pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in TABLE.items() for value in row[2]])
    def test_no_value_of_a_setting_makes_the_checks_raise(self, name: str, value: Any) -> None:
        found = messages(task_on(), deploy=True, **{name: value})
        assert "lambda_tasks.E001" in {message.id for message in found}
        assert any(name in message.msg for message in found)


def test_a_strategy_adds_checks_of_its_own() -> None:
    with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.Outspoken"):
        assert "pigeons.W001" in {message.id for message in said()}


@pytest.mark.usefixtures("unset")
def test_a_project_that_has_set_nothing_is_told_of_its_queues_alone() -> None:
    with only(), override_settings(CACHES={"default": django_settings.CACHES["database"]}):
        assert [message.id for message in said(deploy=True)] == ["lambda_tasks.E002"]


def test_the_checks_leave_the_strategies_usable() -> None:
    messages(LAMBDA_TASKS_STORE="shop.Store")
    assert get_store().database
