"""The answer to every event: what is acknowledged, what stays on the queue, and what runs when."""

from __future__ import annotations

import contextvars
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, connections
from django.test import override_settings
from django.utils import timezone, translation

from lambda_tasks import handler as handler_module
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidEvent
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.models import SQSLambdaTask, TaskRecord
from lambda_tasks.outcomes import Retry
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend
from tests.app.models import Effect

pytestmark = pytest.mark.django_db(transaction=True)

ran: list[str] = []


@lambda_task
def note(*, name: str) -> None:
    ran.append(name)
    Effect.objects.create(name=name)


@lambda_task
def fail() -> None:
    raise ValueError("as it happens")


@lambda_task(soft_timeout=10, hard_timeout=20)
def note_within_20_seconds(*, name: str) -> None:
    ran.append(name)


class LambdaContext:
    """What awslambdaric passes to a handler, with a clock that the test sets."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


@pytest.fixture(autouse=True)
def _clean() -> None:
    ran.clear()
    backend().jobs.clear()


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def record_of(task: Any, /, *, receives: int = 1, **kwargs: Any) -> dict[str, Any]:
    task.execute_on_commit(**kwargs)
    return event_record(backend().take()[-1], receive_count=receives)


def failures(records: Sequence[Mapping[str, Any]], context: Any = None) -> list[str]:
    response = handler({"Records": list(records)}, context)
    assert list(response) == ["batchItemFailures"]
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


class TestAcknowledged:
    def test_tasks_that_succeed_and_tasks_that_fail_are_acknowledged(self) -> None:
        assert failures([record_of(note, name="a"), record_of(fail), record_of(note, name="b")]) == []
        assert ran == ["a", "b"]
        assert sorted(TaskRecord.objects.values_list("status", flat=True)) == ["FAILED", "SUCCESS", "SUCCESS"]

    def test_the_record_has_the_id_that_the_caller_was_given(self) -> None:
        handle = note.execute_on_commit(name="a")
        assert isinstance(handle, TaskHandle)
        failures(backend().take_records())
        assert TaskRecord.objects.get(pk=handle.message_id).status == "SUCCESS"

    def test_a_message_of_another_program_has_the_id_that_sqs_gave_it(self) -> None:
        record = record_of(note, name="a") | {
            "messageAttributes": {},
            "messageId": "059f36b4-87a3-44ab-83d2-661975830a7d",
        }
        failures([record])
        assert str(TaskRecord.objects.get().pk) == "059f36b4-87a3-44ab-83d2-661975830a7d"

    def test_a_copy_under_another_sqs_id_is_run_once(self) -> None:
        """SQS took a send whose answer was lost, and the client repeated it."""
        record = record_of(note, name="a")
        assert failures([record, record | {"messageId": "another"}]) == []
        assert failures([record | {"messageId": "a third"}]) == []
        assert ran == ["a"]

    def test_the_same_message_twice_in_a_batch_is_run_once_and_answered_once(self) -> None:
        record = record_of(note, name="a")
        broken = record | {"messageId": "broken", "body": "{"}
        assert failures([record, broken, record, broken]) == ["broken"]
        assert ran == ["a"]

    def test_exhausted_retries_are_acknowledged(self) -> None:
        @lambda_task(retry_on=[ValueError])
        def again() -> None:
            raise ValueError

        with override_settings(LAMBDA_TASKS_MAX_RETRIES=0):
            assert failures([record_of(again)]) == []
        assert TaskRecord.objects.get().status == "FAILED"

    def test_an_empty_batch_is_a_success(self) -> None:
        assert failures([]) == []


class TestAttributes:
    def test_what_a_plugin_sends_beside_a_message_reaches_the_plugins_of_the_worker(self) -> None:
        seen = []

        class Tracing:
            @hookimpl
            def lambda_task_sending(self, job: Any) -> None:
                job.attributes["traceparent"] = "00-1"

            @hookimpl
            def lambda_task_started(self, run: Any) -> None:
                seen.append(dict(run.attributes))

        with override_settings(LAMBDA_TASKS_PLUGINS=[Tracing()]):
            record = record_of(note, name="a")
            record["messageAttributes"]["a number"] = {"dataType": "Binary", "binaryValue": "eA=="}
            assert failures([record]) == []
            with override_settings(LAMBDA_TASKS_EAGER=True):
                note.execute_on_commit(name="b")
        assert seen == [{"traceparent": "00-1"}] * 2

    def test_a_listener_cannot_change_the_answer(self) -> None:
        class Meddling:
            @hookimpl
            def lambda_task_batch_finished(self, response: Any) -> None:
                response["batchItemFailures"].clear()

        record = record_of(note, name="a") | {"body": "{"}
        with override_settings(LAMBDA_TASKS_PLUGINS=[Meddling()]):
            assert failures([record]) == [record["messageId"]]

    @pytest.mark.parametrize("delay", [-5, 2.5, True, "5"])
    def test_a_plugins_retry_with_a_delay_that_is_none_is_passed_over(self, delay: Any) -> None:
        class Hasty:
            @hookimpl
            def lambda_task_classify(self, error: BaseException) -> Any:
                return Retry(error, delay=delay)

        with override_settings(LAMBDA_TASKS_PLUGINS=[Hasty()]):
            assert failures([record_of(fail)]) == []
        assert TaskRecord.objects.get().status == "FAILED"


class TestRetries:
    def test_a_retry_goes_to_the_queue_that_its_first_invocation_was_sent_to(self) -> None:
        @lambda_task(retry_on=[ValueError])
        def again() -> None:
            raise ValueError

        assert failures([record_of(again.using(queue="other"))]) == []
        assert [job.queue for job in backend().take()] == ["other"]

    def test_the_retry_of_a_message_from_elsewhere_goes_to_the_queue_of_its_task(self) -> None:
        @lambda_task(retry_on=[ValueError], queue="other")
        def again() -> None:
            raise ValueError

        nowhere = {"lambda_tasks.queue": {"stringValue": "renamed", "dataType": "String"}}
        for attributes in ({}, nowhere):
            record = record_of(again) | {"messageAttributes": attributes}
            assert failures([record]) == []
            assert [job.queue for job in backend().take()] == ["other"]


class TestKept:
    @pytest.mark.parametrize(
        "body",
        [
            "",
            "{",
            "[]",
            "null",
            '"text"',
            "{}",
            '{"task_name": "no_module"}',
            '{"task_name": 1, "kwargs": {}}',
            '{"task_name": "tests.test_handler.note"}',
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": "a", "more": 1}}',
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": 1}}',
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": "a"}, "more": 1}',
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": "a"}, "n_retries": -1}',
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": "a"}, "n_retries": 4e9}',
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": "a"}, "n_retries": 99999999999999999999}',
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": "\\u0000"}}',
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": "\\ud800"}}',
            '{"task_name": "tests.test_handler.unknown", "kwargs": {}}',
            '{"task_name": "os.system", "kwargs": {}}',
            '{"task_name": "tests.no_such_module.task", "kwargs": {}}',
            "[" * 100_000,
            '{"task_name": "tests.test_handler.note", "kwargs": {"name": ' + "[" * 5_000 + "]" * 5_000 + "}}",
        ],
        ids=lambda body: body[:60],
    )
    def test_what_is_no_invocation_stays_alone_and_leaves_no_record(self, body: str) -> None:
        good = record_of(note, name="good")
        assert failures([good | {"messageId": "bad", "body": body, "messageAttributes": {}}, good]) == ["bad"]
        assert ran == ["good"]
        assert TaskRecord.objects.count() == 1

    @pytest.mark.parametrize("missing", ["body", "attributes", "messageAttributes"])
    def test_a_record_that_lacks_something_is_answered(self, missing: str) -> None:
        record = record_of(note, name="a")
        del record[missing]
        assert failures([record]) == ([record["messageId"]] if missing == "body" else [])

    @pytest.mark.parametrize(
        "attributes", [None, [], {"lambda_tasks.message_id": None}, {"lambda_tasks.message_id": {}}]
    )
    def test_attributes_of_any_shape_are_survived(self, attributes: Any) -> None:
        assert failures([record_of(note, name="a") | {"messageAttributes": attributes, "attributes": attributes}]) == []

    def test_a_module_that_cannot_be_imported_keeps_its_message_alone(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "broken_shop.py").write_text("import sys; sys.exit(1)")
        monkeypatch.syspath_prepend(tmp_path)
        body = '{"task_name": "broken_shop.task"}'
        with override_settings(LAMBDA_TASKS_MODULES=["broken_shop"]):
            good = record_of(note, name="good")
            assert failures([good | {"messageId": "bad", "body": body, "messageAttributes": {}}, good]) == ["bad"]

    def test_a_module_is_imported_on_demand(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "late_shop.py").write_text(
            "from lambda_tasks.decorators import lambda_task\n@lambda_task\ndef task() -> str:\n    return 'found'\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        record = record_of(note, name="x") | {"body": '{"task_name": "late_shop.task"}'}
        with override_settings(LAMBDA_TASKS_MODULES=["late_shop"]):
            assert failures([record]) == []
        assert TaskRecord.objects.get().result == "found"
        assert "late_shop" in sys.modules

    def test_a_running_invocation_stays_until_its_lease_is_over(self) -> None:
        postponed = []

        class WatchedBackend(MemoryBackend):
            def postpone(self, records: Any) -> None:
                postponed.extend(records)

        record = record_of(note, name="a")
        TaskRecord.objects.create(
            id=record["messageId"],
            task_name=note.name,
            claim=record["messageId"],
            lease_until=timezone.now() + timedelta(seconds=100),
        )
        with chosen_backend(WatchedBackend):
            assert failures([record]) == [record["messageId"]]
        [(kept, seconds)] = postponed
        assert kept is record
        assert 90 < seconds <= 106
        assert ran == []

    def test_when_the_database_goes_away_the_rest_of_the_batch_goes_back_at_once(self) -> None:
        class AbsentStore(ORMStore):
            def claim(self, run: Any) -> Any:
                if run.arguments["name"] == "b":
                    raise OperationalError("connection refused")
                return super().claim(run)

        records = [record_of(note, name=name) for name in "abc"]
        with chosen("STORE", AbsentStore):
            assert failures(records) == [records[1]["messageId"], records[2]["messageId"]]
        assert ran == ["a"]

    def test_an_outage_of_the_database_does_not_use_up_the_receives(self) -> None:
        class AbsentStore(ORMStore):
            def claim(self, run: Any) -> Any:
                raise OperationalError("connection refused")

        PostponingBackend.postponed.clear()
        records = [record_of(note, name=str(receives), receives=receives) for receives in (1, 2, 20)]
        with chosen_backend(PostponingBackend), chosen("STORE", AbsentStore):
            assert len(failures(records)) == 3
        assert [seconds for _, seconds in PostponingBackend.postponed] == [10, 20, 320]


class TestEventsWithoutAnAnswer:
    @pytest.mark.parametrize(
        "event",
        [
            {},
            {"Records": None},
            {"source": "aws.events", "detail": {}},
            {"Records": [{"body": "{}"}]},
            {"Records": [{"messageId": "", "body": "{}"}]},
            {"Records": [{"messageId": None, "body": "{}"}]},
            {"Records": ["text"]},
        ],
        ids=str,
    )
    def test_an_event_without_usable_ids_raises(self, event: Any) -> None:
        with pytest.raises(InvalidEvent):
            handler(event, None)

    def test_nothing_is_run_of_a_batch_in_which_one_id_is_missing(self) -> None:
        with pytest.raises(InvalidEvent, match="messageId"):
            handler({"Records": [record_of(note, name="a"), {"body": "{}"}]}, None)
        assert ran == []


class TestTime:
    def test_a_task_is_started_only_if_its_hard_timeout_fits(self) -> None:
        context = LambdaContext(24)
        records = [record_of(note_within_20_seconds, name=name) for name in "ab"]
        with chosen_backend(PostponingBackend):
            PostponingBackend.postponed.clear()
            assert failures(records, context) == [records[1]["messageId"]]
            assert PostponingBackend.postponed == [(records[1], 0)]
        assert ran == ["a"]

    def test_all_are_started_while_there_is_time(self) -> None:
        records = [record_of(note_within_20_seconds, name=name) for name in "abc"]
        assert failures(records, LambdaContext(60)) == []

    def test_a_task_that_needs_less_time_is_started_where_another_one_is_not(self) -> None:
        records = [
            record_of(note_within_20_seconds, name="first"),
            record_of(note, name="needs 300 s"),
            record_of(note_within_20_seconds, name="last"),
        ]
        assert failures(records, LambdaContext(60)) == [records[1]["messageId"]]
        assert ran == ["first", "last"]

    def test_the_first_task_is_always_started(self) -> None:
        assert failures([record_of(note_within_20_seconds, name="a")], LambdaContext(8)) == []
        assert ran == ["a"]

    def test_what_was_received_often_runs_last(self) -> None:
        records = [record_of(note, name="poison", receives=3), record_of(note, name="a"), record_of(note, name="b")]
        failures(records)
        assert ran == ["a", "b", "poison"]

    def test_nothing_is_left_armed_over_a_freeze(self) -> None:
        before = signal.getsignal(signal.SIGALRM)
        failures([record_of(note, name="a"), record_of(fail)])
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) is before


leaked: contextvars.ContextVar[str] = contextvars.ContextVar("leaked", default="clean")


@lambda_task
def dirty() -> None:
    leaked.set("dirty")
    translation.activate("de")
    timezone.activate("Asia/Tokyo")


@lambda_task
def inspect_context() -> list[str]:
    return [leaked.get(), translation.get_language(), timezone.get_current_timezone_name()]


class TestIsolation:
    def test_what_a_task_sets_ends_with_it(self) -> None:
        clean = inspect_context()
        failures([record_of(dirty), record_of(inspect_context)])
        assert TaskRecord.objects.get(task_name=inspect_context.name).result == clean

    def test_a_connection_that_died_while_the_container_was_frozen_is_replaced(self) -> None:
        if connection.vendor != "postgresql":
            pytest.skip("the session is ended by pg_terminate_backend, which is PostgreSQL's")
        record = record_of(note, name="a")
        # A connection that is kept, and that nothing checks before it is used.
        connection.close()
        with kept_connection():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                [pid] = cursor.fetchone()
            with closing(connections.create_connection("default")) as other, other.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            assert failures([record]) == []
        assert ran == ["a"]


@contextmanager
def kept_connection() -> Any:
    options = connection.settings_dict
    before = {name: options[name] for name in ("CONN_MAX_AGE", "CONN_HEALTH_CHECKS")}
    options.update(CONN_MAX_AGE=600, CONN_HEALTH_CHECKS=False)
    try:
        yield
    finally:
        options.update(before)
        connection.close()


class TestColdStart:
    def test_the_container_boots_once_and_again_after_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        boots = []

        class Booting:
            @hookimpl
            def lambda_task_boot(self) -> None:
                boots.append("boot")
                if len(boots) == 1:
                    raise RuntimeError("not yet")

        monkeypatch.setattr(handler_module, "_booted", False)
        with override_settings(LAMBDA_TASKS_PLUGINS=[Booting()]):
            with pytest.raises(RuntimeError, match="not yet"):
                failures([record_of(note, name="a")])
            assert failures([record_of(note, name="b")]) == []
            assert failures([record_of(note, name="c")]) == []
        assert boots == ["boot", "boot"]
        assert ran == ["b", "c"]


def test_a_serialized_invocation_can_be_sent_later() -> None:
    payload = note.using(queue="other", delay=9).serialize(name="a")
    handle = SQSLambdaTask.model_validate(payload).execute_on_commit()
    [job] = backend().take()
    assert (job.message_id, job.queue, job.delay) == (handle.message_id, "other", 9)
    assert failures([event_record(job)]) == []
    assert ran == ["a"]


class PostponingBackend(MemoryBackend):
    postponed: list[Any] = []  # noqa: RUF012, emptied by the test

    def postpone(self, records: Any) -> None:
        self.postponed.extend(records)


def chosen_backend(cls: type[MemoryBackend]) -> Any:
    return chosen("BACKEND", cls)


def chosen(setting: str, cls: type[Any]) -> Any:
    """Choose a class made in the test by its dotted path, as a project would."""
    setattr(sys.modules[__name__], f"chosen_{setting}", cls)
    return override_settings(**{f"LAMBDA_TASKS_{setting}": f"{__name__}.chosen_{setting}"})
