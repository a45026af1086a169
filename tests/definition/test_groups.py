"""The message groups of calls: which options are valid, and which group a call has."""

from __future__ import annotations

import pickle
from typing import Any
from uuid import UUID

import pytest

from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.groups import group_if_valid
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTask
from lambda_tasks.wire.invocation import Invocation

TENANT = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def charge(
    *, tenant_id: int | str | UUID | None = 7, urgent: bool = False, prices: list[int] | None = None, token: str = ""
) -> None: ...


@lambda_task(group="tenant_id")
def grouped(*, tenant_id: int) -> None: ...


def task_with(group: Any, **options: Any) -> Any:
    return lambda_task(group=group, **options)(charge)


def job_of(task: Any, **arguments: Any) -> Job:
    return task._job((), arguments, lambda: "default")  # type: ignore[no-any-return]


class TestRefusedOptions:
    @pytest.mark.parametrize(
        ("options", "error", "sentence"),
        [
            (
                {"group": True},
                TypeError,
                r"group must be a parameter name or a function .*, not True. .* using\(group=",
            ),
            ({"group": ("tenant_id",)}, TypeError, "group must be a parameter name or a function .*, not a tuple"),
            ({"group": ""}, ValueError, "group must be a parameter name or a function .*, not ''"),
            (
                {"group": "shop"},
                TypeError,
                "group must use parameters of .*charge, not shop. Its parameters: tenant_id",
            ),
            ({"group": lambda *, shop: shop}, TypeError, "group must use parameters of .*charge, not shop"),
            ({"group": lambda shop, /: shop}, TypeError, "group of .* by name, but its parameter shop is positional"),
            (
                {"group": "token", "sensitive": ("token",)},
                TypeError,
                "group must not use the sensitive parameter token .* because SQS shows the group .* Use another",
            ),
        ],
    )
    def test_option_is_refused_at_decoration(
        self, options: dict[str, Any], error: type[Exception], sentence: str
    ) -> None:
        with pytest.raises(error, match=sentence):
            task_with(**options)

    @pytest.mark.parametrize("group", ["", "tenant 7", "é", "a" * 129, "a\n"])
    def test_group_of_a_call_is_refused(self, group: str) -> None:
        with pytest.raises(ValueError, match=r"^group must be 1 to 128 ASCII letters, .* without spaces, not "):
            grouped.using(group=group)

    def test_group_of_a_call_must_be_a_string(self) -> None:
        with pytest.raises(TypeError, match=r"^group must be a string of 1 to 128 .*, not 7"):
            grouped.using(group=7)  # type: ignore[arg-type]


class TestSelectedGroups:
    @pytest.mark.parametrize(
        ("option", "arguments", "group"),
        [
            (None, {}, None),
            ("tenant_id", {"tenant_id": 12}, "12"),
            ("tenant_id", {"tenant_id": "a" * 128}, "a" * 128),
            ("tenant_id", {"tenant_id": TENANT}, str(TENANT)),
            ("tenant_id", {}, "7"),
            ("tenant_id", {"tenant_id": None}, None),
            (lambda *, tenant_id: f"tenant-{tenant_id}", {"tenant_id": 12}, "tenant-12"),
            (lambda *, tenant_id, **others: None if others["urgent"] else tenant_id, {"urgent": True}, None),
        ],
    )
    def test_option_selects_the_group(self, option: Any, arguments: dict[str, Any], group: str | None) -> None:
        assert job_of(task_with(option), **arguments).group == group

    @pytest.mark.parametrize(
        ("option", "arguments", "shown"),
        [
            ("tenant_id", {"tenant_id": "tenant 7"}, "'tenant 7'"),
            ("tenant_id", {"tenant_id": ""}, "''"),
            ("tenant_id", {"tenant_id": "a" * 129}, "a string of 129 characters"),
            ("urgent", {"urgent": True}, "True"),
            ("prices", {"prices": [1]}, "a list"),
            (lambda *, tenant_id: 1.5, {}, "1.5"),
        ],
    )
    def test_wrong_group_is_refused_at_the_call(self, option: Any, arguments: dict[str, Any], shown: str) -> None:
        with pytest.raises(
            InvalidArguments, match=r"The group of .*charge must be an integer or a string .* Set group to a function"
        ) as error:
            job_of(task_with(option), **arguments)
        assert f"not {shown}" in str(error.value)

    def test_function_of_the_option_may_raise(self) -> None:
        with pytest.raises(KeyError):
            job_of(task_with(lambda *, tenant_id: {}[tenant_id]))

    @pytest.mark.parametrize("option", ["tenant_id", lambda *, tenant_id: {}[tenant_id]])
    def test_wrong_group_of_a_worker_is_left_out(self, option: Any, caplog: pytest.LogCaptureFixture) -> None:
        task = task_with(option)
        assert group_if_valid(task, Invocation(task.name, {"tenant_id": "tenant 7"})) is None
        assert f"{task.name} is sent without a message group: " in caplog.text


class TestCalls:
    def test_call_overrides_the_option(self) -> None:
        assert job_of(grouped.using(group="trial"), tenant_id=7).group == "trial"
        assert job_of(grouped.using(group="trial").using(delay=5), tenant_id=7).group == "trial"
        assert job_of(grouped, tenant_id=7).group == "7"

    def test_pickled_copy_keeps_its_group(self) -> None:
        copy = pickle.loads(pickle.dumps(grouped.using(group="trial")))
        assert job_of(copy, tenant_id=7).group == "trial"

    @pytest.mark.django_db
    def test_serialized_call_keeps_its_group(self) -> None:
        payload = grouped.using(group="trial").serialize(tenant_id=7)
        assert SQSLambdaTask.model_validate(payload).new_job().group == "trial"
        assert "group" not in grouped.serialize(tenant_id=7)
        with pytest.raises(ValueError, match="must be 1 to 128 ASCII letters"):
            SQSLambdaTask.model_validate({**payload, "group": "tenant 7"})

    def test_stored_invocation_keeps_its_group(self) -> None:
        invocation = grouped.using(group="trial").invocation(tenant_id=7)
        assert type(invocation).deserialize(invocation.serialize()) == invocation
        assert "group" not in grouped.invocation(tenant_id=7).serialize()
        with pytest.raises(ValueError, match="must have a message group that SQS accepts in group, not 'tenant 7'"):
            type(invocation).deserialize({**invocation.serialize(), "group": "tenant 7"})
