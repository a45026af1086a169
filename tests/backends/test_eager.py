"""Eager mode: tasks run on commit, one after the other, with the arguments that a worker would receive."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import translation

from lambda_tasks.backends.eager import EagerBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import MaxRetriesExceededError
from lambda_tasks.limits.alarms import TimeLimits
from lambda_tasks.models import TaskRecord

pytestmark = pytest.mark.django_db(transaction=True)

events: list[str] = []


@pytest.fixture(autouse=True)
def _eager(settings: Any) -> None:
    settings.LAMBDA_TASKS_EAGER = True
    events.clear()


@lambda_task
def note(*, name: str) -> str:
    events.append(name)
    return name


@lambda_task
def send_two() -> None:
    events.append("begin")
    note.execute_on_commit(name="first")
    note.execute_on_commit(name="second")
    events.append("end")


class TestTiming:
    def test_task_runs_immediately_without_a_transaction(self) -> None:
        handle = note.execute_on_commit(name="a")
        assert TaskRecord.objects.get(pk=handle.message_id).result == "a"

    def test_task_runs_when_the_transaction_commits(self) -> None:
        with transaction.atomic():
            note.execute_on_commit(name="a")
            assert events == []
        assert events == ["a"]

    def test_task_does_not_run_after_a_rollback(self) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            note.execute_on_commit(name="a")
            raise ZeroDivisionError
        assert events == []
        assert not TaskRecord.objects.exists()

    def test_nested_tasks_are_queued(self) -> None:
        send_two.execute_on_commit()
        assert events == ["begin", "end", "first", "second"]
        assert TaskRecord.objects.filter(status="SUCCESS").count() == 3

    def test_task_that_sends_itself_does_not_recurse(self) -> None:
        depths = []

        @lambda_task
        def count_down(*, left: int) -> None:
            import sys

            frame, depth = sys._getframe(), 0
            while frame := frame.f_back:  # type: ignore[assignment]
                depth += 1
            depths.append(depth)
            if left:
                count_down.execute_on_commit(left=left - 1)

        count_down.execute_on_commit(left=20)
        assert len(depths) == 21
        assert len(set(depths)) == 1


class TestExecution:
    def test_time_limits_are_not_enforced(self) -> None:
        seen = []

        @lambda_task(soft_timeout=1, hard_timeout=2)
        def look() -> None:
            seen.append(TimeLimits.current())

        look.execute_on_commit()
        assert seen == [None]

    @override_settings(LAMBDA_TASKS_MAX_RETRIES=5)
    def test_retries_are_a_bounded_loop_without_delays(self) -> None:
        @lambda_task(retry_on=[ValueError], retry_delay=600)
        def always_fail() -> None:
            events.append("try")
            raise ValueError

        always_fail.execute_on_commit()
        assert len(events) == 6
        assert list(TaskRecord.objects.order_by("n_retries").values_list("n_retries", "status")) == [
            *((n, "RETRYING") for n in range(5)),
            (5, "FAILED"),
        ]

    @pytest.mark.parametrize(
        ("max_retries", "runs"), [(None, 4), (10, 4), (2, 3), (0, 1)], ids=["unset", "more", "fewer", "none"]
    )
    @pytest.mark.parametrize("backend", [None, "lambda_tasks.backends.eager.EagerBackend"], ids=["setting", "class"])
    def test_three_retries_unless_the_settings_say_otherwise(
        self, backend: str | None, max_retries: int | None, runs: int, settings: Any
    ) -> None:
        """The caller, often a request, waits for all of them."""
        if backend:
            settings.LAMBDA_TASKS_EAGER, settings.LAMBDA_TASKS_BACKEND = False, backend

        @lambda_task(retry_on=[ValueError], max_retries=max_retries)
        def always_fail() -> None:
            events.append("try")
            raise ValueError

        always_fail.execute_on_commit()
        assert len(events) == runs
        if runs == 4:
            text = TaskRecord.objects.get(status="FAILED").traceback or ""
            assert "after 3 retries, and the limit of EagerBackend without LAMBDA_TASKS_MAX_RETRIES is 3." in text

    @override_settings(LAMBDA_TASKS_MAX_RETRIES=1)
    def test_own_limit_overrides_the_setting(self) -> None:
        @lambda_task(retry_on=[ValueError], max_retries=5)
        def always_fail() -> None:
            events.append("try")
            raise ValueError

        always_fail.execute_on_commit()
        assert len(events) == 6

    def test_error_of_a_task_stays_in_its_record(self) -> None:
        @lambda_task
        def fail() -> None:
            raise ValueError

        fail.execute_on_commit()
        assert TaskRecord.objects.get().status == "FAILED"

    def test_default_retries_are_three(self) -> None:
        assert EagerBackend.default_max_retries == 3

    def test_arguments_pass_through_json(self) -> None:
        received = []

        @lambda_task
        def take(*, names: list[str]) -> None:
            received.append(names)

        names = ["a"]
        take.execute_on_commit(names=names)
        assert received == [names]
        assert received[0] is not names

    def test_closures_that_share_a_name_run_separately(self) -> None:
        def make(name: str) -> Any:
            @lambda_task
            def closure() -> None:
                events.append(name)

            return closure

        first, second = make("first"), make("second")
        assert first.name == second.name
        first.execute_on_commit()
        second.execute_on_commit()
        assert events == ["first", "second"]

    def test_state_that_a_task_sets_is_reset(self) -> None:
        @lambda_task
        def speak_german() -> None:
            translation.activate("de")

        with translation.override("fr"):
            speak_german.execute_on_commit()
            assert translation.get_language() == "fr"

    def test_threads_have_separate_queues(self) -> None:
        inside, go_on = threading.Event(), threading.Event()

        @lambda_task
        def wait() -> None:
            inside.set()
            go_on.wait(30)

        from django.db import connections

        def main() -> None:
            wait.execute_on_commit()
            connections.close_all()

        thread = threading.Thread(target=main)
        thread.start()
        try:
            assert inside.wait(30)
            note.execute_on_commit(name="meanwhile")
            assert events == ["meanwhile"]
        finally:
            go_on.set()
            thread.join(30)


class OutOfPaper(Exception):
    pass


@lambda_task
def print_label(*, number: int) -> None:
    events.append(f"label {number}")
    raise OutOfPaper(number)


@lambda_task(retry_on=[OutOfPaper])
def print_again() -> None:
    events.append("try")
    raise OutOfPaper(len(events))


@lambda_task(retry_on=[OutOfPaper])
def print_second_time() -> None:
    events.append("try")
    if len(events) == 1:
        raise OutOfPaper


class TestPropagatedErrors:
    @pytest.fixture(autouse=True)
    def _propagates(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER_PROPAGATES = True

    def test_caller_gets_the_error_itself(self) -> None:
        with pytest.raises(OutOfPaper) as caught:
            print_label.execute_on_commit(number=1)
        record = TaskRecord.objects.get()
        assert record.status == "FAILED"
        assert caught.value.__notes__ == [  # type: ignore[attr-defined]  # not known to Python 3.10
            f"Raised by the task {print_label.name} [{record.pk}]."
        ]
        assert caught.traceback[-1].name == "print_label"

    def test_first_error_is_raised_after_all_tasks(self) -> None:
        with pytest.raises(OutOfPaper, match="1"), transaction.atomic():
            print_label.execute_on_commit(number=1)
            print_label.execute_on_commit(number=2)
            note.execute_on_commit(name="last")
        assert events == ["label 1", "label 2", "last"]
        assert TaskRecord.objects.filter(status="FAILED").count() == 2

    def test_error_is_raised_after_the_last_retry(self) -> None:
        with pytest.raises(MaxRetriesExceededError):
            print_again.execute_on_commit()
        assert events == ["try"] * 4

    def test_retry_that_succeeds_raises_nothing(self) -> None:
        print_second_time.execute_on_commit()
        assert events == ["try", "try"]

    def test_setting_is_off_by_default(self, settings: Any) -> None:
        del settings.LAMBDA_TASKS_EAGER_PROPAGATES
        print_label.execute_on_commit(number=1)
        assert TaskRecord.objects.get().status == "FAILED"
