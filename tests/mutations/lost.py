"""Lost tasks, crashes, clocks and deleted records."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

LOST: Final = "tests/faults/test_lost_workers.py"
CLOCKS: Final = "tests/faults/test_wrong_clocks.py"
DELETED: Final = "tests/faults/test_deleted_records.py"
POISON: Final = "tests/faults/test_poison_pills.py"

MUTATIONS: Final = (
    Mutation(
        "two reapers send one task twice",
        "stores/orm.py",
        "same, pk=lost.message_id, takeovers=lost.takeovers",
        "same, pk=lost.message_id",
        LOST + "::TestAtTheSameMoment",
    ),
    Mutation(
        "a reaper overrules a takeover",
        "stores/orm.py",
        "same, pk=lost.message_id, takeovers=lost.takeovers",
        "pk=lost.message_id, takeovers=lost.takeovers",
        LOST + "::TestAtTheSameMoment",
    ),
    Mutation(
        "a reaper takes what has ended",
        "stores/orm.py",
        "filter(status=TaskStatus.RUNNING, lease_until__lt=over)",
        "filter(lease_until__lt=over)",
        LOST + "::TestSentAgain",
    ),
    Mutation(
        "what is sent again is not given back",
        "stores/orm.py",
        "update(claim=None, lease_until=DatabaseNow(), takeovers",
        "update(lease_until=DatabaseNow(), takeovers",
        LOST + "::TestSentAgain",
    ),
    Mutation(
        "a reaper waits for a frozen worker",
        "stores/orm.py",
        "select_for_update(skip_locked=True).filter(pk__in",
        "select_for_update().filter(pk__in",
        LOST + "::TestSideBySide",
    ),
    Mutation(
        "sending again is not counted",
        "stores/orm.py",
        'takeovers=F("takeovers") + 1',
        'takeovers=F("takeovers")',
        LOST + "::TestGivenUp",
    ),
    Mutation("cleanup goes by the worker's clock", "tasks.py", "DatabaseNow()", "timezone.now()", CLOCKS),
    Mutation(
        "a lost task is sent before the commit",
        "lost.py",
        "            outgoing.send_on_commit(job)\n",
        "            outgoing.prepare(job)\n            outgoing.dispatch([job])\n",
        LOST + "::TestTrouble",
    ),
    Mutation(
        "a lost task is sent without end",
        "lost.py",
        "if lost.takeovers >= app_settings.max_takeovers:",
        "if False:",
        LOST + "::TestGivenUp",
    ),
    Mutation(
        "what must never repeat is sent again", "lost.py", 'task.on_crash == "fail"', "False", LOST + "::TestGivenUp"
    ),
    Mutation("masked arguments are sent", "lost.py", " or value == MASK", "", LOST + "::TestGivenUp"),
    Mutation(
        "a lost task goes to another queue",
        "lost.py",
        "return lost.queue if known else task.queue",
        "return task.queue",
        LOST + "::TestWhereTo",
    ),
    Mutation(
        "a pill crashes workers for ever",
        "executor.py",
        "if run.takeovers > app_settings.max_takeovers:",
        "if False:",
        POISON,
    ),
    Mutation("a deleted record is not missed", "stores/orm.py", "if not written:", "if False:", DELETED),
    Mutation(
        "old workers cannot insert",
        "migrations/0002_queue_of_record.py",
        'db_default="", ',
        "",
        LOST + "::test_a_worker_of_the_version_before_can_claim_while_a_deploy_is_under_way",
    ),
)
