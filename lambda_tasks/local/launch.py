"""Become `python -m awslambdaric HANDLER`, and die with the worker that asked for it.

Run as a script, by `lambda_tasks.local.runtime`, with the worker's process id and the handler's
path. It needs nothing but the standard library and leaves nothing behind in the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends (Linux).

    Elsewhere the process ends by itself: when it next asks for an invocation, nobody answers.
    The order is lasting: it survives `exec`. The kernel means the *thread* that started us.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we had said that we care
        os._exit(1)


def main(parent_pid: str, handler: str) -> None:
    """Replace this process by the runtime client."""
    die_with(int(parent_pid))
    os.execv(sys.executable, [sys.executable, "-m", "awslambdaric", handler])


if __name__ == "__main__":
    main(*sys.argv[1:])
