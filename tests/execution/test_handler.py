"""The response to every event: which messages are acknowledged, kept on the queue, or run, and in which order."""

from __future__ import annotations

import contextvars
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, ProgrammingError, connection, connections
from django.test import override_settings
from django.utils import timezone, translation

from lambda_tasks import handler as handler_module
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.errors import LOCKED_PAUSE
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidEvent, LeaseLost, Redeliver
from lambda_tasks.execution.backoff import least_outage_pause
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.models import SQSLambdaTask, TaskRecord
from lambda_tasks.outcomes import Busy, Retry
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
    """Imitates the context that awslambdaric passes to a handler, with a clock that the test sets."""

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
    def test_successful_and_failed_tasks_are_acknowledged(self) -> None:
        assert failures([record_of(note, name="a"), record_of(fail), record_of(note, name="b")]) == []
        assert ran == ["a", "b"]
        assert sorted(TaskRecord.objects.values_list("status", flat=True)) == ["FAILED", "SUCCESS", "SUCCESS"]

    def test_record_has_the_callers_message_id(self) -> None:
        handle = note.execute_on_commit(name="a")
        assert isinstance(handle, TaskHandle)
        failures(backend().take_records())
        assert TaskRecord.objects.get(pk=handle.message_id).status == "SUCCESS"

    def test_foreign_message_keeps_its_sqs_id(self) -> None:
        record = record_of(note, name="a") | {
            "messageAttributes": {},
            "messageId": "059f36b4-87a3-44ab-83d2-661975830a7d",
        }
        failures([record])
        assert str(TaskRecord.objects.get().pk) == "059f36b4-87a3-44ab-83d2-661975830a7d"

    def test_copy_under_another_sqs_id_runs_once(self) -> None:
        """SQS accepted a send whose response was lost, and the client repeated it."""
        record = record_of(note, name="a")
        assert failures([record, record | {"messageId": "another"}]) == []
        assert failures([record | {"messageId": "a third"}]) == []
        assert ran == ["a"]

    def test_repeated_message_in_a_batch_runs_once(self) -> None:
        """The response lists it once, too."""
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

    def test_empty_batch_is_a_success(self) -> None:
        assert failures([]) == []


class TestAttributes:
    def test_plugin_attributes_reach_the_workers_plugins(self) -> None:
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

    def test_listener_cannot_change_the_response(self) -> None:
        class Meddling:
            @hookimpl
            def lambda_task_batch_finished(self, response: Any) -> None:
                response["batchItemFailures"].clear()

        record = record_of(note, name="a") | {"body": "{"}
        with override_settings(LAMBDA_TASKS_PLUGINS=[Meddling()]):
            assert failures([record]) == [record["messageId"]]

    @pytest.mark.parametrize("delay", [-5, 2.5, True, "5"])
    def test_invalid_retry_delay_of_plugin_is_ignored(self, delay: Any) -> None:
        class Hasty:
            @hookimpl
            def lambda_task_classify(self, error: BaseException) -> Any:
                return Retry(error, delay=delay)

        with override_settings(LAMBDA_TASKS_PLUGINS=[Hasty()]):
            assert failures([record_of(fail)]) == []
        assert TaskRecord.objects.get().status == "FAILED"


class TestRetries:
    def test_retry_goes_to_the_original_queue(self) -> None:
        @lambda_task(retry_on=[ValueError])
        def again() -> None:
            raise ValueError

        assert failures([record_of(again.using(queue="other"))]) == []
        assert [job.queue for job in backend().take()] == ["other"]

    def test_foreign_message_retries_on_its_tasks_queue(self) -> None:
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
            '{"task_name": "tests.execution.test_handler.note"}',
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": "a", "more": 1}}',
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": 1}}',
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": "a"}, "more": 1}',
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": "a"}, "n_retries": -1}',
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": "a"}, "n_retries": 4e9}',
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": "a"}, "n_retries": 4294967296000}',
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": "\\u0000"}}',
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": "\\ud800"}}',
            '{"task_name": "tests.execution.test_handler.unknown", "kwargs": {}}',
            '{"task_name": "os.system", "kwargs": {}}',
            '{"task_name": "tests.no_such_module.task", "kwargs": {}}',
            "[" * 100_000,
            '{"task_name": "tests.execution.test_handler.note", "kwargs": {"name": ' + "[" * 5_000 + "]" * 5_000 + "}}",
        ],
        ids=lambda body: body[:60],
    )
    def test_malformed_message_stays_without_a_record(self, body: str) -> None:
        good = record_of(note, name="good")
        assert failures([good | {"messageId": "bad", "body": body, "messageAttributes": {}}, good]) == ["bad"]
        assert ran == ["good"]
        assert TaskRecord.objects.count() == 1

    @pytest.mark.parametrize("missing", ["body", "attributes", "messageAttributes"])
    def test_incomplete_record_is_handled(self, missing: str) -> None:
        record = record_of(note, name="a")
        del record[missing]
        assert failures([record]) == ([record["messageId"]] if missing == "body" else [])

    @pytest.mark.parametrize(
        "attributes", [None, [], {"lambda_tasks.message_id": None}, {"lambda_tasks.message_id": {}}]
    )
    def test_malformed_attributes_are_ignored(self, attributes: Any) -> None:
        assert failures([record_of(note, name="a") | {"messageAttributes": attributes, "attributes": attributes}]) == []

    def test_module_that_cannot_be_imported_keeps_message(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken_shop.py").write_text("import sys; sys.exit(1)")
        monkeypatch.syspath_prepend(tmp_path)
        body = '{"task_name": "broken_shop.task"}'
        with override_settings(LAMBDA_TASKS_MODULES=["broken_shop"]):
            good = record_of(note, name="good")
            assert failures([good | {"messageId": "bad", "body": body, "messageAttributes": {}}, good]) == ["bad"]

    def test_module_is_imported_on_demand(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "late_shop.py").write_text(
            "from lambda_tasks.decorators import lambda_task\n@lambda_task\ndef task() -> str:\n    return 'found'\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        record = record_of(note, name="x") | {"body": '{"task_name": "late_shop.task"}'}
        with override_settings(LAMBDA_TASKS_MODULES=["late_shop"]):
            assert failures([record]) == []
        assert TaskRecord.objects.get().result == "found"
        assert "late_shop" in sys.modules

    def test_running_invocation_stays_until_its_lease_expires(self) -> None:
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

    def test_database_outage_returns_the_rest_immediately(self) -> None:
        class AbsentStore(ORMStore):
            def claim(self, run: Any) -> Any:
                if run.arguments["name"] == "b":
                    raise OperationalError("connection refused")
                return super().claim(run)

        records = [record_of(note, name=name) for name in "abc"]
        with chosen("STORE", AbsentStore):
            assert failures(records) == [records[1]["messageId"], records[2]["messageId"]]
        assert ran == ["a"]

    def test_database_outage_does_not_exhaust_the_receives(self) -> None:
        class AbsentStore(ORMStore):
            def claim(self, run: Any) -> Any:
                raise OperationalError("connection refused")

        assert grows_like_an_outage(pauses_of_five_receives(store=AbsentStore))

    @pytest.mark.parametrize(
        "error",
        [
            ProgrammingError('relation "lambda_tasks_taskrecord" does not exist'),
            ImproperlyConfigured("LAMBDA_TASKS_LOCK names no lock"),
            ConnectionError("Redis does not answer"),
            Redeliver("the retry could not be sent"),
            Redeliver("the record is locked", visible_in=10),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_pauses_grow_for_every_infrastructure_failure(self, error: Exception) -> None:
        class FailingStore(ORMStore):
            def claim(self, run: Any) -> Any:
                raise error

        assert grows_like_an_outage(pauses_of_five_receives(store=FailingStore))

    def test_pauses_grow_while_a_transaction_locks_record(self) -> None:
        class LockedStore(ORMStore):
            def claim(self, run: Any) -> Any:
                return Busy(LOCKED_PAUSE, locked=True)

        assert grows_like_an_outage(pauses_of_five_receives(store=LockedStore))

    def test_pause_ends_with_the_other_workers_lease(self) -> None:
        """The pause does not grow with the receives, and is never a second too short: SQS counts whole seconds."""

        class BusyStore(ORMStore):
            def claim(self, run: Any) -> Any:
                return Busy(100.9)

        for _ in range(5):
            pauses = pauses_of_five_receives(store=BusyStore)
            assert all(101.9 <= pause <= 105.9 for pause in pauses)

    def test_message_with_a_held_claim_waits(self) -> None:
        """The outcome could not be recorded, so every delivery before the lease expires would fail."""

        class ForgetfulStore(ORMStore):
            def record(self, run: Any, outcome: Any) -> None:
                raise OperationalError("connection refused")

        PostponingBackend.postponed.clear()
        with chosen_backend(PostponingBackend), chosen("STORE", ForgetfulStore):
            assert len(failures([record_of(fail)])) == 1
        [(_, seconds)] = PostponingBackend.postponed
        assert 300 < seconds < 320

    def test_message_of_a_lost_lease_is_unchanged(self) -> None:
        """Another worker has received it; a shorter visibility timeout would deliver it again during that run."""

        class TakenStore(ORMStore):
            def record(self, run: Any, outcome: Any) -> None:
                raise LeaseLost

        PostponingBackend.postponed.clear()
        with chosen_backend(PostponingBackend), chosen("STORE", TakenStore):
            assert len(failures([record_of(note, name="a"), record_of(fail)])) == 2
        assert PostponingBackend.postponed == []


class TestInvalidEvents:
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
    def test_event_without_usable_ids_raises(self, event: Any) -> None:
        with pytest.raises(InvalidEvent):
            handler(event, None)

    def test_batch_with_a_missing_id_runs_nothing(self) -> None:
        with pytest.raises(InvalidEvent, match="messageId"):
            handler({"Records": [record_of(note, name="a"), {"body": "{}"}]}, None)
        assert ran == []


class TestTime:
    def test_task_starts_only_if_its_timeout_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        context = LambdaContext(24)
        records = [record_of(note_within_20_seconds, name=name) for name in "ab"]
        with chosen_backend(PostponingBackend):
            PostponingBackend.postponed.clear()
            monkeypatch.setattr(handler_module, "_full_time", 60.0)
            assert failures(records, context) == [records[1]["messageId"]]
            [(kept, seconds)] = PostponingBackend.postponed
            assert kept is records[1]
            assert 5 <= seconds <= 7
        assert ran == ["a"]

    def test_all_tasks_start_while_time_remains(self) -> None:
        records = [record_of(note_within_20_seconds, name=name) for name in "abc"]
        assert failures(records, LambdaContext(60)) == []

    def test_shorter_task_starts_when_another_cannot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(handler_module, "_full_time", 900.0)
        records = [
            record_of(note_within_20_seconds, name="first"),
            record_of(note, name="needs 300 s"),
            record_of(note_within_20_seconds, name="last"),
        ]
        assert failures(records, LambdaContext(60)) == [records[1]["messageId"]]
        assert ran == ["first", "last"]

    def test_first_task_always_starts(self) -> None:
        assert failures([record_of(note_within_20_seconds, name="a")], LambdaContext(8)) == []
        assert ran == ["a"]

    def test_often_received_message_runs_last(self) -> None:
        records = [record_of(note, name="poison", receives=3), record_of(note, name="a"), record_of(note, name="b")]
        failures(records)
        assert ran == ["a", "b", "poison"]

    def test_timers_are_disarmed_before_a_freeze(self) -> None:
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
    def test_state_that_a_task_sets_is_reset(self) -> None:
        clean = inspect_context()
        failures([record_of(dirty), record_of(inspect_context)])
        assert TaskRecord.objects.get(task_name=inspect_context.name).result == clean

    def test_connection_lost_during_freeze_is_replaced(self) -> None:
        if connection.vendor != "postgresql":
            pytest.skip("the session is ended by pg_terminate_backend, which is PostgreSQL's")
        record = record_of(note, name="a")
        # A persistent connection without a health check before its use.
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
    def test_container_boots_once_unless_boot_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The next invocation repeats a boot that failed."""
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


def test_serialized_invocation_can_be_sent_later() -> None:
    payload = note.using(queue="other", delay=9).serialize(name="a")
    handle = SQSLambdaTask.model_validate(payload).execute_on_commit()
    [job] = backend().take()
    assert (job.message_id, job.queue, job.delay) == (handle.message_id, "other", 9)
    assert failures([event_record(job)]) == []
    assert ran == ["a"]


def pauses_of_five_receives(*, store: type[ORMStore]) -> list[float]:
    PostponingBackend.postponed.clear()
    with chosen_backend(PostponingBackend), chosen("STORE", store):
        for receives in range(1, 6):
            assert len(failures([record_of(note, name="a", receives=receives)])) == 1
    return [seconds for _, seconds in PostponingBackend.postponed]


def grows_like_an_outage(pauses: Sequence[float]) -> bool:
    least = [least_outage_pause(receives) for receives in range(1, 6)]
    return len(pauses) == 5 and all(low <= pause <= 1.25 * low for pause, low in zip(pauses, least, strict=True))


class PostponingBackend(MemoryBackend):
    postponed: list[Any] = []  # noqa: RUF012, emptied by the test

    def postpone(self, records: Any) -> None:
        self.postponed.extend(records)


def chosen_backend(cls: type[MemoryBackend]) -> Any:
    return chosen("BACKEND", cls)


def chosen(setting: str, cls: type[Any]) -> Any:
    """Select a class that the test creates by its dotted path, as a project would."""
    setattr(sys.modules[__name__], f"chosen_{setting}", cls)
    return override_settings(**{f"LAMBDA_TASKS_{setting}": f"{__name__}.chosen_{setting}"})
