"""Take the pictures of the documentation: `python -m tests.browser.screenshots`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from tests.browser import chromium, terminal
from tests.browser.site import ROOT, Site, running_site

FOLDER: Final = ROOT / "docs" / "images"
SIZES: Final = {"wide": chromium.WIDE, "narrow": chromium.NARROW}
#: Pixels of a wide page whose interesting part is further down than the first screen.
TALL: Final = {"admin-record": 1180}


def pages_of(site: Site) -> dict[str, str]:
    return {
        "admin-records": site.records(),
        "admin-record": site.record("failed"),
        "admin-overview": site.admin("lambda_tasks/tasksoverview/"),
        "demo": f"{site.address}/",
    }


def commands_of(site: Site) -> dict[str, list[str]]:
    return {
        "stats": ["stats", "--no-queues"],
        "inspect": ["inspect", site.keys["retried"]],
    }


def take_pages(site: Site) -> None:
    """Take each page wide and narrow, light and dark."""
    with chromium.launched() as browser:
        for size_name, size in SIZES.items():
            for dark in (False, True):
                page = chromium.new_page(browser, size=size, dark=dark)
                chromium.log_in(page, site)
                for name, address in pages_of(site).items():
                    page.set_viewport_size({**size, "height": max(size["height"], TALL.get(name, 0))})
                    page.goto(address)
                    if name == "demo":  # a script fills its table
                        page.locator("#records tr").first.wait_for()
                        page.evaluate("document.getAnimations().forEach(each => each.finish())")
                    path = FOLDER / f"{name}-{size_name}-{'dark' if dark else 'light'}.png"
                    page.screenshot(path=path)
                    tell(path)
                page.context.close()


def take_commands(site: Site) -> None:
    for name, words in commands_of(site).items():
        path = FOLDER / f"command-{name}.svg"
        path.write_text(terminal.picture(words, site.environment))
        tell(path)


def tell(path: Path) -> None:
    print(path.relative_to(ROOT))


def main() -> int:
    if problem := chromium.missing():
        print(f"The pictures cannot be taken: {problem}.", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    with running_site(markup=False) as site:
        take_commands(site)
        take_pages(site)
    return 0


if __name__ == "__main__":
    sys.exit(main())
