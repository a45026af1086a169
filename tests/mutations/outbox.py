"""Mutations of the outbox: storing messages with a commit, and sending them."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

FAULTS: Final = "tests/faults/test_outbox_faults.py"
CALLERS: Final = FAULTS + "::TestCallers"
SESSIONS: Final = FAULTS + "::TestCallersSessions"
RELAYS: Final = FAULTS + "::TestRelays"
STANDS_STILL: Final = FAULTS + "::TestFrozenRelay"
PARTIAL: Final = FAULTS + "::TestPartialFailures"
RETRIES: Final = FAULTS + "::TestRetries"
COMMITS: Final = FAULTS + "::TestRetriesWithLostCommit"

RELAY: Final = "tests/backends/test_outbox_relay.py"
OVERTAKEN: Final = RELAY + "::TestOvertaken"

STATEMENTS: Final = "tests/backends/test_outbox.py::test_statements_have_at_most_the_given_bytes"

MUTATIONS: Final = (
    Mutation(
        "outbox: a message is not due in its own millisecond on SQLite",
        "backends/outbox.py",
        '"due_at": FromNow(Slot("due_in", DurationField())),',
        '"due_at": DatabaseNow() + Slot("due_in", DurationField()),',
        "tests/backends/test_outbox.py::test_times_on_sqlite_have_its_clocks_form",
    ),
    Mutation(
        "outbox: quotes make statements longer than their limit",
        "backends/outbox.py",
        "_bytes(text) + sum(map(text.count, escaped))",
        "_bytes(text)",
        STATEMENTS,
    ),
    Mutation(
        "outbox: the SQL around rows makes statements longer than their limit",
        "backends/outbox.py",
        "return len(insertion.row) + _OTHER_COLUMNS + literals",
        "return literals",
        STATEMENTS,
    ),
    Mutation(
        "outbox: messages are stored after the commit",
        "sending/outgoing.py",
        "    if backend.keeps:\n        before_commit(connection, _keep_leaving)\n",
        "",
        CALLERS,
    ),
    Mutation(
        "outbox: messages are stored at the call",
        "sending/outgoing.py",
        "    connection.on_commit(departure)\n",
        "    get_backend().keep([job], using=job.database)\n",
        CALLERS,
    ),
    Mutation(
        "outbox: database errors after the commit reach the caller",
        "backends/outbox.py",
        "            except Exception:\n                logger.exception(",
        "            except ZeroDivisionError:\n                logger.exception(",
        SESSIONS,
    ),
    Mutation(
        "outbox: storing an existing message is an error",
        "backends/outbox.py",
        "connection, anew=anew)",
        "connection)",
        COMMITS,
    ),
    Mutation(
        "outbox: storing an invocation twice in one call is an error",
        "backends/outbox.py",
        "for job in by_id.values()]",
        "for job in jobs]",
        RELAYS + "::test_two_reapers_resend_each_invocation_once",
    ),
    Mutation(
        "outbox: messages are deleted before they are sent",
        "backends/relay.py",
        '            failpoints.reached("relay:held")\n',
        '            self._rows._delete(list(batch.rows), database, held)\n            failpoints.reached("relay:held")\n',
        RELAYS,
    ),
    Mutation(
        "outbox: messages that failed are deleted",
        "backends/batches.py",
        "        if batch.taken:\n            self._delete(list(batch.taken), database, held)\n",
        "        if batch.rows:\n            self._delete(list(batch.rows), database, held)\n",
        PARTIAL,
    ),
    Mutation(
        "outbox: a refused message is attempted indefinitely",
        "backends/batches.py",
        "due_at=None, attempts",
        "due_at=from_now(5), attempts",
        PARTIAL,
    ),
    Mutation(
        "outbox: a relay retries an unavailable queue",
        "backends/relay.py",
        "            silent |= batch.silent_queues()\n",
        "",
        PARTIAL,
    ),
    Mutation(
        "outbox: an unavailable queue delays the caller",
        "backends/relay.py",
        "            if batch.failed and not batch.taken:\n                return\n",
        "",
        PARTIAL,
    ),
    Mutation(
        "outbox: a relay waits for another relay's locks",
        "backends/batches.py",
        "select_for_update(skip_locked=True)",
        "select_for_update()",
        STANDS_STILL,
    ),
    Mutation(
        "outbox: a relay does not lock its messages",
        "backends/batches.py",
        "            with transaction.atomic(using=database):\n                yield Held(self._locked",
        "            if True:\n                yield Held(self._locked",
        RELAYS,
    ),
    Mutation(
        "outbox: a relay sends messages that another relay postponed",
        "backends/batches.py",
        "_of_slots(self.n, connection).filter(_due())",
        "_of_slots(self.n, connection)",
        RELAYS,
    ),
    Mutation(
        "outbox: the holder of a lease is ignored",
        "backends/batches.py",
        "filter(pk__in=keys, holder=holder)",
        "filter(pk__in=keys)",
        RELAYS,
    ),
    Mutation(
        "outbox: a lease does not expire",
        "backends/batches.py",
        "due.update(holder=holder, due_at=from_now(HOLD))",
        "due.update(holder=holder, due_at=None)",
        RELAYS,
    ),
    Mutation(
        "outbox: MariaDB locks all messages that are due",
        "backends/batches.py",
        'f"FROM {table} FORCE INDEX (PRIMARY)"',
        'f"FROM {table}"',
        STANDS_STILL,
    ),
    Mutation(
        "outbox: MariaDB deletes several messages in one statement",
        "backends/batches.py",
        'step = 1 if connections[database].vendor == "mysql" else len(keys)',
        "step = len(keys)",
        STANDS_STILL,
    ),
    Mutation(
        "outbox: InnoDB locks gaps, which blocks new messages",
        "backends/batches.py",
        "            _lock_no_gaps(connection)\n",
        "",
        STANDS_STILL,
    ),
    Mutation(
        "outbox: pauses do not grow",
        "backends/batches.py",
        "FIRST_PAUSE * 2 ** min(attempts, 10)",
        "FIRST_PAUSE",
        RELAYS + "::test_sqs_may_be_unavailable_for_days",
    ),
    Mutation(
        "outbox: pauses grow without limit",
        "backends/batches.py",
        "min(FIRST_PAUSE * 2 ** min(attempts, 10), LONGEST_PAUSE)",
        "FIRST_PAUSE * 2 ** min(attempts, 10)",
        RELAYS + "::test_sqs_may_be_unavailable_for_days",
    ),
    Mutation(
        "outbox: a retry is recorded but not stored",
        "execution/settling.py",
        "        outgoing.leave_on_commit(kept)\n",
        "        pass\n",
        RETRIES,
    ),
    Mutation(
        "outbox: a retry and its record use two transactions",
        "execution/settling.py",
        "    with transaction.atomic(using=run.database):\n        get_store().record(run, outcome)  # first",
        "    get_store().record(run, outcome)\n    with transaction.atomic(using=run.database):\n        pass  # first",
        RETRIES,
    ),
    Mutation(
        "outbox: a relay that is overtaken raises an error",
        "backends/batches.py",
        "                raise Overtaken from error\n",
        "                raise\n",
        OVERTAKEN,
    ),
    Mutation(
        "outbox: an unprintable error resends the rest of the batch",
        "backends/batches.py",
        "    with suppress(Exception):  # a custom error",
        "    if True:  # somebody's own",
        RELAY + "::test_unprintable_error_does_not_resend_neighbours",
    ),
    Mutation(
        "outbox: an error shows sensitive arguments",
        "backends/batches.py",
        "    if not hidden:\n",
        "    if True:\n",
        "tests/backends/test_outbox.py::TestSensitiveArgumentsInErrors",
    ),
    Mutation(
        "outbox: a delay is rounded down",
        "backends/rows.py",
        "delay=min(max(ceil(left), 0)",
        "delay=min(max(int(left), 0)",
        "tests/sending/test_delays.py",
    ),
    Mutation(
        "outbox: the size of a batch in characters is unlimited",
        "backends/relay.py",
        "(keys and characters > _MAX_CHARACTERS)",
        "(keys and characters < 0)",
        RELAY + "::test_batch_is_limited_in_characters",
    ),
    Mutation(
        "outbox: a removed commit hook is not reinstalled",
        "database/commits.py",
        "    if own is not None and own is getattr(connection, _WRAPPED, None):\n",
        "    if hasattr(connection, _WRAPPED):\n",
        "tests/sending/test_commits.py",
    ),
)
