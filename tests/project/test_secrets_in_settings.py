"""Errors about settings quote no password, and `manage.py check` reports whatever a setting names."""

from __future__ import annotations

import traceback
import types
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks import strategies
from lambda_tasks.apps import LambdaTasksConfig
from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.locks.redis import RedisLock
from lambda_tasks.operations.checks import check_plugins
from lambda_tasks.plugins import load_plugins
from lambda_tasks.settings import LambdaTasksSettings, Setting
from tests.operations.test_checks import said

URL = "rediss://user:pa55word@cache.example/0?password=pa55word"
REDIS = "lambda_tasks.locks.redis.RedisLock"
KINDS = ["LAMBDA_TASKS_BACKEND", "LAMBDA_TASKS_LOCK", "LAMBDA_TASKS_STORE"]
NAMES = [name for name, value in vars(LambdaTasksSettings).items() if isinstance(value, Setting)]


class Holder:
    def __repr__(self) -> str:
        return "Holder(pa55word)"


class Quoting(MemoryLock):
    """Quotes its option in an error, as libraries do."""

    def __init__(self, *, password: str = "", url: str = "", quiet: str = "") -> None:
        raise ValueError(f"{password}{url}{quiet} does not work")


class Faulty(MemoryLock):
    def check(self) -> Any:
        raise RuntimeError("out of order")


class Silent(MemoryLock):
    def check(self) -> Any:
        return None


class Raising:
    def __init__(self) -> None:
        raise RuntimeError("out of order")


def function(**_: Any) -> object:
    return object()


def factory(**_: Any) -> MemoryLock:
    return MemoryLock()


def findings(settings: Any, **values: Any) -> list[str]:
    settings.LAMBDA_TASKS_EAGER = False
    settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
    for name, value in values.items():
        setattr(settings, name, value)
    # Findings about a task are about those that other tests have defined.
    found = [message for message in said() if not isinstance(message.obj, LambdaTaskWrapper)]
    return [f"{message.id}: {message.msg}" for message in found if str(message.id).startswith("lambda_tasks.E")]


def raised(act: Any) -> str:
    """Return all that a traceback of the error prints."""
    with pytest.raises(ImproperlyConfigured) as caught:
        act()
    return "".join(traceback.format_exception(caught.value))


class TestPasswords:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        "value",
        [
            URL,
            "redis://cache.example/pa55word",
            [URL],
            (URL, 5),
            {URL: 1, 2: "pa55word"},
            {"BACKEND": RedisLock, "OPTIONS": {"url": URL}},
            {"BACKEND": REDIS, "OPTIONS": URL},
            {"BACKEND": URL},
            {"BACKEND": REDIS, "OPTIONS": {"ulr": URL}},
            {"BACKEND": REDIS, "OPTIONS": {"url": {"password": "pa55word"}}},
            {"BACKEND": REDIS, "OPTIONS": {"client": f"{URL}"}},
            {"BACKEND": f"{__name__}.Quoting", "OPTIONS": {"password": "pa55word"}},
            {"BACKEND": f"{__name__}.Quoting", "OPTIONS": {"quiet": URL}},
            {"default": "https://sqs.example/", "OPTIONS": {"password": "pa55word"}},
            b"pa55word",
            Holder(),
            [Holder()],
            {"default": Holder()},
            "host=cache.example password=pa55word",
        ],
        ids=lambda value: str(type(value).__name__),
    )
    def test_no_setting_quotes_a_password(self, settings: Any, name: str, value: Any) -> None:
        setting = f"LAMBDA_TASKS_{name.upper()}"
        told = findings(settings, **{setting: value})
        assert not [message for message in told if "pa55word" in message]

    def test_error_names_setting_kind_and_keys(self, settings: Any) -> None:
        value = {"BACKEND": RedisLock, "OPTIONS": {"url": URL, "timeout": 5}}
        (told,) = findings(settings, LAMBDA_TASKS_LOCK=value)
        assert told.startswith("lambda_tasks.E001: LAMBDA_TASKS_LOCK must be ")
        assert f"its BACKEND is the class {REDIS} and its OPTIONS are a dict with the keys ['timeout', 'url']" in told

    @pytest.mark.parametrize(
        "value",
        [
            URL,
            {"BACKEND": REDIS, "OPTIONS": {"client": URL}},
            {"BACKEND": REDIS, "OPTIONS": {"url": URL.removeprefix("rediss://")}},
            {"BACKEND": f"{__name__}.Quoting", "OPTIONS": {"password": "pa55word"}},
            {"BACKEND": f"{__name__}.Quoting", "OPTIONS": {"url": URL}},
        ],
        ids=range(5),
    )
    def test_traceback_of_a_cold_start_has_no_password(self, settings: Any, value: Any) -> None:
        settings.LAMBDA_TASKS_LOCK = value
        told = raised(strategies.get_lock)
        assert "LAMBDA_TASKS_LOCK" in told
        assert "pa55word" not in told

    @pytest.mark.parametrize("plugin", [URL, Holder(), b"pa55word"])
    def test_plugin_is_named_by_its_kind(self, settings: Any, plugin: Any) -> None:
        settings.LAMBDA_TASKS_PLUGINS = [plugin]
        told = raised(load_plugins)
        assert "LAMBDA_TASKS_PLUGINS" in told
        assert "pa55word" not in told

    def test_harmless_values_are_shown(self, settings: Any) -> None:
        assert "not '5'." in " ".join(findings(settings, LAMBDA_TASKS_MAX_RETRIES="5"))
        assert "'recods'" in " ".join(findings(settings, LAMBDA_TASKS_STORE=_store(database="recods")))


def _store(**options: Any) -> dict[str, Any]:
    return {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": options}


class TestWrongKind:
    @pytest.mark.parametrize("setting", KINDS)
    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            (f"{__name__}.function", f"the function {__name__}.function"),
            ("lambda_tasks.locks", "the module lambda_tasks.locks"),
            ("builtins.dict", "the class builtins.dict"),
            ("os.environ", "an object of the type os._Environ"),
            ("sys.maxsize", "9223372036854775807"),
        ],
    )
    def test_strategy_of_the_wrong_kind_is_a_finding(self, settings: Any, setting: str, path: str, kind: str) -> None:
        told = findings(settings, **{setting: path})
        assert [message for message in told if message.startswith("lambda_tasks.E004: ")] == told
        assert any(message.startswith(f"lambda_tasks.E004: {setting} must name a subclass of") for message in told)
        assert any(f"not {kind}." in message for message in told)

    @pytest.mark.parametrize("setting", KINDS)
    def test_strategy_of_another_setting_is_a_finding(self, settings: Any, setting: str) -> None:
        others = {"LAMBDA_TASKS_LOCK": "lambda_tasks.backends.memory.MemoryBackend"}
        path = others.get(setting, "lambda_tasks.locks.memory.MemoryLock")
        assert any(f"{setting} must name a subclass" in message for message in findings(settings, **{setting: path}))

    def test_function_that_makes_a_lock_is_taken(self, settings: Any) -> None:
        assert not findings(settings, LAMBDA_TASKS_LOCK=f"{__name__}.factory")

    def test_outbox_and_eager_mode_report_it(self, settings: Any) -> None:
        wrong = "lambda_tasks.locks.memory.MemoryLock"
        told = findings(settings, LAMBDA_TASKS_OUTBOX=True, LAMBDA_TASKS_BACKEND=wrong)
        assert any("LAMBDA_TASKS_BACKEND must name" in message for message in told)
        settings.LAMBDA_TASKS_OUTBOX, settings.LAMBDA_TASKS_EAGER = False, True
        with pytest.raises(InvalidSetting, match="LAMBDA_TASKS_BACKEND must name"):
            strategies.longest_delay()
        said()

    @pytest.mark.parametrize("setting", KINDS)
    def test_module_that_raises_is_a_finding(
        self, settings: Any, setting: str, tmp_path: Any, monkeypatch: Any
    ) -> None:
        (tmp_path / "broken_strategy.py").write_text("raise RuntimeError('out of order')")
        monkeypatch.syspath_prepend(tmp_path)
        told = findings(settings, **{setting: "broken_strategy.Lock"})
        assert any(setting in message and "RuntimeError: out of order" in message for message in told)

    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("LAMBDA_TASKS_STORE", ("lambda_tasks.stores.orm.ORMStore", {"database": ["default"]})),
            ("LAMBDA_TASKS_STORE", ("lambda_tasks.stores.orm.ORMStore", {"database": 5})),
            ("LAMBDA_TASKS_BACKEND", ("lambda_tasks.backends.outbox.OutboxBackend", {"databases": [["default"]]})),
        ],
    )
    def test_alias_of_the_wrong_type_is_a_finding(self, settings: Any, setting: str, value: Any) -> None:
        path, options = value
        told = findings(settings, **{setting: {"BACKEND": path, "OPTIONS": options}})
        assert any(message.startswith(f"lambda_tasks.E004: {setting}") for message in told)

    def test_option_that_raises_is_a_finding(self, settings: Any) -> None:
        told = findings(settings, LAMBDA_TASKS_LOCK={"BACKEND": f"{__name__}.Quoting", "OPTIONS": {"quiet": "it"}})
        assert any("E004: LAMBDA_TASKS_LOCK" in each and "ValueError: it does not work" in each for each in told)
        assert findings(settings, LAMBDA_TASKS_LOCK={"BACKEND": f"{__name__}.Quoting", "OPTIONS": {1: 2, "a": 3}})

    @pytest.mark.parametrize("name", ["Faulty", "Silent"])
    def test_failing_check_of_a_strategy_is_a_finding(self, settings: Any, name: str) -> None:
        (told,) = findings(settings, LAMBDA_TASKS_LOCK=f"{__name__}.{name}")
        assert told.startswith("lambda_tasks.E004: LAMBDA_TASKS_LOCK")

    @pytest.mark.parametrize(
        "plugin", [5, None, "sys.maxsize", f"{__name__}.Raising", "lambda_tasks.locks", function, types, "a..b", ""]
    )
    def test_plugin_of_the_wrong_kind_is_a_finding(self, settings: Any, plugin: Any) -> None:
        settings.LAMBDA_TASKS_PLUGINS = [plugin]
        (message,) = check_plugins()
        assert message.id == "lambda_tasks.E005"
        assert "LAMBDA_TASKS_PLUGINS" in message.msg

    @pytest.mark.parametrize("plugins", [["nosuch.plugin"], 5])
    def test_only_check_starts_with_a_faulty_plugin(self, settings: Any, monkeypatch: Any, plugins: Any) -> None:
        settings.LAMBDA_TASKS_PLUGINS = plugins
        config = LambdaTasksConfig("lambda_tasks", __import__("lambda_tasks"))
        monkeypatch.setattr("sys.argv", ["manage.py", "check", "--deploy"])
        config.ready()
        monkeypatch.setattr("sys.argv", ["manage.py", "runserver"])
        with pytest.raises(InvalidSetting):
            config.ready()


class TestPrefixOfRedisLock:
    def test_locks_with_different_prefixes_are_independent(self) -> None:
        fakeredis = pytest.importorskip("fakeredis")
        client = fakeredis.FakeRedis()
        shop, blog, bare = (RedisLock(client=lambda: client, prefix=prefix) for prefix in ("shop:", "blog:", ""))
        assert all(lock.acquire("key", token="t", timeout=9) for lock in (shop, blog, bare))
        assert sorted(client.keys()) == [b"blog:key", b"key", b"shop:key"]
        assert not shop.acquire("key", token="other", timeout=9)
        shop.release("key", token="t")
        assert sorted(client.keys()) == [b"blog:key", b"key"]

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"url": "cache.example:6379"}, "url must be a string that begins with redis://"),
            ({"url": 5}, "url must be a string that begins with redis://"),
            ({"client": "redis://cache.example"}, "client must be a redis-py client or its dotted path"),
            ({"url": "redis://cache.example", "prefix": 5}, "prefix must be a string, not 5"),
        ],
    )
    def test_invalid_option_is_refused(self, options: Any, sentence: str) -> None:
        with pytest.raises(TypeError, match=sentence):
            RedisLock(**options)
