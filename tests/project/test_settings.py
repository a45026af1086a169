"""Every LAMBDA_TASKS_… setting: its default, valid and invalid values, and reading it on each use."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
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
from lambda_tasks.exceptions import InvalidSetting, UnknownQueue
from lambda_tasks.execution.locking import LOCK_KEY
from lambda_tasks.locks.cache import CacheLock
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.models import TaskRecord
from lambda_tasks.settings import LambdaTasksSettings, Setting, _valid_pair, app_settings, settled
from lambda_tasks.stores.null import NullStore
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend, get_lock, get_store

FERNET_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
QUEUE = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default"}


@lambda_task
def task() -> None: ...


def read(name: str) -> Any:
    return getattr(app_settings, name.removeprefix("LAMBDA_TASKS_").lower())


@pytest.fixture
def unset() -> Iterator[None]:
    """Remove all settings of the library from Django's settings."""

    def changed() -> None:  # override_settings sends the signal only for its arguments
        setting_changed.send(sender=None, setting="LAMBDA_TASKS_BACKEND", value=None, enter=True)

    with override_settings():
        for name in dir(django_settings):
            if name.startswith("LAMBDA_TASKS_"):
                delattr(django_settings, name)
        changed()
        yield
    changed()


#: The default, valid values, and invalid values of each setting. `as_read` returns what a valid value is read as.
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
    "LAMBDA_TASKS_MAX_TIMEOUT": (900, [900, 1800, 43_000], [899, 43_001, 0, 1000.5, "900", None, True]),
    "LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT": (270, [1, 900], [0, -1, 901, 1.5, "60", None, True]),
    "LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT": (300, [1, 900], [0, -1, 901, 1.5, "60", None, True]),
    "LAMBDA_TASKS_MAX_RETRIES": (2880, [0, 1, 10**6], [-1, 1.5, "5", None, True]),
    "LAMBDA_TASKS_MAX_TAKEOVERS": (3, [0, 1, 100], [-1, 1.5, "5", None, False]),
    "LAMBDA_TASKS_RECORD": ("all", ["all", "failures"], ["none", "", None, True, ["all"]]),
    "LAMBDA_TASKS_FORGET_AFTER": (86_400, [3_600, 1_209_600], [0, 3_599, 1_209_601, 7_200.5, "86400", None, True]),
    "LAMBDA_TASKS_EAGER": (False, [True, False], [0, 1, "true", "", None]),
    "LAMBDA_TASKS_EAGER_PROPAGATES": (False, [True, False], [0, 1, "true", "", None]),
    "LAMBDA_TASKS_NOOP_EXECUTION": (False, [True, False], [0, 1, "true", "", None]),
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
    "LAMBDA_TASKS_CONTEXT": (
        {},
        [{}, {"tenant": "shop.context.tenant"}],
        ["shop.context.tenant", None, ["shop.context.tenant"], {"tenant": None}, {"tenant": ""}, {5: "shop.x"}],
    ),
    "LAMBDA_TASKS_IMPORTS": ("open", ["open", "tasks"], ["closed", "", None, True, ["tasks"]]),
    "LAMBDA_TASKS_SIGNING_KEYS": (
        [],
        [["x" * 32], ("x" * 32, "y" * 50)],
        ["x" * 32, None, [None], ["x" * 31], {"x" * 32: 1}],
    ),
    "LAMBDA_TASKS_ACCEPT_UNSIGNED": (
        False,
        [True, False, datetime(2027, 1, 15, tzinfo=timezone.utc)],
        ["2027-01-15", None, 1, datetime(2027, 1, 15)],  # noqa: DTZ001
    ),
    "LAMBDA_TASKS_ENCRYPTION_KEYS": (
        [],
        [[FERNET_KEY], (FERNET_KEY, FERNET_KEY)],
        [FERNET_KEY, None, [None], ["x" * 44], ["A" * 44], {FERNET_KEY: 1}],
    ),
    "LAMBDA_TASKS_UNKNOWN_ARGUMENTS": ("refuse", ["refuse", "drop"], ["ignore", "", None, True, ["drop"]]),
    "LAMBDA_TASKS_ADMIN_LINKS": (
        {},
        [{}, {"Logs": "https://logs.example.com/{message_id}"}],
        ["https://x", None, ["https://x"], {"x": "ftp://x"}, {"x": "https://{y}"}, {5: "https://x"}],
    ),
    "LAMBDA_TASKS_MODULES": ([], [["shop"], ("shop", "blog")], ["shop", None, [1], {"shop"}]),
}


def as_read(value: Any) -> Any:
    """Return the value that the library reads for a value of the table."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict) and "BACKEND" in value:
        return value["BACKEND"], value.get("OPTIONS", {})
    if isinstance(value, str) and value.startswith("shop."):
        return value, {}
    return value


def test_table_contains_every_setting() -> None:
    assert {setting.name for setting in vars(LambdaTasksSettings).values() if isinstance(setting, Setting)} == set(
        TABLE
    )


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("name", sorted(set(TABLE) - {"LAMBDA_TASKS_QUEUES"}))
def test_unset_setting_has_the_documented_default(name: str) -> None:
    assert read(name) == TABLE[name][0]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in TABLE.items() for value in row[1]])
def test_setting_is_read_on_each_use(name: str, value: Any) -> None:
    with override_settings():
        before = read(name)
        setattr(django_settings, name, value)  # without the signal that override_settings sends
        assert read(name) == as_read(value)
    assert read(name) == before


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in TABLE.items() for value in row[2]])
def test_invalid_value_is_refused_by_name(name: str, value: Any) -> None:
    with override_settings(), pytest.raises(ImproperlyConfigured, match=f"^{name} ") as caught:
        setattr(django_settings, name, value)
        read(name)
    # ValueError is documented, and ImproperlyConfigured is for code that catches Django's exception.
    assert isinstance(caught.value, InvalidSetting)
    assert isinstance(caught.value, ValueError)


class TestQueues:
    @pytest.mark.usefixtures("unset")
    def test_first_use_without_queues_raises(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="LAMBDA_TASKS_QUEUES is not set"):
            read("LAMBDA_TASKS_QUEUES")
        with pytest.raises(ImproperlyConfigured, match="LAMBDA_TASKS_QUEUES is not set"):
            task.execute_on_commit()

    @pytest.mark.usefixtures("unset")
    @pytest.mark.django_db(transaction=True)
    def test_eager_mode_requires_no_queues(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = task.execute_on_commit()
        assert TaskRecord.objects.get(pk=handle.message_id).status == "SUCCESS"

    @pytest.mark.usefixtures("unset")
    @pytest.mark.django_db(transaction=True)
    def test_eager_mode_without_queues_has_only_the_default(self) -> None:
        with (
            override_settings(LAMBDA_TASKS_EAGER=True),
            pytest.raises(
                UnknownQueue,
                match=r"Queue 'mail' does not exist: without LAMBDA_TASKS_QUEUES, the only queue is 'default'\. Set "
                r"LAMBDA_TASKS_QUEUES with both queues, or correct queue= on tests\.project\.test_settings\.task\.",
            ),
        ):
            task.using(queue="mail").execute_on_commit()
        assert not TaskRecord.objects.exists()

    def test_default_queue_is_required(self) -> None:
        with (
            override_settings(LAMBDA_TASKS_QUEUES={"other": "https://…"}),
            pytest.raises(ImproperlyConfigured, match=r"must contain a queue named 'default'. It contains \['other'\]"),
        ):
            task.execute_on_commit()

    def test_unknown_queue_is_refused_at_the_call(self) -> None:
        with pytest.raises(
            ImproperlyConfigured,
            match=r"Queue 'mail' is not in LAMBDA_TASKS_QUEUES \(default, other\). Add its URL there, or correct "
            r"queue= on tests\.project\.test_settings\.task\.",
        ):
            task.using(queue="mail").execute_on_commit()


class TestTimeouts:
    @override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=300)
    def test_conflicting_defaults_are_refused_on_use(self) -> None:
        with pytest.raises(ImproperlyConfigured, match=r"soft timeout of 300 s, .* its hard timeout of 300 s"):
            task.timeouts()
        with pytest.raises(ValueError, match="must be shorter than its hard timeout"):

            @lambda_task
            def another() -> None: ...

    @pytest.mark.parametrize(
        ("options", "remedy"),
        [
            ({"hard_timeout": 60}, "Write soft_timeout=54, hard_timeout=60 on the task, .*DEFAULT_SOFT_TIMEOUT"),
            ({"hard_timeout": 1}, "Write soft_timeout=1, hard_timeout=2 on the task, .*DEFAULT_SOFT_TIMEOUT"),
            ({"hard_timeout": 2}, "Write soft_timeout=1, hard_timeout=2 on the task"),
            ({"soft_timeout": 300}, "Write soft_timeout=300, hard_timeout=333 on the task, .*DEFAULT_HARD_TIMEOUT"),
            ({"soft_timeout": 900}, "Write soft_timeout=899, hard_timeout=900 on the task"),
        ],
    )
    def test_error_shows_valid_limits(self, options: dict[str, int], remedy: str) -> None:
        with pytest.raises(InvalidSetting, match=remedy):
            lambda_task(**options)(lambda: None)  # type: ignore[call-overload]

    @override_settings(LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=60)
    def test_error_shows_valid_defaults(self) -> None:
        with pytest.raises(
            InvalidSetting,
            match="Set LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT = 54 and LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT = 60",
        ):
            task.timeouts()

    def test_every_suggested_pair_is_valid(self) -> None:
        for seconds in range(1, 901):
            for soft, hard in (_valid_pair(seconds, None), _valid_pair(None, seconds)):
                assert 1 <= soft < hard <= 900

    @override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=300)
    def test_task_with_own_limits_ignores_invalid_defaults(self) -> None:
        @lambda_task(soft_timeout=5, hard_timeout=6)
        def another() -> None: ...

        assert another.timeouts() == (5, 6)

    @override_settings(LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=901)
    def test_default_over_900_seconds_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT must be .* 1 to 900, not 901"):
            task.timeouts()

    @override_settings(LAMBDA_TASKS_MAX_TIMEOUT=1800)
    def test_longest_limit_follows_its_setting(self) -> None:
        with override_settings(LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT=1_799, LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=1_800):
            assert task.timeouts() == (1_799, 1_800)
        with (
            override_settings(LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT=1_801),
            pytest.raises(
                InvalidSetting,
                match=r"HARD_TIMEOUT must be a whole number of seconds from 1 to 1800, not 1801\. If the",
            ),
        ):
            task.timeouts()
        assert _valid_pair(1_800, None) == (1_799, 1_800)


class TestStrategies:
    @pytest.mark.usefixtures("unset")
    def test_defaults_are_the_documented_ones(self) -> None:
        assert [type(get()) for get in (get_backend, get_lock, get_store)] == [SQSBackend, CacheLock, ORMStore]

    def test_path_or_dictionary_selects_a_strategy(self) -> None:
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

    def test_instance_is_kept_until_a_setting_changes(self) -> None:
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
                r"passes the OPTIONS \['cash'\] to 'lambda_tasks.locks.cache.CacheLock', which rejects them: ",
            ),
        ],
        ids=str,
    )
    def test_invalid_strategy_is_refused_by_name(self, value: Any, sentence: str) -> None:
        with override_settings(LAMBDA_TASKS_LOCK=value), pytest.raises(ImproperlyConfigured, match=sentence):
            get_lock()

    def test_app_that_is_not_installed_is_named(self) -> None:
        others = [app for app in django_settings.INSTALLED_APPS if app != "lambda_tasks"]
        with (
            override_settings(INSTALLED_APPS=others, LAMBDA_TASKS_STORE="shop.Missing"),
            pytest.raises(ImproperlyConfigured, match='INSTALLED_APPS must contain "lambda_tasks"'),
        ):
            get_store()


class TestSingletonCache:
    def test_setting_selects_the_cache_of_the_lock(self) -> None:
        from django.core.cache import caches

        key = LOCK_KEY.format(task_name=task.name)
        for alias in ("locmem", "dummy"):
            with override_settings(LAMBDA_TASKS_SINGLETON_CACHE=alias):
                assert get_lock().acquire(key, token="a", timeout=5)
        assert caches["locmem"].get(key) == "a"
        caches["locmem"].clear()


@pytest.mark.django_db(transaction=True)
class TestMaxRetries:
    @pytest.mark.parametrize("maximum", [0, 1, 3])
    def test_maximum_does_not_count_the_first_run(self, maximum: int) -> None:
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


class TestSettled:
    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """The values of LAMBDA_TASKS_MAX_RETRIES that were read and checked."""
        setting, checked = LambdaTasksSettings.max_retries, []
        check = setting.check

        def recorded(value: Any, name: str) -> Any:
            checked.append(value)
            return check(value, name)

        monkeypatch.setattr(setting, "check", recorded)
        return checked

    def test_setting_is_read_once(self, reads: list[Any]) -> None:
        with settled():
            assert app_settings.max_retries == app_settings.max_retries
        assert len(reads) == 1

    def test_setting_is_read_each_time_outside(self, reads: list[Any]) -> None:
        with settled():
            pass
        assert app_settings.max_retries == app_settings.max_retries
        assert len(reads) == 2

    def test_change_is_seen(self) -> None:
        with settled():
            before = app_settings.max_retries
            with override_settings(LAMBDA_TASKS_MAX_RETRIES=before + 1):
                assert app_settings.max_retries == before + 1
            assert app_settings.max_retries == before

    def test_invalid_value_raises_each_time(self) -> None:
        with override_settings(LAMBDA_TASKS_MAX_RETRIES=-1), settled():
            for _ in range(2):
                with pytest.raises(InvalidSetting):
                    _ = app_settings.max_retries
