"""Mutations of the database of a record, the time zone of its times, and the attempts that count."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

TENANTS: Final = "tests/faults/test_tenants.py"
LOCAL_TIME: Final = "tests/faults/test_local_time.py"
QUEUE: Final = "tests/faults/test_lost_workers.py::TestQueueOutages"

MUTATIONS: Final = (
    Mutation(
        "the database of a record changes during a run",
        "stores/orm.py",
        "        return self._statements.run(statement, values, connections[run.database])",
        "        return self._statements.run(statement, values, connections[self.database])",
        TENANTS,
    ),
    Mutation(
        "the fence ignores the database of the run",
        "stores/orm.py",
        "        mine = self._records(run.database).filter(",
        "        mine = self._records().filter(",
        TENANTS,
    ),
    Mutation(
        "the outbox refuses a retry after the router changes its choice",
        "backends/outbox.py",
        "        if job.message.n_retries == 0 and job.database",
        "        if job.database",
        TENANTS,
    ),
    Mutation(
        "times are UTC where Django stores local time",
        "database/clock.py",
        "    return round((offset if summer",
        "    return 0 and round((offset if summer",
        LOCAL_TIME,
    ),
    Mutation(
        "leases follow daylight saving time",
        "database/clock.py",
        "    summer = False\n",
        "    summer = True\n",
        LOCAL_TIME,
    ),
    Mutation(
        "MySQL times are in the server's time zone",
        "database/clock.py",
        'template=f"(UTC_TIMESTAMP(6){ahead})"',
        'template=f"(CURRENT_TIMESTAMP(6){ahead})"',
        LOCAL_TIME,
    ),
    Mutation(
        "messages in the outbox are reaped",
        "operations/reaping.py",
        "                if lost.message_id in kept:\n",
        "                if False:\n",
        QUEUE,
    ),
    Mutation(
        "unsent messages count as takeovers",
        "sending/outgoing.py",
        "                job.unsent()\n",
        "                pass\n",
        QUEUE,
    ),
)
