"""The processes of an environment: Lambda's own runtime client, with a note of the invocation that it is running."""

from __future__ import annotations

import http.client
import json
import logging
from dataclasses import dataclass
from typing import Any, Final

from awslambdaric import bootstrap
from awslambdaric.lambda_config import LambdaConfigProvider
from awslambdaric.lambda_multi_concurrent_utils import MultiConcurrentRunner
from awslambdaric.lambda_runtime_client import LambdaMultiConcurrentRuntimeClient

from lambda_tasks.apps import enable_loggers
from lambda_tasks.environments import retiring
from lambda_tasks.instances.notes import Invocation, Note
from lambda_tasks.instances.processes import RETIRED
from lambda_tasks.logging import add_fields_on_lambda
from lambda_tasks.recording.lines import get_logger

logger = get_logger("lambda_tasks.instances")

#: Seconds for the request that answers an invocation whose process has ended.
_TIMEOUT: Final = 5
#: The error of an invocation whose process has ended, as Lambda itself calls it elsewhere.
_EXIT_ERROR: Final = "Runtime.ExitError"


class RootLogger:
    """The root logger as the parent has it, with Lambda's handler, from before Django is set up.

    The runtime client of a process adds a handler of its own, and sets the level. LOGGING, which Django has applied by
    then, must keep the last word as it does elsewhere: it may have removed Lambda's handler.
    """

    def __init__(self) -> None:
        self._root = logging.getLogger()
        bootstrap.init_logging()
        self._lambdas = self._root.handlers[-1]
        self._configured: list[logging.Handler] = []
        self._level = self._root.level

    def begin(self) -> None:
        """Remove the parent's handler in a forked process, before the runtime client adds its own."""
        self._level = self._root.level
        self._configured = list(self._root.handlers)
        self._root.removeHandler(self._lambdas)

    def settle(self) -> None:
        """Undo what LOGGING does not want of the runtime client's changes, and complete the others."""
        if self._lambdas not in self._configured:
            self._root.handlers[:] = self._configured
        self._root.setLevel(self._level)
        enable_loggers()
        add_fields_on_lambda()


class Client(LambdaMultiConcurrentRuntimeClient):  # type: ignore[misc]  # without types
    """Lambda's client, which notes the invocation that its process is running."""

    def __init__(self, config: LambdaConfigProvider, note: Note, root_logger: RootLogger) -> None:
        super().__init__(config.api_address, config.use_thread_polling)
        self._note = note
        self._root_logger: RootLogger | None = root_logger

    def wait_next_invocation(self) -> Any:
        if self._root_logger is not None:  # the client has configured logging just before its first request
            self._root_logger.settle()
            self._root_logger = None
        if why := retiring.reason():  # the last invocation is answered, and none is requested
            logger.warning("The process ends, and another takes its place: %s.", why)
            raise SystemExit(RETIRED)
        request = super().wait_next_invocation()
        self._note.write(Invocation(request.invoke_id, getattr(request, "invocation_id", None)))
        return request

    def post_invocation_result(self, *args: Any, **kwargs: Any) -> None:
        super().post_invocation_result(*args, **kwargs)
        self._note.clear()

    def post_invocation_error(self, *args: Any, **kwargs: Any) -> None:
        super().post_invocation_error(*args, **kwargs)
        self._note.clear()


@dataclass(frozen=True, slots=True)
class Serving:
    """How the processes of an environment serve invocations."""

    config: LambdaConfigProvider
    root_logger: RootLogger

    def serve(self, note: Note) -> None:
        """Serve invocations in this process, and never return."""
        self.root_logger.begin()
        if self.config.lmi_socket_path:
            MultiConcurrentRunner._redirect_output(self.config.lmi_socket_path)
        bootstrap.run(self.config.handler, Client(self.config, note, self.root_logger))

    def answer(self, note: Note, how: str) -> None:
        """Answer the invocation of a process that has ended with an error, so that its messages return to the queue."""
        invocation = note.read()
        if invocation is None:
            return
        try:
            status = _post_error(self.config.api_address, invocation, f"The process has ended: {how}.")
        except (OSError, http.client.HTTPException):
            logger.warning("Invocation %s, whose process has ended, was not answered.", invocation, exc_info=True)
        else:
            if status != http.client.ACCEPTED:
                # It was answered before its process ended, or Lambda has given it up.
                logger.info("Lambda did not accept the end of %s: status %d.", invocation, status)


def _post_error(address: str, invocation: Invocation, message: str) -> int:
    """Post the error of an invocation, and return the status. The runtime client's own connection is the children's."""
    headers = {"Content-Type": "application/json", "Lambda-Runtime-Function-Error-Type": _EXIT_ERROR}
    if invocation.invocation_id is not None:
        headers["Lambda-Runtime-Invocation-Id"] = invocation.invocation_id
    body = {"errorMessage": message, "errorType": _EXIT_ERROR, "requestId": invocation.request_id, "stackTrace": []}
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
    try:
        path = f"/2018-06-01/runtime/invocation/{invocation.request_id}/error"
        connection.request("POST", path, json.dumps(body), headers)
        return connection.getresponse().status
    finally:
        connection.close()
