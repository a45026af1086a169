"""Replace this process with `python -m awslambdaric HANDLER`, which ends together with the worker that started it.

`lambda_tasks.local.runtime` runs this file as a script, with the worker's process id and the handler's path. It needs
only the standard library, and leaves nothing behind in the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with(parent_pid: int) -> None:
    """Tell the kernel to kill this process when its parent ends for any reason (on Linux).

    On other systems the process ends when its next request for an invocation fails. The setting survives `exec`. For
    the kernel, the parent is the *thread* that started this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent died before the call to prctl()
        os._exit(1)


def describe_exit(returncode: int) -> str:
    """Describe how a process ended, from its return code in `subprocess`.

    >>> describe_exit(-9), describe_exit(3)
    ('killed by SIGKILL', 'exit status 3')
    """
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def main(parent_pid: str, handler: str) -> None:
    """Replace this process with the runtime client."""
    die_with(int(parent_pid))
    os.execv(sys.executable, [sys.executable, "-m", "awslambdaric", handler])


if __name__ == "__main__":
    main(*sys.argv[1:])
