"""The address of the repository, and the long description that hatchling builds from README.md with it.

`repository` in pyproject.toml is the only place that holds the address. Links in README.md and docs/ are relative, so
that editors and the pages of the repository can follow them. On PyPI, and for files that the site of the documentation
lacks, a relative link leads nowhere: it becomes an address, or text if the repository has no address yet.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ImportError:  # the documentation's site and the tests use the functions without hatchling
    if not TYPE_CHECKING:
        MetadataHookInterface = object

ROOT: Final = Path(__file__).resolve().parent
#: Replaces the address in pyproject.toml, so that a check can build a package with one.
VARIABLE: Final = "LAMBDA_TASKS_REPOSITORY"
#: Code, or a link or an image, with the images that the text of a link may have. The first one in the text wins, so
#: that a link in code stays as it is, and code in a link does too.
_PIECE: Final = re.compile(
    r"^(?P<indent> *)```.*?^(?P=indent)``` *$"
    r"|(?P<image>!?)\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?P<target>[^()\s]+)\)"
    r"|`[^`\n]+`",
    re.MULTILINE | re.DOTALL,
)


class Replace(Protocol):
    """Returns the new target of a relative link or image; None if it has none."""

    def __call__(self, target: str, *, image: bool) -> str | None: ...


def repository(root: Path = ROOT) -> str:
    """Return the address of the repository without a slash at its end; an empty string if it has none yet."""
    found = re.search(r'^repository = "([^"]*)"', (root / "pyproject.toml").read_text(), re.MULTILINE)
    return os.environ.get(VARIABLE, found[1] if found else "").rstrip("/")


def address_of(path: str, *, image: bool = False) -> str | None:
    """Return the address of a file in the repository, such as `docs/why.md#claim`; None if it has none yet."""
    base = repository()
    return f"{base}/{'raw' if image else 'blob'}/main/{path}" if base else None


def is_relative(target: str) -> bool:
    """Return whether a link leads to a file next to the page, and not to an address or within the page."""
    return not re.match(r"[a-z]+:|#|/", target)


def rewritten(markdown: str, replace: Replace) -> str:
    """Return Markdown with other relative links, except in code.

    If a link has no new target, its text remains; an image without one is removed.
    """

    def piece(found: re.Match[str]) -> str:
        if found["target"] is None:
            return found[0]
        text = _PIECE.sub(piece, found["text"])
        if not is_relative(found["target"]):
            return f"{found['image']}[{text}]({found['target']})"
        target = replace(found["target"], image=bool(found["image"]))
        if target is None:
            return "" if found["image"] else text
        return f"{found['image']}[{text}]({target})"

    return _PIECE.sub(piece, markdown)


def long_description(readme: str, folder: str = "") -> str:
    """Return a page of the repository for a site that has nothing but this page."""
    return rewritten(
        readme, lambda target, image: address_of(posixpath.normpath(posixpath.join(folder, target)), image=image)
    )


class LongDescription(MetadataHookInterface):
    """Sets what PyPI shows: the long description and the links next to it."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme` and `urls`."""
        text = long_description((ROOT / "README.md").read_text())
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        names = {"Documentation": "docs/README.md", "Changelog": "CHANGELOG.md", "Security": "SECURITY.md"}
        if base := repository():
            metadata["urls"] = {"Repository": base, **{name: str(address_of(path)) for name, path in names.items()}}
