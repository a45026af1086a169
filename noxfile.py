"""The suite on every supported pair of Python and Django, and the built wheel in a new project."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "wheel"]
# A missing interpreter is skipped by name; under CI, where they are announced, it is an error.
nox.options.error_on_missing_interpreters = os.environ.get("CI") == "true"

#: Sessions with this tag are what a change must pass, in addition to `make test`: `nox -t ci`.
CI = ["ci"]
#: The interpreter of sessions that are about one Python alone.
NEWEST = "3.13"
OLDEST = "3.10"
#: Each process would compile all modules again in a shell that keeps Python from caching them.
CACHED = {"PYTHONDONTWRITEBYTECODE": None}
PARALLEL = ("--numprocesses", "4", "--dist", "worksteal")
#: What the quick suite needs where each file has a process of its own.
ALONE = {"TEST_DATABASE": "sqlite", "TEST_QUICK": "1", **CACHED}
#: Percent of the package's lines and branches that the quick suite covers, without the processes that it starts. It
#: only rises.
COVERAGE = 90

#: The extras for users, which `extras` installs one at a time; the others are for the work on the library itself.
EXTRAS = ["schedules", "cli", "emf", "encryption", "prometheus", "opentelemetry", "sentry"]

# Each Python with a Django that supports it; the kinds of database take turns.
PAIRS = [
    nox.param("3.10", "5.2", "sqlite", id="python3.10-django5.2-sqlite"),
    nox.param("3.11", "5.2", "mariadb", id="python3.11-django5.2-mariadb"),
    nox.param("3.12", "6.0", "postgres", id="python3.12-django6.0-postgres"),
    nox.param("3.13", "6.1", "postgres", id="python3.13-django6.1-postgres"),
    nox.param("3.13", "6.1", "mariadb", id="python3.13-django6.1-mariadb"),
    nox.param("3.14", "6.1", "sqlite", id="python3.14-django6.1-sqlite"),
]


def run_tests(session: nox.Session, *arguments: str, optimized: bool = False, **environment: str) -> None:
    """Run pytest in as many processes as are worth it, with the variables that are given."""
    python = ("python", "-O") if optimized else ("python",)
    session.run(*python, "-m", "pytest", *PARALLEL, *arguments, *session.posargs, env={**CACHED, **environment})


def download_tests_of_django(session: nox.Session) -> dict[str, str]:
    """Download the source distribution of Django, whose own tests of task backends the suite runs with ours.

    With the variables that this returns, a missing distribution is a failure.
    """
    environment = {"DJANGO_SDIST_FOLDER": str(Path("build/django").resolve())}
    session.install("pip")
    session.run("python", "-m", "tests.contrib.djangos_tests", env=environment)
    return environment


@nox.session
@nox.parametrize("python,django,database", PAIRS)
def tests(session: nox.Session, django: str, database: str) -> None:
    """Run the quick suite with `database` as the default one."""
    session.install("--editable", ".[test]", f"django~={django}.0")
    distribution = download_tests_of_django(session) if django != "5.2" else {}
    run_tests(session, "-m", "not once", TEST_DATABASE=database, TEST_QUICK="1", **distribution)


@nox.session(python=NEWEST, tags=CI)
def everything(session: nox.Session) -> None:
    """Run all tests on every database that other parts of CI do not run.

    The session `simulations` runs larger simulations, and `make test` the tests that say nothing about a version.
    """
    session.install("--editable", ".[test-all]")
    small = ("simulation", "server_crash")
    ignored = (f"--ignore=tests/faults/test_{name}.py" for name in small)
    run_tests(session, "--after-quick", *ignored, **download_tests_of_django(session))


@nox.session(python=OLDEST, tags=CI)
def lowest(session: nox.Session) -> None:
    """Run the quick suite with the lowest versions that pyproject.toml allows, each file in a process of its own.

    So no file may need what another leaves behind.
    """
    session.install("--resolution", "lowest-direct", "--editable", ".[test]")
    session.run("python", "-m", "tests.alone", *session.posargs, env=ALONE)


@nox.session(python=OLDEST)
def coverage(session: nox.Session) -> None:
    """Measure the lines and branches that the quick suite covers, with the lowest versions; before a release.

    Measuring takes as long as the tests themselves, so CI does not run it.
    """
    session.install("--resolution", "lowest-direct", "--editable", ".[test]", "coverage>=7.10")
    session.run("python", "-m", "tests.alone", f"--coverage={COVERAGE}", *session.posargs, env=ALONE)


@nox.session(python="3.12", tags=CI)
def optimized(session: nox.Session) -> None:
    """Run the tests of the way of a task without the package's own assertions, as `python -O` does.

    CI runs them for the pair of Python 3.12 and Django 6.0, on MariaDB, and follows the quickstart with this Django.
    """
    session.install("--editable", ".[test]", "django~=6.0.0")
    ignored = "ignore:assertions not in test modules or plugins will be ignored:pytest.PytestConfigWarning"
    way = (
        *("definition/test_arguments", "definition/test_retry_options", "sending/test_outgoing"),
        *("backends/test_outbox", "backends/test_sqs"),
        *("execution/test_handler", "execution/test_executor", "execution/test_hooks"),
        "project/test_quickstart",
    )
    files = ("tests/contracts", *(f"tests/{name}.py" for name in way))
    run_tests(session, *files, "-W", ignored, optimized=True, TEST_DATABASE="mariadb", TEST_QUICK="1")


@nox.session(python=NEWEST, tags=CI)
def simulations(session: nox.Session) -> None:
    """Kill workers at every point, and look for lost and doubled work."""
    session.install("--editable", ".[test]")
    session.run("python", "-m", "tests.simulation.ci")


@nox.session(python=NEWEST, tags=CI)
def browser(session: nox.Session) -> None:
    """Open the pages of the admin in Chromium: an installed package, or the program that CHROMIUM names."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")):
        session.skip("There is no Chromium. Install the package chromium, or set CHROMIUM to its path.")
    session.install("--editable", ".[test,browser]")
    environment = {"TEST_BROWSER": "1", "TEST_DATABASE": "sqlite", "TEST_QUICK": "1", **CACHED}
    session.run("python", "-m", "pytest", "tests/browser", *session.posargs, env=environment)


@nox.session(python=NEWEST, tags=CI)
def lint(session: nox.Session) -> None:
    """Run what `make lint` runs."""
    session.install("--editable", ".[dev]")
    environment = Path(session.virtualenv.location)
    (environment / ".installed-dev").touch()
    session.run("make", "lint", f"VENV={environment}", external=True)


@nox.session(python=NEWEST, tags=CI)
def docs(session: nox.Session) -> None:
    """Build the documentation's site. A broken link, or a page that the navigation lacks, is an error."""
    session.install(*nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["docs"])
    session.run("python", "-m", "mkdocs", "build", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution and the wheel into dist/."""
    for old in Path("dist").glob("django_lambda_tasks-*"):
        old.unlink()
    session.install("hatchling")
    session.run("hatchling", "build", "--target", "sdist", "--target", "wheel")


def check_long_description(session: nox.Session, built: Path) -> None:
    """Fail if a link on PyPI would lead nowhere, since PyPI has the long description without the repository."""
    [metadata] = [name for name in zipfile.ZipFile(built).namelist() if name.endswith(".dist-info/METADATA")]
    _, _, text = zipfile.ZipFile(built).read(metadata).decode().partition("\n\n")
    if not text.startswith("# django-lambda-tasks"):
        session.error(f"{built} lacks the long description.")
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    if relative := sorted({"".join(each) for each in targets if not "".join(each).startswith(("https://", "#"))}):
        session.error(f"{built} has relative links in its long description: {', '.join(relative)}.")


@nox.session(requires=["build"], tags=CI)
def wheel(session: nox.Session) -> None:
    """Install the wheel with nothing but its dependencies, and run a task with it in a new Django project."""
    (built,) = Path("dist").glob("*.whl")
    contents = set(zipfile.ZipFile(built).namelist())
    templates = "lambda_tasks/templates/admin/lambda_tasks/outboxmessage"
    files = ("py.typed", "migrations/0004_outbox.py", "static/lambda_tasks/admin.css", "static/lambda_tasks/admin.js")
    for name in (*(f"lambda_tasks/{file}" for file in files), f"{templates}/change_list.html"):
        if name not in contents:
            session.error(f"{built} lacks {name}.")
    if strangers := sorted(name for name in contents if not name.startswith(("lambda_tasks/", "django_lambda_"))):
        session.error(f"{built} carries what is not the library: {', '.join(strangers)}.")

    check_long_description(session, built)

    session.install(str(built.resolve()))
    project = Path(session.create_tmp()).resolve()
    session.chdir(project)
    for name, text in PROJECT.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(textwrap.dedent(text))
    environment = {"DJANGO_SETTINGS_MODULE": "shop.settings", "PYTHONPATH": str(project)}
    session.run("python", "-m", "django", "check", "--fail-level", "WARNING", env=environment)
    session.run("python", "-m", "django", "migrate", "--verbosity", "0", env=environment)
    session.run("python", "place_an_order.py", env=environment)


@nox.session(requires=["build"])
@nox.parametrize("extra", EXTRAS)
def extras(session: nox.Session, extra: str) -> None:
    """Use one extra with the wheel and nothing else: without it, the error names it; with it, a task shows its effect.

    All of them take a minute, so CI does not run them. Run them before a release.
    """
    (built,) = Path("dist").glob("*.whl")
    project = Path(session.create_tmp()).resolve() / "project"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree("tests/extras", project)
    wheel = str(built.resolve())
    session.chdir(project)
    environment = {"DJANGO_SETTINGS_MODULE": "shop.settings", "PYTHONPATH": str(project)}
    session.install(wheel)
    session.run("python", "run.py", extra, "--without", env=environment)
    session.install(f"{wheel}[{extra}]")
    session.run("python", "run.py", extra, env=environment)
    if extra == "opentelemetry":  # the extra has its API alone
        session.install("opentelemetry-sdk")
        session.run("python", "run.py", extra, env=environment)


PROJECT = {
    "shop/__init__.py": "",
    "shop/settings.py": """\
        SECRET_KEY = "only for this check"
        USE_TZ = True
        INSTALLED_APPS = ["lambda_tasks", "shop"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/shop"}
        LAMBDA_TASKS_EAGER = True
        """,
    "shop/tasks.py": """\
        from lambda_tasks.decorators import lambda_task


        @lambda_task
        def total(*, prices: list[int]) -> int:
            return sum(prices)
        """,
    "place_an_order.py": """\
        import django

        django.setup()

        import lambda_tasks.handler
        from django.db import transaction
        from lambda_tasks.models import TaskRecord, TaskStatus
        from shop.tasks import total

        with transaction.atomic():
            total.execute_on_commit(prices=[2, 40])
        record = TaskRecord.objects.get()
        assert record.status == TaskStatus.SUCCESS, (record.status, record.traceback)
        print(f"The installed wheel ran {record.task_name}: {record.status}, result {record.result}")
        """,
}
