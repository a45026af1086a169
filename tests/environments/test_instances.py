"""The processes of a Managed Instance, with the real runtime client."""

from __future__ import annotations

import ast
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from lambda_tasks.instances import processes
from lambda_tasks.instances.notes import Invocation, Note
from lambda_tasks.models import TaskRecord
from tests.environments.project import ROOT, Project, event, result_of
from tests.environments.runtime_api import PATIENCE, RuntimeApi

pytest.importorskip("awslambdaric.lambda_multi_concurrent_utils", reason="awslambdaric is older than Managed Instances")

pytestmark = pytest.mark.once

EVERYWHERE = pytest.mark.databases(transaction=True)
ON_SQLITE = pytest.mark.databases("sqlite", transaction=True)

INSTANCES = "lambda_tasks.instances"


@EVERYWHERE
def test_four_processes_run_tasks_side_by_side(api: RuntimeApi, project: Project, database: str) -> None:
    with (
        project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="4") as parent,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        server.settimeout(PATIENCE)
        invocations = [api.offer(event("meet", port=server.getsockname()[1])) for _ in range(4)]
        tasks = [server.accept()[0] for _ in range(4)]  # all four are running now
        for task in tasks:
            task.sendall(b"x")
        pids = {result_of(invocation.wait(), database) for invocation in invocations}
        for task in tasks:
            task.close()
        described = result_of(api.invoke(event("describe")), database)
        assert len(pids) == 4
        assert described["parent"] == described["imported_by"] == parent.pid
        assert project.boots() == [parent.pid]
        assert {invocation.returned for invocation in invocations} == {f"of {each.id}" for each in invocations}


@EVERYWHERE
def test_ended_process_is_replaced(api: RuntimeApi, project: Project, database: str) -> None:
    """A task that ignores its limits fails and takes its process along. Its invocation and later ones are answered."""
    # With this variable, Lambda's client waits for the next invocation in a thread.
    variables = {"AWS_LAMBDA_MAX_CONCURRENCY": "1", "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13"}
    with project.running(api, INSTANCES, "shop.impatient.handler", **variables) as parent:
        before = result_of(api.invoke(event("describe")), database)["pid"]
        ended = api.invoke(event("never_end"))
        assert ended.error is not None
        assert ended.error["errorType"] == "Runtime.ExitError"
        assert ended.error["errorMessage"].startswith("The process has ended: exit status")
        assert ended.returned == f"of {ended.id}"
        record = TaskRecord.objects.using(database).get(task_name="shop.tasks.never_end")
        assert (record.status, record.takeovers) == ("FAILED", 0)

        # SQS delivers the message again, since its invocation has failed.
        assert api.invoke(ended.event).response == {"batchItemFailures": []}
        described = result_of(api.invoke(event("describe")), database)
        assert described["pid"] != before
        assert described["parent"] == parent.pid
        assert len(project.boots()) == 1


@EVERYWHERE
def test_process_that_leaks_is_replaced_between_tasks(api: RuntimeApi, project: Project, database: str) -> None:
    """A process of two may use 1,800 MiB, and is replaced when it uses 1,350 MiB after a batch."""
    variables = {
        "AWS_LAMBDA_MAX_CONCURRENCY": "2",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "4000",
        "PLUGINS": "lambda_tasks.contrib.memory",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",  # the client waits for the next invocation in a thread
    }
    with project.running(api, INSTANCES, **variables) as parent:
        api.wait_until(lambda: api.idle == 2)
        before = set(children_of(parent.pid))
        leaks = [result_of(api.invoke(event("leak", megabytes=20)), database) for _ in range(3)]
        assert set(children_of(parent.pid)) == before >= set(leaks)
        replaced = [result_of(api.invoke(event("leak", megabytes=1_400)), database) for _ in range(3)]
        api.wait_until(lambda: api.idle == 2)
        assert not set(children_of(parent.pid)) & set(replaced)
        assert project.boots() == [parent.pid]
        assert result_of(api.invoke(event("leak", megabytes=20)), database) in children_of(parent.pid)
    lines = [line["message"] for line in project.lines()]
    assert sum("The process ends, and another takes its place: it uses" in line for line in lines) == 3
    assert not any("has ended" in line for line in lines)


@ON_SQLITE
@pytest.mark.thorough
def test_timeout_of_the_function_holds(api: RuntimeApi, project: Project, database: str) -> None:
    """Lambda answers the invocation then, but does not end the code. The limits of the task are shortened instead."""
    with project.running(api, INSTANCES, "shop.impatient.handler", AWS_LAMBDA_MAX_CONCURRENCY="1"):
        assert api.invoke(event("sleep"), timeout=3).response == {"batchItemFailures": []}
    record = TaskRecord.objects.using(database).get(task_name="shop.tasks.sleep")
    assert record.status == "FAILED"
    assert "TimeLimitExceeded" in record.traceback


@EVERYWHERE
def test_killed_process_leaves_its_message_on_the_queue(api: RuntimeApi, project: Project, database: str) -> None:
    message = event("die")
    with project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="2"):
        killed = api.invoke(message)
        assert killed.error is not None
        assert killed.error["errorMessage"] == "The process has ended: killed by SIGKILL."
        # The lease of the dead process protects the task until it expires.
        [record] = message["Records"]
        assert api.invoke(message).response == {"batchItemFailures": [{"itemIdentifier": record["messageId"]}]}
        assert result_of(api.invoke(event("describe")), database)["key"] == "only for this test"
    assert TaskRecord.objects.using(database).get(pk=record["messageId"]).status == "RUNNING"
    [line] = [line for line in project.lines() if "has ended" in line["message"]]
    assert line["message"].endswith("has ended: killed by SIGKILL. It is replaced immediately.")


@ON_SQLITE
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all_processes(api: RuntimeApi, project: Project, number: signal.Signals) -> None:
    with project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="3") as parent:
        api.wait_until(lambda: api.idle == 3)
        children = children_of(parent.pid)
        parent.send_signal(number)
        assert parent.wait(PATIENCE) == 0
        assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert len(children) == 3


@ON_SQLITE
@pytest.mark.thorough
def test_running_invocation_is_answered_at_shutdown(api: RuntimeApi, project: Project) -> None:
    with (
        project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="1") as parent,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        server.settimeout(PATIENCE)
        running = api.offer(event("meet", port=server.getsockname()[1]))
        task, _ = server.accept()
        parent.terminate()
        error = running.wait().error
        task.close()
        assert error is not None
        assert error["errorMessage"] == "The process has ended: the environment is shutting down."


@ON_SQLITE
@pytest.mark.thorough
def test_processes_end_with_their_parent(api: RuntimeApi, project: Project) -> None:
    with project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="2") as parent:
        api.wait_until(lambda: api.idle == 2)
        watched = [os.pidfd_open(pid) for pid in children_of(parent.pid)]
        parent.kill()
        for process in watched:
            assert select.select([process], [], [], PATIENCE)[0]
            os.close(process)
    assert len(watched) == 2


@ON_SQLITE
class TestLogging:
    """The processes log as one does that Lambda's own client has started."""

    def test_lines_have_the_fields_of_the_invocation_once(self, api: RuntimeApi, project: Project) -> None:
        with project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="1"):
            invocation = api.invoke(event("describe"))
        [line] = [line for line in project.lines() if line["message"] == "logged by the project"]
        assert line["requestId"] == invocation.id
        assert line["task_name"] == "shop.tasks.describe"

    def test_logging_of_the_settings_prevails(self, api: RuntimeApi, project: Project) -> None:
        logging = {
            "version": 1,
            "handlers": {"own": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
            "root": {"handlers": ["own"], "level": "INFO"},
        }
        variables = {"LOGGING": json.dumps(logging), "AWS_LAMBDA_LOG_LEVEL": "ERROR"}
        with project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="1", **variables):
            invocation = api.invoke(event("describe"))
        message_id = invocation.event["Records"][0]["messageId"]
        assert project.output().count(f"[{message_id}] described") == 1
        assert project.lines() == []

    @pytest.mark.thorough
    def test_output_goes_where_lambda_collects_it(self, api: RuntimeApi, project: Project, tmp_path: Path) -> None:
        """On Managed Instances, each process connects its output to a socket."""
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "log.socket"))
            server.listen()
            server.settimeout(PATIENCE)
            variables = {"_LAMBDA_TELEMETRY_LOG_FD_PROVIDER_SOCKET": str(tmp_path / "log.socket")}
            with project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="1", **variables):
                output, errors = server.accept()[0], server.accept()[0]
                invocation = api.invoke(event("describe"))
            with output, errors, output.makefile() as lines:
                assert [json.loads(line)["requestId"] for line in lines if "described" in line] == [invocation.id]


@ON_SQLITE
class TestStart:
    """Errors come before the first invocation."""

    def test_handler_that_cannot_be_imported(self, api: RuntimeApi, project: Project) -> None:
        with project.running(api, INSTANCES, "shop.broken.handler", AWS_LAMBDA_MAX_CONCURRENCY="4") as parent:
            assert parent.wait(PATIENCE) == 1
        [error] = api.init_errors
        assert (error["errorType"], error["errorMessage"]) == ("RuntimeError", "no such shop")

    def test_old_runtime_client(self, api: RuntimeApi, project: Project) -> None:
        old = project.directory / "old"
        (old / "awslambdaric").mkdir(parents=True)
        (old / "awslambdaric/__init__.py").touch()
        project.variables["PYTHONPATH"] = os.pathsep.join([str(old), project.variables["PYTHONPATH"]])
        with project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY="4") as parent:
            assert parent.wait(PATIENCE) == 1
        assert "needs awslambdaric 4.1 or newer: No module named" in project.output()

    def test_function_without_the_librarys_handler(self, api: RuntimeApi, project: Project) -> None:
        with project.running(api, INSTANCES, "shop.plain.handler", AWS_LAMBDA_MAX_CONCURRENCY="2") as parent:
            assert api.invoke({}).response["pid"] in children_of(parent.pid)

    def test_ordinary_function_gets_lambdas_own_client(self, api: RuntimeApi, project: Project) -> None:
        with project.running(api, INSTANCES) as process:
            assert api.invoke({"lambda_tasks": "ping"}).response["status"] == "ok"
            assert project.boots() == [process.pid]

    @pytest.mark.thorough
    @pytest.mark.parametrize("concurrency", ["2", ""])
    def test_documented_wrapper(self, api: RuntimeApi, project: Project, concurrency: str) -> None:
        """Lambda passes the command that would start its own client, and the handler in a variable."""
        page = (ROOT / "docs/howto/lambda-environments.md").read_text()
        [script] = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", page, re.DOTALL)
        (project.directory / "instances.sh").write_text(script)
        variables = {"_HANDLER": "shop.handler.handler"} | (
            {"AWS_LAMBDA_MAX_CONCURRENCY": concurrency} if concurrency else {}
        )
        with project.running(api, "awslambdaric", wrapper=("sh", "instances.sh"), **variables) as process:
            api.wait_until(lambda: api.idle == int(concurrency or 1))
            assert api.invoke({"lambda_tasks": "ping"}).response["status"] == "ok"
            assert len(children_of(process.pid)) == int(concurrency or 0)

    @pytest.mark.parametrize("value", ["", "0", "-1", "four"])
    def test_concurrency_must_be_positive(self, api: RuntimeApi, project: Project, value: str) -> None:
        with project.running(api, INSTANCES, AWS_LAMBDA_MAX_CONCURRENCY=value) as process:
            assert process.wait(PATIENCE) == 1
        assert f"AWS_LAMBDA_MAX_CONCURRENCY must be a positive integer, not {value!r}." in project.output()


def test_pause_grows_with_early_deaths() -> None:
    assert [processes.pause(deaths) for deaths in range(10)] == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert processes.pause(10**6) == 60


class TestReplacing:
    """Processes that die at the start, with a clock that the test sets."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(processes.time, "monotonic", lambda: clock.now)
        return clock

    def test_pauses_grow_until_a_process_lives_long_enough(self, clock: Clock) -> None:
        slot = processes._Slot()
        pool = processes.Processes(0, lambda note: None, lambda note, how: None)
        pauses = []
        for seconds in (0.1, 0.1, 0.1, 59.9, 60.1, 0.1):
            slot.started = clock.now
            clock.now += seconds
            pool._postpone(slot)
            pauses.append(round(slot.due - clock.now))
        assert pauses == [0, 1, 2, 4, 0, 0]

    def test_process_that_dies_is_forked_again(self) -> None:
        """Each process tells which invocation it was running."""
        work = """
            if died:
                os.kill(os.getppid(), signal.SIGTERM)
                signal.pause()
            note.write(Invocation("a"))
            os._exit(3)
        """
        ended = [("exit status 3", "a"), ("the environment is shutting down", None)]
        assert deaths_of(work) == ended

    def test_process_that_ignores_sigterm_is_killed(self) -> None:
        work = """
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.kill(os.getppid(), signal.SIGTERM)
            while True:
                signal.pause()
        """
        assert deaths_of(work) == [("the environment is shutting down", None)]

    def test_exception_does_not_leave_the_child(self) -> None:
        work = """
            if died:
                os.kill(os.getppid(), signal.SIGTERM)
                signal.pause()
            raise KeyboardInterrupt
        """
        assert deaths_of(work)[0] == ("exit status 1", None)


@pytest.mark.parametrize("broken", [b"", b"[", b'["a", ', b'{"a": 1}', b"\xff", b"[]"])
def test_half_written_note_counts_as_none(broken: bytes) -> None:
    note = Note()
    note.write(Invocation("a" * 100, "b"))
    assert note.read() == Invocation("a" * 100, "b")
    note._memory[:] = broken.ljust(1024, b"\0")
    assert note.read() is None


@dataclass
class Clock:
    now: float = 0.0


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def deaths_of(work: str) -> list[tuple[str, str | None]]:
    """Run `work` in a process that is replaced until SIGTERM, and return how each one died, and in which invocation.

    The signal would also reach the threads of a parallel test run, so the parent is a process of its own.
    """
    program = f"""
import os, signal
from lambda_tasks.instances import processes
from lambda_tasks.instances.notes import Invocation

processes.ENDING_GRACE = 0.1
died = []

def work(note):
{textwrap.indent(textwrap.dedent(work), "    ")}

def note_death(note, how):
    died.append((how, note.read() and note.read().request_id))

processes.block_signals()
processes.Processes(1, work, note_death).run()
print(died)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE, cwd=ROOT
    )
    deaths: list[tuple[str, str | None]] = ast.literal_eval(ran.stdout)
    return deaths
