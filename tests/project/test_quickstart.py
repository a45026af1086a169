"""The quickstart and the page on the local worker, to the letter, in a new project of the installed version of Django.

A newcomer follows the page from its first line to its last: types its commands in a shell, writes its files, opens its
addresses, and compares what the page shows. The library and moto are installed already, and ports are free ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import pytest

from tests.newcomer import Newcomer, comparable, free_port
from tests.project.test_docs import DOCS, FENCE, Block, blocks

QUICKSTART: Final = DOCS / "quickstart.md"
LOCAL_WORKER: Final = DOCS / "howto/local-worker.md"

#: What the page leaves to its readers: the checks, the account, and a look at the admin.
ALSO: Final = """
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
call_command("check", databases=["default"], fail_level="WARNING")
call_command("makemigrations", check=True, dry_run=True, verbosity=0)
browser = Client(SERVER_NAME="127.0.0.1")
browser.force_login(User.objects.create_superuser("admin"))
print("listed", "shop.tasks.greet_customer" in browser.get("/admin/lambda_tasks/taskrecord/").content.decode())
"""


def steps(page: Path) -> Iterator[Block | str]:
    """Yield the blocks of a page and the paths of the addresses of the development server, in their order."""
    code = iter(blocks(page))
    for found in re.finditer(
        rf"{FENCE.pattern}|and open <http://127\.0\.0\.1:8000(/\S+)>", page.read_text(), FENCE.flags
    ):
        yield found[4] or next(code)


def opened(reader: Newcomer, path: str) -> str:
    """Open an address of the development server, which the page has told to start."""
    port = free_port()
    with reader.leaves_running(f"python manage.py runserver --noreload {port}") as server:
        server.until("server at http")
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            content: str = answer.read().decode()
            return content


def entered(reader: Newcomer, code: str) -> list[str]:
    """Enter lines into Django's shell, and return what it prints: whether each value is the one that the page shows."""
    shown = re.sub(r"^(\S.*?)  # → (.+)$", r"print((\1) == (\2), repr(\1))", code, flags=re.MULTILINE)
    return reader.types("python manage.py shell", stdin=shown + ALSO).splitlines()


def follow(reader: Newcomer, page: Path, *, until: str | None = None) -> list[str]:
    """Do every step of the page up to the module `until`, and return the code for Python's shell."""
    said, code = "", []
    for step in steps(page):
        if isinstance(step, str):
            said = opened(reader, step)
        elif step.language == "bash":
            said = reader.types(step.code)
        elif step.language == "text":
            assert comparable(said) == comparable(step.code), step
        elif step.module is None:
            code.append(step.code)
        else:
            if step.has_settings and "LAMBDA_TASKS_QUEUES" in step.code:
                reader.removes_setting("LAMBDA_TASKS_EAGER")
            label, _, content = step.code.partition("\n")
            reader.writes(label.removeprefix("# "), content)
            if step.module == until:
                break
    return code


def test_quickstart_works_to_the_letter(tmp_path: Path) -> None:
    reader = Newcomer(tmp_path)

    code = "\n".join(follow(reader, QUICKSTART))

    # The last step of the page replaces eager mode by a queue on AWS.
    reader.types("python manage.py check --fail-level WARNING")
    reader.writes("mysite/settings.py", "LAMBDA_TASKS_EAGER = True\n")
    said = entered(reader, code)
    compared = [line for line in said if line.startswith(("True ", "False "))]
    assert len(compared) == code.count("# →") == 3
    assert all(line.startswith("True ") for line in compared), compared
    assert "listed True" in said


@pytest.mark.thorough
@pytest.mark.once
def test_local_worker_works_to_the_letter(tmp_path: Path) -> None:
    port = str(free_port())
    reader = Newcomer(tmp_path)
    follow(reader, QUICKSTART, until="mysite.urls")
    reader.types(
        "python manage.py shell", stdin="from django.contrib.auth.models import User\nUser(username='ada').save()"
    )

    def shown(heading: str, language: str) -> list[str]:
        """Return the blocks of a section, with a free port."""
        [_, content] = LOCAL_WORKER.read_text().split(f"\n## {heading}\n")
        found = FENCE.findall(content.partition("\n## ")[0])
        return [code.replace("5000", port) for _, named, code, *_ in found if named == language]

    install, moto, create = shown("Create a queue", "bash")
    reader.types(install)
    with reader.leaves_running(moto) as server:
        server.until("Running on")
        url = reader.types(create)
        assert [url] == shown("Create a queue", "text")
        reader.removes_setting("LAMBDA_TASKS_EAGER")
        [settings] = shown("Create a queue", "python")
        reader.writes("mysite/settings.py", settings)

        [start], [send] = shown("Start the worker", "bash"), shown("Send a task", "bash")
        [started], [sent, worked] = shown("Start the worker", "text"), shown("Send a task", "text")
        with reader.leaves_running(start) as worker:
            assert comparable(worker.lines(3)) == comparable(started)
            assert comparable(reader.types(send)) == comparable(sent)
            assert comparable(worker.lines(3)) == comparable(worked)
