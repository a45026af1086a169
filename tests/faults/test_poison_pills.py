"""Tasks that end their process each time, through the real handler in processes of its own."""

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

from lambda_tasks import identity
from lambda_tasks.backends.memory import event_record
from lambda_tasks.jobs import Job
from lambda_tasks.lost import reap
from tests.faults.workers import (
    ON_DEFAULT,
    backend,
    deliver,
    die,
    effects,
    end_lease,
    job_of,
    record_of,
)

pytestmark = pytest.mark.usefixtures("empty_queue")


#: Runs each event that it is sent in a child of its own, as Lambda runs one in each container.
CONTAINERS: Final = """
import json, os, resource, sys
import django
django.setup()
from lambda_tasks import executor, messages
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
    """Processes in which the handler runs, each for one event."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def invoke(self, *jobs: Job) -> tuple[int, Any]:
        """Return how the process ended (negative: by which signal), and what the handler answered, if it did."""
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
    def test_it_fails_as_crashed_after_its_last_delivery_and_is_acknowledged(
        self, containers: Containers, how: str, end: int
    ) -> None:
        pill = job_of(die, identity.new_message_id(), how=how)
        for crash in range(4):
            assert containers.invoke(pill) == (end, None)
            record = record_of(pill.message_id)
            assert (record.status, record.takeovers) == ("RUNNING", crash)
            end_lease(pill.message_id, ago=timedelta(seconds=1))

        assert containers.invoke(pill) == (0, {"batchItemFailures": []})
        record = record_of(pill.message_id)
        assert record.status == "FAILED"
        assert "crashed: 4 workers died while they ran it" in (record.traceback or "")
        assert effects() == []

    def test_it_fails_as_lost_where_its_messages_never_come_back(
        self, containers: Containers, how: str, end: int
    ) -> None:
        pill = job_of(die, identity.new_message_id(), how=how)
        for _ in range(4):
            assert containers.invoke(pill) == (end, None)
            end_lease(pill.message_id)
            if reap().sent_again:
                [pill] = backend().take()
        record = record_of(pill.message_id)
        assert record.status == "FAILED"
        assert "lost: it was given up 4 times" in (record.traceback or "")
        assert backend().jobs == []
        assert effects() == []


@ON_DEFAULT
def test_after_a_crash_the_next_delivery_does_the_work_once(containers: Containers) -> None:
    fragile = job_of(die, identity.new_message_id(), how="SIGKILL")
    assert containers.invoke(fragile)[0] == -signal.SIGKILL
    end_lease()
    # The same invocation, on a machine with enough memory, so to say.
    deliver(job_of(die, fragile.message_id, how="not at all"))
    assert effects() == ["died"]
    assert record_of(fragile.message_id).status == "SUCCESS"
