"""What every lock must hold."""

from __future__ import annotations

import time
import uuid

import pytest
from django.core.checks import CheckMessage

from lambda_tasks.locks.base import BaseLock
from lambda_tasks.testing.contracts.crowd import (
    AT_ONCE,
    CROWD,
    ROUNDS,
    crowd,
    together,
)


class LockContract:
    """What every lock holds; override `lock`, `seconds_left` and `expire`, and the others if they apply.

    Each test has a key of its own, so a server may be shared with others.
    """

    @pytest.fixture
    def lock(self) -> BaseLock:
        """Override: return the lock under test."""
        raise NotImplementedError

    def elsewhere(self, lock: BaseLock) -> BaseLock:
        """Override if workers share the lock: return it as another process has it, a new instance."""
        return lock

    def seconds_left(self, lock: BaseLock, key: str) -> float:
        """Override: return for how long the lock stays taken if nothing happens."""
        raise NotImplementedError

    def expire(self, lock: BaseLock, key: str) -> None:
        """Override: let the time of the lock run out: by the clock, or by what its server would do then."""
        raise NotImplementedError

    def unreachable(self) -> BaseLock | None:
        """Override if the lock has a server: return a lock whose server does not answer."""
        return None

    @pytest.fixture
    def key(self) -> str:
        return f"lambda_tasks.singleton_lock.contract.{uuid.uuid4().hex}"

    def test_a_free_lock_is_taken(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60) is True

    def test_a_held_lock_is_refused_to_another_token(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60) is False
        assert lock.acquire(key, token="b", timeout=60) is False

    def test_a_refusal_does_not_wait(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        begin = time.monotonic()
        assert not lock.acquire(key, token="b", timeout=60)
        assert time.monotonic() - begin < AT_ONCE

    def test_a_refusal_does_not_prolong_the_holders_time(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert not lock.acquire(key, token="b", timeout=900)
        assert self.seconds_left(lock, key) < 100

    def test_of_many_that_ask_at_once_one_gets_it(self, lock: BaseLock, key: str) -> None:
        workers = [self.elsewhere(lock) for _ in range(CROWD)]
        won = crowd(
            lambda round_, number: workers[number].acquire(f"{key}.{round_}", token=f"worker {number}", timeout=60)
        )
        assert [sum(answers) for answers in won] == [1] * ROUNDS

    def test_a_lock_that_was_released_is_free(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="a")
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)

    def test_it_may_be_released_in_another_thread_than_it_was_taken_in(self, lock: BaseLock, key: str) -> None:
        assert together(1, lambda _: lock.acquire(key, token="a", timeout=60)) == [True]
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_only_the_holders_token_releases_it(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="b")
        self.elsewhere(lock).release(key, token="b")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_releasing_what_nobody_holds_does_nothing(self, lock: BaseLock, key: str) -> None:
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_it_can_be_released_twice(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        lock.release(key, token="a")
        lock.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_the_run_that_takes_over_from_a_dead_worker_has_its_lock_again(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        successor = self.elsewhere(lock)
        assert successor.acquire(key, token="a", timeout=60)
        assert not lock.acquire(key, token="b", timeout=60)
        successor.release(key, token="a")
        assert lock.acquire(key, token="b", timeout=60)

    def test_when_it_is_taken_again_its_time_begins_anew(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert self.elsewhere(lock).acquire(key, token="a", timeout=900)
        assert 800 < self.seconds_left(lock, key) < 910

    def test_it_ends_by_itself_but_not_before_its_time(self, lock: BaseLock, key: str) -> None:
        begin = time.monotonic()
        assert lock.acquire(key, token="a", timeout=60)
        assert 60 - (time.monotonic() - begin) - 0.1 <= self.seconds_left(lock, key) < 65

    def test_it_is_free_when_its_time_is_over(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)

    def test_of_many_that_ask_for_a_lock_whose_time_is_over_one_gets_it(self, lock: BaseLock, key: str) -> None:
        workers = [self.elsewhere(lock) for _ in range(CROWD)]
        for round_ in range(ROUNDS):
            assert lock.acquire(f"{key}.{round_}", token="dead", timeout=60)
            self.expire(lock, f"{key}.{round_}")
        won = crowd(
            lambda round_, number: workers[number].acquire(f"{key}.{round_}", token=f"worker {number}", timeout=60)
        )
        assert [sum(answers) for answers in won] == [1] * ROUNDS

    def test_who_comes_too_late_does_not_release_the_next_holders_lock(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)
        lock.release(key, token="a")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_who_comes_too_late_does_not_get_it_back_from_the_next_holder(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        self.expire(lock, key)
        assert self.elsewhere(lock).acquire(key, token="b", timeout=60)
        assert not lock.acquire(key, token="a", timeout=60)

    def test_each_key_is_a_lock_of_its_own(self, lock: BaseLock, key: str) -> None:
        assert lock.acquire(key, token="a", timeout=60)
        assert lock.acquire(f"{key}.other", token="b", timeout=60)
        lock.release(f"{key}.other", token="b")
        assert not lock.acquire(key, token="c", timeout=60)

    def test_a_server_that_is_away_raises_soon(self, key: str) -> None:
        unreachable = self.unreachable()
        if unreachable is None:
            pytest.skip("this lock has no server of its own")
        begin = time.monotonic()
        with pytest.raises(Exception):  # noqa: B017, PT011, whatever its client raises
            unreachable.acquire(key, token="a", timeout=60)
        assert time.monotonic() - begin < AT_ONCE

    def test_its_checks_are_django_messages(self, lock: BaseLock) -> None:
        assert all(isinstance(message, CheckMessage) for message in lock.check())
