"""Chromium, as far as this machine has it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from tests.browser.site import LOGIN

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser.site import Site

WIDE: Final = {"width": 1280, "height": 900}
NARROW: Final = {"width": 390, "height": 844}
#: Milliseconds after which an expectation about a page fails.
PATIENCE: Final = 10_000


def path() -> str | None:
    """Return the path of Chromium: that in CHROMIUM, or that of an installed package; None if there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def missing() -> str | None:
    """Return what is needed and missing, with its remedy; None if nothing is."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: install the extra `browser`"
    if path() is None:
        return "there is no Chromium: install the package `chromium`, or set CHROMIUM to its path"
    return None


@contextmanager
def launched() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def new_page(browser: Browser, *, size: dict[str, int] = WIDE, dark: bool = False, **options: Any) -> Page:
    page = browser.new_page(viewport=size, color_scheme="dark" if dark else "light", **options)  # type: ignore[arg-type]
    page.set_default_timeout(PATIENCE)
    return page


def log_in(page: Page, site: Site) -> None:
    page.goto(site.admin())
    page.fill("#id_username", LOGIN[0])
    page.fill("#id_password", LOGIN[1])
    page.press("#id_password", "Enter")
    page.wait_for_selector("#user-tools")
