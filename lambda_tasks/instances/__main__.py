"""The entry point `python -m lambda_tasks.instances HANDLER`, which replaces `python -m awslambdaric HANDLER`."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from lambda_tasks.instances.serving import Serving

#: How many processes an environment has. Lambda sets it on Managed Instances alone.
MAX_CONCURRENCY: Final = "AWS_LAMBDA_MAX_CONCURRENCY"
#: The variable with the function's handler, for which the argument may be omitted, and that with its folder.
_HANDLER: Final = "_HANDLER"
_TASK_ROOT: Final = "LAMBDA_TASK_ROOT"

_USAGE: Final = "Usage: python -m lambda_tasks.instances HANDLER, such as shop.handler.handler"
_TOO_OLD: Final = "lambda_tasks.instances needs awslambdaric 4.1 or newer: {error}. Upgrade it, or Lambda's runtime."


def main(arguments: list[str]) -> None:
    """Serve the function until Lambda shuts the environment down.

    Without AWS_LAMBDA_MAX_CONCURRENCY this is not a Managed Instance, and Lambda's own runtime client takes over.
    """
    handler = arguments[1] if len(arguments) > 1 else os.environ.get(_HANDLER, "")
    if "." not in handler:
        sys.exit(_USAGE)
    concurrency = os.environ.get(MAX_CONCURRENCY)
    if concurrency is None:
        os.execv(sys.executable, [sys.executable, "-m", "awslambdaric", handler])
    if not (concurrency.isascii() and concurrency.isdigit() and int(concurrency) > 0):
        sys.exit(f"{MAX_CONCURRENCY} must be a positive integer, not {concurrency!r}.")
    _add_task_root()
    _serve(handler, int(concurrency))


def _add_task_root() -> None:
    root = os.environ.get(_TASK_ROOT)
    if root and root not in sys.path:
        sys.path.insert(0, root)


def _serve(handler: str, concurrency: int) -> None:
    from lambda_tasks.instances import processes

    processes.block_signals()  # before the project can start a thread
    try:
        from awslambdaric.lambda_config import LambdaConfigProvider

        from lambda_tasks.instances.serving import RootLogger, Serving

        serving = Serving(LambdaConfigProvider(["", handler]), RootLogger())
    except (ImportError, AttributeError) as error:
        sys.exit(_TOO_OLD.format(error=error))
    try:
        _preload(handler)
    except BaseException as error:
        _report_and_exit(serving, error)
    # The collector would write to the memory of all objects, and each process would get a copy of it.
    gc.collect()
    gc.freeze()
    processes.Processes(concurrency, serving.serve, serving.answer).run()


def _preload(handler: str) -> None:
    """Import the handler, set Django up, and import the tasks, in the process that the others are copied from."""
    from lambda_tasks.environments import preparing

    preparing.postponed = True
    module, _, name = handler.rpartition(".")
    getattr(importlib.import_module(module.replace("/", ".")), name)
    from lambda_tasks.handler import boot

    preparing.prepare(boot)
    preparing.release()


def _report_and_exit(serving: Serving, error: BaseException) -> NoReturn:
    """Tell Lambda why the environment cannot start."""
    from awslambdaric import bootstrap
    from awslambdaric.lambda_runtime_client import LambdaRuntimeClient

    problem = bootstrap.build_fault_result((type(error), error, error.__traceback__), None)
    logging.getLogger("lambda_tasks.instances").error("The function cannot start.", exc_info=error)
    LambdaRuntimeClient(serving.config.api_address, False).post_init_error(problem)
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv)
