"""The admin in Chromium: find a task, read it, run it again, cancel it, and watch the overview."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.browser.chromium import NARROW, WIDE
from tests.browser.site import MARKUP, Site

if TYPE_CHECKING:
    from playwright.sync_api import Page

    Open = Callable[..., Page]

SIZES: Final = pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
THEMES: Final = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
#: The minimum contrast of text for the level AA of the Web Content Accessibility Guidelines.
CONTRAST: Final = 4.5
#: Returns the contrast of an element's text with the first background behind it that is not transparent.
CONTRAST_OF: Final = """element => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element, back;
  do { back = channels(getComputedStyle(behind).backgroundColor); behind = behind.parentElement; }
  while (behind && back.length === 4 && back[3] === 0);
  if (back.length === 4 && back[3] === 0) { back = channels(getComputedStyle(document.body).backgroundColor); }
  const [high, low] = [light(channels(getComputedStyle(element).color)), light(back)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}"""


def pages_of(site: Site) -> dict[str, str]:
    return {
        "records": site.records(),
        "failures": site.records("?status__exact=FAILED&started=week"),
        **{name: site.record(name) for name in site.keys},
        "outbox": site.admin("lambda_tasks/outboxmessage/"),
        "schedules": site.admin("lambda_tasks/taskschedule/"),
        "overview": site.admin("lambda_tasks/tasksoverview/"),
    }


def texts(page: Page, selector: str) -> list[str]:
    """Return the text in each of the elements, when the page has one of them."""
    page.locator(selector).first.wait_for()
    page.wait_for_load_state()
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


class TestFinding:
    @SIZES
    def test_filters_and_search_narrow_the_list(self, open_page: Open, site: Site, size: Any) -> None:
        page = open_page(size=size)
        page.goto(site.records())
        page.get_by_role("link", name="Failed", exact=True).click()
        page.wait_for_url("**status__exact=FAILED**")
        assert set(texts(page, "#result_list .task-badge")) == {"Failed"}
        page.get_by_role("link", name="Last hour").click()
        page.wait_for_url("**started=hour**")
        page.fill("#searchbar", "charge_card")
        page.press("#searchbar", "Enter")
        page.wait_for_url("**q=charge_card**")
        assert set(texts(page, "#result_list .field-task")) == {"charge_card"}
        page.locator("#result_list .field-task a").first.click()
        assert "CardRefused: order" in page.inner_text(".task-traceback")

    def test_columns_are_all_visible(self, open_page: Open, site: Site) -> None:
        page = open_page(size=WIDE)
        page.goto(site.records())
        right = page.locator("#changelist-form .results").bounding_box()["x"]  # type: ignore[index]
        right += page.locator("#changelist-form .results").bounding_box()["width"]  # type: ignore[index]
        row = page.locator("#result_list tbody tr").first
        for cell in row.locator("td, th").all():
            box = cell.bounding_box()
            assert box is not None
            assert box["width"] > 0
            assert box["x"] + box["width"] <= right + 1


class TestActing:
    def test_run_again_links_both_records(self, open_page: Open, site: Site) -> None:
        page = open_page()
        page.goto(site.record("done"))
        page.get_by_role("button", name="Run again").click()
        page.wait_for_selector(".task-confirmation")
        assert "Run tasks again" in texts(page, "h1")
        assert "1 task" in texts(page, "h2")
        page.get_by_role("button", name="Run these tasks again").click()
        assert "1 task was enqueued again." in texts(page, ".messagelist .success")
        page.goto(site.record("done"))
        page.locator(".task-relations a").first.click()
        page.wait_for_url("**?q=**")
        page.locator("#result_list .field-task a").first.click()
        assert "Runs again" in texts(page, ".task-relations dt")
        assert site.keys["done"] in page.inner_text(".task-relations")
        page.goto(f"{site.record('done').removesuffix('change/')}history/")
        assert "Run again as" in page.inner_text("#change-history")

    def test_cancel_asks_first(self, open_page: Open, site: Site) -> None:
        page = open_page()
        page.goto(site.record("running"))
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("link", name="No, take me back").click()
        page.goto(site.record("running"))
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Cancel these tasks").click()
        assert "1 task was cancelled." in texts(page, ".messagelist .success")

    def test_export_downloads_the_selection(self, open_page: Open, site: Site) -> None:
        page = open_page()
        page.goto(site.records("?status__exact=FAILED"))
        page.locator("#result_list .action-select").nth(0).check()
        page.locator("#result_list .action-select").nth(1).check()
        page.select_option("select[name=action]", "export")
        page.locator("button[name=index]").click()
        page.get_by_label("JSON, one record per line").check()
        with page.expect_download() as download:
            page.get_by_role("button", name="Export these records").click()
        assert len(download.value.path().read_text().splitlines()) == 2

    def test_call_is_copied(self, open_page: Open, site: Site) -> None:
        page = open_page(permissions=["clipboard-read", "clipboard-write"])
        page.goto(site.record("failed"))
        page.get_by_role("button", name="Copy as Python").click()
        page.get_by_role("button", name="Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("from shop.tasks import charge_card\n")


class TestKeyboard:
    def test_task_is_cancelled_without_a_mouse(self, open_page: Open, site: Site) -> None:
        page = open_page()
        page.goto(site.record("waiting"))
        self.tab_to(page, "Cancel")
        page.keyboard.press("Enter")
        page.wait_for_selector(".task-confirmation")
        self.tab_to(page, "Cancel these tasks")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        background = page.evaluate("getComputedStyle(document.activeElement).backgroundColor")
        page.evaluate("document.activeElement.blur()")
        unfocused = page.locator(".task-dangerous").evaluate("each => getComputedStyle(each).backgroundColor")
        assert outline != "none" or background != unfocused  # the focus is visible
        self.tab_to(page, "Cancel these tasks")
        page.keyboard.press("Enter")
        page.wait_for_selector(".messagelist")
        assert len(texts(page, ".messagelist li")) == 1

    def tab_to(self, page: Page, label: str) -> None:
        """Press Tab until the element with this text or value has the focus."""
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.value || document.activeElement.innerText") == label:
                return
            if page.evaluate("document.activeElement.innerText") == label:
                return
        raise AssertionError(f"{label} cannot be reached with Tab.")

    def test_wide_tables_scroll_with_the_keyboard(self, open_page: Open, site: Site) -> None:
        page = open_page(size=NARROW)
        page.goto(site.admin("lambda_tasks/tasksoverview/"))
        region = page.get_by_role("region", name="Durations").last
        region.focus()
        region.evaluate("each => { window.scrolled = new Promise(done => { each.onscroll = done; }); }")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("window.scrolled.then(() => document.activeElement.scrollLeft)") > 0


class TestOverview:
    def test_numbers_are_refreshed(self, open_page: Open, site: Site) -> None:
        page = open_page()
        page.clock.install()
        page.goto(site.records())
        page.get_by_role("link", name="Tasks overview").first.click()
        page.wait_for_selector(".task-chart rect")
        page.locator("summary").click()
        page.evaluate("document.activeElement.blur()")
        with page.expect_response(re.compile(r"/sections/\?span=day")):
            page.clock.fast_forward(11_000)
        page.wait_for_selector("#task-throughput-table[open]")

    def test_refreshing_can_be_stopped(self, open_page: Open, site: Site) -> None:
        page = open_page()
        page.clock.install()
        page.goto(site.admin("lambda_tasks/tasksoverview/?span=hour"))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.uncheck("#task-live")
        page.clock.fast_forward(60_000)
        assert asked == []

    def test_lost_connection_is_shown(self, open_page: Open, site: Site) -> None:
        page = open_page()
        page.clock.install()
        page.goto(site.admin("lambda_tasks/tasksoverview/"))
        page.evaluate("() => { window.fetch = () => Promise.reject(new Error('offline')); }")
        page.clock.fast_forward(11_000)
        page.get_by_text("Reload the page").wait_for()


@SIZES
@THEMES
class TestLooks:
    def test_no_page_scrolls_sideways(self, open_page: Open, site: Site, size: Any, dark: bool) -> None:
        page = open_page(size=size, dark=dark)
        widths = {}
        for name, address in pages_of(site).items():
            page.goto(address)
            widths[name] = page.evaluate("document.documentElement.scrollWidth")
        assert widths == dict.fromkeys(widths, size["width"])

    def test_text_has_contrast(self, open_page: Open, site: Site, size: Any, dark: bool) -> None:
        page = open_page(size=size, dark=dark)
        for address in (site.records(), site.record("failed"), site.admin("lambda_tasks/tasksoverview/")):
            page.goto(address)
            shown = page.locator(".task-badge, .task-reason, .task-frame, .task-count, .task-gap, .task-empty")
            for each in shown.all()[:40]:
                assert each.evaluate(CONTRAST_OF) >= CONTRAST, each.inner_text()


class TestMarkup:
    def test_fields_are_shown_as_text(self, open_page: Open, site: Site) -> None:
        page = open_page()
        for name, address in pages_of(site).items():
            page.goto(address)
            assert page.locator("img[src=x]").count() == 0, name
            assert page.locator("#content b").count() == 0, name
            assert page.title() != "broken", name
        page.goto(site.record("markup"))
        assert MARKUP in page.inner_text(".field-task_name")


class TestWithoutScripts:
    def test_pages_work(self, open_page: Open, site: Site) -> None:
        page = open_page(java_script_enabled=False)
        page.goto(site.admin("lambda_tasks/tasksoverview/"))
        assert page.locator(".task-counts li").count() == 4
        assert not page.locator("#task-live").is_visible()
        page.goto(site.record("failed"))
        assert not page.get_by_role("button", name="Copy as Python").is_visible()
        page.get_by_role("button", name="Export").click()
        assert page.get_by_role("button", name="Export these records").is_visible()
