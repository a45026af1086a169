"""Test the documentation: its code runs, its links exist, and its lists are complete.

A page runs in order, as one test:

- A block that begins with a comment such as `# shop/tasks.py` is the content of that module, and other blocks can
  import it by that name. Several blocks with the same name extend the module. Settings are not a module.
- Other blocks share a namespace, which also has the names of the preceding blocks.
- Settings that a block assigns are checked, and apply to the rest of the page.
- `expression  # → value` must be equal, and `statement  # raises SomeError` must raise.
- Tasks run in eager mode, on a database that commits transactions.
- pytest collects tests in a block such as `# shop/tests/test_views.py` like any others.

Blocks in other languages than `python` do not run.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from urllib.parse import unquote

import botocore.session
import django
import pytest
from botocore.validate import ParamValidator
from django.contrib.auth.models import User
from django.core.checks import ERROR
from django.core.management import CommandParser, call_command
from django.db.utils import ConnectionHandler
from django.test import override_settings

import lambda_tasks
from lambda_tasks import exceptions, handler, maintenance, registry, timeouts
from lambda_tasks.backends import batches, outbox, relay, sqs, sqs_messages
from lambda_tasks.contrib import django_tasks  # noqa: F401, before pages import Django's tasks
from lambda_tasks.definition.options import OPTION_NAMES, Options
from lambda_tasks.execution import progress
from lambda_tasks.handles import TIMEOUT, Polling
from lambda_tasks.jobs import PENDING, ROLLED_BACK, SENT, UNSENT
from lambda_tasks.limits import alarms
from lambda_tasks.management.commands.lambda_tasks import SUBCOMMANDS
from lambda_tasks.messages import SQSLambdaTask, SQSLambdaTaskMessage
from lambda_tasks.models import OutboxMessage, TaskProgress, TaskRecord, TaskRerun, TaskStatus
from lambda_tasks.operations import checks, infrastructure, ping
from lambda_tasks.settings import MAX_DELAY, MAX_KEPT_DELAY, LambdaTasksSettings, Setting, app_settings
from lambda_tasks.tasks import cleanup_task_records, reap_lost_tasks
from lambda_tasks.wire.attributes import OWN_ATTRIBUTES
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.visibility import lost_after
from tests.operations.infrastructure import QUEUES, described, properties, resources
from tests.operations.test_checks import only

pytestmark = pytest.mark.once  # pages say nothing about a version of Python or Django

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
#: These pages do not have code that runs; the other tests cover them too.
OTHER_PAGES: Final = ("CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "example/README.md")
ALL_PAGES: Final = [*PAGES, *(ROOT / name for name in OTHER_PAGES if (ROOT / name).exists())]

LANGUAGES: Final = {"python", "bash", "sh", "text", "yaml", "sql", "toml", "json"}
EAGER: Final = "lambda_tasks.backends.eager.EagerBackend"

#: Modules that the pages use and do not show: other parts of their imaginary shop.
SHOP: Final = {
    "shop.crm": """
        class CrmBusy(Exception):
            pass

        answers = [CrmBusy("come back later"), CrmBusy("come back later")]

        def push_contact(user_id):
            if answers:
                raise answers.pop()
    """,
    "shop.stock": """
        def count_shelves(warehouse_id):
            return 12
    """,
    "shop.reports": """
        def write_report(month):
            return f"report of {month}"

        def discard_draft(month):
            pass
    """,
}


# Reading pages


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page: its language, its code, and the line on which the code begins."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def module(self) -> str | None:
        """The name of the module to which the block belongs, if it has a label."""
        label = re.match(r"# ([\w/]+)\.py\n", self.code)
        return label[1].replace("/", ".") if label else None

    @property
    def has_tests(self) -> bool:
        return self.module is not None and self.module.rpartition(".")[2].startswith("test_")

    @property
    def has_settings(self) -> bool:
        return self.module is not None and self.module.rpartition(".")[2] == "settings"

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


FENCE: Final = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str | None = None) -> list[Block]:
    text = page.read_text()
    found = [
        Block(page, text.count("\n", 0, fence.start(3)) + 1, fence[2].strip(), textwrap.dedent(fence[3]))
        for fence in FENCE.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def prose(page: Path) -> str:
    """Return a page without its code."""
    return FENCE.sub("", page.read_text())


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and similar sites generate for the headings of a page."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def section(page: Path, heading: str) -> str:
    """Return the content under a heading, up to the next one."""
    [_, rest] = re.split(rf"^#+ {re.escape(heading)}$", page.read_text(), maxsplit=1, flags=re.MULTILINE)
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Running pages


class PageRunner:
    """The modules, tasks and settings of a page while its blocks run; they are removed afterwards."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.modules: dict[str, ModuleType] = {}
        self.tasks: dict[str, Any] = {}
        self._settings = ExitStack()
        self._main = self.module(f"page_{page.stem.replace('-', '_')}")
        if django.VERSION < (6, 0):
            self.modules["django.tasks"] = importlib.import_module("django_tasks")
        for name, code in SHOP.items():
            exec(textwrap.dedent(code), self.module(name).__dict__)

    def module(self, name: str) -> ModuleType:
        """Return the module of that name; create it, and the packages above it, if necessary."""
        if name not in self.modules:
            module = self.modules[name] = ModuleType(name)
            module.__dict__["__path__"] = []
            package, _, own_name = name.rpartition(".")
            if package:
                setattr(self.module(package), own_name, module)
        return self.modules[name]

    @contextmanager
    def open(self) -> Iterator[PageRunner]:
        """Make the modules importable and register the tasks, for the duration of the context."""
        modules, tasks = dict(sys.modules), dict(registry._tasks)
        sys.modules.update(self.modules)
        registry._tasks.update(self.tasks)
        try:
            with self._settings:
                yield self
        finally:
            self.tasks = {name: task for name, task in registry._tasks.items() if name not in tasks}
            for name in self.modules:
                sys.modules.pop(name, None)
                if name in modules:
                    sys.modules[name] = modules[name]
            registry._tasks.clear()
            registry._tasks.update(tasks)

    def run_block(self, block: Block) -> None:
        module = self._main if block.module is None or block.has_settings else self.module(block.module)
        sys.modules.update(self.modules)
        self._run(block, module.__dict__)
        if module is not self._main:
            names = {name: value for name, value in vars(module).items() if not name.startswith("__")}
            self._main.__dict__.update(names)
        self._apply_settings(block, {name: module.__dict__[name] for name in assigned_settings(block)})

    def _run(self, block: Block, namespace: dict[str, Any]) -> None:
        lines = block.code.splitlines()
        for statement in ast.parse(block.code).body:
            last = lines[(statement.end_lineno or 1) - 1]
            expected = re.search(r"# → (.+)$", last)
            error = re.search(r"# raises (\w+)$", lines[statement.lineno - 1]) or re.search(r"# raises (\w+)$", last)
            ast.increment_lineno(statement, block.line - 1)
            if error:
                with pytest.raises(Exception) as raised:  # noqa: PT011, which error is compared below
                    run(statement, namespace, self.page)
                names = [parent.__name__ for parent in raised.type.__mro__]
                assert error[1] in names, f"{block}: {last.strip()}: it raised {raised.value!r}"
            else:
                value = run(statement, namespace, self.page)
                if expected:
                    wanted = eval(expected[1], namespace)
                    assert value == wanted, f"{block}: {last.strip()}: it was {value!r}"

    def _apply_settings(self, block: Block, values: Mapping[str, Any]) -> None:
        """Check the settings that a block assigns, and apply them to the rest of the page."""
        values = dict(values)
        if (apps := values.pop("INSTALLED_APPS", None)) is not None:
            assert "lambda_tasks" in apps, block
        if (databases := values.pop("DATABASES", None)) is not None:
            check_connects(databases["default"])
        if (config := values.pop("LOGGING", None)) is not None:
            check_logging(config)
        check_settings(values, block)
        # Nothing is sent to AWS from here.
        if "sqs" in str(values.get("LAMBDA_TASKS_BACKEND", "")):
            del values["LAMBDA_TASKS_BACKEND"]
        self._settings.enter_context(override_settings(**values))


def run(statement: ast.stmt, namespace: dict[str, Any], page: Path) -> Any:
    """Execute a statement and return its value, if it has one."""
    if isinstance(statement, ast.Expr):
        return eval(compile(ast.Expression(statement.value), str(page), "eval"), namespace)
    exec(compile(ast.Module([statement], []), str(page), "exec"), namespace)
    return None


def assigned_settings(block: Block) -> list[str]:
    named = {"INSTALLED_APPS", "DATABASES", "CACHES", "LOGGING", "TASKS"}
    return [
        target.id
        for statement in ast.parse(block.code).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and (target.id in named or target.id.startswith("LAMBDA_TASKS_"))
    ]


def check_settings(values: Mapping[str, Any], block: Block) -> None:
    known = {setting.name for setting in vars(LambdaTasksSettings).values() if isinstance(setting, Setting)}
    unknown = {name for name in values if name.startswith("LAMBDA_TASKS_")} - known
    assert not unknown, f"{block}: there is no setting {unknown}"
    with override_settings(**values):
        messages = [
            *checks.check_settings(),
            *checks.check_strategies(),
            *checks.check_plugins(),
        ]
        assert [message for message in messages if message.level >= ERROR] == [], str(block)


def check_connects(described: dict[str, Any]) -> None:
    """Connect to the test server as described, if the tests run on this kind of database."""
    from django.conf import settings

    own = settings.DATABASES["default"]
    if described["ENGINE"] == own["ENGINE"]:
        place = {name: own[name] for name in ("NAME", "HOST", "PORT", "USER", "PASSWORD") if name in own}
        # The test's own database may be the only one on the server.
        options = {**own.get("OPTIONS", {}), **described["OPTIONS"]}
        connection = ConnectionHandler({"default": {**described, **place, "OPTIONS": options}})["default"]
        try:
            connection.ensure_connection()
        finally:
            connection.close()


def check_logging(config: dict[str, Any]) -> None:
    """Configure logging in a process of its own, because this one could not undo it."""
    program = "import json, logging.config, sys; logging.config.dictConfig(json.loads(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, json.dumps(config)], check=True, timeout=60)


@pytest.fixture
def eager(settings: Any) -> None:
    """Run tasks when they are enqueued; a page may override this setting."""
    settings.LAMBDA_TASKS_BACKEND = EAGER
    # The pages refer to more queues than the settings of the tests define.
    settings.LAMBDA_TASKS_QUEUES = {**settings.LAMBDA_TASKS_QUEUES, "heavy": "https://sqs.example/heavy"}


@contextmanager
def running_page(page: Path) -> Iterator[PageRunner]:
    """Run a page, and keep its runner open so that its effects can be checked."""
    runner = PageRunner(page)
    with runner.open():
        for block in blocks(page, "python"):
            if not block.has_tests:
                runner.run_block(block)
        yield runner


@pytest.mark.usefixtures("eager")
@pytest.mark.django_db(transaction=True)
@pytest.mark.filterwarnings("ignore:.* is defined with lambda_tasks.contrib.celery:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_code_on_the_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "mock_aws" in page.read_text():
        monkeypatch.delenv("AWS_ENDPOINT_URL")  # moto only replaces the addresses of AWS
    with running_page(page) as runner:
        runner.tasks.update(registry._tasks)
    for task in runner.tasks.values():
        task.signature.check()
    assert not TaskRecord.objects.filter(status=TaskStatus.RUNNING).exists()


@pytest.mark.usefixtures("eager")
@pytest.mark.django_db(transaction=True)
def test_quickstart_view_signs_a_customer_up(rf: Any) -> None:
    with running_page(DOCS / "quickstart.md") as runner, override_settings(LAMBDA_TASKS_EAGER=True):
        runner.module("shop.views").sign_up(rf.get("/", {"name": "ada"}))  # type: ignore[attr-defined]
    assert User.objects.filter(username="ada").exists()
    assert TaskRecord.objects.latest().result == "greeted ada"


@pytest.mark.usefixtures("eager")
@pytest.mark.django_db(transaction=True)
def test_logging_page_shows_the_actual_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lambda_tasks.task")
    with running_page(DOCS / "howto/logging.md") as runner:
        handle = runner.module("shop.tasks").pack_parcel.execute_on_commit(order_id=42)  # type: ignore[attr-defined]
    [line] = [record for record in caplog.records if record.name == "lambda_tasks.task"]
    assert line.getMessage() == f"[{handle.message_id}] packing order 42"
    assert (line.message_id, line.task_name) == (handle.message_id, "shop.tasks.pack_parcel")  # type: ignore[attr-defined]


# Tests on pages


def _collect_example_tests() -> list[PageRunner]:
    """Add the tests of all pages to this module, where pytest finds them."""
    runners = []
    for page in PAGES:
        if not any(block.has_tests for block in blocks(page, "python")):
            continue
        runner = PageRunner(page)
        with runner.open():
            for block in blocks(page, "python"):
                # Blocks without a name belong to the test of the page.
                if block.module not in (None, "settings"):
                    runner.run_block(block)
        for block in blocks(page, "python"):
            if block.has_tests:
                for name, value in vars(runner.modules[str(block.module)]).items():
                    if getattr(value, "__module__", None) == block.module and "test" in name.lower():
                        globals()[f"{name}__{page.stem}"] = value
        runners.append(runner)
    return runners


RUNNERS: Final = _collect_example_tests()


@pytest.fixture(scope="module", autouse=True)
def _runners_of_examples() -> Iterator[None]:
    with ExitStack() as stack:
        for runner in RUNNERS:
            stack.enter_context(runner.open())
        yield


def test_examples_of_the_testing_page_are_collected() -> None:
    names = [name for name in globals() if name.endswith("__testing")]
    assert len(names) == 11, names


# Links, and required content


def links(page: Path) -> list[str]:
    return [
        target
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page))
        if not target.startswith(("https://", "http://", "mailto:"))
    ]


@pytest.mark.parametrize("page", ALL_PAGES, ids=ids)
def test_links_exist(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=ids)
def test_fences_name_their_language(page: Path) -> None:
    assert page.read_text().count("```") == 2 * len(blocks(page))
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize("page", ALL_PAGES, ids=ids)
def test_json_blocks_are_valid(page: Path) -> None:
    for block in blocks(page, "json"):
        json.loads(block.code)


def test_index_has_every_page() -> None:
    """A folder may have an index of its own, to which the main index links."""
    index = DOCS / "README.md"
    indexes = [index, *DOCS.glob("*/README.md")]
    linked = {(each.parent / link.partition("#")[0]).resolve() for each in indexes for link in links(each)}
    assert {page for page in DOCS.rglob("*.md") if page != index} <= linked


def names_from_rooms(code: str) -> list[str]:
    """Return the names that the code imports from their modules although the package exports them."""
    return [
        f"{statement.module}.{alias.name}"
        for statement in ast.walk(ast.parse(code))
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
        if statement.module == lambda_tasks._MODULES.get(alias.name)
    ]


@pytest.mark.parametrize("page", ALL_PAGES, ids=ids)
def test_examples_import_exported_names_from_the_package(page: Path) -> None:
    assert [name for block in blocks(page, "python") for name in names_from_rooms(block.code)] == []


def test_example_project_imports_exported_names_from_the_package() -> None:
    files = sorted((ROOT / "example").rglob("*.py"))
    assert files
    assert [name for file in files for name in names_from_rooms(file.read_text())] == []


def test_reference_lists_the_names_of_the_package() -> None:
    table = section(DOCS / "reference/decorator.md", "Names of the package")
    listed = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
    assert sorted(name for names in listed for name in re.findall(r"`(\w+)`", names)) == sorted(lambda_tasks.__all__)


def test_import_from_a_room_is_found() -> None:
    code = "from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task"
    assert names_from_rooms(code) == ["lambda_tasks.decorators.lambda_task"]


def test_first_screen_has_the_commands_and_code() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:36])
    for wanted in ("make demo", "make test", "LAMBDA_TASKS_QUEUES", "@lambda_task", "execute_on_commit"):
        assert wanted in first_screen


@pytest.mark.parametrize("page", ALL_PAGES, ids=ids)
def test_pages_contain_no_local_paths(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(home|Users|root|work|tmp)/", page.read_text())


SETTINGS: Final = {
    setting.name: setting for setting in vars(LambdaTasksSettings).values() if isinstance(setting, Setting)
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    text = section(DOCS / "reference/settings.md", f"`{name}`")
    default = SETTINGS[name].default
    if name == "LAMBDA_TASKS_QUEUES":
        assert "Required" in text
    else:
        shown = f'"{default}"' if isinstance(default, str) else repr(default)
        assert f"Default: `{shown}`" in text


@pytest.mark.parametrize("option", OPTION_NAMES)
def test_every_option_is_documented_with_its_default(option: str) -> None:
    page = DOCS / "reference/decorator.md"
    assert section(page, f"`{option}`").strip()
    default = getattr(Options, option)
    shown = f'"{default}"' if isinstance(default, str) else repr(default)
    assert re.search(rf"^\| \[`{option}`\].*\| `{re.escape(shown)}` \|$", page.read_text(), re.MULTILINE)


def public_errors() -> list[str]:
    return [
        name
        for module in (exceptions, timeouts)
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, BaseException)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


@pytest.mark.parametrize("name", public_errors())
def test_every_error_is_documented(name: str) -> None:
    assert section(DOCS / "reference/errors.md", f"`{name}`").strip()


@pytest.mark.parametrize("name", public_errors())
def test_base_classes_are_documented(name: str) -> None:
    error = getattr(exceptions, name, None) or getattr(timeouts, name)
    text = section(DOCS / "reference/errors.md", f"`{name}`")
    foreign = {
        parent.__name__
        for parent in error.__bases__
        if parent.__module__ != exceptions.__name__ and parent is not Exception
    }
    assert all(parent in text for parent in foreign)


@pytest.mark.parametrize("field", TaskRecord._meta.fields, ids=lambda field: field.name)
def test_every_field_of_the_record_is_documented(field: Any) -> None:
    assert re.search(rf"^\| `{field.name}` \|", (DOCS / "reference/record.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("field", OutboxMessage._meta.fields, ids=lambda field: field.name)
def test_every_field_of_the_outbox_is_documented(field: Any) -> None:
    assert f"\n| `{field.name}` |" in section(DOCS / "reference/record.md", "The outbox")


@pytest.mark.parametrize("field", TaskProgress._meta.fields, ids=lambda field: field.name)
def test_every_field_of_the_progress_is_documented(field: Any) -> None:
    assert f"\n| `{field.name}` |" in section(DOCS / "reference/record.md", "The progress")


@pytest.mark.parametrize("field", TaskRerun._meta.fields, ids=lambda field: field.name)
def test_every_field_of_a_rerun_is_documented(field: Any) -> None:
    assert f"\n| `{field.name}` |" in section(DOCS / "reference/record.md", "Reruns")


@pytest.mark.parametrize("subcommand", SUBCOMMANDS, ids=lambda each: each.name)
def test_every_subcommand_is_documented_with_its_formats(subcommand: Any) -> None:
    text = section(DOCS / "reference/command-line.md", f"`{subcommand.name}`")
    assert {each for each in subcommand.formats if each not in text.lower()} <= {"text"}
    if subcommand.name in ("worker", "doctor", "schedules", "reap", "relay", "template"):
        return  # other pages describe their options
    parser = CommandParser()
    subcommand().add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
    options -= {option for option in options if option.startswith(("--version", "-v"))}
    assert [option for option in sorted(options) if option not in text] == []


@pytest.mark.parametrize("status", [*TaskStatus, relay.WAITING, relay.DEAD, PENDING, ROLLED_BACK, SENT, UNSENT])
def test_every_status_of_a_handle_is_documented(status: str) -> None:
    assert f'`"{status}"`' in section(DOCS / "howto/outbox.md", "The status of a task")


@pytest.mark.parametrize("status", TaskStatus)
def test_every_status_is_documented(status: TaskStatus) -> None:
    assert f"| `{status}` |" in (DOCS / "reference/record.md").read_text()


def test_fields_of_messages_are_documented() -> None:
    page = DOCS / "reference/messages.md"
    for field in SQSLambdaTaskMessage.model_fields:
        assert f"| `{field}` |" in section(page, "The body")
    for attribute in OWN_ATTRIBUTES:
        assert f"| `{attribute}` |" in section(page, "The attributes")
    for field in SQSLambdaTask.model_fields:
        assert f"`{field}`" in section(page, "`SQSLambdaTask`")


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_message_bodies_on_pages_are_valid(page: Path) -> None:
    for block in blocks(page, "json"):
        if "task_name" in block.code:
            Invocation.of_body(block.code)


def test_numbers_on_pages_match_the_code() -> None:
    time_limits = (DOCS / "howto/timeouts.md").read_text()
    assert f"| {alarms.KILL_GRACE:g} s later |" in time_limits
    assert f"| {alarms.WATCHDOG_DELAY:g} s later |" in time_limits
    assert alarms.REPEAT_EVERY == 0.5
    assert "every half second" in time_limits
    assert sqs_messages.MAX_BYTES == 2**20
    assert sqs_messages.MAX_ATTRIBUTES - 2 == 8
    assert f"which is {app_settings.max_retries} by default" in (DOCS / "howto/retries.md").read_text()


def test_numbers_of_results_match_the_code() -> None:
    page = DOCS / "howto/results.md"
    waiting = section(page, "How it waits")
    assert f"again after {Polling().first:g} seconds" in waiting
    assert f"double up to {Polling().longest:g} seconds" in waiting
    assert f"it is {TIMEOUT:g} seconds by default" in section(page, "What it returns")
    reports = page.read_text()
    assert f"up to {progress.MAX_NOTE} characters" in reports
    assert f"tries again after {progress.PAUSE_AFTER_ERROR:g} seconds" in reports
    assert progress.INTERVAL == 1
    assert "at most one a second" in reports


def test_numbers_of_the_outbox_match_the_code() -> None:
    page = DOCS / "howto/outbox.md"
    sending = section(page, "When a message cannot be sent")
    assert f"after {batches.FIRST_PAUSE:g} seconds" in sending
    assert f"up to {batches.LONGEST_PAUSE:g} seconds" in sending
    assert f"up to {outbox._MAX_ROWS} of them" in section(page, "How a message is sent")
    assert relay.BATCH_SIZE == 100
    assert "up to a hundred at a time" in section(page, "How a message is sent")
    assert sqs.MAX_ENTRIES == 10
    assert "ten to a request" in section(page, "How a message is sent")
    relayed = section(page, "What relays messages")
    assert f"every {maintenance.RELAY_EVERY:g} seconds per container" in relayed
    assert f"if {maintenance.RELAY_SECONDS + maintenance.RELAY_RESERVE:g} seconds are left" in relayed
    assert f"up to {maintenance.RELAY_SECONDS:g} seconds" in relayed
    assert f"{maintenance.TIME_SHARE:.0%}" in section(page, "With EventBridge")
    assert f"postpones them by {batches.HOLD:g} seconds" in section(page, "Databases")
    assert f"at most {MAX_DELAY} seconds" in section(page, "Delays")
    assert f"{MAX_KEPT_DELAY:,} seconds" in section(DOCS / "reference/settings.md", "`LAMBDA_TASKS_OUTBOX`")


def test_dotted_paths_on_pages_exist() -> None:
    """Quoted names in the library can be imported."""
    for page in ALL_PAGES:
        for path in set(re.findall(r"`(lambda_tasks(?:\.\w+)+)`", prose(page))):
            assert _exists(path), f"{page.relative_to(ROOT)} names {path}"


#: Quoted names that are not modules: loggers, message attributes, events and metrics of traces, keys, checks.
NO_MODULES: Final = re.compile(
    r"lambda_tasks\.("
    r"task|executor|outgoing|timeouts|outbox|flows|health|schedules|local|"
    r"message_id|root_id|queue|first_sent|scheduled_for|flow|context|group|more|"
    r"retry|ignored|returned|attempt|outcome|outcomes|reason|skipped|state|takeovers|(waiting|outbox)\.\w+|singleton_lock.*|[EWI]\d{3})$"
)


def _exists(path: str) -> bool:
    if NO_MODULES.fullmatch(path):
        return True
    module, _, attribute = path.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(importlib.import_module(path))
    except ImportError:
        return False


# AWS


@cache
def template(*options: str) -> dict[str, Any]:
    """Return the resources of the template for the shop of the pages."""
    with defined_tasks(DOCS / "howto/deploying.md") as tasks:
        task = tasks["shop.tasks.render_catalogue"]
    chosen = infrastructure.Options(
        function_per_queue="function_per_queue" in options,
        runtime="python3.13",
        maximum_concurrency=infrastructure.PerQueue(10),
        environment={"DJANGO_SETTINGS_MODULE": "shop.settings"},
    )
    with override_settings(LAMBDA_TASKS_OUTBOX=True):
        return resources(described(chosen, task, queues=QUEUES if options else {"default": QUEUES["default"]}))


@pytest.mark.parametrize("name", ["Default", "Heavy"])
def test_numbers_of_the_template_are_consistent(name: str) -> None:
    found = template("function_per_queue")
    mapping = found[f"{name}Mapping"]["Properties"]
    function = found[mapping["FunctionName"]["Ref"]]["Properties"]
    queue = found[mapping["EventSourceArn"]["GetAtt"].partition(".")[0]]["Properties"]

    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert 2 <= mapping["ScalingConfig"]["MaximumConcurrency"] <= 1000
    assert function["Handler"] == "lambda_tasks.handler.handler"
    assert callable(handler.handler)
    assert function["RecursiveLoop"] == "Allow"
    assert "DJANGO_SETTINGS_MODULE" in function["Environment"]["Variables"]
    assert function["Timeout"] <= 900
    window = mapping.get("MaximumBatchingWindowInSeconds", 0)
    assert queue["VisibilityTimeout"] >= 6 * function["Timeout"] + window
    assert queue["RedrivePolicy"]["maxReceiveCount"] >= 5
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"GetAtt": f"{name}DeadLetterQueue.Arn"}


def test_shown_template_is_what_the_command_prints() -> None:
    [shown] = blocks(DOCS / "howto/infrastructure.md", "yaml")
    backend = "lambda_tasks.backends.sqs.SQSBackend"
    queues = {"default": QUEUES["default"]}
    found = described(infrastructure.Options(), queues=queues, LAMBDA_TASKS_BACKEND=backend)
    assert f"\n{shown.code}" in infrastructure.render(found, "cloudformation")


def test_options_of_templates_on_pages_exist(settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = QUEUES
    shown = [
        shlex.split(command)
        for page in PAGES
        for block in blocks(page, "bash")
        for command in re.findall(r"^python manage.py (lambda_tasks template.*)", _joined(block), re.MULTILINE)
    ]
    assert len(shown) > 9
    for command in shown:
        if "--output" in command:
            place = command.index("--output")
            del command[place : place + 2]
        out = StringIO()
        with only():
            call_command(*command, stdout=out)
        assert "shop" in out.getvalue()


def commands_on(page: Path) -> list[str]:
    """Return the calls of `manage.py lambda_tasks` on a page, without what a shell does with their output."""
    shell = [_joined(block) for block in blocks(page) if block.language in ("bash", "text")]
    found = re.findall(r"manage\.py lambda_tasks [^|>&#\n]+", "\n".join(shell))
    return [*found, *re.findall(r"`(?:python )?(manage\.py lambda_tasks \w[^`]*)`", prose(page))]


@pytest.mark.parametrize("page", ALL_PAGES, ids=ids)
def test_commands_on_pages_have_these_options(page: Path) -> None:
    for shown in commands_on(page):
        if "SUBCOMMAND" in shown or "without a subcommand" in shown:
            continue
        [_, _, name, *options] = shlex.split(shown)
        [subcommand] = [each for each in SUBCOMMANDS if each.name == name.rstrip(".:")]
        parser = CommandParser(called_from_command_line=False)
        parser.add_argument("--format", choices=subcommand.formats)
        subcommand().add_arguments(parser)
        known = {option for action in parser._actions for option in action.option_strings}
        given = {option.partition("=")[0] for option in options if re.match(r"--\w", option)}
        assert given <= known | {"--settings"}, shown


def test_commands_encrypt_queues_and_refuse_plain_http() -> None:
    made = [each.parameters for each in aws_commands(DOCS / "howto/deploying.md") if each.operation == "create-queue"]
    assert [parameters["QueueName"] for parameters in made] == ["shop-dead", "shop"]
    for parameters in made:
        assert parameters["Attributes"]["SqsManagedSseEnabled"] == "true"
        [statement] = json.loads(parameters["Attributes"]["Policy"])["Statement"]
        assert statement["Resource"].endswith(f":{parameters['QueueName']}")
        assert statement["Effect"] == "Deny"
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_functions_outlast_the_limits_of_their_tasks() -> None:
    reserve = alarms.KILL_GRACE + handler.ANSWER_RESERVE
    found = template("function_per_queue")
    function, heavy = (found[name]["Properties"] for name in ("Function", "HeavyFunction"))
    assert function["Timeout"] >= app_settings.default_hard_timeout + reserve
    with defined_tasks(DOCS / "howto/deploying.md") as tasks:
        assert heavy["Timeout"] >= tasks["shop.tasks.render_catalogue"].hard_timeout + reserve
    text = (DOCS / "howto/deploying.md").read_text()
    assert f"plus {reserve:g} s" in text
    assert f"first {function['Timeout'] - app_settings.default_hard_timeout - reserve:g} seconds" in text
    # Five receives: four workers die, and the fifth worker records the failure.
    assert app_settings.max_takeovers + 2 == 5


@contextmanager
def defined_tasks(page: Path) -> Iterator[dict[str, Any]]:
    """Yield the tasks that a page defines, without running the rest of it."""
    runner = PageRunner(page)
    with runner.open():
        for block in blocks(page, "python"):
            if block.module not in (None, "settings"):
                runner.run_block(block)
        yield registry._tasks


def test_schedule_sends_a_cleanup_invocation() -> None:
    [schedule] = properties(template(), "Scheduler::Schedule")
    message = SQSLambdaTaskMessage.from_body(schedule["Target"]["Input"])
    assert message.task_name == cleanup_task_records.name
    assert cleanup_task_records.signature.decode(message.kwargs) == {"retention_days": 30}
    days = properties(template(), "SQS::Queue")[0]["MessageRetentionPeriod"] / 86_400
    assert message.kwargs["retention_days"] > days


def test_lost_task_schedule_waits_for_redelivery() -> None:
    [schedule] = [call.parameters for call in aws_commands(DOCS / "howto/lost-tasks.md")]
    message = SQSLambdaTaskMessage.from_body(schedule["Target"]["Input"])
    assert message.task_name == reap_lost_tasks.name
    assert reap_lost_tasks.signature.decode(message.kwargs) == {}
    assert reap_lost_tasks.function.__kwdefaults__ == {"older_than": None}
    assert lost_after() >= properties(template(), "SQS::Queue")[0]["VisibilityTimeout"]


def test_rule_requests_maintenance_with_its_permission() -> None:
    found = template()
    [rule] = properties(found, "Events::Rule")
    [target] = rule["Targets"]
    assert maintenance.wanted(json.loads(target["Input"]))
    assert target["Arn"] == {"GetAtt": "Function.Arn"}
    [permission] = properties(found, "Lambda::Permission")
    assert permission["SourceArn"] == {"GetAtt": "MaintenanceRule.Arn"}
    assert permission["FunctionName"] == {"Ref": "Function"}
    assert permission["Principal"] == "events.amazonaws.com"


@pytest.mark.parametrize("page", ["howto/deploying.md", "howto/outbox.md"])
def test_commands_create_the_rule_of_the_template(page: str) -> None:
    found = template()
    called = {command.operation: command.parameters for command in aws_commands(DOCS / page)}
    described = found["MaintenanceRule"]["Properties"]
    assert called["put-rule"]["ScheduleExpression"] == described["ScheduleExpression"]
    [target] = called["put-targets"]["Targets"]
    assert target["Input"] == described["Targets"][0]["Input"]
    function = found["Function"]["Properties"]["FunctionName"]
    assert target["Arn"].endswith(f":function:{function}")
    assert called["put-targets"]["Rule"] == called["put-rule"]["Name"]
    permission = called["add-permission"]
    for name in ("Action", "Principal"):
        assert permission[name] == found["MaintenancePermission"]["Properties"][name]
    assert permission["FunctionName"] == function
    assert permission["SourceArn"].endswith(f":rule/{called['put-rule']['Name']}")


@pytest.mark.parametrize("page", ALL_PAGES, ids=ids)
def test_maintenance_events_on_pages_are_valid(page: Path) -> None:
    for block in blocks(page, "json"):
        event = json.loads(block.code)
        if maintenance.EVENT_FIELD in event:
            assert maintenance.wanted(event) or ping.wanted(event), str(block)


@dataclass(frozen=True, slots=True)
class Command:
    """A call of the `aws` command: the service, the operation, and the parameters by their API names."""

    block: Block
    service: str
    operation: str
    parameters: dict[str, Any]
    problems: list[str]


#: Options of the command itself, not parameters of an operation.
CLIENT_OPTIONS: Final = {"--output", "--profile", "--query", "--region"}
#: Commands that are not one operation of an API, or that take the name of a file, too.
COMPOSED: Final = {("cloudformation", "deploy"), ("s3", "cp"), ("lambda", "invoke")}


def aws_commands(page: Path) -> Iterator[Command]:
    session = botocore.session.Session()
    for block in [*blocks(page, "bash"), *blocks(page, "sh")]:
        for call in _calls(block):
            _, service, operation, *arguments = call
            if (service, operation) in COMPOSED:
                continue
            model = session.get_service_model(service)
            [api_name] = [name for name in model.operation_names if _option(name) == operation]
            members = model.operation_model(api_name).input_shape.members
            names = {_option(name): name for name in members}
            given = dict(zip(arguments[::2], arguments[1::2], strict=True))
            given = {option: text for option, text in given.items() if option not in CLIENT_OPTIONS}
            parameters = {
                names[option.removeprefix("--")]: _value(text, members[names[option.removeprefix("--")]])
                for option, text in given.items()
            }
            report = ParamValidator().validate(parameters, model.operation_model(api_name).input_shape)
            yield Command(block, service, operation, parameters, report.generate_report().splitlines())


def _joined(block: Block) -> str:
    """Return the code with each command on one line."""
    return block.code.replace("\\\n", "")


def _calls(block: Block) -> Iterator[list[str]]:
    """Split a shell block into its calls of `aws`, each from its name to the end of its last line."""
    # A shell variable stands for an id, and most ids have this form.
    code = re.sub(r"\$\w+", "00000000-0000-0000-0000-000000000000", _joined(block))
    for call in re.split(r"^(?=aws )", code, flags=re.MULTILINE):
        if call.startswith("aws "):
            yield shlex.split(call, comments=True)


def _option(api_name: str) -> str:
    return botocore.xform_name(api_name, "-")


def _value(text: str, shape: Any) -> Any:
    match shape.type_name:
        case "double" | "float":
            return float(text)
        case "integer" | "long":
            return int(text)
        case "structure" | "map":
            return json.loads(text)
        case "list":
            return json.loads(text) if text.startswith("[") else [text]
        case _:
            return text


@pytest.mark.parametrize("page", ALL_PAGES, ids=ids)
def test_commands_are_valid_for_aws(page: Path) -> None:
    for command in aws_commands(page):
        assert command.problems == [], f"{command.block}: aws {command.service} {command.operation}"


def test_commands_match_the_template() -> None:
    found = template()
    called: dict[str, list[dict[str, Any]]] = {}
    for command in aws_commands(DOCS / "howto/deploying.md"):
        called.setdefault(command.operation, []).append(command.parameters)

    [dead, queue] = called["create-queue"]
    redrive = json.loads(queue["Attributes"]["RedrivePolicy"])
    described = found["DefaultQueue"]["Properties"]
    assert int(queue["Attributes"]["VisibilityTimeout"]) == described["VisibilityTimeout"]
    assert int(queue["Attributes"]["MessageRetentionPeriod"]) == described["MessageRetentionPeriod"]
    assert redrive["maxReceiveCount"] == described["RedrivePolicy"]["maxReceiveCount"]
    assert redrive["deadLetterTargetArn"].endswith(f":{dead['QueueName']}")

    [function] = called["create-function"]
    described = found["Function"]["Properties"]
    for name in ("FunctionName", "Runtime", "Handler", "Timeout", "MemorySize", "Environment"):
        assert function[name] == described[name]
    [recursion] = called["put-function-recursion-config"]
    assert recursion["RecursiveLoop"] == described["RecursiveLoop"]

    [mapping] = called["create-event-source-mapping"]
    described = found["DefaultMapping"]["Properties"]
    for name in ("BatchSize", "MaximumBatchingWindowInSeconds", "FunctionResponseTypes", "ScalingConfig"):
        assert mapping[name] == described[name]

    policies = [json.loads(call["PolicyDocument"]) for call in called["put-role-policy"]]
    [own] = found["FunctionRole"]["Properties"]["Policies"]
    allowed = {action for statement in own["PolicyDocument"]["Statement"] for action in statement["Action"]}
    # The commands attach a policy of AWS for the log.
    assert set(policies[0]["Statement"][0]["Action"]) == {action for action in allowed if action.startswith("sqs:")}

    [schedule] = called["create-schedule"]
    described = found["CleanupSchedule"]["Properties"]
    assert schedule["Target"]["Input"] == described["Target"]["Input"]
    assert schedule["ScheduleExpression"] == described["ScheduleExpression"]
    assert schedule["FlexibleTimeWindow"] == described["FlexibleTimeWindow"]
