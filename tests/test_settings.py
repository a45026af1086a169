"""Every LAMBDA_TASKS_… setting: its default, what it takes, what it refuses, and that it is read live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.test.signals import setting_changed

from lambda_tasks.backends.eager import EagerBackend
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.locks.cache import CacheLock
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.models import TaskRecord
from lambda_tasks.settings import LambdaTasksSettings, Setting, app_settings
from lambda_tasks.singletons import LOCK_KEY
from lambda_tasks.stores.null import NullStore
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend, get_lock, get_store

QUEUE = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default"}


@lambda_task
def task() -> None: ...


def read(name: str) -> Any:
    return getattr(app_settings, name.removeprefix("LAMBDA_TASKS_").lower())


@pytest.fixture
def unset() -> Iterator[None]:
    """Django settings that name none of the library's."""

    def changed() -> None:  # override_settings says it only of what it is given
        setting_changed.send(sender=None, setting="LAMBDA_TASKS_BACKEND", value=None, enter=True)

    with override_settings():
        for name in dir(django_settings):
            if name.startswith("LAMBDA_TASKS_"):
                delattr(django_settings, name)
        changed()
        yield
    changed()


#: Each setting: its default, values that it takes (and reads as what), and values that it refuses.
TABLE: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "LAMBDA_TASKS_QUEUES": (
        ImproperlyConfigured,
        [QUEUE, {**QUEUE, "high_memory": "https://sqs.eu-west-1.amazonaws.com/123456789012/high"}],
        [
            {},
            None,
            [],
            "default",
            {"other": "https://…"},
            {"default": None},
            {"default": ""},
            {**QUEUE, 1: "https://…"},
        ],
    ),
    "LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT": (270, [1, 900], [0, -1, 901, 1.5, "60", None, True]),
    "LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT": (300, [1, 900], [0, -1, 901, 1.5, "60", None, True]),
    "LAMBDA_TASKS_MAX_RETRIES": (2880, [0, 1, 10**6], [-1, 1.5, "5", None, True]),
    "LAMBDA_TASKS_MAX_TAKEOVERS": (3, [0, 1, 100], [-1, 1.5, "5", None, False]),
    "LAMBDA_TASKS_EAGER": (False, [True, False], [0, 1, "true", "", None]),
    "LAMBDA_TASKS_OUTBOX": (False, [True, False], [0, 1, "true", "", None]),
    "LAMBDA_TASKS_SINGLETON_CACHE": ("default", ["locks"], ["", None, 1]),
    "LAMBDA_TASKS_BACKEND": (
        ("lambda_tasks.backends.sqs.SQSBackend", {}),
        ["shop.Backend", {"BACKEND": "shop.Backend"}, {"BACKEND": "shop.Backend", "OPTIONS": {"a": 1}}],
        [
            None,
            1,
            MemoryBackend,
            {},
            {"OPTIONS": {}},
            {"BACKEND": "a.B", "OPTIONS": []},
            {"BACKEND": "a.B", "cache": "x"},
        ],
    ),
    "LAMBDA_TASKS_LOCK": (
        ("lambda_tasks.locks.cache.CacheLock", {}),
        ["shop.Lock", {"BACKEND": "shop.Lock", "OPTIONS": {"a": 1}}],
        [None, {}, {"BACKEND": None}],
    ),
    "LAMBDA_TASKS_STORE": (
        ("lambda_tasks.stores.orm.ORMStore", {}),
        ["shop.Store", {"BACKEND": "shop.Store", "OPTIONS": {"a": 1}}],
        [None, {}, {"BACKEND": None}],
    ),
    "LAMBDA_TASKS_PLUGINS": ([], [["shop.plugins"], ("shop.plugins",), [object]], ["shop.plugins", None, {}]),
    "LAMBDA_TASKS_MODULES": ([], [["shop"], ("shop", "blog")], ["shop", None, [1], {"shop"}]),
}


def as_read(value: Any) -> Any:
    """Return what a value of the table is read as."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict) and "BACKEND" in value:
        return value["BACKEND"], value.get("OPTIONS", {})
    if isinstance(value, str) and value.startswith("shop."):
        return value, {}
    return value


def test_the_table_has_every_setting() -> None:
    assert {setting.name for setting in vars(LambdaTasksSettings).values() if isinstance(setting, Setting)} == set(
        TABLE
    )


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("name", set(TABLE) - {"LAMBDA_TASKS_QUEUES"})
def test_without_a_value_it_has_the_documented_default(name: str) -> None:
    assert read(name) == TABLE[name][0]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in TABLE.items() for value in row[1]])
def test_it_is_read_live(name: str, value: Any) -> None:
    with override_settings():
        before = read(name)
        setattr(django_settings, name, value)  # without the signal that override_settings sends
        assert read(name) == as_read(value)
    assert read(name) == before


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in TABLE.items() for value in row[2]])
def test_a_value_that_cannot_work_is_refused_by_name(name: str, value: Any) -> None:
    with override_settings(), pytest.raises(ImproperlyConfigured, match=f"^{name} ") as caught:
        setattr(django_settings, name, value)
        read(name)
    # Documented as ValueError, and meant for everyone who catches Django's.
    assert isinstance(caught.value, InvalidSetting)
    assert isinstance(caught.value, ValueError)


class TestQueues:
    @pytest.mark.usefixtures("unset")
    def test_without_them_the_first_use_raises(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="LAMBDA_TASKS_QUEUES is not set"):
            read("LAMBDA_TASKS_QUEUES")
        with pytest.raises(ImproperlyConfigured, match="LAMBDA_TASKS_QUEUES is not set"):
            task.execute_on_commit()

    @pytest.mark.usefixtures("unset")
    @pytest.mark.django_db(transaction=True)
    def test_eager_mode_needs_none(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = task.execute_on_commit()
        assert TaskRecord.objects.get(pk=handle.message_id).status == "SUCCESS"

    def test_they_must_have_a_default(self) -> None:
        with (
            override_settings(LAMBDA_TASKS_QUEUES={"other": "https://…"}),
            pytest.raises(ImproperlyConfigured, match=r"has the queues \['other'\]; add the one named 'default'"),
        ):
            task.execute_on_commit()

    def test_one_that_is_not_among_them_is_refused_at_the_call(self) -> None:
        with pytest.raises(
            ImproperlyConfigured,
            match=r"Queue 'mail' is not in LAMBDA_TASKS_QUEUES \(default, other\); add its URL there or fix queue= on "
            r"tests\.test_settings\.task\.",
        ):
            task.using(queue="mail").execute_on_commit()


class TestTimeouts:
    @override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=300)
    def test_defaults_that_do_not_fit_together_are_refused_when_a_task_needs_them(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="soft timeout of 300 s and a hard timeout of 300 s"):
            task.timeouts()
        with pytest.raises(ValueError, match="the soft one must be the shorter"):

            @lambda_task
            def another() -> None: ...

    @override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=300)
    def test_a_task_with_limits_of_its_own_does_not_need_them(self) -> None:
        @lambda_task(soft_timeout=5, hard_timeout=6)
        def another() -> None: ...

        assert another.timeouts() == (5, 6)

    @override_settings(LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=901)
    def test_a_default_over_900_seconds_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match=r"LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT is 901; give .* 1 to 900"):
            task.timeouts()


class TestStrategies:
    @pytest.mark.usefixtures("unset")
    def test_the_defaults_are_the_documented_ones(self) -> None:
        assert [type(get()) for get in (get_backend, get_lock, get_store)] == [SQSBackend, CacheLock, ORMStore]

    def test_a_dotted_path_or_a_path_with_options_chooses_them(self) -> None:
        with override_settings(
            LAMBDA_TASKS_BACKEND={"BACKEND": "lambda_tasks.backends.sqs.SQSBackend", "OPTIONS": {"max_attempts": 7}},
            LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock",
            LAMBDA_TASKS_STORE={"BACKEND": "lambda_tasks.stores.null.NullStore", "OPTIONS": {"database": "other"}},
        ):
            backend, lock, store = get_backend(), get_lock(), get_store()
            assert isinstance(backend, SQSBackend)
            assert isinstance(lock, MemoryLock)
            assert isinstance(store, NullStore)
            assert store.database == "other"

    def test_there_is_one_instance_until_a_setting_changes(self) -> None:
        first = get_backend()
        assert get_backend() is first
        with override_settings(LAMBDA_TASKS_BACKEND="lambda_tasks.backends.memory.MemoryBackend"):
            assert get_backend() is not first

    def test_eager_is_short_for_the_eager_backend(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            assert type(get_backend()) is EagerBackend
        assert type(get_backend()) is MemoryBackend

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [
            ("shop.Missing", "LAMBDA_TASKS_LOCK names 'shop.Missing', which cannot be imported: "),
            ("lambda_tasks.locks.memory.Missing", "which cannot be imported: .*Missing"),
            ("nodots", "which cannot be imported: "),
            (
                {"BACKEND": "lambda_tasks.locks.cache.CacheLock", "OPTIONS": {"cash": "default"}},
                r"gives 'lambda_tasks.locks.cache.CacheLock' the OPTIONS \['cash'\], which it refuses: ",
            ),
        ],
        ids=str,
    )
    def test_one_that_cannot_be_made_is_refused_by_name(self, value: Any, sentence: str) -> None:
        with override_settings(LAMBDA_TASKS_LOCK=value), pytest.raises(ImproperlyConfigured, match=sentence):
            get_lock()


class TestSingletonCache:
    def test_the_lock_is_kept_in_the_cache_that_is_named(self) -> None:
        from django.core.cache import caches

        key = LOCK_KEY.format(task_name=task.name)
        for alias in ("locmem", "dummy"):
            with override_settings(LAMBDA_TASKS_SINGLETON_CACHE=alias):
                assert get_lock().acquire(key, token="a", timeout=5)
        assert caches["locmem"].get(key) == "a"
        caches["locmem"].clear()


@pytest.mark.django_db(transaction=True)
class TestMaximumOfRetries:
    @pytest.mark.parametrize("maximum", [0, 1, 3])
    def test_a_task_is_run_once_more_than_it_is_retried(self, maximum: int) -> None:
        runs = []

        @lambda_task(retry_on=[OSError])
        def again() -> None:
            runs.append(1)
            raise OSError

        with override_settings(LAMBDA_TASKS_EAGER=True, LAMBDA_TASKS_MAX_RETRIES=maximum):
            again.execute_on_commit()

        assert len(runs) == maximum + 1
        assert list(TaskRecord.objects.order_by("n_retries").values_list("status", flat=True)) == [
            *["RETRYING"] * maximum,
            "FAILED",
        ]
