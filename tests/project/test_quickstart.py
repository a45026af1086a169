"""The quickstart, to the letter, in a new project of the installed version of Django.

Each file and each line for the shell comes from the blocks of the page. The commands of the page run in their order,
except that the library is installed already.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.project.test_docs import DOCS, Block, blocks

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = DOCS / "quickstart.md"

#: Visit the documented address with CSRF checks, as a browser does, and the admin's list of records.
VISIT: Final = """
from django.contrib.auth.models import User
from django.test import Client
browser = Client(SERVER_NAME="127.0.0.1", enforce_csrf_checks=True, raise_request_exception=True)
print("answered", browser.get("{address}").content.decode())
browser.force_login(User.objects.create_superuser("admin"))
print("listed", "shop.tasks.greet_customer" in browser.get("/admin/lambda_tasks/taskrecord/").content.decode())
"""


class NewProject:
    """An empty directory, in which the commands of the page run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        names = [name for name in os.environ if name.startswith(("AWS_", "DJANGO_", "DATABASE_"))]
        self._environment = {name: value for name, value in os.environ.items() if name not in names}
        self._environment["PYTHONPATH"] = os.pathsep.join([str(directory), str(ROOT)])

    def run(self, command: str, *, stdin: str = "") -> str:
        """Run a command of the page, or one like it, and return its output."""
        program, *arguments = shlex.split(command)
        modules = {"django-admin": ["-m", "django"], "python": []}
        ran = subprocess.run(
            [sys.executable, *modules[program], *arguments],
            cwd=self.directory,
            env=self._environment,
            input=stdin,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def write(self, block: Block) -> None:
        """Write a block to its file: settings are appended, as later values replace earlier ones."""
        label, _, code = block.code.partition("\n")
        file = self.directory / label.removeprefix("# ")
        with file.open("a" if block.has_settings else "w") as stream:
            stream.write(f"\n{code}")

    def enter(self, code: str) -> str:
        """Enter lines into the shell, and print the values that the page shows for them."""
        lines = [
            f"print(({match[1]}) == ({match[2]}), {match[1]!r})"
            if (match := re.match(r"(\S.*?)  # → (.+)", line))
            else line
            for line in code.splitlines()
        ]
        return self.run("python manage.py shell", stdin="\n".join(lines))


def commands() -> list[str]:
    lines = [line for block in blocks(PAGE, "bash") for line in block.code.splitlines()]
    assert lines.pop(0) == "pip install django-lambda-tasks"
    return lines


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> NewProject:
    """Follow the page up to its third step."""
    new = NewProject(tmp_path_factory.mktemp("quickstart"))
    files = [block for block in blocks(PAGE, "python") if block.module]
    start, migrate = commands()[:-1], commands()[-1]
    for command in start:
        new.run(command)
    for block in files[: [block.module for block in files].index("mysite.urls") + 1]:
        new.write(block)
    assert migrate == "python manage.py migrate"
    new.run(migrate)
    return new


def test_each_block_names_its_file(project: NewProject) -> None:
    names = [block.module for block in blocks(PAGE, "python") if block.module]
    assert names == ["mysite.settings", "shop.tasks", "shop.views", "mysite.urls", "mysite.settings"]
    assert {path.name for path in project.directory.iterdir()} >= {"manage.py", "mysite", "shop"}


def test_project_has_no_problems(project: NewProject) -> None:
    project.run("python manage.py check --database default --fail-level WARNING")
    project.run("python manage.py makemigrations --check --dry-run")


def test_documented_address_signs_a_customer_up(project: NewProject) -> None:
    [address] = re.findall(r"<http://127\.0\.0\.1:8000(/sign-up/\S*)>", PAGE.read_text())
    said = project.run("python manage.py shell", stdin=VISIT.format(address=address)).splitlines()
    assert "answered Welcome, ada!" in said
    assert "listed True" in said


def test_shell_shows_the_documented_values(project: NewProject) -> None:
    code = "\n".join(block.code for block in blocks(PAGE, "python") if not block.module)
    said = project.enter(code).splitlines()
    compared = [line for line in said if line.startswith(("True ", "False "))]
    assert len(compared) == code.count("# →") == 3
    assert all(line.startswith("True ") for line in compared), compared


def test_settings_for_aws_have_no_problems(project: NewProject) -> None:
    *_, deployed = [block for block in blocks(PAGE, "python") if block.has_settings]
    settings = project.directory / "mysite/settings.py"
    before = settings.read_text()
    try:
        settings.write_text(before.replace("LAMBDA_TASKS_EAGER = True", ""))
        project.write(deployed)
        project.run("python manage.py check --fail-level WARNING")
    finally:
        settings.write_text(before)
