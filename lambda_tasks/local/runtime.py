"""One execution environment: a process of the real runtime client, and the Runtime API it talks to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from lambda_tasks.local import launch
from lambda_tasks.local.runtime_api import Crashed, Errored, InvocationResult, RuntimeApi, TimedOut

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Seconds that Lambda gives a function to be imported.
INIT_TIMEOUT = 10
#: Seconds in which the output of a process that was killed must have been read.
_OUTPUT_GRACE = 2

#: What the platform sets for other kinds of function; inherited by accident they change the client.
_NOT_INHERITED = ("AWS_LAMBDA_MAX_CONCURRENCY", "_LAMBDA_TELEMETRY_LOG_FD", "_X_AMZN_TRACE_ID")


class RuntimeStartError(Exception):
    """The runtime ended, or hung, before it could take a first invocation."""


@dataclass(frozen=True, slots=True)
class Function:
    """What the configuration of a Lambda function says, as far as it means anything here.

    `environment` comes on top of this process's own environment. `init_timeout_seconds` bounds the
    import of the handler's module.
    """

    handler: str
    timeout_seconds: float
    name: str = "lambda-tasks-local"
    region: str = "us-east-1"
    memory_mb: int = 1024
    environment: Mapping[str, str] = field(default_factory=dict)
    init_timeout_seconds: float = INIT_TIMEOUT

    @property
    def arn(self) -> str:
        """The ARN that the handler sees as `context.invoked_function_arn`."""
        return f"arn:aws:lambda:{self.region}:000000000000:function:{self.name}"


class Runtime:
    """Runs a function's handler, one invocation at a time, in a process of its own.

    Start and close it in the same thread, and let that thread outlive it: on Linux the kernel
    kills the process when that thread ends. `on_output` gets the process's lines, from another
    thread.
    """

    def __init__(self, function: Function, *, on_output: Callable[[str], None] = print) -> None:
        self._function = function
        self._on_output = on_output
        self._environment: _Environment | None = None
        #: How many processes there were so far.
        self.starts = 0

    @property
    def is_alive(self) -> bool:
        """Whether the process is there to take an invocation."""
        return self._environment is not None and self._environment.is_alive

    def start(self) -> int:
        """Start the process, after the end of the one before; return its id when it asks for work.

        Raises `RuntimeStartError` with the runtime's own words if the handler cannot be loaded.
        """
        self.close()
        self.starts += 1
        self._environment = environment = _Environment(self._function, self._on_output)
        problem = environment.api.wait_until_ready(self._function.init_timeout_seconds)
        if problem is not None:
            self.close()
            raise RuntimeStartError(_cannot_start(self._function, problem))
        return environment.process.pid

    def invoke(self, event: Mapping[str, Any]) -> InvocationResult:
        """Run the handler with `event`. Where it overstays the function's timeout, kill it.

        After `Crashed` and `TimedOut` the process is gone; `start()` makes the next one.
        """
        if self._environment is None:
            raise RuntimeError("Call start() before invoke().")
        result = self._environment.api.invoke(event, timeout_seconds=self._function.timeout_seconds)
        if isinstance(result, Crashed | TimedOut):
            self.close()
        return result

    def kill(self) -> None:
        """Kill the process and all that it started; a running `invoke` returns `Crashed`."""
        environment = self._environment  # another thread may close it meanwhile
        if environment is not None:
            environment.kill()

    def close(self) -> None:
        """Kill the process and wait until it is gone. Does nothing where there is none."""
        if self._environment is not None:
            self._environment.close()
        self._environment = None


class _Environment:
    """One life of the process, with the threads that watch its end and read its output."""

    def __init__(self, function: Function, on_output: Callable[[str], None]) -> None:
        self.api = RuntimeApi(function_arn=function.arn)
        try:
            self.process = _spawn(function, self.api.address)
        except OSError:
            self.api.close()
            raise
        self._reader = _start_thread("runtime-output", self._read_output, on_output)
        self._watcher = _start_thread("runtime-watcher", self._watch)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        if self.is_alive:  # else the number may be another process's by now
            _kill_group(self.process.pid)

    def close(self) -> None:
        self.kill()
        self._watcher.join()
        self._reader.join(_OUTPUT_GRACE)
        self.api.close()

    def _watch(self) -> None:
        returncode = self.process.wait()
        _kill_group(self.process.pid)  # what it had started
        self.api.process_ended(describe_exit(returncode))

    def _read_output(self, on_output: Callable[[str], None]) -> None:
        with cast("IO[str]", self.process.stdout) as output:
            for line in output:
                on_output(_readable(line))


def describe_exit(returncode: int) -> str:
    """Say how a process ended, from its return code as `subprocess` has it.

    >>> describe_exit(-9), describe_exit(3)
    ('killed by SIGKILL', 'exit status 3')
    """
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def _kill_group(leader: int) -> None:
    # As Lambda does it: no signal that could be handled, and nothing that the process started stays.
    with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
        os.killpg(leader, signal.SIGKILL)


def _spawn(function: Function, api_address: str) -> subprocess.Popen[str]:
    # A session of its own: the terminal's Ctrl-C is for the worker, which lets the batch finish.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid()), function.handler],
        env=process_environment(function, api_address),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )


def process_environment(function: Function, api_address: str) -> dict[str, str]:
    """Return the environment variables for the process: ours, Lambda's, the function's own.

    https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html#configuration-envvars-runtime
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
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
    }
    return {**inherited, **function.environment, **lambdas_own}


def _import_path(function: Function) -> str:
    """Return what makes importable in the process whatever is importable here, as PYTHONPATH.

    `manage.py` puts the project on `sys.path` and in no variable. PYTHONPATH in the function's
    own environment comes first.
    """
    own = function.environment.get("PYTHONPATH")
    here = [entry or str(Path.cwd()) for entry in sys.path]
    return os.pathsep.join([own, *here] if own else here)


def _cannot_start(function: Function, problem: Errored | Crashed | TimedOut) -> str:
    match problem:
        case Errored():
            return f"The runtime cannot load the handler {function.handler!r}: {problem}"
        case Crashed(how):
            return f"The runtime ended ({how}) while it loaded the handler {function.handler!r}; see its output."
        case TimedOut(seconds):
            return (
                f"The import of the handler {function.handler!r} took more than {seconds:g} s, which is where "
                f"Lambda gives up too. Move slow work out of the module, into the first invocation."
            )


def _readable(line: str) -> str:
    # For CloudWatch the client joins the lines of a traceback by \r, which text mode reads as the end
    # of a line, and indents them by no-break spaces.
    return line.rstrip("\n").replace("\N{NO-BREAK SPACE}", " ")


def _start_thread(name: str, target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    thread.start()
    return thread
