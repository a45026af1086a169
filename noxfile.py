"""The suite on every supported pair of Python and Django, and the built wheel in a new project."""

from __future__ import annotations

import os
import textwrap
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests", "wheel"]
# A missing interpreter is skipped by name; under CI, where they are announced, it is an error.
nox.options.error_on_missing_interpreters = os.environ.get("CI") == "true"

# Each Python with a Django that supports it; the kinds of database take turns.
PAIRS = [
    nox.param("3.10", "5.2", "sqlite", id="python3.10-django5.2-sqlite"),
    nox.param("3.11", "5.2", "mariadb", id="python3.11-django5.2-mariadb"),
    nox.param("3.12", "6.0", "postgres", id="python3.12-django6.0-postgres"),
    nox.param("3.13", "6.1", "postgres", id="python3.13-django6.1-postgres"),
    nox.param("3.13", "6.1", "mariadb", id="python3.13-django6.1-mariadb"),
    nox.param("3.14", "6.1", "sqlite", id="python3.14-django6.1-sqlite"),
]


@nox.session
@nox.parametrize("python,django,database", PAIRS)
def tests(session: nox.Session, django: str, database: str) -> None:
    """Run the suite with `database` as the default one, and the only one of those that a test may run on."""
    session.install("--editable", ".[test]", f"django~={django}.0")
    chosen = ("-m", "not once", "--only-database", database)
    session.run("python", "-m", "pytest", *chosen, *session.posargs, env={"TEST_DATABASE": database})


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution and the wheel into dist/."""
    for old in Path("dist").glob("django_lambda_tasks-*"):
        old.unlink()
    session.install("hatchling")
    session.run("hatchling", "build", "--target", "sdist", "--target", "wheel")


@nox.session(requires=["build"])
def wheel(session: nox.Session) -> None:
    """Install the wheel with nothing but its dependencies, and run a task with it in a new Django project."""
    (built,) = Path("dist").glob("*.whl")
    contents = set(zipfile.ZipFile(built).namelist())
    templates = "lambda_tasks/templates/admin/lambda_tasks/outboxmessage"
    for name in ("lambda_tasks/py.typed", "lambda_tasks/migrations/0004_outbox.py", f"{templates}/change_list.html"):
        if name not in contents:
            session.error(f"{built} lacks {name}.")
    if strangers := sorted(name for name in contents if not name.startswith(("lambda_tasks/", "django_lambda_"))):
        session.error(f"{built} carries what is not the library: {', '.join(strangers)}.")

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
