"""Run worlds whose PostgreSQL server crashes and restarts while workers are at every failpoint.

A server that crashes loses only commits that did not wait for the disk. These worlds use a private server, which
writes data to the disk only if a session waits for it. With `durable_claims=False`, it therefore loses every claim
that no durable write has followed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from uuid import UUID

from django.db import connections

from lambda_tasks.failpoints import POINTS
from lambda_tasks.models import TaskRecord, TaskStatus
from lambda_tasks.settings import app_settings
from tests.services import OwnPostgres
from tests.simulation.faults import CRASHED, FROZEN
from tests.simulation.invariants import USUAL, check
from tests.simulation.invocations import Strike
from tests.simulation.queue import Message
from tests.simulation.report import OF_OUTBOX, OF_SCHEDULES, Report
from tests.simulation.shop.flows import remember_orders
from tests.simulation.world import PAST_ANY_LEASE, Invocation, Placement, World, order_of

#: Failpoints of workers that have committed only their claim, and the kind of task that reaches them.
CLAIMED: Final = (
    ("claim:after", "plain"),
    ("task:before_begin", "plain"),
    ("task:enter", "plain"),
    ("shop:inside", "plain"),
    ("task:leave", "plain"),
    ("finish:before_commit", "plain"),
    ("retry:before_send", "moody"),
    ("retry:between", "moody"),
    ("settle:before_write", "moody"),
    ("settle:before_write", "failing"),
)
#: The same, for claims that wait for the disk regardless of the store's option.
CLAIMED_FOR_GOOD: Final = (("claim:after", "unrepeatable"), ("task:enter", "unrepeatable"))
#: Failpoints after the outcome is committed.
ENDED: Final = (("finish:after_commit", "plain"), ("settle:after_write", "moody"), ("settle:after_write", "failing"))

#: What happens to a worker when its server crashes: it ends too, it continues without a server, it continues after
#: the restart, or it continues after other workers have done its work.
FATES: Final = ("killed", "continues without a server", "continues after the restart", "continues last")

#: Failpoints at which a worker of a random world may freeze. With the outbox, retries are sent like orders.
_ELSEWHERE: Final = (
    ("batch:", "cancel:", OF_SCHEDULES)
    if app_settings.outbox
    else ("batch:", "cancel:", "enqueue:", "send:", OF_SCHEDULES, *OF_OUTBOX)
)
WHERE_WORKERS_FREEZE: Final = [point for point in POINTS if not point.startswith(_ELSEWHERE)]

ORDERS: Final = 16
CRASHES: Final = 4
WORKERS: Final = 4


def crashes(
    folder: Path, server: OwnPostgres, seeds: Iterable[int], *, durable_claims: bool, part: int = 0, parts: int = 1
) -> Report:
    """Run the world of every failpoint, or one part of it, and a random world for each seed. Return the report.

    Each of three parts covers all failpoints, with a different fate for each failpoint.
    """
    report = Report()
    _run(_EveryPoint(folder, server, durable_claims=durable_claims, part=part, parts=parts), report)
    for seed in seeds:
        _run(_Random(folder, server, seed, durable_claims=durable_claims), report, seed=seed)
    return report


def _run(world: _EveryPoint | _Random, report: Report, *, seed: int | None = None) -> None:
    try:
        world.live()
        world.come_to_rest()
        report.add(check(world), world.figures, seed=seed)
    finally:
        world.close()


class _World(World):
    """A world whose database server may crash."""

    def __init__(self, folder: Path, server: OwnPostgres, *, durable_claims: bool) -> None:
        super().__init__(folder)
        server.hold_wal_writer()
        self._server = server
        self._durable_claims = durable_claims
        self._running: list[Invocation] = []
        self._seen: dict[UUID, TaskRecord] = {}

    def close(self) -> None:
        self._server.let_wal_writer_go()
        super().close()

    def crash(self) -> None:
        """Crash the server, which affects every worker."""
        self._seen = TaskRecord.objects.in_bulk()
        remember_orders()  # whose messages may be sent before the server is there again
        connections.close_all()
        self._server.crash()
        self.figures.crashes += 1
        for invocation in (*self._running, *self.frozen):
            process = invocation.process
            if process.state not in ("running", "frozen"):
                continue
            strike = Strike(process.reached[-1] if process.state == "frozen" else "between failpoints", CRASHED)
            process.struck.append(strike)
            for message in invocation.batch:
                self.strikes_of.setdefault(order_of(message), []).append(strike)

    def start_server(self) -> None:
        """Restart the server, and check that every record that was visible before the crash still exists."""
        self._server.start()
        self._server.hold_wal_writer()
        known = TaskRecord.objects.in_bulk()
        for pk, seen in self._seen.items():
            may_be_forgotten = not self._durable_claims and not seen.task_name.endswith(".unrepeatable")
            if pk not in known and seen.status == TaskStatus.RUNNING and may_be_forgotten:
                self.figures.forgotten += 1
            elif pk not in known or known[pk].status == TaskStatus.RUNNING != seen.status:
                self.figures.accidents.append(f"the server lost {seen} in the crash")


class _EveryPoint(_World):
    """One crash, with a worker at every failpoint for each fate."""

    def __init__(
        self, folder: Path, server: OwnPostgres, *, durable_claims: bool, part: int = 0, parts: int = 1
    ) -> None:
        super().__init__(folder, server, durable_claims=durable_claims)
        for_good = [(*stand, fate) for fate in FATES for stand in (*ENDED, *CLAIMED_FOR_GOOD)]
        self._for_good = for_good[part::parts]
        self._claimed = [(*stand, fate) for fate in FATES for stand in CLAIMED][part::parts]

    def live(self) -> None:
        # Workers that have only claimed come last, because a session that waits for the disk writes earlier data too.
        stands = [*self._for_good, *self._claimed]
        self.place([Placement(number, kind) for number, (_, kind, _) in enumerate(stands)])
        of_fate: dict[str, list[Invocation]] = {fate: [] for fate in FATES}
        for number, (point, _, fate) in enumerate(stands):
            self.deliver(self.messages_of(number), [Strike(point, FROZEN)])
            of_fate[fate].append(self.frozen[-1])
        if len(self.frozen) != len(stands):
            raise AssertionError(f"{len(self.frozen)} of {len(stands)} workers reached their failpoints")

        self.crash()
        for invocation in of_fate["killed"]:
            invocation.process.kill()
            self.frozen.remove(invocation)
        for invocation in of_fate["continues without a server"]:
            self.thaw(invocation)
        self.start_server()
        claims = 0 if self._durable_claims else len(self._claimed)
        if self.figures.forgotten != claims:
            self.figures.accidents.append(f"{self.figures.forgotten} claims were lost instead of {claims}")
        for invocation in of_fate["continues after the restart"]:
            self.thaw(invocation)
        # Deliver the sent retries first, and then the invocations that sent them.
        for seconds in (self.queue.visibility_timeout - 1, PAST_ANY_LEASE):
            self.pass_time(seconds)
            for message in self.queue.visible():
                self.deliver([message])


class _Random(_World):
    """Crashes while several workers run in parallel. The seed determines the workers, but not the time of the crash."""

    def __init__(self, folder: Path, server: OwnPostgres, seed: int, *, durable_claims: bool) -> None:
        self._random = random.Random(seed)
        super().__init__(folder, server, durable_claims=durable_claims)

    def live(self) -> None:
        kinds = USUAL
        self.place([Placement(number, self._random.choice(kinds)) for number in range(1, ORDERS + 1)])
        for _ in range(CRASHES):
            self._running = [self.invoke(batch, self._strikes()) for batch in self._batches()]
            if self._running:
                # The other workers run meanwhile, so they may be anywhere, including in COMMIT.
                self._random.choice(self._running).process.run(points=self._random.randint(1, 40))
            self.crash()
            restarts_immediately = self._random.random() < 0.5
            if restarts_immediately:
                self.start_server()
            for invocation in self._running:
                self.go_on(invocation, answer_arrives=self._random.random() < 0.9)
            self._running = []
            if not restarts_immediately:
                self.start_server()
            for invocation in self._random.sample(self.frozen, len(self.frozen) // 2):
                self.thaw(invocation)
            self.pass_time(self._random.choice((2, 30, 200, PAST_ANY_LEASE)))

    def _batches(self) -> list[list[Message]]:
        visible = self.queue.visible()
        self._random.shuffle(visible)
        batches = [visible[worker::WORKERS][:3] for worker in range(WORKERS)]
        return [batch for batch in batches if batch]

    def _strikes(self) -> list[Strike]:
        return [Strike(self._random.choice(WHERE_WORKERS_FREEZE), FROZEN)] if self._random.random() < 0.4 else []
