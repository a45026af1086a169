"""Do what a page tells a newcomer to do, in an empty directory: type its commands, write its files, open its addresses.

The shell is bash, with the Python of the tests. Nothing is installed: `pip` does nothing. The output that a page shows
must be what the program prints, except for ids, times, durations and the numbers of processes.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[1]
#: The programs that pages call, and the arguments with which Python runs them.
PROGRAMS: Final = {"python": "", "django-admin": "-m django", "moto_server": "-m moto.server"}
#: Seconds until a program that does not answer is killed.
PATIENCE: Final = 120
#: What differs from run to run, and what stands for it in a comparison.
VARYING: Final = {
    r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{4}…": "ID",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z": "TIME",
    r"\b\d+(\.\d+)? s\b": "DURATION",
    r"process \d+": "process NUMBER",
}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def comparable(text: str) -> list[str]:
    """Return the lines of an output, with placeholders for everything that varies."""
    for pattern, placeholder in VARYING.items():
        text = re.sub(pattern, placeholder, text)
    return text.rstrip().splitlines()


class Program:
    """A program that runs until it is stopped, and the lines that it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process, self._output = process, process.stdout
        self._killer = threading.Timer(PATIENCE, process.kill)
        self._killer.start()

    def lines(self, number: int) -> str:
        """Return its next lines, and wait for them."""
        return "".join(self._output.readline() for _ in range(number))

    def until(self, words: str) -> None:
        """Wait for a line with these words."""
        said = []
        for line in self._output:
            said.append(line)
            if words in line:
                return
        raise AssertionError("".join(said))

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        self._killer.cancel()
        self._output.close()


class Newcomer:
    """A reader of a page, with an empty directory and a shell."""

    def __init__(self, directory: Path) -> None:
        programs = directory / "programs"
        programs.mkdir()
        self.directory = directory / "project"
        self.directory.mkdir()
        for name, arguments in {**PROGRAMS, "pip": None}.items():
            call = "exit 0" if arguments is None else f'exec {shlex.quote(sys.executable)} {arguments} "$@"'
            (programs / name).write_text(f"#!/bin/sh\n{call}\n")
            (programs / name).chmod(0o755)
        names = [name for name in os.environ if name.startswith(("AWS_", "DJANGO_", "DATABASE_", "PYTHONDONTWRITE"))]
        self._environment = {name: value for name, value in os.environ.items() if name not in names}
        self._environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._environment["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self._exports = ""

    def types(self, commands: str, *, stdin: str = "") -> str:
        """Run commands in a shell that has the variables exported so far, and return what they print."""
        ran = subprocess.run(**self._call(commands), input=stdin, timeout=PATIENCE, stderr=subprocess.PIPE, check=False)
        if ran.returncode:
            raise AssertionError(f"{commands}\n{ran.stdout}{ran.stderr}")
        self._exports += "".join(f"{line}\n" for line in commands.splitlines() if line.startswith("export "))
        said: str = ran.stdout
        return said

    @contextmanager
    def leaves_running(self, command: str) -> Iterator[Program]:
        """Start a program that runs until the end of the block, as in a terminal of its own."""
        call = self._call(f"exec {command.rstrip()}")
        program = Program(subprocess.Popen(**call, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL))
        try:
            yield program
        finally:
            program.stop()

    def _call(self, commands: str) -> dict[str, Any]:
        pipe: int | IO[str] = subprocess.PIPE
        shell = ["bash", "-ec", self._exports + commands]
        return {"args": shell, "cwd": self.directory, "env": self._environment, "stdout": pipe, "text": True}

    def writes(self, label: str, code: str) -> None:
        """Write code into the file of that name; lines for the settings are added to them."""
        file = self.directory / label
        with file.open("a" if file.name == "settings.py" else "w") as stream:
            stream.write(f"\n{code}")

    def removes_setting(self, name: str) -> None:
        settings = self.directory / "mysite/settings.py"
        settings.write_text(re.sub(rf"^{name} = .*\n", "", settings.read_text(), flags=re.MULTILINE))
