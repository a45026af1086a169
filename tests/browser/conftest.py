"""Fixtures for pages in Chromium. The tests are skipped unless TEST_BROWSER is set, as `nox -s browser` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import chromium
from tests.browser.site import Site, running_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = chromium.missing() if os.environ.get("TEST_BROWSER") else "the session `nox -s browser` runs these tests"
    if reason:
        for item in items:
            if item.path.is_relative_to(os.path.dirname(__file__)):  # noqa: PTH120
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _no_connection_without_database_access() -> None:
    """Leave connections alone: Django refuses to close them while playwright's event loop runs in this thread."""


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium.launched() as launched:
        yield launched


@pytest.fixture
def open_page(browser: Browser, site: Site) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page for a user who has logged in. No page may report an error in the end."""
    pages: list[Page] = []
    problems: list[str] = []

    def opened(**options: Any) -> Page:
        page = chromium.new_page(browser, **options)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        chromium.log_in(page, site)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert problems == []  # such as a violation of the Content-Security-Policy
