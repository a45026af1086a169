"""Keep a task from ending its transaction without Django, and detect the cases that cannot be prevented.

Django refuses `connection.commit()` inside `atomic()`. A raw COMMIT or ROLLBACK, or DDL on MySQL and MariaDB,
bypasses Django: the earlier writes are committed although the task may fail, or are lost although it succeeds. While
the task's function runs, its connection refuses such statements before it sends them. Some cases are only detected
afterwards: an SQLite script, a procedure that commits, and a deadlock that has rolled everything back.

An ordinary statement costs no extra query: the guard reads its first word, and the state that the driver tracks.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from types import MethodType, TracebackType
from typing import Any, Final

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks.database.private_names import closed_in_transaction, is_mariadb
from lambda_tasks.exceptions import TransactionBroken

#: Text that may precede the first word. MariaDB executes the content of `/*! … */`.
_BEFORE: Final = r"(?:[\s;(]+|--[^\n]*(?:\n|\Z)|/\*(?!M?!).*?\*/|/\*M?!\d*)*"
#: One character of a list of settings, or a string in it.
_PIECE: Final = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|"
#: MariaDB: settings for a single statement, which precede it.
_SETTINGS: Final = rf"(?:SET\s+STATEMENT\s(?:{_PIECE}[^;'\"])*?\sFOR\s+)?"
#: MySQL and MariaDB: an assignment to `autocommit`, maybe after others.
_AUTOCOMMIT: Final = (
    rf"(?:(?:{_PIECE}[^;,'\"])*,)*\s*(?:(?:SESSION|LOCAL)\s+|@@(?:(?:SESSION|LOCAL)\s*\.\s*)?)?`?AUTOCOMMIT"
)
_END: Final = r"COMMIT|END|ABORT|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b)"
#: Statements that commit the open transaction (MariaDB's list of implicit commits).
_IMPLICIT: Final = (
    r"COMMIT|ROLLBACK(?!\s+(?:WORK\s+)?TO\b)|BEGIN(?!\s+NOT\b)|START\s+TRANSACTION|TRUNCATE|ALTER|RENAME|GRANT|REVOKE|"
    r"CREATE(?!\s+(?:OR\s+REPLACE\s+)?TEMPORARY\b)|DROP(?!\s+TEMPORARY\b)|OPTIMIZE|REPAIR|LOCK\s+TABLES?|FLUSH|RESET|"
    r"(?:ANALYZE|CHECK)\s+(?:(?:LOCAL|NO_WRITE_TO_BINLOG)\s+)?TABLE|(?:LOAD|CACHE)\s+INDEX|(?:UN)?INSTALL|"
    rf"SET\s+PASSWORD|SET\b{_AUTOCOMMIT}"
)
_FLAGS: Final = re.IGNORECASE | re.DOTALL
_ENDINGS: Final = {
    "mysql": rf"{_BEFORE}{_SETTINGS}({_IMPLICIT})\b",
    None: rf"{_BEFORE}({_END})\b",
}
#: A cheap search for one of them in a script, before the script is parsed. PyMySQL and mysqlclient interpolate the
#: values into the statement, so for them a semicolon has to come first.
_LATER: Final = {
    "mysql": rf";{_BEFORE}{_SETTINGS}(?:{_IMPLICIT})\b",
    None: rf"\b(?:{_END})\b",
}
#: Text in which a semicolon does not end the statement: strings, quoted names, function bodies, comments.
_QUOTED: Final = (
    r"'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|`[^`]*`|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*(?!M?!).*?\*/"
    r"|\bBEGIN\s+ATOMIC\b.*?;\s*END\b"
)

#: MySQL and MariaDB: statements that can run any other statement, including COMMIT.
_OPAQUE: Final = rf"{_BEFORE}{_SETTINGS}(?:CALL|EXECUTE|BEGIN\s+NOT)\b"

#: The first six characters of the statements that Django generates.
_PLAIN: Final = frozenset(["SELECT", "INSERT", "UPDATE", "DELETE", b"SELECT", b"INSERT", b"UPDATE", b"DELETE"])

#: libpq's PQTRANS_IDLE: no transaction is open.
_IDLE: Final = 0
#: SERVER_STATUS_IN_TRANS of MySQL's protocol.
_IN_TRANSACTION: Final = 1
#: After these errors MySQL and MariaDB have rolled the transaction back: ER_LOCK_DEADLOCK, ER_CHECKREAD,
#: ER_LOCK_TABLE_FULL.
_ROLLED_BACK: Final = frozenset({1213, 1020, 1206})
#: ER_LOCK_WAIT_TIMEOUT: the same, but only with innodb_rollback_on_timeout.
_TIMED_OUT: Final = 1205

_GUARD: Final = "_lambda_tasks_guard"
_ABSENT: Final = object()


def _is_plain(sql: Any) -> bool:
    """Return whether `sql` is clearly harmless: a fast check that covers most statements without parsing them."""
    try:
        return sql[:6] in _PLAIN and (b";" if isinstance(sql, bytes) else ";") not in sql
    except TypeError:
        return False


def ending_in(sql: object, vendor: str, *, used: bool = True) -> str | None:
    """Return the keywords in `sql` that end the open transaction, or None if it contains no such statement.

    `used` states whether the transaction contains earlier statements. Without them, a single statement that ends the
    transaction is harmless.
    """
    text = sql.decode("latin-1") if isinstance(sql, bytes | bytearray) else sql  # the keywords are ASCII
    if not isinstance(text, str):
        return None
    first = _first_ending(text, vendor)
    if first is not None and used:
        return _words(first)
    # SQLite's execute() does not accept scripts, and the semicolons in a MariaDB procedure belong to its body.
    if ";" not in text or vendor == "sqlite" or (vendor == "mysql" and first is not None):
        return None
    if first is None and _compiled(_LATER.get(vendor, _LATER[None])).search(text) is None:
        return None
    return _ending_in_script(text, vendor)


def _ending_in_script(text: str, vendor: str) -> str | None:
    statements = [each for each in _compiled(_QUOTED).sub(" ", text).split(";") if each.strip()]
    if len(statements) < 2:
        return None
    for statement in statements:
        if found := _first_ending(statement, vendor):
            return _words(found)
    return None


def _first_ending(text: str, vendor: str) -> re.Match[str] | None:
    return _compiled(_ENDINGS.get(vendor, _ENDINGS[None])).match(text)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern on its first use. A process whose tasks use only the ORM needs none of them."""
    return re.compile(pattern, _FLAGS)


def _words(found: re.Match[str]) -> str:
    """Return the keywords for an error message, without the values of other settings."""
    words = found[1].upper().split()
    return " ".join(words if "," not in found[1] else [words[0], words[-1].rpartition(",")[2]])


def session_in_transaction(vendor: str, driver: Any) -> bool:
    """Return whether a transaction is open on the driver's connection, as far as the driver knows without a query."""
    if vendor == "sqlite":
        return bool(getattr(driver, "in_transaction", True))
    if vendor == "postgresql":
        # psycopg 3 exposes the status on libpq's connection, psycopg2 on `info`.
        holder = getattr(driver, "pgconn", None) or getattr(driver, "info", None)
        return getattr(holder, "transaction_status", None) != _IDLE
    return bool(getattr(driver, "server_status", 0) & _IN_TRANSACTION)


class Guard(AbstractContextManager["Guard"]):
    """Guard the transaction that is open on `connection` for the duration of the `with` block."""

    def __init__(self, connection: BaseDatabaseWrapper, owner: str) -> None:
        self._connection = connection
        self._owner = owner
        self._vendor = connection.vendor
        self._driver: Any = connection.connection
        #: The attributes of the driver's connection that the guard has replaced.
        self._before: dict[str, Any] = {}
        self._wrapper: AbstractContextManager[Any] | None = None
        #: Whether a statement has run in the transaction, whose writes its end would commit or undo.
        self._used = False
        self._timed_out: BaseException | None = None
        self._error: BaseException | None = None
        #: The keywords of the statement that ended the transaction. The earlier writes may be committed.
        self.ended_by: str | None = None

    # Installing the guard on the driver's connection

    def __enter__(self) -> Guard:
        self._used = self._in_transaction()
        if self._vendor == "mysql" and hasattr(self._driver, "query"):
            self._guard_mysql()
        elif self._vendor == "postgresql" and hasattr(self._driver, "pgconn"):
            self._guard_psycopg()
        else:
            self._wrapper = self._connection.execute_wrapper(self._executed)
            self._wrapper.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._wrapper is not None:
            self._wrapper.__exit__(None, None, None)
        elif self._before:
            self._put_back()
        if self._vendor == "sqlite" and isinstance(error, OperationalError):
            return  # SQLite may have rolled back by itself, as on a full disk: no writes are committed
        if isinstance(error, Exception) and not isinstance(error, TransactionBroken) and self._has_ended():
            raise self._broken() from error

    def ensure_unbroken(self) -> None:
        """Raise an error if the transaction that was open at the start of the block has ended.

        A deadlock that the code caught is raised again. Its transaction is rolled back, so the task may be rerun.
        """
        if self._error is None and self._timed_out is not None and self._rolls_back_on_timeout():
            self._error = self._timed_out
        if self._error is not None:
            raise OperationalError(*self._error.args) from self._error
        if self._has_ended():
            raise self._broken()

    def _has_ended(self) -> bool:
        if self.ended_by is None and self._used and self._driver is self._connection.connection:
            alive = not closed_in_transaction(self._connection) and not getattr(self._driver, "closed", False)
            if alive and self._vendor in ("sqlite", "postgresql") and not self._in_transaction():
                self.ended_by = "a statement that bypassed Django, such as executescript(), or by the driver"
        return self.ended_by is not None

    def _broken(self) -> TransactionBroken:
        broken = TransactionBroken(
            f"The transaction of {self._owner} was ended by {self.ended_by} before the task finished. Its writes "
            "before and after that statement may be committed, so the task is not run again. Leave COMMIT and ROLLBACK "
            "to Django, and run statements that commit implicitly on another connection."
        )
        broken.work_may_stand = True
        return broken

    # Transaction state

    def _in_transaction(self) -> bool:
        return session_in_transaction(self._vendor, self._driver)

    def _mariadb_in_transaction(self) -> bool:
        """Ask the server: PyMySQL's status is wrong after INSERT … RETURNING, and mysqlclient does not expose it."""
        if self._connection.needs_rollback or not hasattr(self._driver, "server_status"):
            return False
        if not is_mariadb(self._connection):
            return False
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT @@in_transaction")
            return bool(cursor.fetchone()[0])

    def _rolls_back_on_timeout(self) -> bool:
        if self._connection.needs_rollback or closed_in_transaction(self._connection):
            return False  # Django only accepts a rollback now, and the run ends with one
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT @@innodb_rollback_on_timeout")
            return bool(cursor.fetchone()[0])

    # Statements

    def _refuse(self, words: str) -> None:
        raise TransactionBroken(
            f"{self._owner} must not execute {words}, which would end its transaction: its earlier writes would be "
            "committed although it may fail, or lost although it succeeds. Leave COMMIT and ROLLBACK to Django, use "
            "`with transaction.atomic():` for a part that may fail, and run statements that commit implicitly on "
            "another connection, or before the task's other statements."
        )

    def before(self, sql: object) -> None:
        """Raise `TransactionBroken` if `sql` would end the transaction."""
        if _is_plain(sql):
            return
        words = ending_in(sql, self._vendor, used=self._used)
        if words is not None:
            self._refuse(words)

    def _executed(self, execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        self.before(sql)
        self._used = True
        return execute(sql, params, many, context)

    def _put(self, **attributes: Any) -> None:
        """Replace attributes of the driver's connection until the guard exits."""
        held = vars(self._driver)
        self._before = {name: held.get(name, _ABSENT) for name in attributes}
        held.update(attributes)

    def _put_back(self) -> None:
        held = vars(self._driver)
        for name, before in self._before.items():
            if before is _ABSENT:
                held.pop(name, None)
            else:
                held[name] = before

    def _original(self, name: str) -> Any:
        before = self._before[name]
        return MethodType(getattr(type(self._driver), name), self._driver) if before is _ABSENT else before

    # The driver's own methods: refused, as Django refuses its own

    def _commit(self, *args: Any, **options: Any) -> Any:
        return self._unless_used("commit", "COMMIT", args, options)

    def _rollback(self, *args: Any, **options: Any) -> Any:
        return self._unless_used("rollback", "ROLLBACK", args, options)

    def _autocommit(self, *args: Any, **options: Any) -> Any:
        return self._unless_used("autocommit", "SET autocommit", args, options)

    def _unless_used(self, name: str, words: str, args: Any, options: Any) -> Any:
        if self._used:
            self._refuse(words)
        return self._original(name)(*args, **options)

    def _guard_mysql(self) -> None:
        driver, original = self._driver, self._driver.query

        def query(sql: object, *args: Any, **options: Any) -> Any:
            self.before(sql)
            used, self._used = self._used, True
            opaque = (
                used
                and not _is_plain(sql)
                and _compiled(_OPAQUE).match(_start(sql)) is not None
                and self._mariadb_in_transaction()
            )
            try:
                answer = original(sql, *args, **options)
            except Exception as error:
                self._failed(error, used=used)
                raise
            if opaque and not self._in_transaction():
                self.ended_by = self.ended_by or _words_of(_start(sql))
            return answer

        autocommit = {"autocommit": self._autocommit} if hasattr(driver, "autocommit") else {}
        self._put(query=query, commit=self._commit, rollback=self._rollback, **autocommit)

    def _failed(self, error: Exception, *, used: bool) -> None:
        code = error.args[0] if error.args else None
        if code in _ROLLED_BACK and used:
            self._error = self._error or error
        elif code == _TIMED_OUT and used:
            self._timed_out = error

    def _guard_psycopg(self) -> None:
        self._put(
            cursor_factory=_guarded_cursor(self._driver.cursor_factory),
            commit=self._commit,
            rollback=self._rollback,
            transaction=self._transaction,
            **{_GUARD: self},
        )

    def _transaction(self, *args: Any, **options: Any) -> Any:
        if not self._in_transaction():
            self._driver.execute("SELECT")  # otherwise the block would be a transaction, not a savepoint in ours
        return self._original("transaction")(*args, **options)

    def before_psycopg(self, query: Any) -> None:
        """Raise `TransactionBroken` if a psycopg query, which may be a composed one, would end the transaction."""
        if not isinstance(query, str):
            as_string = getattr(query, "as_string", None)
            query = query if as_string is None else as_string(self._driver)
        self.before(query)
        self._used = True


def _start(sql: object) -> str:
    return sql[:200].decode("latin-1") if isinstance(sql, bytes | bytearray) else str(sql)[:200]


def _words_of(start: str) -> str:
    """Return the keywords of the statement for an error message, without values, which may be sensitive."""
    return " ".join(re.split(r"[\s(;]+", start.strip())[:2])


@lru_cache(maxsize=8)
def _guarded_cursor(base: Any) -> Any:
    """Return a subclass of `base` whose cursors consult the guard of their connection, if it has one."""
    if hasattr(base, _GUARD):
        return base

    def execute(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        guard = vars(self.connection).get(_GUARD)
        if guard is not None:
            guard.before_psycopg(query)
        return base.execute(self, query, *args, **options)

    guarded: Any = type(base.__name__, (base,), {"execute": execute, _GUARD: True, "__module__": base.__module__})
    return guarded
