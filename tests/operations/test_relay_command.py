"""`manage.py lambda_tasks relay`: once, as for cron, and as a process that ends when it is told to."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import InternalError, OperationalError, connection, connections
from django.test import override_settings

from lambda_tasks import maintenance
from lambda_tasks.backends import relay
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.relay import Relayed
from lambda_tasks.maintenance import RELAY_SECONDS, relay_until_stopped
from lambda_tasks.models import OutboxMessage
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import new_message_id
from tests.conftest import NAME_OF_VENDOR
from tests.faults.proxy import PATIENCE, database_behind_proxy
from tests.faults.workers import job_of
from tests.operations.test_maintenance import Clock, Queue, clock, leave, leave_waiting, make_due, outbox, queue
from tests.services import Server

__all__ = ["clock", "outbox", "queue"]

pytestmark = [pytest.mark.thorough, pytest.mark.django_db(transaction=True)]

PROJECT = Path(__file__).parents[2]


def run(*arguments: str) -> None:
    call_command("lambda_tasks", "relay", *arguments)


class TestOnce:
    def test_due_messages_are_sent_and_counted(self, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
        leave_waiting(queue, "a", "b")
        run("--once")
        assert capsys.readouterr().out == "2 sent, 0 to be retried, 0 dead.\n"
        assert len(queue.jobs) == 2
        assert not OutboxMessage.objects.exists()

    def test_empty_outbox_succeeds(self, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
        run("--once")
        assert capsys.readouterr().out == "0 sent, 0 to be retried, 0 dead.\n"

    def test_command_has_no_time_limit(
        self, queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(relay, "BATCH_SIZE", 1)
        leave_waiting(queue, *"abc")
        queue.meanwhile = lambda: setattr(clock, "now", clock.now + 3600)
        run("--once")
        assert len(queue.jobs) == 3

    def test_command_fails_if_messages_remain_unsent(self, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
        leave_waiting(queue, "a")
        queue.closed = True
        with pytest.raises(CommandError, match="Some messages could not be sent"):
            run("--once")
        assert capsys.readouterr().out == "0 sent, 1 to be retried, 0 dead.\n"

    def test_dead_message_is_counted_without_an_error(self, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
        leave_waiting(queue, "a")
        OutboxMessage.objects.update(body="{")
        run("--once")
        run("--once")
        sums = ["0 sent, 0 to be retried, 1 dead.", "0 sent, 0 to be retried, 0 dead."]
        assert capsys.readouterr().out.splitlines() == sums

    def test_database_error_is_raised(self) -> None:
        failing = rounds_of(fails_with(OperationalError("no route to host")))
        with failing, pytest.raises(CommandError, match=r"The database has failed: no route to host\. Make sure"):
            run("--once")


class TestRefused:
    @pytest.mark.parametrize("how", ["--once", "--interval=5"])
    def test_disabled_outbox_is_refused_with_a_remedy(self, how: str) -> None:
        with pytest.raises(
            CommandError, match=r"The settings have no outbox to relay\. Set LAMBDA_TASKS_OUTBOX = True"
        ):
            run(how)

    @pytest.mark.parametrize("how", ["--once", "--interval=5"])
    def test_eager_mode_is_refused(self, outbox: OutboxBackend, how: str, capsys: pytest.CaptureFixture[str]) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True), pytest.raises(CommandError, match="remove LAMBDA_TASKS_EAGER"):
            run(how)
        assert "LAMBDA_TASKS_EAGER is True in these settings" in capsys.readouterr().out

    @pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "86401"])
    def test_invalid_interval_is_refused(self, outbox: OutboxBackend, interval: str) -> None:
        with pytest.raises(
            CommandError, match=f"interval must be more than 0 and at most 86400 seconds .*, not {interval}"
        ):
            run(f"--interval={interval}")

    @pytest.mark.parametrize("options", [["--interval", "often"], ["--once", "--interval", "5"]], ids=str)
    def test_invalid_options_are_refused(self, outbox: OutboxBackend, options: list[str]) -> None:
        with pytest.raises(CommandError):
            run(*options)

    def test_invalid_settings_are_refused(self) -> None:
        with (
            override_settings(LAMBDA_TASKS_BACKEND="shop.Pigeons"),
            pytest.raises(CommandError, match=r"shop\.Pigeons"),
        ):
            run("--once")


#: What happens in the rounds of a relay, one after the other.
script: list[Callable[[], Relayed]] = []


class ScriptedOutbox(OutboxBackend):
    def relay(self, **_: Any) -> Relayed:
        return script.pop(0)()


def fails_with(error: Exception) -> Callable[[], Relayed]:
    def fail() -> Relayed:
        connection.ensure_connection()
        raise error

    return fail


@contextmanager
def rounds_of(*rounds: Callable[[], Relayed]) -> Iterator[None]:
    script[:] = rounds
    options = {"transport": "tests.operations.test_maintenance.Queue"}
    with override_settings(LAMBDA_TASKS_BACKEND={"BACKEND": f"{__name__}.ScriptedOutbox", "OPTIONS": options}):
        yield


class Pauses(list[float]):
    """The pauses between the rounds, in none of which time goes by; each next thing of `then` happens in one."""

    def __init__(self, *then: Callable[[], object]) -> None:
        super().__init__()
        self.then = list(then)

    def pass_by(self, seconds: float, stop: Any) -> None:
        self.append(seconds)
        (self.then.pop(0) if self.then else stop.ask)()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    pauses = Pauses()
    monkeypatch.setattr(maintenance._Stop, "wait", lambda stop, seconds: pauses.pass_by(seconds, stop))
    return pauses


class TestRounds:
    def test_rounds_send_due_messages_and_report_them(self, queue: Queue, pauses: Pauses) -> None:
        """Rounds that sent nothing are not reported."""
        said: list[str] = []
        pauses.then = [lambda: leave_waiting(queue, "a"), lambda: None]
        relay_until_stopped(7, report=said.append)
        assert pauses == [7, 7, 7]
        assert said == [
            "Relaying the outbox every 7 s. Stop with SIGTERM or Ctrl-C.",
            "1 sent, 0 to be retried, 0 dead.",
            "Stopped.",
        ]

    def test_large_backlog_continues_without_a_pause(
        self, queue: Queue, clock: Clock, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rounds are short, so that a large backlog does not delay shutdown."""
        monkeypatch.setattr(relay, "BATCH_SIZE", 1)
        leave_waiting(queue, *"abcde")
        queue.meanwhile = lambda: setattr(clock, "now", clock.now + RELAY_SECONDS / 2)
        said: list[str] = []
        relay_until_stopped(7, report=said.append)
        assert [line.split(",")[0] for line in said[1:-1]] == ["2 sent", "2 sent", "1 sent"]
        assert pauses == [7]

    def test_failing_queue_is_retried_after_a_pause(
        self, queue: Queue, clock: Clock, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay, "BATCH_SIZE", 1)
        leave_waiting(queue, "a")
        queue.closed = True
        leave.using(queue="other").execute_on_commit(name="b")
        make_due()
        tries: list[int] = []
        tries_before_pause: list[int] = []

        def wait_for_timeouts() -> None:
            tries.append(1)
            clock.now += RELAY_SECONDS

        queue.meanwhile = wait_for_timeouts
        pauses.then = [lambda: tries_before_pause.append(len(tries))]
        relay_until_stopped(7, report=lambda _: None)
        assert tries_before_pause == [1]
        assert pauses == [7, 7]

    @pytest.mark.parametrize("error", [OperationalError, InternalError, RuntimeError])
    def test_error_does_not_end_rounds_and_closes_connections(
        self, pauses: Pauses, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        """After a failover, the demoted server still answers on open connections, but refuses writes."""
        sessions: list[Any] = []
        monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 600)
        pauses.then = [lambda: sessions.append(connection.connection)]
        said: list[str] = []
        with rounds_of(fails_with(error("only reads here")), lambda: Relayed(sent=3)):
            relay_until_stopped(7, report=said.append)
        assert pauses == [7, 7]
        assert sessions == [None]
        assert "3 sent" in said[1]
        assert "only reads here" in caplog.text
        assert "The next attempt is in 7 s" in caplog.text

    @pytest.mark.parametrize("kept", [False, True])
    def test_conn_max_age_applies_between_rounds(
        self, queue: Queue, pauses: Pauses, kept: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 600 if kept else 0)
        try:
            relay_until_stopped(7, report=lambda _: None)
            assert (connection.connection is not None) == kept
        finally:
            connection.close()

    @pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
    def test_signal_during_a_round_lets_it_finish(self, queue: Queue, pauses: Pauses, sign: signal.Signals) -> None:
        before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
        leave_waiting(queue, "a")
        queue.meanwhile = lambda: signal.raise_signal(sign)
        said: list[str] = []
        relay_until_stopped(7, report=said.append)
        assert said[1:] == ["1 sent, 0 to be retried, 0 dead.", "Stopped."]
        assert not OutboxMessage.objects.exists()
        assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before

    def test_signal_ends_a_pause(self) -> None:
        """It arrives during the wait, which would last for a day."""
        before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))

        def nothing() -> Relayed:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return Relayed()

        try:
            with rounds_of(nothing):
                relay_until_stopped(86_400, report=lambda _: None)
        finally:
            signal.signal(signal.SIGALRM, before)


# As a process

SETTINGS = """
import os

from tests.settings import *

DATABASES["default"] = DATABASES[os.environ["ALIAS"]]
DATABASES["default"].update(CONN_MAX_AGE=600)
if "PORT" in os.environ:
    DATABASES["default"].update(HOST="127.0.0.1", PORT=int(os.environ["PORT"]))
    if "postgresql" in DATABASES["default"]["ENGINE"]:
        DATABASES["default"]["OPTIONS"] |= {"sslmode": "disable", "gssencmode": "disable"}
LAMBDA_TASKS_BACKEND = "far_queue.FarQueue"
LAMBDA_TASKS_OUTBOX = True
"""

FAR_QUEUE = """
import os, socket

from lambda_tasks.backends.base import BaseBackend, Taken

class FarQueue(BaseBackend):
    def send(self, jobs):
        # Tells that it is at it, and goes on when it is told to.
        with socket.create_connection(("127.0.0.1", int(os.environ["LISTENER"]))) as line:
            line.sendall("".join(job.message_id + "\\n" for job in jobs).encode())
            line.recv(1)
        return [Taken(job) for job in jobs]
"""


class Process:
    """A relay in a process of its own, and the end of the line on which it sends."""

    def __init__(self, listener: socket.socket, process: subprocess.Popen[str]) -> None:
        self._listener = listener
        self.process = process

    def wait_for_output(self, sentence: str) -> None:
        """Read what the process writes, until it has written `sentence`."""
        assert self.process.stdout is not None
        ends_at = time.monotonic() + PATIENCE
        said = []
        while time.monotonic() < ends_at:
            if select.select([self.process.stdout], [], [], 0.1)[0]:
                line = os.read(self.process.stdout.fileno(), 100_000).decode()
                said.append(line)
                if sentence in "".join(said):
                    return
                assert line, f"the process ended: {''.join(said)}"
        raise AssertionError(f"{sentence!r} was not said: {''.join(said)}")

    def meet(self) -> tuple[list[str], socket.socket]:
        """Wait until it sends; return the ids, and the line on which it waits for a byte."""
        line, _ = self._listener.accept()
        line.settimeout(PATIENCE)
        return line.recv(100_000).decode().split(), line

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code, and what was written last."""
        rest, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, rest


@contextmanager
def started(directory: Path, alias: str, *options: str, port: int | None = None) -> Iterator[Process]:
    (directory / "relay_settings.py").write_text(SETTINGS)
    (directory / "far_queue.py").write_text(FAR_QUEUE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(directory), str(PROJECT)]),
            "DJANGO_SETTINGS_MODULE": "relay_settings",
            "ALIAS": alias,
            "LISTENER": str(listener.getsockname()[1]),
            **({} if port is None else {"PORT": str(port)}),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "django", "lambda_tasks", "relay", *options],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield Process(listener, process)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def keeper(settings: Any) -> OutboxBackend:
    """Writes into the outbox of any alias, for the process to find."""
    settings.LAMBDA_TASKS_BACKEND = {
        "BACKEND": "lambda_tasks.backends.outbox.OutboxBackend",
        "OPTIONS": {"transport": "tests.operations.test_maintenance.Queue"},
    }
    backend = get_backend()
    assert isinstance(backend, OutboxBackend)
    return backend


def keep(keeper: OutboxBackend, alias: str) -> str:
    message_id = new_message_id()
    keeper.keep([job_of(leave, message_id, name="a")], using=alias)
    return message_id


def is_waiting(alias: str) -> bool:
    return bool(OutboxMessage.objects.using(alias).exists())


class TestProcess:
    @pytest.mark.databases(transaction=True)
    def test_sigterm_finishes_the_round_and_exits_successfully(
        self, database: str, keeper: OutboxBackend, tmp_path: Path
    ) -> None:
        message_id = keep(keeper, database)
        with started(tmp_path, database, "--interval", "3600") as process:
            ids, line = process.meet()
            assert ids == [message_id]
            process.process.terminate()
            assert is_waiting(database)
            with line:
                line.sendall(b"!")
            code, said = process.end()
        assert (code, said.splitlines()[-2:]) == (0, ["1 sent, 0 to be retried, 0 dead.", "Stopped."])
        assert not is_waiting(database)

    @pytest.mark.databases("sqlite", transaction=True)
    def test_ctrl_c_ends_the_pause(self, database: str, keeper: OutboxBackend, tmp_path: Path) -> None:
        keep(keeper, database)
        with started(tmp_path, database, "--interval", "3600") as process:
            _, line = process.meet()
            line.close()
            process.wait_for_output("1 sent")
            process.process.send_signal(signal.SIGINT)
            assert process.end() == (0, "Stopped.\n")

    @pytest.mark.databases("sqlite", transaction=True)
    def test_once_exits_by_itself(self, database: str, keeper: OutboxBackend, tmp_path: Path) -> None:
        keep(keeper, database)
        with started(tmp_path, database, "--once") as process:
            _, line = process.meet()
            line.close()
            assert process.end() == (0, "1 sent, 0 to be retried, 0 dead.\n")


@pytest.mark.databases("postgres", "mariadb", transaction=True)
def test_database_outage_does_not_end_the_relay(database: str, keeper: OutboxBackend, tmp_path: Path) -> None:
    server = django_settings.SERVERS[NAME_OF_VENDOR[connections[database].vendor]]
    assert isinstance(server, Server)
    with (
        database_behind_proxy(database, server) as proxy,
        started(tmp_path, database, "--interval", "0.05", port=proxy.port) as process,
    ):
        keep(keeper, database)
        process.meet()[1].close()
        process.wait_for_output("1 sent")
        proxy.become_unavailable()
        process.wait_for_output("The outbox was not relayed")
        proxy.pass_through()
        connections[database].close()
        keep(keeper, database)
        process.meet()[1].close()
        process.wait_for_output("1 sent")
        process.process.terminate()
        code, said = process.end()
    assert (code, said.splitlines()[-1]) == (0, "Stopped.")
