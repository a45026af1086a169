"""Names of Celery's API get an answer that says what to write here."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks import lambda_task
from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.definition import hints
from lambda_tasks.definition.options import OPTION_NAMES
from lambda_tasks.exceptions import InvalidArguments, InvalidSetting
from lambda_tasks.operations.checks import check_settings
from lambda_tasks.settings import LambdaTasksSettings, app_settings

ROOT = Path(__file__).parents[2]


@lambda_task
def greet(*, name: str, shout: bool = False) -> str:
    return name.upper() if shout else name


@lambda_task
def wait(*, countdown: int) -> None: ...


class TestAttributes:
    @pytest.mark.parametrize("name", sorted(hints.ATTRIBUTES))
    def test_attribute_of_celery_has_an_answer(self, name: str) -> None:
        task: Any = greet
        with pytest.raises(AttributeError, match=rf"In place of Celery's {name}, .* \(docs/howto/from-celery.md\)\."):
            getattr(task, name)

    def test_delay_explains_itself(self) -> None:
        with pytest.raises(TypeError, match=r"call execute_on_commit\(…\)"):
            greet.delay("Ada")  # type: ignore[operator]

    def test_other_attribute_has_no_answer(self) -> None:
        with pytest.raises(AttributeError, match=r"has no attribute 'colour'\.$") as caught:
            _ = greet.colour  # type: ignore[attr-defined]
        assert (caught.value.name, caught.value.obj) == ("colour", greet)

    def test_task_is_inspected_and_copied_as_before(self) -> None:
        assert inspect.unwrap(greet) is greet.function
        assert copy.copy(greet) is copy.deepcopy(greet) is pickle.loads(pickle.dumps(greet)) is greet
        assert not hasattr(LambdaTaskWrapper.__new__(LambdaTaskWrapper), "name")


class TestOptions:
    @pytest.mark.parametrize("name", sorted(hints.OPTIONS))
    def test_option_of_celery_has_an_answer(self, name: str) -> None:
        options: Any = {name: 60}
        with pytest.raises(
            TypeError, match=f"Unknown options for @lambda_task: {name}.* In place of Celery's {name}, "
        ):
            lambda_task(**options)(greet.function)

    def test_seconds_in_retry_backoff_have_an_answer(self) -> None:
        with pytest.raises(TypeError, match="Give the seconds in retry_delay"):
            lambda_task(retry_on=(KeyError,), retry_delay=1, retry_backoff=60)(greet.function)  # type: ignore[call-overload]

    def test_hidden_parameters_have_an_answer(self) -> None:
        def logged(*args: Any, **kwargs: Any) -> Any: ...

        with pytest.raises(TypeError, match=r"use functools\.wraps\(\) in that decorator"):
            lambda_task(logged)


class TestCalls:
    @pytest.mark.parametrize("name", sorted(hints.CALL_KEYWORDS))
    def test_keyword_of_celery_has_an_answer(self, name: str) -> None:
        arguments: Any = {"name": "Ada", name: 60}
        with pytest.raises(InvalidArguments, match=f"In place of Celery's {name}, "):
            greet.execute_on_commit(**arguments)

    def test_parameter_has_no_answer(self) -> None:
        assert wait.invocation(countdown=3).kwargs == {"countdown": 3}
        with pytest.raises(InvalidArguments) as caught:
            wait.invocation(countdown="3")  # type: ignore[arg-type]
        assert "Celery" not in str(caught.value)

    def test_positional_arguments_have_an_answer(self) -> None:
        with pytest.raises(TypeError, match=r"Pass them by name: greet\.execute_on_commit\(name=…, shout=…\)\."):
            greet.execute_on_commit("Ada", True)  # type: ignore[call-arg, misc]


class TestVersion08:
    """Names of version 0.8 get an answer as well."""

    def test_option_has_an_answer(self) -> None:
        with pytest.raises(TypeError, match=r"In place of retry_singleton in version 0\.8, use on_contention=\"skip\""):
            lambda_task(singleton=True, retry_singleton=False)(greet.function)  # type: ignore[call-overload]

    @pytest.mark.parametrize("method", ["execute_on_commit", "serialize"])
    def test_delay_of_a_call_has_an_answer(self, method: str) -> None:
        with pytest.raises(InvalidArguments, match=r"In place of _delay in version 0\.8, use task\.using\(delay=60\)"):
            getattr(greet, method)(name="Ada", _delay=30)

    @override_settings(LAMBDA_TASKS_LOCAL_WORKERS=2)
    def test_setting_has_an_answer(self) -> None:
        [message] = [message for message in check_settings() if message.id == "lambda_tasks.W005"]
        assert "lambda_tasks worker --concurrency N" in str(message.hint)

    def test_queues_have_an_answer(self) -> None:
        queues = {"default": {"queue_url": "https://sqs.eu-west-1.amazonaws.com/123456789012/shop"}}
        with override_settings(LAMBDA_TASKS_QUEUES=queues):
            [message] = [message for message in check_settings() if message.id == "lambda_tasks.E001"]
        assert 'In place of {"queue_url": url}, as in version 0.8, write the URL itself.' in message.msg

    def test_other_queues_have_no_answer(self) -> None:
        with override_settings(LAMBDA_TASKS_QUEUES={"default": 5}), pytest.raises(InvalidSetting) as caught:
            _ = app_settings.queues
        assert "0.8" not in str(caught.value)


class TestSettings:
    @override_settings(CELERY_TASK_ALWAYS_EAGER=True, CELERY_BROKER_URL="sqs://", CELERY_TIMEZONE="UTC")
    def test_counterparts_of_settings_are_named(self) -> None:
        [message] = [message for message in check_settings() if message.id == "lambda_tasks.I002"]
        assert message.msg == "CELERY_BROKER_URL, CELERY_TASK_ALWAYS_EAGER are read by Celery only."
        assert "CELERY_TASK_ALWAYS_EAGER: LAMBDA_TASKS_EAGER" in str(message.hint)

    @override_settings(CELERY_TIMEZONE="UTC")
    def test_setting_without_counterpart_is_not_named(self) -> None:
        assert [message.id for message in check_settings() if message.id == "lambda_tasks.I002"] == []


class TestTable:
    def test_options_that_exist_here_have_no_answer(self) -> None:
        assert hints.OPTIONS.keys().isdisjoint(OPTION_NAMES)

    def test_named_options_and_settings_exist(self) -> None:
        options = {*OPTION_NAMES}
        said = " ".join(hints.OPTIONS.values())
        assert set(re.findall(r"use (\w+_\w+)\b", said)) <= options
        settings = {setting.name for setting in vars(LambdaTasksSettings).values() if hasattr(setting, "name")}
        assert {ours for ours in hints.SETTINGS.values() if ours.startswith("LAMBDA_TASKS_")} <= settings

    def test_pages_exist(self) -> None:
        assert (ROOT / hints.PAGE).is_file()
        assert (ROOT / hints.FORMER_PAGE).is_file()
