"""The site of the documentation and the long description: navigation, links, figures, and marks of new features."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import hatch_build
from hatch_build import ROOT, is_relative, long_description, rewritten
from tests.site import figures, hook, navigation
from tests.site.drawing import Drawing

pytestmark = pytest.mark.once

DOCS: Final = ROOT / "docs"
ADDRESS: Final = "https://code.example/shop/tasks"


def pages_in(entries: list[Any]) -> Iterator[str]:
    """Yield the pages of a navigation."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        [value] = entry.values()
        yield from pages_in(value if isinstance(value, list) else [value])


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hatch_build.VARIABLE, f"{ADDRESS}/")


class TestNavigation:
    def test_every_page_is_listed_once(self) -> None:
        pages = [navigation.page_of(path) for path in (*DOCS.rglob("*.md"), *navigation.outside())]
        assert sorted(pages_in(navigation.navigation())) == sorted(pages)

    def test_sections_follow_the_index(self) -> None:
        titles = [title for section in navigation.navigation() for title in section]
        assert titles == re.findall(r"^## (.+)$", (DOCS / "README.md").read_text(), re.MULTILINE)


class TestLinks:
    @pytest.mark.parametrize(
        ("source", "target", "expected"),
        [
            ("docs/why.md", "howto/outbox.md#delays", "howto/outbox.md#delays"),
            ("docs/README.md", "../example/README.md", "project/example-readme.md"),
            ("docs/howto/admin.md", "../images/x.png", "../images/x.png"),
            ("CHANGELOG.md", "docs/howto/outbox.md", "../howto/outbox.md"),
            ("example/README.md", "../docs/why.md#lock", "../why.md#lock"),
        ],
    )
    def test_pages_of_the_site_are_reached(self, source: str, target: str, expected: str) -> None:
        assert hook.link_on_site(ROOT / source, target) == expected

    @pytest.mark.usefixtures("address")
    def test_other_files_get_an_address(self) -> None:
        link = hook.link_on_site(DOCS / "decisions/ids.md", "../../lambda_tasks/fitting.py")
        assert link == f"{ADDRESS}/blob/main/lambda_tasks/fitting.py"

    @pytest.mark.parametrize("text", ["`[a](b.md)`", "```text\n[a](b.md)\n```", "[a](#b)", "[a](https://b.example)"])
    def test_code_and_addresses_stay(self, text: str) -> None:
        assert rewritten(text, lambda target, image: "changed") == text

    def test_code_in_a_link_stays(self) -> None:
        assert rewritten("[see `a`](b.md), `c`", lambda target, image: "d.md") == "[see `a`](d.md), `c`"


class TestLongDescription:
    TEXT: Final = "![a way](docs/way.svg)[`retry`](docs/howto/retries.md#delays), [licence](LICENSE)"

    def test_links_are_text_without_an_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(hatch_build.VARIABLE, "")
        assert long_description(self.TEXT) == "`retry`, licence"

    @pytest.mark.usefixtures("address")
    def test_links_are_absolute_with_an_address(self) -> None:
        assert long_description(self.TEXT) == (
            f"![a way]({ADDRESS}/raw/main/docs/way.svg)"
            f"[`retry`]({ADDRESS}/blob/main/docs/howto/retries.md#delays), [licence]({ADDRESS}/blob/main/LICENSE)"
        )

    @pytest.mark.usefixtures("address")
    def test_readme_keeps_no_relative_link(self) -> None:
        links = re.findall(r"\]\(([^)]+)\)", long_description((ROOT / "README.md").read_text()))
        assert len(links) > 30
        assert [link for link in links if is_relative(link)] == []


class TestOtherHosts:
    @pytest.mark.parametrize(
        "html",
        [
            '<script src="https://cdn.example/a.js"></script>',
            '<link rel="stylesheet" href="//fonts.example/a.css">',
            '<img alt="" src=https://img.example/a.png>',
            "<style>a { background: url('https://img.example/a.png') }</style>",
            '<pre class="mermaid"><code>graph</code></pre>',
        ],
    )
    def test_loaded_file_is_found(self, html: str, tmp_path: Path) -> None:
        (tmp_path / "page.html").write_text(html)
        assert len(hook.loaded_from_others(tmp_path)) == 1

    def test_link_of_a_reader_is_allowed(self, tmp_path: Path) -> None:
        (tmp_path / "page.html").write_text(
            '<link rel="canonical" href="https://x.example/"><a href="https://aws.example">'
        )
        assert hook.loaded_from_others(tmp_path) == set()


class TestFigures:
    @pytest.mark.parametrize("name", figures.FIGURES)
    def test_file_is_up_to_date(self, name: str) -> None:
        written = (figures.FOLDER / f"{name}.svg").read_text()
        assert written == str(figures.FIGURES[name]()), "Run `python -m tests.site.figures`."

    def test_text_outside_of_its_box_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must be at least"):
            Drawing(200, 100, "", "").box(0, 0, 60, 40, ["much too long for it"])

    def test_chart_has_the_states_of_the_table(self) -> None:
        table = (DOCS / "architecture.md").read_text().partition("### Table of states")[2]
        states = re.findall(r"^\| \*\*([\w ]+)\*\*", table, re.MULTILINE)
        drawn = str(figures.states())
        missing = [state for state in states if f">{state}<" not in drawn]
        # These are told apart by their contents, not by what happens to them.
        assert missing == ["Without a lease", "Replaced", "Remembered", "Cancelled", "Deleted"]
