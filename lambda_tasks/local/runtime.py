"""One execution environment: a process of Lambda's runtime client, and the Runtime API that it uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.local import launch
from lambda_tasks.local.launch import describe_exit
from lambda_tasks.local.output import read_output
from lambda_tasks.local.runtime_api import Crashed, Errored, InvocationResult, RuntimeApi, TimedOut
from lambda_tasks.local.usage import resident_bytes
from lambda_tasks.secret_loader import PREFIX as SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Seconds that a function may take to import in Lambda.
INIT_TIMEOUT = 10
#: Seconds to wait for the rest of the output of a killed process.
_OUTPUT_GRACE = 2

#: Variables that Lambda sets for other kinds of functions. Inherited by accident, they would change the client.
_NOT_INHERITED = ("AWS_LAMBDA_MAX_CONCURRENCY", "_LAMBDA_TELEMETRY_LOG_FD", "_X_AMZN_TRACE_ID")

#: Tells the library in the process that it runs under the local worker.
LOCAL_WORKER: Final = "LAMBDA_TASKS_LOCAL_WORKER"


class RuntimeStartError(Exception):
    """The runtime ended, or hung, before it requested its first invocation."""


@dataclass(frozen=True, slots=True)
class Function:
    """The configuration of a Lambda function, as far as it applies locally.

    `environment` is added to the environment of this process. `init_timeout_seconds` limits the import of the
    handler's module.
    """

    handler: str
    timeout_seconds: float
    name: str = "lambda-tasks-local"
    region: str = "us-east-1"
    memory_mb: int = 1024
    environment: Mapping[str, str] = field(default_factory=dict)
    init_timeout_seconds: float = INIT_TIMEOUT

    @property
    def longest_invocation(self) -> float:
        """Seconds that an invocation may take, with the time until its process takes it."""
        return 2 * self.timeout_seconds

    @property
    def arn(self) -> str:
        """The ARN that the handler sees as `context.invoked_function_arn`."""
        return f"arn:aws:lambda:{self.region}:000000000000:function:{self.name}"


class Runtime:
    """Run a function's handler in a separate process, one invocation at a time.

    Start and close it in the same thread, and let that thread outlive it: on Linux the kernel kills the process when
    that thread ends. `on_output` is called from another thread with each line that the process prints, and with each
    record of its log, which may have several lines.
    """

    def __init__(self, function: Function, *, on_output: Callable[[str], None] = print) -> None:
        self._function = function
        self._on_output = on_output
        self._environment: _Environment | None = None
        #: The number of processes started so far.
        self.starts = 0
        #: The number of messages that the current process has received, as its user counts them.
        self.messages = 0

    @property
    def is_alive(self) -> bool:
        """Whether the process is running and can take an invocation."""
        return self._environment is not None and self._environment.is_alive

    @property
    def resident_mb(self) -> int | None:
        """The resident memory of the process in megabytes; None if it is unknown."""
        used = None if self._environment is None else resident_bytes(self._environment.process.pid)
        return None if used is None else used // 2**20

    def start(self) -> int:
        """Close the previous process, start a new one, and return its id when it requests an invocation.

        Raise `RuntimeStartError` with the runtime's error message if the handler cannot be loaded.
        """
        self.close()
        self.starts += 1
        self.messages = 0
        self._environment = environment = _Environment(self._function, self._on_output)
        problem = environment.api.wait_until_ready(self._function.init_timeout_seconds)
        if problem is not None:
            self.close()
            raise RuntimeStartError(_cannot_start(self._function, problem))
        return environment.process.pid

    def invoke(self, event: Mapping[str, Any]) -> InvocationResult:
        """Run the handler with `event`. Kill the process if the function's timeout expires.

        After `Crashed` and `TimedOut` the process has ended, and `start()` starts the next one.
        """
        if self._environment is None:
            raise RuntimeError("Call start() before invoke().")
        result = self._environment.api.invoke(event, timeout_seconds=self._function.timeout_seconds)
        if isinstance(result, Crashed | TimedOut):
            self.close()
        return result

    def kill(self) -> None:
        """Kill the process and all processes that it started. A running `invoke()` returns `Crashed`."""
        environment = self._environment  # another thread may close it meanwhile
        if environment is not None:
            environment.kill()

    def close(self) -> None:
        """Kill the process and wait until it has ended. Do nothing if there is none."""
        if self._environment is not None:
            self._environment.close()
        self._environment = None


class _Environment:
    """One process, with the threads that wait for its end and read its output."""

    def __init__(self, function: Function, on_output: Callable[[str], None]) -> None:
        self.api = RuntimeApi(function_arn=function.arn, is_guarded=True)
        records, write_end = os.pipe()
        try:
            self.process = _spawn(function, self.api.address, write_end)
        except OSError:
            self.api.close()
            os.close(records)
            raise
        finally:
            os.close(write_end)
        self.api.admit(self.process.pid)
        self._reader = _start_thread("runtime-output", self._read_output, records, on_output)
        self._watcher = _start_thread("runtime-watcher", self._watch)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        if self.is_alive:  # otherwise the id may already belong to another process
            _kill_group(self.process.pid)

    def close(self) -> None:
        self.kill()
        self._watcher.join()
        self._reader.join(_OUTPUT_GRACE)
        self.api.close()

    def _watch(self) -> None:
        returncode = self.process.wait()
        _kill_group(self.process.pid)  # the processes that it started
        self.api.process_ended(describe_exit(returncode))

    def _read_output(self, records: int, on_output: Callable[[str], None]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output, os.fdopen(records, "rb", 0):
            read_output(output.fileno(), records, on_output)


def _kill_group(leader: int) -> None:
    # As in Lambda, the signal cannot be handled, and all processes that the process started end too.
    with suppress(ProcessLookupError, PermissionError):  # macOS reports EPERM for a group of zombies
        os.killpg(leader, signal.SIGKILL)


def _spawn(function: Function, api_address: str, log: int) -> subprocess.Popen[bytes]:
    # A separate session, so that only the worker receives the terminal's Ctrl-C, and lets the batch finish.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid()), function.handler],
        env={**process_environment(function, api_address), "_LAMBDA_TELEMETRY_LOG_FD": str(log)},
        pass_fds=(log,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def process_environment(function: Function, api_address: str) -> dict[str, str]:
    """Return the environment variables for the process: those of this process, of the function, and of Lambda.

    https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html#configuration-envvars-runtime
    """
    # The process fetches secrets itself, and reports a variable that is already set as a conflict.
    fetched = {name.removeprefix(SECRET) for name in os.environ if name.startswith(SECRET)}
    inherited = {name: value for name, value in os.environ.items() if name not in {*_NOT_INHERITED, *fetched}}
    lambdas_own = {
        "AWS_LAMBDA_RUNTIME_API": api_address,
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": f"local/[$LATEST]{os.getpid()}",
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
        "AWS_REGION": function.region,
        "AWS_DEFAULT_REGION": function.region,
        "LAMBDA_TASK_ROOT": str(Path.cwd()),
        "_HANDLER": function.handler,
        "PYTHONPATH": _import_path(function),
        LOCAL_WORKER: "1",
    }
    return {**inherited, **function.environment, **lambdas_own}


def _import_path(function: Function) -> str:
    """Return a PYTHONPATH with which the process can import the same modules as this process.

    `manage.py` adds the project to `sys.path`, but not to PYTHONPATH. The PYTHONPATH in the function's environment
    comes first.
    """
    own = function.environment.get("PYTHONPATH")
    here = [entry or str(Path.cwd()) for entry in sys.path]
    return os.pathsep.join([own, *here] if own else here)


def _cannot_start(function: Function, problem: Errored | Crashed | TimedOut) -> str:
    match problem:
        case Errored():
            return f"The runtime cannot load the handler {function.handler!r}: {problem}"
        case Crashed(how):
            return f"The runtime ended ({how}) while it loaded the handler {function.handler!r}. See its output."
        case TimedOut(seconds):
            return (
                f"The import of the handler {function.handler!r} must take at most {seconds:g} s, as on Lambda. "
                f"Move slow work from the module into the first invocation."
            )


def _start_thread(name: str, target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    thread.start()
    return thread
