"""The contract of locks."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from django.core.checks import CheckMessage

from lambda_tasks.locks.base import BaseLock
from lambda_tasks.testing.contracts.crowd import AT_ONCE, CROWD, ROUNDS, crowd, together


class LockContract:
    """Tests that every lock must pass. Override `lock`, `seconds_left` and `expire`, and the others if they apply.

    Each test has its own key, so the server may be shared.
    """

    @pytest.fixture
    def lock(self) -> BaseLock:
        """Override: return the lock under test."""
        raise NotImplementedError

    # Subclasses narrow `lock` to their own class, which type checkers allow for Any.

    def elsewhere(self, lock: Any) -> BaseLock:
        """Override if workers share the lock: return a new instance, as another process would have."""
        same: BaseLock = lock
        return same

    def seconds_left(self, lock: Any, key: str) -> float:
        """Override: return the number of seconds until the lock expires."""
        raise NotImplementedError

    def expire(self, lock: Any, key: str) -> None:
        """Override: make the lock expire, by changing the clock, or by doing what its server would do."""
        raise NotImplementedError

    def unreachable(self) -> BaseLock | None:
        """Override if the lock has a server: return a lock whose server does not respond."""
        return None

    @pytest.fixture
    def key(self) -> str:
        return f"lambda_tasks.singleton_lock.contract.{uuid.uuid4().hex}"

    def test_free_lock_is_acquired(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60) is True

    def test_held_lock_is_refused_to_another_token(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60) is False
        assert lock.acquire(key, token="b", timeout=60) is False

    def test_refusal_does_not_wait(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        begin = time.monotonic()
        assert not lock.acquire(key, token="b", timeout=60)
        assert time.monotonic() - begin < AT_ONCE

    def test_refusal_does_not_prolong_the_holders_lock(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert not lock.acquire(key, token="b", timeout=900)
        assert self.seconds_left(lock, key) < 100

    def test_one_of_many_workers_acquires_a_free_lock(self, lock: BaseLock, key: str) -> None:
        workers = [self.elsewhere(lock) for _ in range(CROWD)]
        won = crowd(
            lambda round_, number: workers[number].acquire(f"{key}.{round_}", token=f"worker {number}", timeout=60)
        )
        assert [sum(answers) for answers in won] == [1] * ROUNDS

    def test_released_lock_is_free(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="a")
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)

    def test_another_thread_may_release_it(self, lock: BaseLock, key: str) -> None:
        assert together(1, lambda _: lock.acquire(key, token="a", timeout=60)) == [True]
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_only_the_holders_token_releases_it(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="b")
        self.elsewhere(lock).release(key, token="b")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_releasing_a_free_lock_does_nothing(self, lock: BaseLock, key: str) -> None:
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_second_release_does_nothing(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="a")
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_takeover_acquires_its_lock_again(self, lock: BaseLock, key: str) -> None:
        """The run that takes over from a dead worker has the same token."""
        assert lock.acquire(key, token="a", timeout=60)
        successor = self.elsewhere(lock)
        assert successor.acquire(key, token="a", timeout=60)
        assert not lock.acquire(key, token="b", timeout=60)
        successor.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_acquiring_it_again_restarts_its_timeout(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert self.elsewhere(lock).acquire(key, token="a", timeout=900)
        assert 800 < self.seconds_left(lock, key) < 910

    def test_lock_expires_after_its_timeout(self, lock: BaseLock, key: str) -> None:
        begin = time.monotonic()
        assert lock.acquire(key, token="a", timeout=60)
        assert 60 - (time.monotonic() - begin) - 0.1 <= self.seconds_left(lock, key) < 65

    def test_expired_lock_is_free(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)

    def test_one_of_many_workers_acquires_an_expired_lock(self, lock: BaseLock, key: str) -> None:
        workers = [self.elsewhere(lock) for _ in range(CROWD)]
        for round_ in range(ROUNDS):
            assert lock.acquire(f"{key}.{round_}", token="dead", timeout=60)
            self.expire(lock, f"{key}.{round_}")
        won = crowd(
            lambda round_, number: workers[number].acquire(f"{key}.{round_}", token=f"worker {number}", timeout=60)
        )
        assert [sum(answers) for answers in won] == [1] * ROUNDS

    def test_late_release_leaves_the_next_holders_lock(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)
        lock.release(key, token="a")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_previous_holder_cannot_reacquire_the_next_holders_lock(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)
        assert not lock.acquire(key, token="a", timeout=60)

    def test_each_key_is_a_separate_lock(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert lock.acquire(f"{key}.other", token="b", timeout=60)
        lock.release(f"{key}.other", token="b")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_keys_of_values_and_slots_are_separate_locks(self, lock: BaseLock, key: str) -> None:
        """These are the forms of the keys of tasks with `singleton="name"` and `max_concurrency`."""
        keys = [key, f"{key}:5f2a", f"{key}:5f2a/1", f"{key}:5f2b/1", f"{key}/1"]
        for number, each in enumerate(keys):
            assert lock.acquire(each, token=f"worker {number}", timeout=60)
        assert not any(self.elsewhere(lock).acquire(each, token="another", timeout=60) for each in keys)

    def test_slots_admit_as_many_workers_as_slots(self, lock: BaseLock, key: str) -> None:
        """Each worker takes the first free slot, and begins with another one."""
        slots = [key, f"{key}/1", f"{key}/2"]
        workers = [self.elsewhere(lock) for _ in range(CROWD)]

        def take_slot(round_: int, number: int) -> bool:
            start = number % len(slots)
            order = [*slots[start:], *slots[:start]]
            token = f"worker {number}"
            return any(workers[number].acquire(f"{slot}.{round_}", token=token, timeout=60) for slot in order)

        assert [sum(answers) for answers in crowd(take_slot)] == [len(slots)] * ROUNDS

    def test_unreachable_server_raises_quickly(self, key: str) -> None:
        unreachable = self.unreachable()
        if unreachable is None:
            pytest.skip("this lock has no server of its own")
        begin = time.monotonic()
        with pytest.raises(Exception):  # noqa: B017, PT011, its client may raise any exception
            unreachable.acquire(key, token="a", timeout=60)
        assert time.monotonic() - begin < AT_ONCE

    def test_checks_return_django_messages(self, lock: BaseLock) -> None:
        assert all(isinstance(message, CheckMessage) for message in lock.check())
