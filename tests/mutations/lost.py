"""Mutations of lost tasks, crashes, clocks and deleted records."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

LOST: Final = "tests/faults/test_lost_workers.py"
CLOCKS: Final = "tests/faults/test_wrong_clocks.py"
DELETED: Final = "tests/faults/test_deleted_records.py"
POISON: Final = "tests/faults/test_poison_pills.py"

MUTATIONS: Final = (
    Mutation(
        "two reapers resend the same task",
        "stores/orm.py",
        "same, pk=lost.message_id, takeovers=lost.takeovers",
        "same, pk=lost.message_id",
        LOST + "::TestRaces",
    ),
    Mutation(
        "a reaper overrides a takeover",
        "stores/orm.py",
        "same, pk=lost.message_id, takeovers=lost.takeovers",
        "pk=lost.message_id, takeovers=lost.takeovers",
        LOST + "::TestRaces",
    ),
    Mutation(
        "a reaper resends an ended task",
        "stores/orm.py",
        "filter(expired_since(older_than), status=TaskStatus.RUNNING)",
        "filter(expired_since(older_than))",
        LOST + "::TestResending",
    ),
    Mutation(
        "a reaper keeps the claim of a task that it resends",
        "stores/orm.py",
        "update(claim=None, lease_until=LeaseNow(), takeovers",
        "update(lease_until=LeaseNow(), takeovers",
        LOST + "::TestResending",
    ),
    Mutation(
        "a reaper waits for the row lock of a frozen worker",
        "stores/orm.py",
        "free = self._records().select_for_update(skip_locked=True)",
        "free = self._records().select_for_update()",
        LOST + "::TestConcurrency",
    ),
    Mutation(
        "a resend does not count as a takeover",
        "stores/orm.py",
        'takeovers=F("takeovers") + died',
        'takeovers=F("takeovers")',
        LOST + "::TestGivenUp",
    ),
    Mutation(
        "cleanup accepts zero days",
        "tasks.py",
        '    _retention_days(retention_days, "retention_days")\n',
        "",
        "tests/operations/test_builtin_tasks.py::TestArguments",
    ),
    Mutation(
        "cleanup uses the worker's clock",
        "tasks.py",
        "DatabaseNow()",
        '__import__("django.utils.timezone", fromlist=["now"]).now()',
        CLOCKS,
    ),
    Mutation(
        "a lost task is resent before the commit",
        "operations/reaping.py",
        "            outgoing.leave_on_commit(job)",
        "            outgoing.dispatch([job])",
        LOST + "::TestErrors",
    ),
    Mutation(
        "a lost task is resent indefinitely",
        "operations/reaping.py",
        "if lost.waited is None and lost.takeovers >= app_settings.max_takeovers:",
        "if False:",
        LOST + "::TestGivenUp",
    ),
    Mutation(
        "a lost task that must not repeat is resent",
        "operations/reaping.py",
        'task.on_crash == "fail"',
        "False",
        LOST + "::TestGivenUp",
    ),
    Mutation(
        "a lost task with masked arguments is resent",
        "operations/reaping.py",
        " or value == MASK",
        "",
        LOST + "::TestGivenUp",
    ),
    Mutation(
        "a module that cannot be imported uses up takeovers",
        "operations/reaping.py",
        "        if trouble is not None:\n            _withdraw",
        "        if False:\n            _withdraw",
        LOST + "::TestQueueOutages",
    ),
    Mutation(
        "a lost task is resent to another queue",
        "operations/reaping.py",
        "return lost.queue if known else task.queue",
        "return task.queue",
        LOST + "::TestQueueAndAge",
    ),
    Mutation(
        "a poison pill crashes workers indefinitely",
        "execution/claiming.py",
        "if run.takeovers > app_settings.max_takeovers:",
        "if False:",
        POISON,
    ),
    Mutation("a deleted record is not detected", "stores/orm.py", "if not written:", "if False:", DELETED),
    Mutation(
        "workers of the previous version cannot insert records",
        "migrations/0002_queue_of_record.py",
        'db_default="", ',
        "",
        LOST + "::test_previous_version_can_claim_during_a_deployment",
    ),
)
