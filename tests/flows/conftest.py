"""The shop of the tests of flows, with each transport."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flows.shop import TRANSPORTS, shop_on


@pytest.fixture(params=TRANSPORTS)
def shop(database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    with shop_on(database, request.param):
        yield database
