"""Take the pictures of the admin's documentation: `python -m tests.browser.screenshots`."""

from __future__ import annotations

import sys
from typing import Final

from tests.browser import chromium
from tests.browser.site import ROOT, Site, running_site

FOLDER: Final = ROOT / "docs" / "images"
SIZES: Final = {"wide": chromium.WIDE, "narrow": chromium.NARROW}


def pages_of(site: Site) -> dict[str, str]:
    return {
        "records": site.records(),
        "record": site.record("failed"),
        "overview": site.admin("lambda_tasks/tasksoverview/"),
    }


def main() -> int:
    if problem := chromium.missing():
        print(f"The pictures cannot be taken: {problem}.", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    with running_site(markup=False) as site, chromium.launched() as browser:
        for name, size in SIZES.items():
            for dark in (False, True):
                page = chromium.new_page(browser, size=size, dark=dark)
                chromium.log_in(page, site)
                for shown, address in pages_of(site).items():
                    page.goto(address)
                    path = FOLDER / f"admin-{shown}-{name}-{'dark' if dark else 'light'}.png"
                    page.screenshot(path=path)
                    print(path.relative_to(ROOT))
                page.context.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
