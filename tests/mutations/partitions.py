"""Mutations of the partitions of the table of records."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

TESTS: Final = "tests/operations/test_partitioning.py"

MUTATIONS: Final = (
    Mutation(
        "a write during the copy is not repeated",
        "operations/partitioning/converting.py",
        " AFTER INSERT OR UPDATE OR DELETE ON ",
        " AFTER INSERT ON ",
        TESTS + "::TestConverting",
    ),
    Mutation(
        "a record that changes during the copy is overwritten",
        "operations/partitioning/converting.py",
        '        "ON CONFLICT (id) DO NOTHING) SELECT id,',
        '        "ON CONFLICT (id) DO UPDATE SET status = EXCLUDED.status) SELECT id,',
        TESTS + "::TestConverting::test_copied_record_may_change_before_its_batch_ends",
    ),
    Mutation(
        "objects that depend on the table are left behind",
        "operations/partitioning/converting.py",
        "    refuse_obstacles(connection)\n    if partitions.kind_of(connection, COPY)",
        "    if partitions.kind_of(connection, COPY)",
        TESTS + "::TestConverting",
    ),
    Mutation(
        "permissions of other roles are lost",
        "operations/partitioning/converting.py",
        "        *_grants(connection),\n",
        "",
        TESTS + "::TestConverting",
    ),
    Mutation(
        "the indexes of a partitioned table have other names",
        "operations/partitioning/converting.py",
        'f"ALTER INDEX {new} RENAME TO {current}"',
        'f"ALTER INDEX {new} RENAME TO {new}2"',
        TESTS + "::TestConverting",
    ),
    Mutation(
        "a locked table is not tried again",
        "operations/partitioning/steps.py",
        "            if not is_lock_timeout(error):\n",
        "            if True:\n",
        TESTS + "::TestConverting",
    ),
    Mutation(
        "a new partition leaves its records in the default partition",
        "operations/partitioning/creating.py",
        "    _move_from_default(connection, partition)\n    rows(connection, attach)\n",
        "    rows(connection, attach)\n",
        TESTS + "::TestNextDays",
    ),
    Mutation(
        "any number of records is moved under a lock",
        "operations/partitioning/creating.py",
        "    if number > MOST_MOVED:\n",
        "    if False:\n",
        TESTS + "::TestNextDays",
    ),
    Mutation(
        "a partition with a young record is dropped",
        "operations/partitioning/dropping.py",
        """for condition in (young, "status = 'RUNNING'"):""",
        """for condition in ("status = 'RUNNING'",):""",
        TESTS + "::TestDropping",
    ),
    Mutation(
        "a partition with a running record is dropped",
        "operations/partitioning/dropping.py",
        """for condition in (young, "status = 'RUNNING'"):""",
        "for condition in (young,):",
        TESTS + "::TestDropping",
    ),
    Mutation(
        "a partition whose message is in the outbox is dropped",
        "operations/partitioning/dropping.py",
        "    return any(_is_owed(connection, partition, alias)",
        "    return False and any(_is_owed(connection, partition, alias)",
        TESTS + "::TestDropping",
    ),
    Mutation(
        "the day of a partition is dropped before its end is old",
        "operations/partitioning/dropping.py",
        "partition.ends.date() > over",
        "partition.ends.date() > over + timedelta(days=1)",
        TESTS + "::TestDropping",
    ),
    Mutation(
        "details outlive their partition",
        "operations/partitioning/dropping.py",
        "        for model in (TaskProgress, TaskRerun, EnqueuedTask):\n",
        "        for model in ():\n",
        TESTS + "::TestDropping",
    ),
    Mutation(
        "a worker drops partitions in its own transaction",
        "operations/partitioning/daily.py",
        "run_aside(work) if connection.in_atomic_block or not connection.get_autocommit() else work()",
        "work()",
        TESTS + "::TestDropping",
    ),
    Mutation(
        "a cleanup deletes a locked partition row by row",
        "tasks.py",
        "    if dropped.busy:\n",
        "    if False:\n",
        TESTS + "::TestDropping",
    ),
    Mutation(
        "the index of a partitioned table is built on no partition",
        "database/online.py",
        "        build_on_partitions(connection, table, index.name)\n",
        "",
        TESTS + "::TestLibrary",
    ),
)
