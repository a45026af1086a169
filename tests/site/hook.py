"""MkDocs' hooks: the navigation, links to files outside of docs/, marks of new features, and nothing of other hosts."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hatch_build import ROOT, address_of, repository, rewritten
from tests.site.navigation import DOCS, navigation, outside, page_of

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

#: MkDocs counts its warnings: with `strict`, one of them ends the build.
_LOG: Final = logging.getLogger("mkdocs.hooks.site")
#: A mark in Markdown, such as *New in 2.0.*, and the emphasis that it has on the site.
NEW_IN: Final = re.compile(r"(?<!`)\*New in (\d+\.\d+)\.\*(?!`)")
STYLED: Final = r'<span class="new-in">New in \1</span>'
#: What a browser loads by itself: the addresses of links that readers follow are not among them.
_LOADED: Final = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?=[^>]*\srel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload))[^>]*\shref=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|(?:url\(|@import\s+)["']?((?:https?:)?//[^"')\s]+)"""
)
#: The offline plugin takes it from another host; ours is in the theme folder.
_SHIM: Final = re.compile(r"https://unpkg\.com/iframe-worker/shim")
_OWN_SHIM: Final = "assets/worker-in-a-frame.js"


def anchor(heading: str, separator: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the navigation and, if the repository has an address, the link to it."""
    config.nav = navigation()
    if address := repository():
        config.repo_url, config.repo_name = address, "Repository"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside of docs/."""
    from mkdocs.structure.files import File

    for path in outside():
        files.append(File.generated(config, page_of(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt links, and marks of new features."""
    source = Path(str(page.file.abs_src_path))
    markdown = rewritten(markdown, lambda target, image: link_on_site(source, target, image=image))
    return NEW_IN.sub(STYLED, markdown)


def link_on_site(source: Path, target: str, *, image: bool = False) -> str | None:
    """Return the link on the site for one in a file: to a page, to an address, or None if there is neither."""
    name, separator, fragment = target.partition("#")
    path = Path(posixpath.normpath(source.parent / name))
    if path.is_relative_to(DOCS) or path in outside():
        start = posixpath.dirname(page_of(source))
        return posixpath.relpath(page_of(path), start or ".") + separator + fragment
    if not path.exists():
        _LOG.warning("%s links to '%s', which does not exist.", source.relative_to(ROOT), target)
    return address_of(path.relative_to(ROOT).as_posix() + separator + fragment, image=image)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Replace the one script of another host."""
    up = "../" * page.url.count("/")
    return _SHIM.sub(up + _OWN_SHIM, output)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Do the same with pages that have no Markdown, such as 404.html."""
    return _SHIM.sub(_OWN_SHIM, output_content)


def on_post_build(config: MkDocsConfig) -> None:
    """Stop if a page would load anything from another host."""
    from mkdocs.exceptions import PluginError

    if strangers := sorted(loaded_from_others(Path(config.site_dir))):
        raise PluginError("The site loads files from other hosts:\n" + "\n".join(strangers))


def loaded_from_others(folder: Path) -> set[str]:
    """Return the files of a built site, each with an address of another host that browsers would load."""
    found = set()
    for path in folder.rglob("*"):
        if path.suffix in {".html", ".css", ".svg"}:
            text = path.read_text()
            for match in _LOADED.finditer(text):
                found.add(f"{path.relative_to(folder)}: {next(filter(None, match.groups()))}")
            # The theme takes the program that draws these diagrams from another host.
            if path.suffix == ".html" and '<pre class="mermaid"' in text:
                found.add(f"{path.relative_to(folder)}: a diagram of mermaid; draw it with tests/site/figures.py")
    return found
