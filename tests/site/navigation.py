"""The navigation of the site: the lists of docs/README.md, and of the indexes of its folders."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final, TypeAlias

from hatch_build import ROOT, is_relative

Entries: TypeAlias = list[Any]

DOCS: Final = ROOT / "docs"
_HEADING: Final = re.compile(r"## (.+)")
#: A line that introduces a part of a list, such as "Extending the library:".
_PART: Final = re.compile(r"(\w[^.`]*):")
_ENTRY: Final = re.compile(r"- \[(.+?)\]\(([^)#]+\.md)\)")
#: An index of a folder lists its pages in a table or in a list.
_LISTED: Final = re.compile(r"^(?:- |\| )\[(.+?)\]\(([^)#]+\.md)\)", re.MULTILINE)


def page_of(path: Path) -> str:
    """Return the name of a page on the site for a file: pages outside of docs/ have a folder of their own."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return "project/" + "-".join(path.relative_to(ROOT).parts).lower()


def file_of(page: str, link: str) -> Path:
    """Return the file to which a link on a page in docs/ leads."""
    return Path(posixpath.normpath(DOCS / posixpath.dirname(page) / link))


def navigation() -> Entries:
    """Return MkDocs' navigation."""
    sections: Entries = [{"Start": ["README.md"]}]
    current: Entries = sections[0]["Start"]
    for line in (DOCS / "README.md").read_text().splitlines():
        if heading := _HEADING.fullmatch(line):
            if heading[1] != "Start":
                sections.append({heading[1]: []})
            [current] = sections[-1].values()
        elif part := _PART.fullmatch(line):
            [section] = sections[-1].values()
            current = []
            section.append({part[1]: current})
        elif (entry := _ENTRY.match(line)) and is_relative(entry[2]):
            current.append(_entry(entry[1], entry[2]))
    return sections


def _entry(title: str, link: str) -> dict[str, Any]:
    page = page_of(file_of("README.md", link))
    if not page.endswith("/README.md"):
        return {title: page}
    pages = _LISTED.findall((DOCS / page).read_text())
    return {title: [page, *({name: page_of(file_of(page, each))} for name, each in pages)]}


def outside() -> list[Path]:
    """Return the pages of the site that are outside of docs/: those that its index lists."""
    links = re.findall(r"\]\((\.\./[^)#]+\.md)\)", (DOCS / "README.md").read_text())
    return sorted({file_of("README.md", link) for link in links})
