"""Pictures of the command line: run a subcommand on a terminal, and draw what it prints as SVG."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO
from typing import TYPE_CHECKING, Final

from tests.browser.site import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Characters in a line, and lines.
COLUMNS: Final = 120
_LINES: Final = 200
#: Rich's pictures load a font from another host.
_FONT: Final = re.compile(r"@font-face \{.*?\}", re.DOTALL)


def printed(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return what `manage.py lambda_tasks` prints on a terminal, with its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "django", "lambda_tasks", *words]
    described = {**environment, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    described.pop("NO_COLOR", None)
    with subprocess.Popen(command, cwd=ROOT, env=described, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        parts = []
        while part := _read(ours):
            parts.append(part)
    os.close(ours)
    text = b"".join(parts).decode().replace("\r\n", "\n")
    if process.returncode:
        raise RuntimeError(f"`manage.py lambda_tasks {' '.join(words)}` must succeed, not print:\n{text}")
    return text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # Linux ends the output of a terminal with an error
        return b""


def picture(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the SVG of a terminal in which `manage.py lambda_tasks` has run."""
    from rich.console import Console
    from rich.text import Text

    command = f"python manage.py lambda_tasks {' '.join(words)}"
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "green"), (command, "bold")))
    console.print(Text.from_ansi(printed(words, environment)))
    return _FONT.sub("", console.export_svg(title="django-lambda-tasks", unique_id=words[0]))
