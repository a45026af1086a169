"""Fixtures that several files about faults share."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest

from tests.faults.workers import backend, stored_in


@pytest.fixture(autouse=True)
def _sockets_of_clients_that_were_cut_off(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let go of the sockets that drivers leave to the garbage collector when their server is gone."""
    yield
    if {"proxy", "own_redis"} & set(request.fixturenames):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.fixture
def store(database: str) -> Iterator[str]:
    """The alias of the database that keeps the records, on which the test runs."""
    with stored_in(database):
        yield database


@pytest.fixture
def empty_queue() -> Iterator[None]:
    """The memory backend, with nothing in it before and after the test."""
    backend().jobs.clear()
    yield
    backend().jobs.clear()
