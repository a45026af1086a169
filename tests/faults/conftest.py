"""Fixtures for several files of fault tests."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest

from tests.faults.workers import backend, stored_in


@pytest.fixture(autouse=True)
def _close_sockets_of_clients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect sockets that drivers leave to the garbage collector when their server is gone."""
    yield
    if {"proxy", "own_redis"} & set(request.fixturenames):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.fixture
def store(database: str) -> Iterator[str]:
    """Return the alias of the database that stores the records of the test."""
    with stored_in(database):
        yield database


@pytest.fixture
def empty_queue() -> Iterator[None]:
    """Empty the memory backend before and after the test."""
    backend().jobs.clear()
    yield
    backend().jobs.clear()
