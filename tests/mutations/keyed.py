"""Mutations of locks per value and slots, of waiting for a lock, and of unique calls."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

KEYS: Final = "tests/definition/test_keys.py"
CONTENTION: Final = "tests/execution/test_contention.py"
UNIQUE: Final = "tests/sending/test_unique.py"
STORES: Final = "tests/contracts/test_stores.py"

MUTATIONS: Final = (
    Mutation(
        "an omitted argument has no value in a key",
        "definition/keys.py",
        "task.signature.encoded_default(name) for name",
        "None for name",
        KEYS,
    ),
    Mutation(
        "a function of all arguments gets sensitive ones",
        "definition/keys.py",
        " if name not in task.sensitive}\n",
        "}\n",
        KEYS,
    ),
    Mutation(
        "a function may have a default for a sensitive argument",
        "definition/keys.py",
        "for name in (*names, *optional) if name in task.sensitive",
        "for name in names if name in task.sensitive",
        KEYS,
    ),
    Mutation(
        "a cancelled replacement revives the call that it replaced",
        "sending/outgoing.py",
        "            job.secured()  # the call that it has replaced",
        "            pass  # the call that it has replaced",
        UNIQUE + "::TestReplacing",
    ),
    Mutation(
        "every value has the same lock",
        "definition/keys.py",
        """digest = f":{_digest(_values(task, 'singleton', kwargs, arguments))}\"""",
        'digest = ":0"',
        CONTENTION + "::TestPerValue",
    ),
    Mutation(
        "a limit has one lock more",
        "definition/keys.py",
        "    count = task.max_concurrency or 1\n",
        "    count = (task.max_concurrency or 0) + 1\n",
        CONTENTION + "::TestLimit",
    ),
    Mutation(
        "the transaction does not lock the slot",
        "execution/locking.py",
        "    for key in attempt.lock_keys:\n",
        "    for key in ():\n",
        CONTENTION + "::TestForgetfulLock",
    ),
    Mutation(
        "a waiting task is released before it is sent",
        "execution/waiting.py",
        "        if kept is None:\n            outgoing.dispatch([job])\n",
        "        if kept is None:\n            get_store().wait(run, seconds=1)\n            outgoing.dispatch([job])\n",
        CONTENTION + "::TestWaiting",
    ),
    Mutation(
        "a waiting task keeps its claim",
        "stores/keyed.py",
        "        claim=None,\n        # A record",
        "        # A record",
        CONTENTION + "::TestWaiting",
    ),
    Mutation(
        "the first wait is forgotten",
        "stores/keyed.py",
        'Coalesce("waiting_since", DatabaseNow())',
        'Coalesce(DatabaseNow(), "waiting_since")',
        CONTENTION + "::TestWaiting::test_first_wait_is_remembered",
    ),
    Mutation(
        "a waiting task is lost immediately",
        "stores/keyed.py",
        "lease_until=from_now(seconds, clock=LeaseNow)",
        "lease_until=from_now(-1, clock=LeaseNow)",
        STORES + "::TestORMStore::test_waiting_invocation_is_not_lost",
    ),
    Mutation(
        "a waiting task cannot be claimed before its time",
        "stores/orm.py",
        "Q(lease_until__lte=LeaseNow()) | NOT_CLAIMED",
        "Q(lease_until__lte=LeaseNow())",
        CONTENTION + "::TestWaiting",
    ),
    Mutation(
        "a lost task that waits counts a takeover",
        "stores/orm.py",
        "died = int(lost.waited is None)",
        "died = 1",
        CONTENTION + "::TestReaping",
    ),
    Mutation(
        "a task waits without end",
        "execution/waiting.py",
        "    if left <= 0:\n",
        "    if False:\n",
        CONTENTION + "::TestWaiting",
    ),
    Mutation(
        "a lost task that waits is sent again without end",
        "operations/reaping.py",
        "lost.waited <= task.max_wait",
        "True",
        CONTENTION + "::TestReaping",
    ),
    Mutation(
        "outbox: a relay deletes the row that a worker has kept again",
        "backends/batches.py",
        '{} if self.holder is None else {"holder": self.holder}',
        "{}",
        CONTENTION + "::TestWithTheOutbox",
    ),
    Mutation(
        "a replaced record is compared with its message",
        "stores/orm.py",
        "not (existing.cancelled_unclaimed or existing.replaced)",
        "not existing.cancelled_unclaimed",
        UNIQUE + "::TestReplacing",
    ),
    Mutation(
        "a message that may have been sent gets other arguments",
        "backends/outbox.py",
        "due_at__gt=DatabaseNow(), attempts=0, holder=None",
        "holder=None",
        UNIQUE + "::TestReplacing",
    ),
    Mutation(
        "a key of a refused message is not freed",
        "sending/unique.py",
        "    undo = None if get_backend().keeps else unsent\n",
        "    undo = None\n",
        UNIQUE + "::TestTransactions",
    ),
    Mutation(
        "a pending retry does not hold its key",
        "sending/unique.py",
        '    if progress.status == "RETRYING":\n',
        "    if False:\n",
        UNIQUE + "::TestReturning",
    ),
    Mutation(
        "a message in the outbox does not hold its key",
        "sending/unique.py",
        '    return get_backend().status(message_id, database=database) not in (None, "DEAD")\n',
        "    return False\n",
        UNIQUE + "::TestTransactions",
    ),
    Mutation(
        "a duplicate breaks the caller's transaction",
        "sending/unique.py",
        "            return _replaced(leave, job, key, holder, state)\n",
        "            return _replaced(leave, job, key, holder, state)\n"
        '        if task.on_duplicate == "raise":\n'
        '            raise DuplicateTask("duplicate", None)\n',
        UNIQUE + "::TestRaising",
    ),
    Mutation(
        "a key is deleted while its task runs",
        "sending/unique.py",
        " is State.ENDED]\n",
        " is not None]\n",
        UNIQUE + "::TestCleanup",
    ),
    Mutation(
        "the waiting task is reaped as the holder of a new key",
        "operations/reaping.py",
        "            outgoing.leave_on_commit(job)  # its unique key is already its own\n",
        "            outgoing.send_on_commit(job)\n",
        UNIQUE + "::TestReturning",
    ),
)
