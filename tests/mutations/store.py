"""Mutations of forged messages, query plans, clocks, and lost tasks with the outbox."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

FORGED: Final = "tests/faults/test_forged_messages.py"
MODEL: Final = "tests/faults/test_claim_model.py"
LOST: Final = "tests/faults/test_lost_workers.py"
RELAYS: Final = "tests/backends/test_outbox_relay.py"
PLANS: Final = "tests/database/test_query_plans.py"
STORES: Final = "tests/contracts/test_stores.py"

MUTATIONS: Final = (
    Mutation(
        "the pipeline does not check the ids of a retry",
        "execution/claiming.py",
        "    if reason := misfit_of_ids(run):\n",
        "    if reason := None:\n",
        FORGED + "::TestEveryStore",
    ),
    Mutation(
        "the store does not check the ids of a retry",
        "stores/orm.py",
        "        if reason := misfit_of_ids(run):\n",
        "        if reason := None:\n",
        MODEL,
    ),
    Mutation(
        "any id is accepted for a retry",
        "fitting.py",
        "    if run.message_id != ids.retry_id(run.root_id, run.n_retries):\n",
        "    if False:\n",
        FORGED + "::TestForgedRetries",
    ),
    Mutation(
        "a message is not compared with an existing record",
        "stores/orm.py",
        "        if reason := misfit(run, existing.recorded, arguments=known):\n",
        "        if reason := None:\n",
        MODEL,
    ),
    Mutation(
        "a retry is not compared with its sender",
        "stores/orm.py",
        "        if reason := misfit_of_sender(run, Recorded(*recorded)):\n",
        "        if reason := None:\n",
        MODEL,
    ),
    Mutation(
        "task names are not compared",
        "fitting.py",
        "    if recorded.task_name not in names:\n",
        "    if False:\n",
        FORGED + "::TestReusedIds",
    ),
    Mutation(
        "a record under an alias is rejected",
        "fitting.py",
        "(run.task_name, run.task.name, *run.task.aliases)",
        "(run.task_name,)",
        FORGED + "::TestMatchingMessages",
    ),
    Mutation(
        "retry counts are not compared",
        "fitting.py",
        "    if recorded.n_retries != n_retries:\n",
        "    if False:\n",
        STORES + "::TestORMStoreOnSQLite",
    ),
    Mutation(
        "root ids are not compared",
        "fitting.py",
        "str(recorded.root_id) != run.root_id:\n",
        "False:\n",
        STORES + "::TestORMStoreOnSQLite",
    ),
    Mutation(
        "arguments are not compared",
        "fitting.py",
        "    if arguments and not _same_arguments(run, recorded.kwargs):\n",
        "    if False:\n",
        FORGED + "::TestReusedIds",
    ),
    Mutation(
        "masked arguments are compared",
        "fitting.py",
        "    names = sent.keys() - hidden\n",
        "    hidden = set()\n    names = sent.keys() - hidden\n",
        STORES + "::TestORMStoreOnSQLite",
    ),
    Mutation(
        "integers and floats are compared strictly",
        "fitting.py",
        "    if isinstance(sent, float) or isinstance(stored, float):\n",
        "    if False:\n",
        STORES + "::TestORMStore",
    ),
    Mutation(
        "the number 1 equals True",
        "fitting.py",
        "        return sent is stored\n",
        "        return bool(sent == stored)\n",
        STORES + "::TestORMStoreOnSQLite",
    ),
    Mutation(
        "a record without stored arguments is rejected",
        "fitting.py",
        " or (sent and not recorded and _has_required(run)):",
        ":",
        FORGED + "::TestMatchingMessages",
    ),
    Mutation(
        "a forged retry discards a waiting invocation",
        "stores/orm.py",
        "return Claimed() if self._replace_remembered(run) else Mismatch(reason)",
        "return Mismatch(reason)",
        STORES + "::test_forged_retry_does_not_discard_a_waiting_invocation",
    ),
    Mutation(
        "an ended sender counts as the victim of a forged retry",
        "stores/orm.py",
        "claim=None, traceback=_FORGOTTEN",
        "claim=None",
        STORES + "::test_ended_retrying_record_is_not_replaced",
    ),
    Mutation(
        "the fence selects by status RUNNING",
        "stores/rows.py",
        "reduce(and_, (~Q(status=status) for status in TaskStatus.values if status != TaskStatus.RUNNING))",
        "Q(status=TaskStatus.RUNNING)",
        PLANS + "::test_statement_by_key_ignores_misleading_statistics",
    ),
    Mutation(
        "a cancelled record is completed by its status and reason",
        "stores/cancelling.py",
        'filter(pk=run.message_id, claim=None, task_name="").update(',
        'filter(pk=run.message_id, status="FAILED", reason="cancelled", claim=None, task_name="").update(',
        PLANS + "::test_statement_by_key_ignores_misleading_statistics",
    ),
    Mutation(
        "the record of a forged retry is replaced by its status",
        "stores/orm.py",
        "filter(pk=run.message_id, claim=None, traceback=_FORGOTTEN)",
        'filter(pk=run.message_id, status="RETRYING", claim=None, traceback=_FORGOTTEN)',
        PLANS + "::test_statement_by_key_ignores_misleading_statistics",
    ),
    Mutation(
        "outbox: a message is locked along the index on due_at",
        "backends/batches.py",
        'LessThanOrEqual(Coalesce("due_at", "due_at"), from_now(0))',
        '__import__("django.db.models", fromlist=["Q"]).Q(due_at__lte=from_now(0))',
        PLANS + "::test_message_is_locked_by_key_despite_old_statistics",
    ),
    Mutation(
        "a record without a lease cannot be taken over",
        "stores/orm.py",
        "NO_LEASE | Q(lease_until__lte=LeaseNow())",
        "Q(lease_until__lte=LeaseNow())",
        LOST + "::TestOddRecords",
    ),
    Mutation(
        "a record without a lease is not reaped",
        "stores/rows.py",
        " | NO_LEASE & began",
        "",
        LOST + "::TestOddRecords",
    ),
    Mutation(
        "a record without a lease is reaped immediately",
        "stores/rows.py",
        "NO_LEASE & began",
        "NO_LEASE",
        LOST + "::TestOddRecords",
    ),
    Mutation(
        "unusable arguments are resent",
        "operations/reaping.py",
        "    if reason := _unusable(lost):\n",
        "    if reason := None:\n",
        LOST + "::TestOddRecords",
    ),
    Mutation(
        "an error in one record stops the reaper",
        "operations/reaping.py",
        "        settled = Reaped(unsent=1)\n",
        "        raise\n",
        LOST + "::TestOddRecords",
    ),
    Mutation(
        "a time limit counts as an error in one record",
        "operations/reaping.py",
        "            _settle(store, lost, older_than, settled)\n    except SoftTimeLimitExceeded:\n        raise\n",
        "            _settle(store, lost, older_than, settled)\n",
        LOST + "::TestOddRecords",
    ),
    Mutation(
        "outbox: malformed attributes are sent",
        "backends/rows.py",
        "    _refuse_odd_attributes(message.attributes)\n",
        "",
        RELAYS + "::test_row_with_unusable_attributes_is_dead",
    ),
    Mutation(
        "outbox: a row with an unexpected error is attempted indefinitely",
        "backends/rows.py",
        '        raise InvalidMessage(f"The row does not contain a valid message ({type(error).__name__}).") from error\n',
        "        raise\n",
        RELAYS + "::test_row_that_raises_unexpectedly_is_dead",
    ),
    Mutation(
        "a first invocation can choose its root id",
        "execution/pipeline.py",
        'root_id=(message.n_retries and details.get("root_id")) or message_id',
        'root_id=details.get("root_id") or message_id',
        FORGED + "::TestEveryStore",
    ),
)
