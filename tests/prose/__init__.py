"""Lint the prose of the repository: docstrings, comments, messages, names of tests, documentation and templates.

`python -m tests.prose` fails if a file breaks a rule.

To exempt a line, end it with `# prose: ok` in Python, `<!-- prose: ok -->` in Markdown or `{# prose: ok #}` in a
template. The reason may follow in parentheses. For a string or a docstring, put the comment on its last line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.prose.extract import READERS, Piece, pieces
from tests.prose.patterns import PATTERNS, Pattern

ROOT: Final = Path(__file__).parent.parent.parent
_SKIPPED: Final = {"__pycache__", "build", "dist", "node_modules"}
_ESCAPE: Final = re.compile(r"(?:#|<!--|\{#)\s*prose: ok(?: \([^()]*\))?\s*(?:-->|#\})?\s*$")


@dataclass(frozen=True, slots=True)
class Hit:
    """A match of a pattern, and where it is."""

    path: str
    line: int
    pattern: Pattern
    excerpt: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: [{self.pattern.name}] {self.excerpt}"


@dataclass(frozen=True, slots=True)
class Checked:
    """The hits of a file, its escapes, and the lines of those escapes that exempt nothing."""

    path: str
    hits: tuple[Hit, ...]
    escapes: int = 0
    unused: tuple[int, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether the file breaks no rule, and exempts nothing without need."""
        return not self.hits and not self.unused


def hits_of(piece: Piece, path: str = "") -> Iterator[Hit]:
    """Yield the hits of all patterns in a piece of prose."""
    for pattern in PATTERNS:
        for match in pattern.matches(piece):
            text = piece.flat
            excerpt = text[max(match.start() - 40, 0) : match.end() + 40].strip()
            yield Hit(path, piece.line_of(match.start()), pattern, excerpt)


def check_text(path: str, text: str) -> Checked:
    """Check a file's text, which is read by the ending of the path."""
    escapes = {
        number: False for number, line in enumerate(text.split("\n"), 1) if "prose: ok" in line and _ESCAPE.search(line)
    }
    hits = []
    for piece in pieces(Path(path), text):
        for hit in hits_of(piece, path):
            # The line of the match, and the end of a string: nothing can be written next to a line inside of it.
            exempting = escapes.keys() & ({hit.line} | ({piece.last_line} if piece.kind in _QUOTED else set()))
            if exempting:
                escapes.update(dict.fromkeys(exempting, True))
            else:
                hits.append(hit)
    hits.sort(key=lambda hit: hit.line)
    unused = tuple(line for line, used in escapes.items() if not used)
    return Checked(path, tuple(hits), len(escapes), unused)


_QUOTED: Final = {"docstring", "string", "error", "test name"}


def files(roots: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield the files with prose in some directories, by default in the repository.

    Hidden directories and build output are skipped.
    """
    for root in roots or [ROOT]:
        if root.is_file():
            yield root
            continue
        for directory, subdirectories, names in os.walk(root):
            subdirectories[:] = sorted(
                name for name in subdirectories if not name.startswith(".") and name not in _SKIPPED
            )
            yield from (Path(directory, name) for name in sorted(names) if Path(name).suffix in READERS)


def check(paths: Iterable[Path]) -> list[Checked]:
    """Check files; their paths in the result are relative to the repository."""
    return [check_text(path.resolve().relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def problems(checked: Iterable[Checked]) -> list[str]:
    """Return why the lint fails: hits, and exemptions that exempt nothing."""
    found: list[str] = []
    for file in checked:
        found.extend(f"{hit}\n    {hit.pattern.why} Instead: {hit.pattern.instead}." for hit in file.hits)
        found.extend(f"{file.path}:{line}: this `prose: ok` exempts nothing; remove it." for line in file.unused)
    return found
