"""Tasks that were renamed or moved are found under their previous names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.test import modify_settings, override_settings

from lambda_tasks import registry
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.exceptions import UnknownTask
from lambda_tasks.execution.backoff import FOREIGN_PAUSE, MAX_FOREIGN_PAUSE
from lambda_tasks.execution.locking import LOCK_KEY
from lambda_tasks.handler import handler
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.models import SQSLambdaTask, TaskRecord
from lambda_tasks.strategies import get_backend, get_lock
from tests.app.models import Effect

OLD = "shop.old_tasks.leave"


class Busy(Exception):
    pass


def leave(*, name: str) -> str:
    Effect.objects.create(name=name)
    return name


def raise_busy(*, name: str) -> None:
    raise Busy(name)


@pytest.fixture(autouse=True)
def _only_tasks_of_this_test() -> Iterator[None]:
    backend().jobs.clear()
    with worker():
        yield


@contextmanager
def worker() -> Iterator[None]:
    """Imitate a process that has only the tasks that are defined in the block."""
    known, aliases = dict(registry._tasks), dict(registry._aliases)
    registry._tasks.clear()
    registry._aliases.clear()
    registry._import_tasks_of_apps.cache_clear()
    try:
        yield
    finally:
        registry._tasks.clear()
        registry._tasks.update(known)
        registry._aliases.clear()
        registry._aliases.update(aliases)
        registry._import_tasks_of_apps.cache_clear()


def named(task_name: str, function: Any, **options: Any) -> LambdaTaskWrapper[..., Any]:
    """Return a task as another version of the project defines it."""
    module, _, name = task_name.rpartition(".")
    copy = type(function)(function.__code__, function.__globals__, name, function.__defaults__)
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, function.__annotations__
    copy.__module__, copy.__qualname__ = module, name
    return lambda_task(**options)(copy)


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def message(task_name: str, *, receives: int = 1, **kwargs: Any) -> dict[str, Any]:
    """Return the SQS record of a message that a producer of another version has sent."""
    payload = {"message": {"task_name": task_name, "kwargs": kwargs}}
    SQSLambdaTask.model_validate(payload).execute_on_commit()
    return event_record(backend().take()[-1], receive_count=receives)


def kept(*records: dict[str, Any]) -> list[str]:
    response = handler({"Records": list(records)}, None)
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


@pytest.mark.django_db(transaction=True)
class TestOldNames:
    def test_old_name_runs_the_task(self) -> None:
        """The record keeps the name that the message has."""
        named("shop.mail.leave", leave, aliases=(OLD, "shop.oldest.leave"))
        records = [message(name, name=name) for name in (OLD, "shop.oldest.leave", "shop.mail.leave")]
        assert kept(*records) == []
        assert [effect.name for effect in Effect.objects.order_by("pk")] == [
            OLD,
            "shop.oldest.leave",
            "shop.mail.leave",
        ]
        assert set(TaskRecord.objects.values_list("task_name", "status")) == {
            (OLD, "SUCCESS"),
            ("shop.oldest.leave", "SUCCESS"),
            ("shop.mail.leave", "SUCCESS"),
        }

    def test_retry_chain_alternates_between_old_and_new_workers(self) -> None:
        with worker():
            named(OLD, raise_busy, retry_on=[Busy])
            record = message(OLD, name="a")
            assert kept(record) == []
            [retry] = backend().take_records()
        with worker():
            named("shop.mail.leave", raise_busy, retry_on=[Busy], aliases=[OLD])
            assert kept(retry) == []
            [again] = backend().take_records()
        with worker():
            named(OLD, leave)
            assert kept(again) == []
        assert [effect.name for effect in Effect.objects.all()] == ["a"]
        assert list(TaskRecord.objects.order_by("n_retries").values_list("n_retries", "status", "task_name")) == [
            (0, "RETRYING", OLD),
            (1, "RETRYING", OLD),
            (2, "SUCCESS", OLD),
        ]

    def test_payload_serialized_under_old_name_can_be_sent(self) -> None:
        with worker():
            payload = named(OLD, leave).serialize(name="a")
        named("shop.mail.leave", leave, aliases=[OLD])
        SQSLambdaTask.model_validate(payload).execute_on_commit()
        assert kept(*backend().take_records()) == []
        assert Effect.objects.count() == 1

    def test_message_stays_without_an_alias(self) -> None:
        named("shop.mail.leave", leave)
        record = message(OLD, name="a")
        assert kept(record) == [record["messageId"]]
        assert not TaskRecord.objects.exists()


class WatchedLock(MemoryLock):
    in_transactions: list[str] = []  # noqa: RUF012, emptied by the test

    def hold_in_transaction(self, key: str, *, database: str) -> bool:
        self.in_transactions.append(key)
        return True


@pytest.mark.django_db(transaction=True)
class TestSingletons:
    NEW = "shop.mail.leave"

    @pytest.fixture(autouse=True)
    def _locks_of_this_test(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_LOCK = f"{__name__}.WatchedLock"

    @pytest.mark.parametrize("held", [OLD, NEW])
    @pytest.mark.parametrize("asked", [OLD, NEW])
    def test_lock_covers_every_name_of_the_task(self, asked: str, held: str) -> None:
        """`held` is the name that the other worker locks: an old worker has only its own name."""
        named(self.NEW, leave, singleton=True, aliases=[OLD])
        key = LOCK_KEY.format(task_name=held)
        assert get_lock().acquire(key, token="another", timeout=60)
        try:
            assert kept(message(asked, name="a")) == []
            assert TaskRecord.objects.get().status == "RETRYING"
            assert not Effect.objects.exists()
        finally:
            get_lock().release(key, token="another")
        assert kept(*backend().take_records()) == []
        assert Effect.objects.count() == 1

    def test_all_locks_are_released(self) -> None:
        named(self.NEW, leave, singleton=True, aliases=[OLD])
        old_key, new_key = (LOCK_KEY.format(task_name=name) for name in (OLD, self.NEW))
        get_lock().acquire(old_key, token="another", timeout=60)
        kept(message(self.NEW, name="refused"))  # it acquired the first lock, but not the second
        assert get_lock().acquire(new_key, token="another", timeout=60)
        for key in (old_key, new_key):
            get_lock().release(key, token="another")
        kept(message(self.NEW, name="a"))
        for key in (old_key, new_key):
            assert get_lock().acquire(key, token="third", timeout=60)
            get_lock().release(key, token="third")

    def test_transaction_locks_cover_every_name(self) -> None:
        named(self.NEW, leave, singleton=True, aliases=[OLD])
        WatchedLock.in_transactions.clear()
        kept(message(OLD, name="a"))
        assert WatchedLock.in_transactions[-2:] == [LOCK_KEY.format(task_name=name) for name in (self.NEW, OLD)]


class TestClashes:
    def test_alias_equal_to_another_tasks_name_is_refused(self) -> None:
        named("shop.mail.send", leave)
        # The order of the two definitions does not matter.
        with pytest.raises(
            ValueError, match=r"must name a single task, not both shop\.mail\.leave and shop\.mail\.send"
        ):
            named("shop.mail.leave", leave, aliases=["shop.mail.send"])
        named("shop.mail.leave", leave, aliases=[OLD])
        with pytest.raises(ValueError, match=f"'{OLD}' must .*, not both {OLD} and shop.mail.leave. Remove it"):
            named(OLD, leave)

    def test_two_tasks_cannot_share_an_alias(self) -> None:
        named("shop.mail.leave", leave, aliases=[OLD])
        with pytest.raises(ValueError, match=f"'{OLD}' must .*, not both shop.mail.send and shop.mail.leave"):
            named("shop.mail.send", leave, aliases=[OLD])
        assert registry.known_task("shop.mail.send") is None

    def test_alias_equal_to_own_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"The aliases of shop\.mail\.leave must not contain its own name"):
            named("shop.mail.leave", leave, aliases=["shop.mail.leave"])

    def test_redefined_task_has_only_its_new_aliases(self) -> None:
        named("shop.mail.leave", leave, aliases=[OLD])
        again = named("shop.mail.leave", leave, aliases=["shop.older.leave"])
        assert registry.known_task(OLD) is None
        assert registry.known_task("shop.older.leave") is again
        assert registry.registered_tasks() == [again]
        named(OLD, leave)  # the name is free again

    def test_repeated_alias_counts_once(self) -> None:
        assert named("shop.mail.leave", leave, aliases=[OLD, OLD]).aliases == (OLD,)


MODULE = """
from lambda_tasks.decorators import lambda_task

@lambda_task(aliases=("gone_shop.tasks.send", "tests.app.models.send"))
def send() -> str:
    return "found"
"""


BROKEN = """
with open(__file__ + ".log", "a") as log:
    log.write("x")
1 / 0
"""


class TestUnimportedModules:
    @pytest.fixture
    def shop(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Install an app whose tasks are not imported yet, and one whose tasks cannot be imported."""
        for package, tasks in (("late_app", MODULE), ("broken_app", BROKEN)):
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").touch()
            (tmp_path / package / "tasks.py").write_text(tasks)
        monkeypatch.syspath_prepend(tmp_path)
        with modify_settings(INSTALLED_APPS={"prepend": ["broken_app", "late_app"]}):
            yield tmp_path
        for name in [name for name in sys.modules if name.partition(".")[0] in ("late_app", "broken_app")]:
            del sys.modules[name]

    @pytest.mark.parametrize("name", ["gone_shop.tasks.send", "tests.app.models.send"])
    @pytest.mark.usefixtures("shop")
    def test_alias_is_found_after_its_module_changed(self, name: str) -> None:
        assert registry.find_task(name).name == "late_app.tasks.send"

    def test_modules_are_searched_once(self, shop: Path, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(3):
            with pytest.raises(UnknownTask, match=r"'nobody\.knows\.it' is not registered"):
                registry.find_task("nobody.knows.it")
        assert (shop / "broken_app" / "tasks.py.log").read_text() == "x"
        [logged] = caplog.records
        assert "broken_app.tasks cannot be imported" in logged.getMessage()

    def test_known_task_imports_no_other_module(self, shop: Path) -> None:
        assert registry.find_task("late_app.tasks.send").name == "late_app.tasks.send"
        assert "broken_app.tasks" not in sys.modules
        assert not (shop / "broken_app" / "tasks.py.log").exists()


class PostponingBackend(MemoryBackend):
    postponed: list[Any] = []  # noqa: RUF012, emptied by the test

    def postpone(self, records: Any) -> None:
        self.postponed.extend(records)


@pytest.mark.django_db(transaction=True)
class TestRollingDeploys:
    @pytest.mark.parametrize(
        "message_of_a_newer_producer",
        [
            {"task_name": "shop.new.task"},
            {"task_name": "shop.mail.leave", "name": "a", "more": 1},
        ],
        ids=["unknown task", "unknown argument"],
    )
    def test_unreadable_message_is_postponed_longer_each_time(
        self, message_of_a_newer_producer: dict[str, Any]
    ) -> None:
        named("shop.mail.leave", leave)
        PostponingBackend.postponed.clear()
        record = message(**message_of_a_newer_producer)
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.PostponingBackend"):
            for receives in (1, 2, 3, 4, 5, 50):
                again = record | {"attributes": {"ApproximateReceiveCount": str(receives)}}
                assert kept(again) == [record["messageId"]]
        pauses = [seconds for _, seconds in PostponingBackend.postponed]
        least = [FOREIGN_PAUSE, 240, 960, 3600, 3600, MAX_FOREIGN_PAUSE]
        assert all(low <= pause <= 1.25 * low for pause, low in zip(pauses, least, strict=True))
        assert not TaskRecord.objects.exists()
        # The recommended five receives last longer than a deployment.
        assert sum(pauses[:4]) > 3600

    def test_newly_deployed_worker_runs_the_task(self) -> None:
        record = message("shop.mail.leave", name="a")
        assert kept(record) == [record["messageId"]]
        named("shop.mail.leave", leave)
        assert kept(record | {"attributes": {"ApproximateReceiveCount": "2"}}) == []
        assert Effect.objects.count() == 1
