"""The example as a user runs it: a copy of its directory, its documented commands, and the demo."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

import pytest

# Other tests cover the library features of the example with every pair of versions.
pytestmark = [pytest.mark.thorough, pytest.mark.once]

EXAMPLE: Final = Path(__file__).resolve().parents[2] / "example"
#: Seconds: for a server's response, and for the demo, which takes a fifth of it on an idle machine.
PATIENCE: Final = 20
DEMO_PATIENCE: Final = 120
PASSWORD: Final = "correct horse"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment without the settings, addresses and AWS variables of the test run."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **more}


def copy_of_example(directory: Path) -> Path:
    ignored = shutil.ignore_patterns(".state", "*.sqlite3*", "__pycache__")
    return Path(shutil.copytree(EXAMPLE, directory / "example", ignore=ignored))


def run(example: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `python …` in the example, as its README says."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=example,
        env=environment(example, **more),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start_demo(example: Path, output: Path) -> subprocess.Popen[str]:
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "demo.py"],
            cwd=example,
            env=environment(example),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=restore_sigint,  # noqa: PLW1509 - takes no lock, allocates nothing
        )


def restore_sigint() -> None:
    """Stop ignoring SIGINT, which a shell sets for a test run in its background and for its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# The demo, which runs during the other tests


@pytest.fixture(scope="module", autouse=True)
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    directory = tmp_path_factory.mktemp("demo")
    output = directory / "output"
    process = start_demo(copy_of_example(directory), output)
    yield process, output
    process.terminate()
    process.wait(timeout=PATIENCE)


# The documented commands, without AWS


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the example, migrated, with a superuser."""
    example = copy_of_example(tmp_path_factory.mktemp("eager"))
    migrated = run(example, "manage.py", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    assert "not yet reflected in a migration" not in migrated.stdout
    created = run(
        example,
        *("manage.py", "createsuperuser", "--noinput", "--username", "owner", "--email", "owner@example.com"),
        DJANGO_SUPERUSER_PASSWORD=PASSWORD,
    )
    assert created.returncode == 0, created.stderr
    return example


class Browser:
    """A client of the site that keeps its cookies."""

    def __init__(self, site: str) -> None:
        self.site = site
        self._cookies = CookieJar()
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(self._cookies))

    def get(self, path: str, *, accept: str = "text/html") -> str:
        return self._ask(Request(self.site + path, headers={"Accept": accept}))

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path, accept="application/json"))

    def post(self, path: str, **fields: str) -> str:
        token = next(cookie.value for cookie in self._cookies if cookie.name == "csrftoken")
        data = urlencode({"csrfmiddlewaretoken": token, **fields}).encode()
        return self._ask(Request(self.site + path, data, {"Accept": "application/json"}))

    def _ask(self, request: Request) -> str:
        with self._opener.open(request, timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
        return text


@pytest.fixture(scope="module")
def browser(example: Path) -> Iterator[Browser]:
    """Return a browser on the site that `manage.py runserver` serves."""
    with runserver(example) as site:
        yield Browser(site)


def log_in(browser: Browser) -> None:
    browser.get("/admin/login/")
    browser.post("/admin/login/", username="owner", password=PASSWORD, next="/admin/")


@contextmanager
def runserver(example: Path, **more: str) -> Iterator[str]:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    log = example / "runserver.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "manage.py", "runserver", "--noreload", str(port)],
            cwd=example,
            env=environment(example, **more),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_served(Browser(f"http://127.0.0.1:{port}"), server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def wait_until_served(browser: Browser, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            browser.get("/")
        except URLError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            return


def test_project_passes_the_checks_of_django(example: Path) -> None:
    checked = run(example, "manage.py", "check", "--fail-level", "WARNING")
    assert checked.returncode == 0, checked.stderr


def test_documented_address_triggers_a_recorded_task(browser: Browser) -> None:
    page = browser.get("/trigger/?name=Alice")
    assert "1 task sent" in page
    (message_id,) = json.loads(re.findall(r'<script id="sent"[^>]*>(.*?)</script>', page)[0])

    log_in(browser)
    assert "Task records" in browser.get("/admin/")
    assert message_id in browser.get("/admin/lambda_tasks/taskrecord/")
    record = browser.get(f"/admin/lambda_tasks/taskrecord/{message_id}/change/")
    assert "shop.tasks.send_receipt" in record
    assert "sent to Alice." in record


@pytest.mark.parametrize(
    ("kind", "statuses", "outcome"),
    [
        ("success", ["SUCCESS"], '"Receipt for order'),
        ("failure", ["FAILED", "SUCCESS"], "CardRefused: "),
        ("chain", ["SUCCESS", "SUCCESS"], "350"),
        ("group", ["SUCCESS"] * 4, "items on all shelves"),
        ("ignored", ["SUCCESS"], "Unsubscribed: "),
        ("retry", ["RETRYING", "RETRYING", "SUCCESS"], '"Reserved on attempt 3."'),
        ("progress", ["SUCCESS"], "20"),
        ("async", ["SUCCESS"], '"DOGE": 2.0'),
        ("delay", ["SUCCESS"], '"Reminded'),
        ("tomorrow", ["SUCCESS"], '"Reminded'),
        ("reap", ["SUCCESS"], '"sent_again": 0'),
        ("rollback", [], ""),
    ],
)
def test_button_sends_tasks_that_the_page_shows(browser: Browser, kind: str, statuses: list[str], outcome: str) -> None:
    browser.get("/")
    before = {record["id"] for record in browser.get_json("/records/")["records"]}
    placed = json.loads(browser.post("/trigger/", kind=kind, name="Bob"))
    assert bool(placed["sent"]) == bool(statuses)
    assert (placed["order"] is None) == (kind == "rollback")

    new = [record for record in browser.get_json("/records/")["records"] if record["id"] not in before]
    new.sort(key=lambda record: (record["retry"], record["status"]))
    assert [record["status"] for record in new] == statuses
    assert any(outcome in record["outcome"] for record in new) == bool(statuses)


def test_card_number_is_never_shown(browser: Browser) -> None:
    log_in(browser)
    browser.get("/")
    (message_id,) = json.loads(browser.post("/trigger/", kind="failure", name="Bob"))["sent"]
    record = browser.get(f"/admin/lambda_tasks/taskrecord/{message_id}/change/")
    assert "CardRefused" in record
    assert "card_number" in record
    assert "4242 4242" not in record + browser.get("/records/")


def test_import_reports_its_progress(browser: Browser) -> None:
    log_in(browser)
    browser.get("/")
    (message_id,) = json.loads(browser.post("/trigger/", kind="progress", name="Bob"))["sent"]
    record = browser.get(f"/admin/lambda_tasks/taskrecord/{message_id}/change/")
    assert '<progress max="100" value="100" aria-label="20 of 20">100%</progress>' in record


def test_plugin_counts_and_measures(browser: Browser) -> None:
    def runs() -> int:
        rows = browser.get_json("/records/")["measurements"]
        return sum(row["runs"] for row in rows if (row["task"], row["outcome"]) == ("fetch_rates", "succeeded"))

    before = runs()
    browser.get("/trigger/?kind=async")
    assert runs() == before + 1
    (row,) = (row for row in browser.get_json("/records/")["measurements"] if row["task"] == "fetch_rates")
    assert 0.2 <= row["mean"] <= row["slowest"]


def test_cleanup_keeps_its_own_record(browser: Browser) -> None:
    browser.get("/trigger/?kind=cleanup")
    record, *_ = browser.get_json("/records/")["records"]
    assert (record["task"], record["status"]) == ("cleanup_task_records", "SUCCESS")


# With queues, but without SQS


def test_unsent_messages_are_shown_in_the_outbox(tmp_path: Path) -> None:
    """The page of the example and the admin show them while SQS is unreachable."""
    example = copy_of_example(tmp_path)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    queues = {name: f"{nobody}/1/{name}" for name in ("default", "stock", "parcels")}
    more = {
        "EXAMPLE_QUEUES": json.dumps(queues),
        "AWS_ENDPOINT_URL_SQS": nobody,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
    }
    account = ("--noinput", "--username", "owner", "--email", "owner@example.com")
    for command in (("migrate",), ("createcachetable", "--database", "cache"), ("createsuperuser", *account)):
        done = run(example, "manage.py", *command, **more)
        assert done.returncode == 0, done.stderr
    with runserver(example, **more) as site:
        browser = Browser(site)
        browser.get("/")
        (now,) = json.loads(browser.post("/trigger/", kind="success", name="Bob"))["sent"]
        (tomorrow,) = json.loads(browser.post("/trigger/", kind="tomorrow", name="Bob"))["sent"]
        shown = {message["id"]: message for message in browser.get_json("/records/")["outbox"]}
        assert shown.keys() == {now, tomorrow}
        assert "EndpointConnectionError" in shown[now]["error"]
        assert shown[tomorrow]["error"] == ""

        log_in(browser)
        page = "/admin/lambda_tasks/outboxmessage/"
        assert tomorrow in browser.get(f"{page}?state=delayed")
        assert now not in browser.get(f"{page}?state=delayed")
        assert now in browser.get(f"{page}?state=waiting")
        assert "order_id" in browser.get(shown[now]["url"])


# The demo


def test_serve_reports_a_port_in_use(tmp_path: Path) -> None:
    example = copy_of_example(tmp_path)
    (example / ".state").mkdir()
    (example / ".state" / "of another one").touch()
    with closing(socket.socket()) as holder:
        try:
            holder.bind(("127.0.0.1", 8000))
            holder.listen()
        except OSError:
            pass  # another program uses the port already
        served = run(example, "demo.py", "--serve")
    assert served.returncode == 1
    assert "Port 8000 of 127.0.0.1 is unavailable" in served.stderr
    assert (example / ".state" / "of another one").exists()


def test_demo_reports_each_fault(example: Path) -> None:
    code = "import django; django.setup(); from demonstration.scenario import faults; print(*faults([], 0), sep='\\n')"
    asked = run(example, "-c", code, DJANGO_SETTINGS_MODULE="webshop.settings")
    assert asked.returncode == 0, asked.stderr
    assert "pack_parcel: it has no record." in asked.stdout
    assert "The tasks wrote {} instead of" in asked.stdout


def test_interrupted_demo_leaves_no_processes(tmp_path: Path) -> None:
    output = tmp_path / "output"
    process = start_demo(copy_of_example(tmp_path), output)
    wait_for_line("received", process, output)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 128 + signal.SIGINT
    text = output.read_text()
    assert "Traceback" not in text
    assert "Interrupted" in text
    assert_all_ended(text)


def wait_for_line(word: str, process: subprocess.Popen[str], output: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while word not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)


def assert_all_ended(text: str) -> None:
    """Assert that none of the processes that the demo has named is alive, or a zombie."""
    pids = [int(pid) for pid in re.findall(r"awslambdaric, process (\d+)", text)]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_demo_runs_every_kind_of_task(demo: tuple[subprocess.Popen[str], Path]) -> None:
    process, output = demo
    status = process.wait(timeout=DEMO_PATIENCE)
    text = output.read_text()
    assert status == 0, text
    assert "ok: every record ended as expected" in text
    assert "kills process" in text
    assert "/trigger/?kind=rollback: rolled back, 0 messages sent" in text
    down, kept, up, relayed, run = (
        text.index(words)
        for words in (
            *("is down", "outbox     keeps send_receipt: EndpointConnectionError", "is up again"),
            *("send_receipt was relayed to SQS", "sent to Bob"),
        )
    )
    assert down < kept < up < min(relayed, run)
    assert max(map(len, text.splitlines())) <= 100
    assert "\033" not in text
    assert_all_ended(text)

    table = text[text.index("task             status") :]
    rows = re.findall(r"^(\w+) +(RUNNING|SUCCESS|FAILED|RETRYING) +[\d.]+ +(\d+)  (\S.*)$", table, re.MULTILINE)
    statuses: dict[str, list[str]] = {}
    for task, ended, *_ in rows:
        statuses.setdefault(task, []).append(ended)
    counts = statuses.pop("count_stock")
    assert statuses == {
        "send_receipt": ["SUCCESS", "SUCCESS"],
        "charge_card": ["FAILED"],
        "send_newsletter": ["SUCCESS"],
        "reserve_stock": ["RETRYING", "RETRYING", "SUCCESS"],
        "load_truck": ["SUCCESS", "SUCCESS"],
        "refresh_prices": ["SUCCESS"],
        "send_coupon": ["FAILED"],
        "wrap_gift": ["SUCCESS"],
        "bill_gift": ["SUCCESS"],
        "count_shelf": ["SUCCESS", "SUCCESS", "SUCCESS"],
        "build_report": ["SUCCESS"],
        "search_archive": ["FAILED"],
        "fetch_rates": ["SUCCESS"],
        "import_products": ["SUCCESS"],
        "send_reminder": ["SUCCESS"],
        "pack_parcel": ["SUCCESS"],
    }
    assert counts.count("SUCCESS") == 2
    assert "RETRYING" in counts
