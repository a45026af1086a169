"""Connect through a real PgBouncer with the documented settings, and see every statement that leaves the client."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any, Final

import psycopg
import pytest
from django.db import connections

DOCS: Final = Path(__file__).parents[2] / "docs/howto"
#: The keys of an entry in DATABASES that name the server.
ADDRESS: Final = ("HOST", "PORT", "USER", "NAME")
#: Ends the sessions of the pooler, which were opened before a change of the role.
END_OTHERS: Final = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
#: The size of the pool in `own_pooler()`.
SESSIONS: Final = 4

#: The most bytes of a statement that does not pin a session of RDS Proxy.
SMALL: Final = 16 * 1024
#: What pins one by its text. The page lists the same.
PINNING: Final = re.compile(
    r"\A\s*(SET|RESET|PREPARE|EXECUTE|DEALLOCATE|DISCARD|LISTEN|LOAD|DECLARE|CREATE\s+(LOCAL\s+)?TEMP)\b|"
    r"\b(set_config|nextval|setval|pg_advisory_lock|pg_try_advisory_lock)(_shared)?\s*\(",
    re.IGNORECASE,
)


def section(page: str, title: str) -> str:
    text = re.split(rf"^##+ {re.escape(title)}\n", (DOCS / page).read_text(), maxsplit=1, flags=re.MULTILINE)[1]
    return re.split(r"^##+ ", text, maxsplit=1, flags=re.MULTILINE)[0]


def examples(page: str, title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(page, title), re.MULTILINE | re.DOTALL)


def documented(page: str, title: str) -> dict[str, Any]:
    """Return the entry of DATABASES in a section of a page."""
    [example] = examples(page, title, "python")
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    return dict(namespace["DATABASES"]["default"])


def use(database: str, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **address: Any) -> None:
    """Connect with a documented entry, but to the server of the tests."""
    connection = connections[database]
    connection.close()
    for key, value in {**entry, **{key: address[key] for key in ADDRESS if key in address}}.items():
        if key not in ADDRESS or key in address:
            monkeypatch.setitem(connection.settings_dict, key, value)


def value_of(database: str, setting: str) -> str:
    return str(ask(database, f"SHOW {setting}"))


def ask(database: str, query: str) -> Any:
    with connections[database].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def open_all_sessions(address: dict[str, Any]) -> None:
    """Let the pooler open all its sessions of the server, by as many transactions at the same time."""
    url = f"postgres://{address['USER']}@/{address['NAME']}?host={address['HOST']}&port={address['PORT']}"
    opened = Barrier(SESSIONS)

    def hold_one() -> None:
        with psycopg.connect(url) as connection:
            connection.execute("SELECT 1")
            opened.wait(30)

    with ThreadPoolExecutor(SESSIONS) as threads:
        for each in [threads.submit(hold_one) for _ in range(SESSIONS)]:
            each.result()


class Sent:
    """The statements that libpq has sent, as its own trace shows them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def statements(self) -> list[tuple[int, str]]:
        """The size and the beginning of the text of each statement."""
        messages = re.split(r"^(?=[FB]\t\d+\t)", self._path.read_text(errors="replace"), flags=re.MULTILINE)
        found = [re.match(r'F\t(\d+)\t(?:Query|Parse)\t (?:"\w*" )?"(.*)', each, re.DOTALL) for each in messages]
        return [(int(each[1]), each[2].rstrip('" \n')) for each in found if each]

    @property
    def pinning(self) -> list[str]:
        """The beginnings of the statements that pin a session of RDS Proxy."""
        return [text[:40] for size, text in self.statements if size > SMALL or PINNING.search(text)]


@contextmanager
def traced(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """Trace each new connection of this thread from its first statement."""
    wrapper = connections[database]
    wrapper.close()
    connect = wrapper.get_new_connection
    with tempfile.NamedTemporaryFile(prefix="trace-") as file, monkeypatch.context() as patch:

        def connect_and_trace(parameters: Any) -> Any:
            session = connect(parameters)
            session.pgconn.trace(file.fileno())
            session.pgconn.set_trace_flags(psycopg.pq.Trace.SUPPRESS_TIMESTAMPS)
            return session

        patch.setattr(wrapper, "get_new_connection", connect_and_trace)
        yield Sent(Path(file.name))
        wrapper.close()
