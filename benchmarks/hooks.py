"""What does a hook cost?

Each hook is called as in the library: with the default behaviour alone, and with one plugin that implements it
with an empty function. Whole tasks are executed without a plugin, and with a plugin that implements all hooks.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from benchmarks.harness import in_turn, microseconds, timed
from benchmarks.report import Report, Table, main
from lambda_tasks.hookspecs import hookimpl

BATCH = 10


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    from benchmarks.databases import migrated

    with migrated():
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from django.test import override_settings

    from benchmarks import servers, tasks
    from benchmarks.events import events_of
    from lambda_tasks.handler import handler
    from lambda_tasks.models import TaskRecord

    calls = options.calls
    rows = []
    for name, call in _calls().items():
        # Load the plugin before the clock starts, so that only the call is measured.
        def repeated(call: Callable[[], object] = call) -> Callable[[], None]:
            def contender() -> None:
                for _ in range(calls):
                    call()

            return contender

        samples = {}
        for label, plugins in (("default", []), ("plugin", [_with_only(name)])):
            with override_settings(LAMBDA_TASKS_PLUGINS=plugins):
                call()
                measured = in_turn({label: timed(repeated(), units=calls)}, rounds=options.rounds)
                samples[label] = measured.cpu(label).median
        rows.append((f"`{name}`", *(f"{samples[label] * 1e6:.2f}" for label in ("default", "plugin"))))

    n = options.tasks
    rounds = {
        label: iter([events_of(tasks.nothing, messages=n, size=BATCH) for _ in range(options.rounds + 1)])
        for label in ("no plugin", "all hooks")
    }

    def run(label: str, plugins: list[Any]) -> Callable[[], Any]:
        def contender() -> Any:
            batches = next(rounds[label])
            with override_settings(LAMBDA_TASKS_PLUGINS=plugins):
                handler(events_of(tasks.nothing, messages=1, size=1)[0], None)
                return timed(lambda: [handler(event, None) for event in batches], units=n)()

        return contender

    whole = in_turn(
        {"no plugin": run("no plugin", []), "all hooks": run("all hooks", [Everything()])},
        rounds=options.rounds,
        reset=TaskRecord.objects.all().delete,
    )
    return Report(
        title="Hooks",
        question=__doc__ or "",
        method=[
            f"{calls:,} calls of each hook in each of {options.rounds} rounds.",
            f"{n:,} tasks that do nothing, in batches of ten, alternately with and without the plugin.",
            *servers.machine(),
        ],
        tables=[
            Table("CPU time of one call, µs, medians.", ("hook", "default only", "with one plugin"), rows),
            Table(
                "Whole tasks.",
                ("", "CPU, µs", "CPU ratio"),
                [
                    (label, microseconds(whole.cpu(label).median), str(whole.cpu_ratio(label, "no plugin")))
                    for label in ("no plugin", "all hooks")
                ],
            ),
        ],
        remarks=[
            "When a task is enqueued, the library calls `sending` and `sent`.",
            "For a task that succeeds, the worker calls `resolve`, `started`, `call` and `finished`.",
            "For each batch, the worker calls `batch_finished` once.",
        ],
    )


def _calls() -> dict[str, Callable[[], object]]:
    """Return each hook as the library calls it."""
    from benchmarks import tasks
    from lambda_tasks.execution import pipeline
    from lambda_tasks.outcomes import Failed, Ignored, Retry, Succeeded
    from lambda_tasks.plugins import ask, hooks, notify
    from lambda_tasks.wire import ids
    from lambda_tasks.wire.invocation import Invocation

    message = Invocation(task_name=tasks.nothing.name)
    run = pipeline.prepare(message, message_id=ids.new_message_id(), task=tasks.nothing)
    job, error, outcome = run.retry_job(0), ValueError("x"), Succeeded(None)
    return {
        "lambda_task_sending": lambda: hooks().lambda_task_sending(job=job),
        "lambda_task_sent": lambda: notify(hooks().lambda_task_sent, job=job),
        "lambda_task_resolve": lambda: hooks().lambda_task_resolve(task_name=tasks.nothing.name),
        "lambda_task_skipped": lambda: notify(hooks().lambda_task_skipped, message_id="x", reason="finished"),
        "lambda_task_started": lambda: notify(hooks().lambda_task_started, run=run),
        "lambda_task_call": lambda: hooks().lambda_task_call(run=run),
        "lambda_task_classify": lambda: ask(
            hooks().lambda_task_classify, Ignored | Retry | Failed, run=run, error=error
        ),
        "lambda_task_retry_delay": lambda: ask(hooks().lambda_task_retry_delay, int, run=run, error=error),
        "lambda_task_finished": lambda: notify(hooks().lambda_task_finished, run=run, outcome=outcome),
        "lambda_task_batch_finished": lambda: notify(hooks().lambda_task_batch_finished, event={}, response={}),
    }


class Everything:
    """A plugin that implements all hooks of a run with empty functions."""

    @hookimpl
    def lambda_task_sending(self, job: Any) -> None: ...

    @hookimpl
    def lambda_task_sent(self, job: Any) -> None: ...

    @hookimpl
    def lambda_task_resolve(self, task_name: str) -> None: ...

    @hookimpl
    def lambda_task_skipped(self, message_id: str, reason: str) -> None: ...

    @hookimpl
    def lambda_task_started(self, run: Any) -> None: ...

    @hookimpl(wrapper=True)
    def lambda_task_call(self, run: Any) -> Any:
        return (yield)

    @hookimpl
    def lambda_task_classify(self, run: Any, error: BaseException) -> None: ...

    @hookimpl
    def lambda_task_retry_delay(self, run: Any, error: BaseException) -> None: ...

    @hookimpl
    def lambda_task_finished(self, run: Any, outcome: Any) -> None: ...

    @hookimpl
    def lambda_task_batch_finished(self, event: Any, response: Any) -> None: ...


def _with_only(name: str) -> Any:
    """Return a plugin that implements one of the hooks."""
    return type("One", (), {name: vars(Everything)[name]})()


if __name__ == "__main__":
    main(measure, rounds=7, calls=20_000, tasks=500)
