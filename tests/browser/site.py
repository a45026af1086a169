"""The site that the browser opens: `python -m tests.browser.site` serves it until its input ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
LOGIN: Final = ("admin", "admin")
#: What a task may have in every field. If a page did not escape it, it would change the title.
MARKUP: Final = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>"


@dataclass(frozen=True, slots=True)
class Site:
    """A running site."""

    address: str
    #: The ids of records, by name.
    keys: dict[str, str]
    #: The environment for another program, so that it uses the same database.
    environment: Mapping[str, str]

    def admin(self, path: str = "") -> str:
        return f"{self.address}/admin/{path}"

    def records(self, query: str = "") -> str:
        return self.admin(f"lambda_tasks/taskrecord/{query}")

    def record(self, name: str) -> str:
        return self.records(f"{self.keys[name]}/change/")


@contextmanager
def running_site(*, markup: bool = True) -> Iterator[Site]:
    """Serve the example project with a filled database in another process, with or without markup in the fields."""
    with tempfile.TemporaryDirectory(prefix="browser-") as folder:
        environment = {**os.environ, "EXAMPLE_STATE": folder, "DJANGO_SETTINGS_MODULE": "tests.browser.settings"}
        command = [sys.executable, "-m", "tests.browser.site", *(["--markup"] if markup else [])]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                told = json.loads(process.stdout.readline() or "null")
                if told is None:
                    raise RuntimeError("The site could not be started. Its output above has the reason.")
                yield Site(told["address"], told["keys"], environment)
            finally:
                process.stdin.close()


def main() -> None:
    import django

    django.setup()
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.management import call_command
    from django.test.testcases import LiveServerThread

    from tests.browser.data import fill

    call_command("migrate", verbosity=0)
    keys = fill(markup="--markup" in sys.argv)
    server = LiveServerThread("127.0.0.1", StaticFilesHandler)
    server.daemon = True
    server.start()
    server.is_ready.wait()
    if server.error:
        raise server.error
    told = {"address": f"http://127.0.0.1:{server.port}", "keys": {name: str(key) for name, key in keys.items()}}
    print(json.dumps(told), flush=True)
    sys.stdin.read()
    server.terminate()


if __name__ == "__main__":
    main()
