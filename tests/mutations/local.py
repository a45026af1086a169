"""Mutations of the local worker, of logging, and of errors about foreign messages."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

API: Final = "tests/local/test_local_runtime_api.py"

MUTATIONS: Final = (
    Mutation(
        "the Runtime API answers another host",
        "local/runtime_api.py",
        'self.headers.get_all("Host") != [self.api.address] or any(',
        "any(",
        API,
    ),
    Mutation(
        "the Runtime API answers web pages",
        "local/runtime_api.py",
        " or any(map(self.headers.get, _HEADERS_OF_BROWSERS))",
        "",
        API,
    ),
    Mutation(
        "the Runtime API answers other processes",
        "local/runtime_api.py",
        "return process_id is not None and peers.is_from(",
        "return process_id is not None or peers.is_from(",
        API,
    ),
    Mutation(
        "the Runtime API reads bodies of any size",
        "local/runtime_api.py",
        "if int(length) > MAX_RESPONSE_SIZE:",
        "if False:",
        API,
    ),
    Mutation(
        "the process logs to its standard output",
        "local/runtime.py",
        '"_LAMBDA_TELEMETRY_LOG_FD": str(log)}',
        "}",
        "tests/local/test_local_output.py",
    ),
    Mutation(
        "the cause of a logged error is dropped",
        "logging.py",
        "(cause := _cause_of(error)) is not None:",
        "(cause := None) is not None:",
        "tests/project/test_logging.py",
    ),
    Mutation(
        "ended tasks are not shown by the local worker",
        "apps.py",
        "    show_outcomes_locally()\n",
        "",
        "tests/local/test_local_worker.py",
    ),
)
