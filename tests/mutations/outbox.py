"""The outbox: what is kept with a commit, and how it leaves."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

FAULTS: Final = "tests/faults/test_outbox_faults.py"
CALLERS: Final = FAULTS + "::TestCallers"
SESSIONS: Final = FAULTS + "::TestSessionsOfCallers"
RELAYS: Final = FAULTS + "::TestRelays"
STANDS_STILL: Final = FAULTS + "::TestARelayThatStandsStill"
PARTIAL: Final = FAULTS + "::TestPartialFailures"
RETRIES: Final = FAULTS + "::TestRetries"
COMMITS: Final = FAULTS + "::TestRetriesWhoseCommitIsStruck"

RELAY: Final = "tests/test_outbox_relay.py"
OVERTAKEN: Final = RELAY + "::TestOvertaken"

MUTATIONS: Final = (
    Mutation(
        "outbox: messages are kept after the commit",
        "outgoing.py",
        "    if get_backend().keeps:\n        before_commit(connection, _keep_departures)\n",
        "",
        CALLERS,
    ),
    Mutation(
        "outbox: messages are kept with the call, in a transaction that may have none",
        "outgoing.py",
        "    connection.on_commit(_Departure(job, _waiting_room(job.database)))\n",
        "    get_backend().keep([job], using=job.database)\n",
        CALLERS,
    ),
    Mutation(
        "outbox: callers hear of the database after their commit",
        "backends/outbox.py",
        "            except Exception:\n                logger.exception(",
        "            except ZeroDivisionError:\n                logger.exception(",
        SESSIONS,
    ),
    Mutation(
        "outbox: a message that is kept already is an error",
        "backends/outbox.py",
        "connection, anew=anew)",
        "connection)",
        COMMITS,
    ),
    Mutation(
        "outbox: an invocation twice in one transaction is an error",
        "backends/outbox.py",
        "for job in by_id.values()]",
        "for job in jobs]",
        RELAYS + "::test_two_that_reap_send_what_is_lost_once",
    ),
    Mutation(
        "outbox: messages are deleted before they are sent",
        "backends/relay.py",
        '            points.reached("relay:held")\n',
        '            self._delete(list(batch.rows), database)\n            points.reached("relay:held")\n',
        RELAYS,
    ),
    Mutation(
        "outbox: messages are deleted although they failed",
        "backends/relay.py",
        "        if batch.taken:\n            self._delete(list(batch.taken), database)\n",
        "        if batch.rows:\n            self._delete(list(batch.rows), database)\n",
        PARTIAL,
    ),
    Mutation(
        "outbox: what the queue refuses is tried for ever",
        "backends/relay.py",
        "update(due_at=None, attempts",
        "update(due_at=from_now(5), attempts",
        PARTIAL,
    ),
    Mutation(
        "outbox: a queue that takes nothing is asked again by the same relay",
        "backends/relay.py",
        "            away |= batch.silent_queues()\n",
        "",
        PARTIAL,
    ),
    Mutation(
        "outbox: a queue that takes nothing keeps the caller waiting",
        "backends/relay.py",
        "            if batch.failed and not batch.taken:\n                return\n",
        "",
        PARTIAL,
    ),
    Mutation(
        "outbox: a relay waits for another one",
        "backends/relay.py",
        "select_for_update(skip_locked=True)",
        "select_for_update()",
        STANDS_STILL,
    ),
    Mutation(
        "outbox: a relay locks nothing",
        "backends/relay.py",
        "            with transaction.atomic(using=database):\n                yield self._locked",
        "            if True:\n                yield self._locked",
        RELAYS,
    ),
    Mutation(
        "outbox: a relay sends what another one has put off",
        "backends/relay.py",
        "_of_slots(self.n, connection).filter(due_at__lte=from_now(0))",
        "_of_slots(self.n, connection)",
        RELAYS,
    ),
    Mutation(
        "outbox: a lease is nobody's",
        "backends/relay.py",
        "filter(pk__in=keys, holder=holder)",
        "filter(pk__in=keys)",
        RELAYS,
    ),
    Mutation(
        "outbox: a lease does not end",
        "backends/relay.py",
        "due.update(holder=holder, due_at=from_now(HOLD))",
        "due.update(holder=holder, due_at=None)",
        RELAYS,
    ),
    Mutation(
        "outbox: MariaDB locks all that is due",
        "backends/relay.py",
        'f"FROM {table} FORCE INDEX (PRIMARY)"',
        'f"FROM {table}"',
        STANDS_STILL,
    ),
    Mutation(
        "outbox: MariaDB waits for the messages of others",
        "backends/relay.py",
        'step = 1 if connections[database].vendor == "mysql" else len(keys)',
        "step = len(keys)",
        STANDS_STILL,
    ),
    Mutation(
        "outbox: InnoDB locks the places of messages to come",
        "backends/relay.py",
        "            _lock_no_gaps(connection)\n",
        "",
        STANDS_STILL,
    ),
    Mutation(
        "outbox: pauses do not grow",
        "backends/relay.py",
        "FIRST_PAUSE * 2 ** min(attempts, 10)",
        "FIRST_PAUSE",
        RELAYS + "::test_sqs_may_be_away_for_days",
    ),
    Mutation(
        "outbox: pauses grow for ever",
        "backends/relay.py",
        "min(FIRST_PAUSE * 2 ** min(attempts, 10), LONGEST_PAUSE)",
        "FIRST_PAUSE * 2 ** min(attempts, 10)",
        RELAYS + "::test_sqs_may_be_away_for_days",
    ),
    Mutation(
        "outbox: a retry is recorded and not kept",
        "executor.py",
        "        outgoing.leave_on_commit(kept)\n",
        "        pass\n",
        RETRIES,
    ),
    Mutation(
        "outbox: a retry is kept after its record",
        "executor.py",
        "    with transaction.atomic(using=run.database):\n        get_store().record(run, outcome)  # first",
        "    get_store().record(run, outcome)\n    with transaction.atomic(using=run.database):\n        pass  # first",
        RETRIES,
    ),
    Mutation(
        "outbox: a relay that is overtaken raises",
        "backends/relay.py",
        "                raise _Overtaken from error\n",
        "                raise\n",
        OVERTAKEN,
    ),
    Mutation(
        "outbox: an error without a text has its neighbours sent again",
        "backends/relay.py",
        "    with suppress(Exception):  # somebody's own",
        "    if True:  # somebody's own",
        RELAY + "::test_an_error_without_a_text_does_not_have_its_neighbours_sent_again",
    ),
    Mutation(
        "outbox: an error shows sensitive arguments",
        "backends/relay.py",
        "    if not hidden:\n",
        "    if True:\n",
        "tests/test_outbox.py::TestSensitiveArgumentsInErrors",
    ),
    Mutation(
        "outbox: a delay is rounded down",
        "backends/relay.py",
        "delay=min(max(ceil(left), 0)",
        "delay=min(max(int(left), 0)",
        "tests/test_delays.py",
    ),
    Mutation(
        "outbox: a batch is as large as it may be",
        "backends/relay.py",
        "(keys and characters > _MAX_CHARACTERS)",
        "(keys and characters < 0)",
        RELAY + "::test_a_batch_has_no_more_characters_than_a_small_function_holds",
    ),
    Mutation(
        "outbox: what a patch has taken away is not installed again",
        "commits.py",
        "    if own is not None and own is getattr(connection, _WRAPPED, None):\n",
        "    if hasattr(connection, _WRAPPED):\n",
        "tests/test_commits.py",
    ),
)
