"""Mark the frames of the project in a recorded traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from django.apps import apps
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

#: Matches the first line of a frame, as Python prints it.
_FRAME: Final = re.compile(r'^(?P<indent>[ |]*) {2}File "(?P<path>[^"]+)", line \d+')
#: Parts of paths of installed packages and of Python itself.
_INSTALLED: Final = re.compile(r"[/\\](?:site-packages|dist-packages|python3(?:\.\d+)?|[Ll]ib)[/\\]|^<")


def marked(traceback: str, task_name: str) -> SafeString:
    """Return `traceback` in a `<pre>`, with the frames of the project in `<strong>` elements.

    A frame belongs to the project if its file is in the package of the task, or in that of an app that this process
    has not installed from a package index.
    """
    packages = own_packages() | {task_name.partition(".")[0]}
    pieces = (
        format_html('<strong class="task-frame">{}</strong>' if own else "{}", text)
        for text, own in _pieces(traceback, packages)
    )
    return format_html(
        '<pre class="task-text task-traceback">{}</pre>', format_html_join("", "{}", ((p,) for p in pieces))
    )


def own_packages() -> frozenset[str]:
    """Return the names of the top-level packages of the project's own apps."""
    own = (config for config in apps.get_app_configs() if not _INSTALLED.search(f"{Path(config.path)}/"))
    return frozenset(config.name.partition(".")[0] for config in own) - {"lambda_tasks", "django"}


def is_own(path: str, packages: frozenset[str]) -> bool:
    """Return whether a file is in one of the packages, and not among the installed ones."""
    return not _INSTALLED.search(path) and not packages.isdisjoint(re.split(r"[/\\]|\.py$", path))


def _pieces(traceback: str, packages: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """Yield the traceback in pieces, each with whether it is a frame of the project."""
    own, indent = False, 0
    for line in traceback.splitlines(keepends=True):
        if frame := _FRAME.match(line):
            own, indent = is_own(frame["path"], packages), len(frame["indent"]) + 2
        elif own and not line[:indent].replace("|", " ").isspace():
            own = False  # the line of the error, or the end of the stack
        yield line, own
