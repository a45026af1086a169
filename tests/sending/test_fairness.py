"""A model of the rule by which SQS delivers messages of quiet groups first: how long tenants wait with and without."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

from lambda_tasks.decorators import lambda_task
from lambda_tasks.jobs import Job

#: A group is noisy above this share of the messages in flight, and from this number (Developer Guide of SQS).
NOISY_SHARE: Final = 0.1
NOISY_NUMBER: Final = 30
#: Each worker runs one task per second.
WORKERS: Final = 50


@lambda_task(group="tenant")
def grouped(*, tenant: str) -> None: ...


@lambda_task
def plain(*, tenant: str) -> None: ...


class ModelQueue:
    """The waiting messages by group. Those without a group are tenants of their own, and never noisy."""

    def __init__(self) -> None:
        self._waiting: dict[str | None, deque[tuple[int, int, Job]]] = {}
        self._in_flight: Counter[str | None] = Counter()
        self._number = 0

    def send(self, task: Any, tenant: str, count: int, second: int) -> None:
        for _ in range(count):
            self._number += 1
            job = task._job((), {"tenant": tenant}, lambda: "default")
            self._waiting.setdefault(job.group, deque()).append((self._number, second, job))

    def receive(self) -> list[tuple[int, Job]]:
        """Return a message for each worker, and the second in which it was sent; fewer if fewer wait."""
        self._in_flight.clear()
        received = []
        while len(received) < WORKERS and (waiting := [group for group, sent in self._waiting.items() if sent]):
            quiet = [group for group in waiting if not self._is_noisy(group)]
            group = min(quiet or waiting, key=lambda each: self._waiting[each][0][0])
            self._in_flight[group] += 1
            _, second, job = self._waiting[group].popleft()
            received.append((second, job))
        return received

    def _is_noisy(self, group: str | None) -> bool:
        number = self._in_flight[group]
        return group is not None and number >= NOISY_NUMBER and number > NOISY_SHARE * self._in_flight.total()


def longest_wait_and_end(task: Any) -> tuple[int, int]:
    """Return how long tenant B waits for its last task, and when all tasks are done, in seconds."""
    queue = ModelQueue()
    queue.send(task, "a", 10_000, second=0)
    longest = second = 0
    while received := queue.receive():
        waits = [second - sent for sent, job in received if job.message.kwargs["tenant"] == "b"]
        longest = max(longest, *waits, 0)
        if second == 1:
            queue.send(task, "b", 20, second)
        second += 1
    return longest, second


def test_tenants_without_groups_wait_for_all_tasks() -> None:
    assert longest_wait_and_end(plain) == (199, 201)


def test_quiet_group_waits_for_a_worker() -> None:
    assert longest_wait_and_end(grouped) == (1, 201)
