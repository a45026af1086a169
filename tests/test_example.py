"""The example as a user meets it: a copy of its directory, its documented commands, and the demo."""

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

# What it shows of the library is tested with every pair of versions elsewhere.
pytestmark = pytest.mark.once

EXAMPLE: Final = Path(__file__).resolve().parent.parent / "example"
#: Seconds: for a server to answer, and for the demo, which takes a fifth of it where nothing else runs.
PATIENCE: Final = 20
DEMO_PATIENCE: Final = 120
PASSWORD: Final = "correct horse"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the test run's own settings, addresses and AWS variables."""
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
            preexec_fn=heed_interrupts,  # noqa: PLW1509 - takes no lock, allocates nothing
        )


def heed_interrupts() -> None:
    """Undo what a shell does to a test run in its background, and all that it starts: ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# The demo, which runs while the other tests do


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
    """A copy of the example, migrated, with a superuser."""
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
    """Asks the site, and keeps its cookies."""

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
    """A browser on the site that `manage.py runserver` serves."""
    with runserver(example) as site:
        yield Browser(site)


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


def test_the_project_has_nothing_for_django_to_complain_of(example: Path) -> None:
    checked = run(example, "manage.py", "check", "--fail-level", "WARNING")
    assert checked.returncode == 0, checked.stderr


def test_the_documented_address_triggers_a_task_whose_record_the_admin_shows(browser: Browser) -> None:
    page = browser.get("/trigger/?name=Alice")
    assert "1 task sent" in page
    (message_id,) = json.loads(re.findall(r'<script id="sent"[^>]*>(.*?)</script>', page)[0])

    browser.get("/admin/login/")
    browser.post("/admin/login/", username="owner", password=PASSWORD, next="/admin/")
    assert "Task records" in browser.get("/admin/")
    assert message_id in browser.get("/admin/lambda_tasks/taskrecord/")
    record = browser.get(f"/admin/lambda_tasks/taskrecord/{message_id}/change/")
    assert "shop.tasks.send_receipt" in record
    assert "sent to Alice." in record


@pytest.mark.parametrize(
    ("kind", "statuses", "outcome"),
    [
        ("success", ["SUCCESS"], '"Receipt for order'),
        ("failure", ["FAILED"], "CardRefused: "),
        ("ignored", ["SUCCESS"], "Unsubscribed: "),
        ("retry", ["RETRYING", "RETRYING", "SUCCESS"], '"Reserved at attempt 3."'),
        ("async", ["SUCCESS"], '"DOGE": 2.0'),
        ("delay", ["SUCCESS"], '"Reminded'),
        ("tomorrow", ["SUCCESS"], '"Reminded'),
        ("reap", ["SUCCESS"], '"sent_again": 0'),
        ("rollback", [], ""),
    ],
)
def test_a_button_sends_tasks_whose_records_the_page_shows(
    browser: Browser, kind: str, statuses: list[str], outcome: str
) -> None:
    browser.get("/")
    before = {record["id"] for record in browser.get_json("/records/")["records"]}
    placed = json.loads(browser.post("/trigger/", kind=kind, name="Bob"))
    assert bool(placed["sent"]) == bool(statuses)
    assert (placed["order"] is None) == (kind == "rollback")

    new = [record for record in browser.get_json("/records/")["records"] if record["id"] not in before]
    new.sort(key=lambda record: record["retry"])
    assert [record["status"] for record in new] == statuses
    assert all(outcome in record["outcome"] for record in new[-1:])


def test_the_number_of_a_card_is_nowhere_to_be_seen(browser: Browser) -> None:
    browser.get("/")
    (message_id,) = json.loads(browser.post("/trigger/", kind="failure", name="Bob"))["sent"]
    record = browser.get(f"/admin/lambda_tasks/taskrecord/{message_id}/change/")
    assert "CardRefused" in record
    assert "card_number" in record
    assert "4242" not in record + browser.get("/records/")


def test_the_plugin_counts_and_measures(browser: Browser) -> None:
    def runs() -> int:
        rows = browser.get_json("/records/")["measurements"]
        return sum(row["runs"] for row in rows if (row["task"], row["outcome"]) == ("fetch_rates", "succeeded"))

    before = runs()
    browser.get("/trigger/?kind=async")
    assert runs() == before + 1
    (row,) = (row for row in browser.get_json("/records/")["measurements"] if row["task"] == "fetch_rates")
    assert 0.2 <= row["mean"] <= row["slowest"]


def test_cleaning_up_leaves_its_own_record_alone(browser: Browser) -> None:
    browser.get("/trigger/?kind=cleanup")
    (record,) = browser.get_json("/records/")["records"]
    assert (record["task"], record["status"]) == ("cleanup_task_records", "SUCCESS")


# With queues, and no SQS


def test_what_sqs_does_not_take_waits_in_the_outbox_where_the_page_and_the_admin_show_it(tmp_path: Path) -> None:
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

        browser.get("/admin/login/")
        browser.post("/admin/login/", username="owner", password=PASSWORD, next="/admin/")
        page = "/admin/lambda_tasks/outboxmessage/"
        assert tomorrow in browser.get(f"{page}?state=delayed")
        assert now not in browser.get(f"{page}?state=delayed")
        assert now in browser.get(f"{page}?state=waiting")
        assert "order_id" in browser.get(shown[now]["url"])


# The demo


def test_serving_says_so_when_the_port_is_taken(tmp_path: Path) -> None:
    example = copy_of_example(tmp_path)
    (example / ".state").mkdir()
    (example / ".state" / "of another one").touch()
    with closing(socket.socket()) as holder:
        try:
            holder.bind(("127.0.0.1", 8000))
            holder.listen()
        except OSError:
            pass  # somebody else has it: so much the better
        served = run(example, "demo.py", "--serve")
    assert served.returncode == 1
    assert "Port 8000 of 127.0.0.1 cannot be had" in served.stderr
    assert (example / ".state" / "of another one").exists()


def test_the_demo_names_what_is_not_as_it_should_be(example: Path) -> None:
    code = "import django; django.setup(); from demonstration.story import faults; print(*faults([], 0), sep='\\n')"
    asked = run(example, "-c", code, DJANGO_SETTINGS_MODULE="webshop.settings")
    assert asked.returncode == 0, asked.stderr
    assert "pack_parcel: there is no record of it." in asked.stdout
    assert "The tasks wrote {}, and should have written" in asked.stdout


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
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
    """No process that the demo has named is alive, nor a zombie of ours."""
    pids = [int(pid) for pid in re.findall(r"awslambdaric, process (\d+)", text)]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_demo_takes_every_kind_of_task_down_the_whole_road(demo: tuple[subprocess.Popen[str], Path]) -> None:
    process, output = demo
    status = process.wait(timeout=DEMO_PATIENCE)
    text = output.read_text()
    assert status == 0, text
    assert "ok: every record ended as it should" in text
    assert "kills process" in text
    assert "/trigger/?kind=rollback: rolled back, 0 messages sent" in text
    down, kept, up, relayed, run = (
        text.index(words)
        for words in (
            *("is down", "outbox     keeps send_receipt: EndpointConnectionError", "is up again"),
            *("send_receipt was relayed to SQS, and has left it", "sent to Bob"),
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
        "build_report": ["SUCCESS"],
        "search_archive": ["FAILED"],
        "fetch_rates": ["SUCCESS"],
        "send_reminder": ["SUCCESS"],
        "pack_parcel": ["SUCCESS"],
    }
    assert counts.count("SUCCESS") == 2
    assert "RETRYING" in counts
