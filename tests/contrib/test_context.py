"""The context of a call: what travels, where it arrives, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import timezone, translation

from lambda_tasks import chain, group
from lambda_tasks.backends.memory import event_record
from lambda_tasks.contrib.context import MAX_BYTES
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidContext, InvalidSetting
from lambda_tasks.flows.recovery import recover
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.models import OutboxMessage, TaskFlow, TaskRecord
from lambda_tasks.operations.reaping import reap
from lambda_tasks.plugins import load_plugins
from lambda_tasks.wire.attributes import CONTEXT_ATTRIBUTE
from tests.flows.shop import TRANSPORTS, queue, run_all, run_next, shop_on

tenant: ContextVar[str] = ContextVar("tenant", default="public")
user_id: ContextVar[Any] = ContextVar("user_id")

SETTING: Final = {"tenant": f"{__name__}.tenant", "user_id": f"{__name__}.user_id"}
DJANGO: Final = {
    "language": "lambda_tasks.contrib.context.language",
    "timezone": "lambda_tasks.contrib.context.timezone",
}
#: The name of each task that ran, and the tenant that it saw.
seen: list[tuple[str, str]] = []
context = override_settings(LAMBDA_TASKS_CONTEXT=SETTING)


class Again(Exception):
    pass


@lambda_task(retry_on=[Again], max_retries=1)
def note(*, name: str, fail: bool = False, then: str = "") -> None:
    seen.append((name, tenant.get()))
    tenant.set("left behind")
    if fail:
        raise Again
    if then:
        note.execute_on_commit(name=then)


@lambda_task(on_success=note.invocation(name="follower"), on_failure=note.invocation(name="after failure"))
def followed(*, fail: bool = False) -> None:
    seen.append(("followed", tenant.get()))
    tenant.set("left behind")
    if fail:
        raise ValueError


@lambda_task(unique=True, on_duplicate="replace")
def latest(*, name: str) -> None: ...


@lambda_task
def tell_on_commit() -> None:
    transaction.on_commit(lambda: note.execute_on_commit(name="from a callback") and None)


@lambda_task
def tell_django() -> list[str | None]:
    return [translation.get_language(), timezone.get_current_timezone_name()]


@lambda_task
def tell_user() -> Any:
    return user_id.get(None)


def as_tenant(name: str, work: Callable[[], Any]) -> Any:
    """Call `work` as a request of the tenant does, in a context of its own."""

    def call() -> Any:
        tenant.set(name)
        return work()

    return copy_context().run(call)


@pytest.fixture(params=TRANSPORTS)
def shop(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[None]:
    seen.clear()
    with shop_on("default", request.param), context:
        yield


def context_of(job: Any) -> Any:
    return json.loads(job.attributes[CONTEXT_ATTRIBUTE])


class TestPropagation:
    """The variables have the values of the call in everything that comes of it."""

    def test_task_has_the_context_of_its_call(self, shop: None) -> None:
        as_tenant("ada", lambda: note.execute_on_commit(name="task"))
        run_all()
        assert seen == [("task", "ada")]
        assert tenant.get() == "public"

    def test_retry_has_it(self, shop: None) -> None:
        as_tenant("ada", lambda: note.execute_on_commit(name="task", fail=True))
        run_all()
        assert seen == [("task", "ada")] * 2

    def test_calls_of_a_task_have_its_current_values(self, shop: None) -> None:
        as_tenant("ada", lambda: note.execute_on_commit(name="task", then="inner"))
        run_all()
        assert seen == [("task", "ada"), ("inner", "left behind")]

    def test_callback_on_commit_has_it(self, shop: None) -> None:
        as_tenant("ada", tell_on_commit.execute_on_commit)
        run_all()
        assert seen == [("from a callback", "ada")]

    @pytest.mark.parametrize("fail", [False, True])
    def test_followers_have_that_of_the_call(self, shop: None, fail: bool) -> None:
        as_tenant("ada", lambda: followed.execute_on_commit(fail=fail))
        run_all()
        assert seen == [("followed", "ada"), ("after failure" if fail else "follower", "ada")]

    def test_every_step_of_a_chain_has_it(self, shop: None) -> None:
        steps = [note.invocation(name=name) for name in ("first", "second", "third")]
        as_tenant("ada", lambda: chain(*steps).execute_on_commit())
        run_all()
        assert seen == [("first", "ada"), ("second", "ada"), ("third", "ada")]

    def test_end_of_a_group_has_it(self, shop: None) -> None:
        members = [note.invocation(name="member")] * 2
        as_tenant("ada", lambda: group(members, then=note.invocation(name="end")).execute_on_commit())
        run_all()
        assert seen == [("member", "ada"), ("member", "ada"), ("end", "ada")]

    def test_follower_of_a_call_without_values_has_none(self, shop: None) -> None:
        followed.execute_on_commit()
        run_all()
        assert seen == [("followed", "public"), ("follower", "public")]

    def test_noted_follower_keeps_it_until_the_maintenance(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen.clear()
        with shop_on("default", "direct"), context:
            as_tenant("ada", followed.execute_on_commit)
            with monkeypatch.context() as patch:  # the worker dies before it sends what follows
                patch.setattr("lambda_tasks.flows.ending.pay_debts", lambda *_: None)
                run_next()
            assert TaskFlow.objects.filter(owed__isnull=False).count() == 1
            recover("default", older_than=-1)
            run_all()
        assert seen[-1] == ("follower", "ada")

    def test_replaced_call_has_that_of_the_later_one(self, transactional_db: None) -> None:
        with shop_on("default", "outbox"), context:
            for name in ("ada", "grace"):
                as_tenant(name, lambda name=name: latest.using(delay=3600).execute_on_commit(name=name))
            [row] = OutboxMessage.objects.all()
        assert json.loads(row.attributes[CONTEXT_ATTRIBUTE])["tenant"] == "grace"
        assert '"grace"' in row.body

    def test_lost_task_has_none(self, transactional_db: None) -> None:
        """Its record has no context, and that of the process that finds it is the only one there is."""
        with shop_on("default", "direct"), context:
            handle = as_tenant("ada", lambda: note.execute_on_commit(name="task"))
            queue().clear()
            TaskRecord.objects.create(
                pk=handle.message_id,
                task_name=note.name,
                kwargs={"name": "task"},
                queue="default",
                status="RUNNING",
                lease_until=timezone.now() - timedelta(days=1),
            )
            reap(older_than=0)
            assert [context_of(job) for job in queue()] == [{}]

    @pytest.mark.django_db(transaction=True)
    def test_eager_mode_has_it(self) -> None:
        seen.clear()
        with override_settings(LAMBDA_TASKS_EAGER=True), context:
            as_tenant("ada", lambda: note.execute_on_commit(name="task", fail=True))
        assert seen == [("task", "ada")] * 2
        assert tenant.get() == "public"


@pytest.mark.django_db(transaction=True)
class TestValues:
    @pytest.fixture(autouse=True)
    def shop(self) -> Iterator[None]:
        with shop_on("default", "direct"), context:
            yield

    def sent(self, value: Any) -> Any:
        def call() -> Any:
            user_id.set(value)
            return tell_user.execute_on_commit()

        return copy_context().run(call)

    @pytest.mark.parametrize("value", ["ada", "naïve \U0001f600\n", 42, 1.5, True, ""])
    def test_value_arrives_equal(self, value: Any) -> None:
        handle = self.sent(value)
        run_all()
        result = TaskRecord.objects.get(pk=handle.message_id).result
        assert (result, type(result)) == (value, type(value))

    def test_unset_variables_do_not_travel(self) -> None:
        self.sent(None)
        assert context_of(queue()[0]) == {}

    @pytest.mark.parametrize("value", [UUID(int=7), [1], float("nan"), b"x"])
    def test_other_value_is_refused_at_the_call(self, value: Any) -> None:
        with pytest.raises(
            InvalidContext,
            match=f"^'user_id' in the context of .*tell_user must be a string, .* {type(value).__name__}",
        ):
            self.sent(value)
        assert queue() == []

    def test_error_does_not_quote_the_value(self) -> None:
        with pytest.raises(InvalidContext) as caught:
            self.sent(["4242-4242"])
        assert "4242" not in str(caught.value)

    def test_large_context_is_refused_at_the_call(self) -> None:
        self.sent("x" * (MAX_BYTES - len('{"user_id":""}')))
        with pytest.raises(InvalidContext, match=r"must have at most 4,096 bytes as JSON, not 4,097, .* 'user_id'"):
            self.sent("x" * (MAX_BYTES - len('{"user_id":""}') + 1))

    def received(self, text: str, task: Any = tell_user) -> TaskRecord:
        job = task._job((), {}, lambda: "default")
        job.attributes[CONTEXT_ATTRIBUTE] = text
        assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
        return TaskRecord.objects.get(pk=job.message_id)

    def test_unknown_names_are_ignored(self) -> None:
        record = self.received('{"newer": "x", "user_id": 7}')
        assert (record.status, record.result) == ("SUCCESS", 7)

    @pytest.mark.parametrize("text", ["{", "[]", '{"user_id": []}', "[" * 4000, f'"{"x" * MAX_BYTES}"'])
    def test_malformed_context_fails_the_task(self, text: str) -> None:
        record = self.received(text)
        assert record.status == "FAILED"
        assert "InvalidContext: The attribute lambda_tasks.context of the message must be" in (record.traceback or "")


@pytest.mark.django_db(transaction=True)
class TestDjango:
    """The language and the time zone of Django."""

    @pytest.fixture(autouse=True)
    def shop(self) -> Iterator[None]:
        with shop_on("default", "direct"), override_settings(LAMBDA_TASKS_CONTEXT=DJANGO):
            yield

    def test_both_arrive_and_end_with_the_task(self) -> None:
        with translation.override("de"), timezone.override("Asia/Tokyo"):
            handle = tell_django.execute_on_commit()
        later = tell_django.execute_on_commit()
        run_all()
        results = dict(TaskRecord.objects.values_list("pk", "result"))
        assert results[UUID(handle.message_id)] == ["de", "Asia/Tokyo"]
        assert results[UUID(later.message_id)] == ["en-us", "UTC"]

    def test_unknown_language_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        record = TestValues().received('{"language": "../x"}', tell_django)
        assert record.result == ["en-us", "UTC"]
        assert "does not know the language '../x'" in caplog.text

    def test_unknown_time_zone_fails_the_task(self) -> None:
        record = TestValues().received('{"timezone": "Mars/Olympus"}', tell_django)
        assert "The time zone of the context must be one that the worker knows" in (record.traceback or "")


class TestSetting:
    @pytest.mark.parametrize("path", ["nowhere.tenant", f"{__name__}.absent", f"{__name__}.seen", f"{__name__}.Again"])
    def test_path_must_name_a_variable(self, path: str) -> None:
        with (
            override_settings(LAMBDA_TASKS_CONTEXT={"tenant": path}),
            pytest.raises(InvalidSetting, match=r"^LAMBDA_TASKS_CONTEXT\['tenant'\] must be the dotted path"),
        ):
            load_plugins()

    @pytest.mark.django_db(transaction=True)
    def test_other_plugins_have_the_context(self) -> None:
        class Wrapper:
            @hookimpl(wrapper=True)
            def lambda_task_call(self, run: Run) -> Any:
                seen.append(("plugin", tenant.get()))
                return (yield)

        seen.clear()
        with shop_on("default", "direct"), context, override_settings(LAMBDA_TASKS_PLUGINS=[Wrapper()]):
            as_tenant("ada", lambda: note.execute_on_commit(name="task"))
            run_all()
        assert seen == [("plugin", "ada"), ("task", "ada")]

    @pytest.mark.django_db(transaction=True)
    def test_messages_without_the_setting_have_no_attribute(self) -> None:
        with shop_on("default", "direct"):
            as_tenant("ada", lambda: note.execute_on_commit(name="task"))
            assert queue()[0].attributes == {}

    def test_logger_is_one_of_the_library(self) -> None:
        assert logging.getLogger("lambda_tasks.contrib.context").filters
