"""Run tasks that kill their process on every run, through the real handler in separate processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import pytest

from lambda_tasks.backends.memory import event_record
from lambda_tasks.jobs import Job
from lambda_tasks.operations.reaping import reap
from lambda_tasks.wire import ids
from tests.faults.workers import (
    ON_DEFAULT,
    backend,
    deliver,
    die,
    effects,
    expire_lease,
    job_of,
    record_of,
)

pytestmark = pytest.mark.usefixtures("empty_queue")


#: Runs each received event in a separate child process, as Lambda runs each in a container.
CONTAINERS: Final = """
import json, os, resource, sys
import django
django.setup()
from lambda_tasks.execution import pipeline
from lambda_tasks import messages
from lambda_tasks.handler import handler
import tests.faults.workers

for line in sys.stdin:
    event = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.write(writer, json.dumps(handler(event, None)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), json.loads(answer or "null")]), flush=True)
"""


class Containers:
    """Processes that run the handler, one for each event."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def invoke(self, *jobs: Job) -> tuple[int, Any]:
        """Return the exit code of the process (negative for a signal), and the handler's answer, if any."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ender = threading.Timer(60, self._process.kill)
        ender.start()
        try:
            self._process.stdin.write(json.dumps({"Records": [event_record(job) for job in jobs]}) + "\n")
            self._process.stdin.flush()
            end, answer = json.loads(self._process.stdout.readline())
        finally:
            ender.cancel()
        return end, answer


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    process = subprocess.Popen(
        [sys.executable, "-c", CONTAINERS],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Containers(process)
    finally:
        process.kill()
        process.communicate()


@ON_DEFAULT
@pytest.mark.parametrize(("how", "end"), [("SIGKILL", -signal.SIGKILL), ("segfault", -signal.SIGSEGV), ("os._exit", 3)])
class TestPoisonPill:
    def test_pill_fails_as_crashed_after_its_last_delivery(self, containers: Containers, how: str, end: int) -> None:
        pill = job_of(die, ids.new_message_id(), how=how)
        for crash in range(4):
            assert containers.invoke(pill) == (end, None)
            record = record_of(pill.message_id)
            assert (record.status, record.takeovers) == ("RUNNING", crash)
            expire_lease(pill.message_id, ago=timedelta(seconds=1))

        assert containers.invoke(pill) == (0, {"batchItemFailures": []})
        record = record_of(pill.message_id)
        assert record.status == "FAILED"
        assert "crashed: 4 workers died while they ran it" in (record.traceback or "")
        assert effects() == []

    def test_pill_without_redeliveries_fails_as_lost(self, containers: Containers, how: str, end: int) -> None:
        pill = job_of(die, ids.new_message_id(), how=how)
        for _ in range(4):
            assert containers.invoke(pill) == (end, None)
            expire_lease(pill.message_id)
            if reap().sent_again:
                [pill] = backend().take()
        record = record_of(pill.message_id)
        assert record.status == "FAILED"
        assert "lost: it was taken over or lost 4 times" in (record.traceback or "")
        assert backend().jobs == []
        assert effects() == []


@ON_DEFAULT
def test_delivery_after_a_crash_runs_once(containers: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    fragile = job_of(die, ids.new_message_id(), how="SIGKILL")
    assert containers.invoke(fragile)[0] == -signal.SIGKILL
    expire_lease()
    # The same invocation, as if on a machine with enough memory.
    monkeypatch.setattr(os, "kill", lambda *_: None)
    deliver(fragile)
    assert effects() == ["died"]
    assert record_of(fragile.message_id).status == "SUCCESS"
