"""The site of the documentation and the long description: navigation, links, figures, and marks of new features."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import hatch_build
from hatch_build import ROOT, is_relative, long_description, rewritten
from lambda_tasks import __version__
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

    def test_missing_file_is_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        hook.link_on_site(DOCS / "why.md", "../lambda_tasks/nowhere.py")
        assert caplog.messages == ["docs/why.md links to '../lambda_tasks/nowhere.py', which does not exist."]

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


CHANGELOG: Final = (ROOT / "CHANGELOG.md").read_text()
UNRELEASED: Final = "Unreleased"


def versions() -> dict[str, str]:
    """Return the sections of the changelog by version, such as 1.1; an unreleased one has the number of the next."""
    [_, *parts] = re.split(r"^## (.+)$", CHANGELOG, flags=re.MULTILINE)
    found = {}
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        upcoming = re.search(r"The next version is (\d+\.\d+)\.", text)
        found[upcoming[1] if heading == UNRELEASED and upcoming else ".".join(heading.split(".")[:2])] = text
    return found


def names_added(text: str) -> set[str]:
    """Return the names with which the entries under Added begin."""
    [_, added] = re.split(r"^### Added$", text, maxsplit=1, flags=re.MULTILINE)
    entries = re.findall(r"^- ((?:`[^`]+`(?:, and |, | and )?)+)", added.partition("\n### ")[0], re.MULTILINE)
    names = (
        re.match(r"(?:manage\.py )?(?:lambda_tasks[ .])?(\w+)", name) for each in entries for name in each.split("`")
    )
    return {name[1] for name in names if name}


def marked_headings() -> list[tuple[str, str, str]]:
    """Return the page, the heading and the version of each mark that follows a heading."""
    pattern = re.compile(rf"^#+ (.+)\n\n{hook.NEW_IN.pattern}$", re.MULTILINE)
    return [
        (str(page.relative_to(DOCS)), heading, version)
        for page in DOCS.rglob("*.md")
        for heading, version in pattern.findall(page.read_text())
    ]


class TestMarksOfNewFeatures:
    def test_version_is_in_the_changelog(self) -> None:
        marks = [(page, found) for page in DOCS.rglob("*.md") for found in hook.NEW_IN.findall(page.read_text())]
        assert len(marks) > 100
        assert [mark for mark in marks if mark[1] not in versions()] == []

    def test_other_spellings_are_not_used(self) -> None:
        text = "\n".join(page.read_text() for page in DOCS.rglob("*.md"))
        assert re.findall(r"new in (?:version )?\d", hook.NEW_IN.sub("", text), re.IGNORECASE) == []

    def test_next_version_follows_the_current_one(self) -> None:
        if UNRELEASED in CHANGELOG:
            assert tuple(map(int, next(iter(versions())).split("."))) > tuple(map(int, __version__.split(".")[:2]))

    def test_marked_name_is_in_its_changelog(self) -> None:
        named = [(heading, version) for _, heading, version in marked_headings() if heading.startswith("`")]
        absent = [
            heading
            for heading, version in named
            if not re.search(rf"\b{re.findall(r'[A-Za-z_0-9]+', heading.partition('(')[0])[-1]}\b", versions()[version])
        ]
        assert absent == []

    @pytest.mark.parametrize("page", ["settings", "decorator"])
    def test_added_name_is_marked_in_the_reference(self, page: str) -> None:
        """Write `*New in 2.0.*` below the heading of what the changelog lists under Added."""
        newest, *earlier = versions().values()
        new = names_added(newest) - {name for text in earlier for name in re.findall(r"\w+", text)}
        headings = re.findall(
            r"^#+ `(?:lambda_tasks\.)?(\w+)", (DOCS / f"reference/{page}.md").read_text(), re.MULTILINE
        )
        marked = {heading for file, heading, _ in marked_headings() if file == f"reference/{page}.md"}
        assert [name for name in headings if name in new and not any(name in heading for heading in marked)] == []

    def test_mark_in_code_stays(self) -> None:
        assert hook.NEW_IN.sub(hook.STYLED, "Write `*New in 2.0.*`.") == "Write `*New in 2.0.*`."

    def test_mark_has_a_style_on_the_site(self) -> None:
        assert (
            hook.NEW_IN.sub(hook.STYLED, "*New in 2.0.* An option.")
            == '<span class="new-in">New in 2.0</span> An option.'
        )
