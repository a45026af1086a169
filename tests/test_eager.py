"""Eager mode: on commit, one after the other, with the arguments that a worker would get."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import translation

from lambda_tasks.decorators import lambda_task
from lambda_tasks.models import TaskRecord
from lambda_tasks.timeouts import TimeLimits

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


class TestWhen:
    def test_it_runs_at_once_where_no_transaction_is_open(self) -> None:
        handle = note.execute_on_commit(name="a")
        assert TaskRecord.objects.get(pk=handle.message_id).result == "a"

    def test_it_runs_when_the_transaction_commits(self) -> None:
        with transaction.atomic():
            note.execute_on_commit(name="a")
            assert events == []
        assert events == ["a"]

    def test_it_does_not_run_when_the_transaction_is_rolled_back(self) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            note.execute_on_commit(name="a")
            raise ZeroDivisionError
        assert events == []
        assert not TaskRecord.objects.exists()

    def test_tasks_that_a_task_sends_wait_in_line(self) -> None:
        send_two.execute_on_commit()
        assert events == ["begin", "end", "first", "second"]
        assert TaskRecord.objects.filter(status="SUCCESS").count() == 3

    def test_a_task_that_sends_itself_does_not_recurse(self) -> None:
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


class TestHow:
    def test_no_time_limits_are_kept(self) -> None:
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

    def test_an_error_of_the_task_does_not_reach_the_caller(self) -> None:
        @lambda_task
        def fail() -> None:
            raise ValueError

        fail.execute_on_commit()
        assert TaskRecord.objects.get().status == "FAILED"

    def test_arguments_make_the_trip_through_json(self) -> None:
        received = []

        @lambda_task
        def take(*, names: list[str]) -> None:
            received.append(names)

        names = ["a"]
        take.execute_on_commit(names=names)
        assert received == [names]
        assert received[0] is not names

    def test_each_closure_runs_itself_although_they_share_a_name(self) -> None:
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

    def test_what_a_task_sets_ends_with_it(self) -> None:
        @lambda_task
        def speak_german() -> None:
            translation.activate("de")

        with translation.override("fr"):
            speak_german.execute_on_commit()
            assert translation.get_language() == "fr"

    def test_threads_do_not_share_a_line(self) -> None:
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
