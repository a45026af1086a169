"""Mutations of successes that leave no lasting record."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

TESTS: Final = "tests/operations/test_forgetting.py"

MUTATIONS: Final = (
    Mutation(
        "a success is forgotten as soon as it is committed",
        "operations/forgetting.py",
        "    ended_before = from_now(-app_settings.forget_after)\n",
        "    ended_before = from_now(0)\n",
        TESTS + "::TestRepetitions",
    ),
    Mutation(
        "the time of a success counts from its start",
        "operations/forgetting.py",
        "start_time__lt=ended_before, end_time__lt=ended_before",
        "start_time__lt=ended_before",
        TESTS + "::TestForgetting",
    ),
    Mutation(
        "every old success is forgotten",
        "operations/forgetting.py",
        "        reason=TaskReason.NOT_KEPT, start_time",
        '        status="SUCCESS", start_time',
        TESTS,
    ),
    Mutation(
        "a success is forgotten whose message is in the outbox",
        "operations/forgetting.py",
        "delete_in_batches(without_outbox(forgotten), ",
        "delete_in_batches(forgotten, ",
        TESTS + "::TestForgetting",
    ),
    Mutation(
        "a success after a retry is forgotten",
        "stores/reasons.py",
        "not run.forgets or run.n_retries or run.takeovers",
        "not run.forgets or run.takeovers",
        TESTS + "::TestMarks",
    ),
    Mutation(
        "a success after a crash is forgotten",
        "stores/reasons.py",
        "not run.forgets or run.n_retries or run.takeovers or",
        "not run.forgets or run.n_retries or",
        TESTS + "::TestMarks",
    ),
    Mutation(
        "a success that others follow is forgotten",
        "stores/reasons.py",
        "run.takeovers or run.is_followed:",
        "run.takeovers:",
        TESTS + "::TestMarks",
    ),
    Mutation(
        "a success is forgotten although its unique key is held",
        "stores/reasons.py",
        "    if run.task.unique is not False and run.task.unique_for > app_settings.forget_after:\n",
        "    if False:\n",
        TESTS + "::TestMarks",
    ),
    Mutation(
        "a task cannot choose for itself",
        "execution/pipeline.py",
        "forgets=(task.record or app_settings.record)",
        "forgets=app_settings.record",
        TESTS,
    ),
    Mutation(
        "a remembered success has a reason for its caller",
        "stores/following.py",
        'reason="" if record.reason == TaskReason.NOT_KEPT else record.reason',
        "reason=record.reason",
        TESTS + "::TestHandles",
    ),
    Mutation(
        "projects without the option look for successes to forget",
        "maintenance.py",
        " if forgetting.is_wanted() else None\n",
        "\n",
        TESTS + "::TestMaintenance",
    ),
)
