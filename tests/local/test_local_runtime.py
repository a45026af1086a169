"""An execution environment: the real awslambdaric in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lambda_tasks.local.runtime import (
    Function,
    Runtime,
    RuntimeStartError,
    describe_exit,
    process_environment,
)
from lambda_tasks.local.runtime_api import Answered, Crashed, Errored, TimedOut

PATIENCE = 10  # seconds: only a failing test waits this long
PROJECT = Path(__file__).parents[2]

HANDLERS = """
import os, signal, socket, subprocess, sys, threading, time

def echo(event, context):
    return {
        "event": event,
        "pid": os.getpid(),
        "main_thread": threading.current_thread() is threading.main_thread(),
        "request_id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "function": context.function_name,
        "memory": context.memory_limit_in_mb,
        "milliseconds": context.get_remaining_time_in_millis(),
        "trace": os.environ["_X_AMZN_TRACE_ID"],
        "region": os.environ["AWS_REGION"],
        "settings": os.environ.get("DJANGO_SETTINGS_MODULE"),
        "color": os.environ.get("COLOR"),
    }

def raises(event, context):
    raise KeyError("basket")

def ends(event, context):
    print("going", flush=True)
    os._exit(7)

def is_killed(event, context):
    os.kill(os.getpid(), signal.SIGKILL)

def sys_exits(event, context):
    sys.exit(3)

def hangs_with_a_child(event, context):
    # The connection is open as long as one of the two processes is alive.
    connection = socket.create_connection(event["address"])
    subprocess.Popen(["sleep", "60"], pass_fds=[connection.fileno()])
    connection.sendall(b"here")
    time.sleep(60)

def leaves_a_child(event, context):
    connection = socket.create_connection(event["address"])
    subprocess.Popen(["sleep", "60"], pass_fds=[connection.fileno()])
    connection.sendall(b"here")
    os._exit(1)

def ignores_everything(event, context):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.create_connection(event["address"])
    connection.sendall(b"here")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except BaseException:
            pass
"""


@pytest.fixture
def lines() -> list[str]:
    """The lines that the process has written."""
    return []


@pytest.fixture
def runtime_of(tmp_path: Path, lines: list[str]) -> Iterator[Callable[..., Runtime]]:
    """Return a factory of runtimes for the handlers above, and close the runtimes afterwards."""
    (tmp_path / "handlers.py").write_text(HANDLERS)
    made: list[Runtime] = []

    def make(handler: str, *, timeout_seconds: float = PATIENCE, **options: object) -> Runtime:
        environment = {"PYTHONPATH": str(tmp_path), "COLOR": "green"}
        function = Function(handler, timeout_seconds, environment=environment, **options)  # type: ignore[arg-type]
        made.append(Runtime(function, on_output=lines.append))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listen for a connection from a handler's process, whose end closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


def accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    assert connection.recv(4) == b"here"
    return connection


def is_gone(connection: socket.socket) -> bool:
    """Wait until every process that held the other side has ended; raise an error on a timeout."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_handler_runs_in_lambdas_environment(
    runtime_of: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    runtime = runtime_of("handlers.echo", timeout_seconds=30, name="shop", region="eu-west-3", memory_mb=512)
    pid = runtime.start()

    result = runtime.invoke({"Records": []})

    assert isinstance(result, Answered)
    answer = json.loads(result.body)
    assert 29_000 < answer.pop("milliseconds") <= 30_000
    assert answer.pop("request_id")
    assert answer.pop("trace").startswith("Root=1-")
    assert answer == {
        "event": {"Records": []},
        "pid": pid,
        "main_thread": True,
        "arn": "arn:aws:lambda:eu-west-3:000000000000:function:shop",
        "function": "shop",
        "memory": "512",
        "region": "eu-west-3",
        "settings": "shop.settings",
        "color": "green",
    }


def test_process_handles_many_invocations(runtime_of: Callable[..., Runtime]) -> None:
    runtime = runtime_of("handlers.echo")
    runtime.start()

    began = time.monotonic()
    answers = [runtime.invoke({"number": number}) for number in range(40)]
    seconds = time.monotonic() - began

    bodies = [json.loads(answer.body) for answer in answers if isinstance(answer, Answered)]
    assert [body["event"]["number"] for body in bodies] == list(range(40))
    assert len({body["pid"] for body in bodies}) == 1
    assert len({body["request_id"] for body in bodies}) == 40
    # If a response is sent in two packets, each call waits 40 ms for a delayed acknowledgement.
    assert seconds < 40 * 0.04


def test_exception_is_reported_and_the_process_survives(runtime_of: Callable[..., Runtime], lines: list[str]) -> None:
    runtime = runtime_of("handlers.raises")
    runtime.start()

    result = runtime.invoke({})

    assert isinstance(result, Errored)
    assert str(result) == "KeyError: 'basket'"
    assert any("in raises" in line for line in result.stack_trace)
    assert runtime.is_alive
    runtime.close()
    [record] = [line for line in lines if not line.startswith("LAMBDA_WARNING")]  # of old runtimes
    assert record.splitlines()[0] == "[ERROR] KeyError: 'basket'"
    assert record.endswith('raise KeyError("basket")')


@pytest.mark.parametrize(
    ("handler", "how"),
    [
        ("handlers.ends", "exit status 7"),
        ("handlers.is_killed", "killed by SIGKILL"),
        ("handlers.sys_exits", "exit status 3"),
    ],
)
def test_crashed_process_is_replaced(runtime_of: Callable[..., Runtime], handler: str, how: str) -> None:
    runtime = runtime_of(handler)
    first = runtime.start()

    assert runtime.invoke({}) == Crashed(how)
    assert not runtime.is_alive

    assert runtime.start() != first
    assert runtime.invoke({}) == Crashed(how)


def test_output_before_a_crash_is_read(runtime_of: Callable[..., Runtime], lines: list[str]) -> None:
    runtime = runtime_of("handlers.ends")
    runtime.start()

    runtime.invoke({})

    assert lines == ["going"]


def test_death_of_a_waiting_process_is_detected(runtime_of: Callable[..., Runtime]) -> None:
    runtime = runtime_of("handlers.echo")
    os.kill(runtime.start(), signal.SIGKILL)

    assert runtime.invoke({}) == Crashed("killed by SIGKILL")


def test_function_timeout_kills_process_and_children(
    runtime_of: Callable[..., Runtime], listener: socket.socket
) -> None:
    runtime = runtime_of("handlers.hangs_with_a_child", timeout_seconds=0.5)
    runtime.start()
    began = time.monotonic()

    result = runtime.invoke({"address": listener.getsockname()})

    assert result == TimedOut(0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert not runtime.is_alive
    with accept(listener) as connection:
        assert is_gone(connection)


def test_children_of_a_crashed_process_end(runtime_of: Callable[..., Runtime], listener: socket.socket) -> None:
    runtime = runtime_of("handlers.leaves_a_child")
    runtime.start()

    assert runtime.invoke({"address": listener.getsockname()}) == Crashed("exit status 1")

    with accept(listener) as connection:
        assert is_gone(connection)


def test_close_ends_the_process(runtime_of: Callable[..., Runtime]) -> None:
    runtime = runtime_of("handlers.echo")
    pid = runtime.start()

    runtime.close()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    runtime.close()  # a second call has no effect


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_process_dies_with_a_killed_worker(tmp_path: Path, listener: socket.socket) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    program = f"""
from lambda_tasks.local.runtime import Function, Runtime
runtime = Runtime(Function("handlers.ignores_everything", 60))
runtime.start()
runtime.invoke({{"address": {listener.getsockname()!r}}})
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as worker:
        try:
            connection = accept(listener)
        finally:
            worker.kill()

    with connection:
        assert is_gone(connection)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("no_such_module.handler", "cannot load the handler 'no_such_module.handler': Runtime.ImportModuleError"),
        ("handlers.missing", "Runtime.HandlerNotFound: Handler 'missing' missing on module 'handlers'"),
        ("handlers", "Runtime.MalformedHandlerName"),
    ],
)
def test_unloadable_handler_reports_the_runtimes_error(
    runtime_of: Callable[..., Runtime], handler: str, message: str
) -> None:
    with pytest.raises(RuntimeStartError, match=message):
        runtime_of(handler).start()


def test_module_that_exits_is_reported(runtime_of: Callable[..., Runtime], tmp_path: Path) -> None:
    (tmp_path / "ends_early.py").write_text("import os; os._exit(9)")

    with pytest.raises(RuntimeStartError, match=r"ended \(exit status 9\) while it loaded .*ends_early"):
        runtime_of("ends_early.handler").start()


def test_slow_import_is_reported(runtime_of: Callable[..., Runtime], tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text("import time; time.sleep(60)")
    runtime = runtime_of("slow_import.handler", init_timeout_seconds=0.3)

    with pytest.raises(RuntimeStartError, match=r"import of the handler .* must take at most 0\.3 s"):
        runtime.start()

    assert not runtime.is_alive


def test_invoke_before_start_names_the_missing_call(runtime_of: Callable[..., Runtime]) -> None:
    with pytest.raises(RuntimeError, match=r"Call start\(\)"):
        runtime_of("handlers.echo").invoke({})


def test_process_inherits_the_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/project", *sys.path])

    path = process_environment(Function("h.h", 1, environment={"PYTHONPATH": "/mine"}), "127.0.0.1:1")["PYTHONPATH"]

    assert path.split(os.pathsep)[:3] == ["/mine", str(Path.cwd()), "/project"]


def test_variables_of_the_client_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_MAX_CONCURRENCY", "8")

    assert "AWS_LAMBDA_MAX_CONCURRENCY" not in process_environment(Function("h.h", 1), "127.0.0.1:1")


def test_fetched_secrets_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process fetches them itself, and would report the variable as a conflict."""
    monkeypatch.setenv("LAMBDA_TASKS_SECRET_SHOP_KEY", "a reference")
    monkeypatch.setenv("SHOP_KEY", "fetched by manage.py")

    environment = process_environment(Function("h.h", 1), "127.0.0.1:1")

    assert "SHOP_KEY" not in environment
    assert environment["LAMBDA_TASKS_SECRET_SHOP_KEY"] == "a reference"


@pytest.mark.parametrize(
    ("returncode", "description"),
    [(0, "exit status 0"), (3, "exit status 3"), (-11, "killed by SIGSEGV"), (-250, "killed by signal 250")],
)
def test_exit_of_a_process_is_readable(returncode: int, description: str) -> None:
    assert describe_exit(returncode) == description


def test_failed_process_start_closes_the_server(
    runtime_of: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    with pytest.raises(FileNotFoundError):
        runtime_of("handlers.echo").start()

    assert not [thread for thread in threading.enumerate() if thread.name == "runtime-api"]
