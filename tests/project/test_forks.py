"""The library never hangs in a process that was forked at a bad moment."""

from __future__ import annotations

import ast
import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

import lambda_tasks
from lambda_tasks import handler, plugins, secret_loader, strategies
from lambda_tasks.backends import eager
from lambda_tasks.backends.batch_jobs import BatchJobs
from lambda_tasks.backends.bucket import Bucket
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.contrib import opentelemetry
from lambda_tasks.foundation.forks import ForkSafeLock
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.plugins import hooks
from lambda_tasks.wire import ids

pytestmark = pytest.mark.once

PACKAGE = Path(lambda_tasks.__file__).parent
#: Seconds after which a child counts as hung.
PATIENCE = 20

LOCKS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "handler": lambda: handler._booting,
    "wire/ids": lambda: ids._last_lock,
    "plugins": lambda: plugins._loading,
    "secret_loader": lambda: secret_loader._lock,
    "strategies": lambda: strategies._building,
    "backends/bucket": lambda: BUCKET._making_client,
    "backends/sqs": lambda: SQS._making_client,
    "backends/batch_jobs": lambda: JOBS._making_client,
    "locks/memory": lambda: MEMORY._changing,
    "contrib/opentelemetry": lambda: opentelemetry._flushing,
    "foundation/forks": ForkSafeLock,
}
#: Modules of the local worker: its process starts others by their command, and never forks.
NEVER_FORKED = {"local/worker", "local/event_source", "local/runtime_api", "local/holding", "local/tally"}
SQS, MEMORY, BUCKET = SQSBackend(), MemoryLock(), Bucket("s3://shop")
JOBS = BatchJobs(endpoint_url=None, config={}, max_threads=1)


def in_child(work: Callable[[], object]) -> str:
    """Return the response of a forked process, or "hung"."""
    from_child, to_parent = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(to_parent, str(work()).encode())
        except BaseException as error:
            os.write(to_parent, repr(error).encode())
        finally:
            os._exit(0)
    os.close(to_parent)
    answered = bool(select.select([from_child], [], [], PATIENCE)[0])
    answer = os.read(from_child, 10_000).decode() if answered else "hung"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(from_child)
    return answer


class Held:
    """Holds a lock in another thread."""

    def __init__(self, lock: AbstractContextManager[Any]) -> None:
        self._lock = lock
        self._taken, self._let_go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        with self._lock:
            self._taken.set()
            self._let_go.wait(PATIENCE)

    def __enter__(self) -> None:
        self._thread.start()
        self._taken.wait(PATIENCE)

    def __exit__(self, *exc_info: object) -> None:
        self._let_go.set()
        self._thread.join()


def test_every_lock_of_the_package_is_listed() -> None:
    """A new lock must survive a fork, and be held in the test below."""
    makers = {"Lock", "RLock", "Condition", "Semaphore", "ForkSafeLock"}
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in makers:
                found.add(str(file.relative_to(PACKAGE).with_suffix("")))
    assert found - NEVER_FORKED == LOCKS.keys()


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_free_in_a_child(name: str) -> None:
    find = LOCKS[name]
    lock = find() if name != "foundation/forks" else None

    def take() -> str:
        with lock or find():
            return "free"

    # A lock that a module looks up again after the fork must be free, even if it is another object.
    with Held(lock or find()):
        assert in_child(lambda: take() if name != "wire/ids" else ids.new_message_id()) != "hung"


def test_lock_of_the_forking_thread_stays_its_own() -> None:
    lock = ForkSafeLock()

    def leave() -> str:
        with lock:
            pass
        return "left"

    def leave_twice() -> str:
        leave()
        lock.__exit__(None, None, None)  # like the block in which the fork happened
        return leave()

    with lock:
        assert in_child(leave_twice) == "left"
    with Held(lock):
        assert in_child(leave) == "left"


def test_lock_excludes_other_threads() -> None:
    lock, inside = ForkSafeLock(), []
    thread = threading.Thread(target=lambda: [inside.append(1) for _ in [lock.__enter__()]])
    with lock, lock:
        thread.start()
        thread.join(0.05)
        assert inside == []
    thread.join(PATIENCE)
    assert inside == [1]


def test_half_loaded_plugins_are_reloaded_in_a_child() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self) -> None:
            if threading.current_thread() is not threading.main_thread():
                begun.set()
                go_on.wait(PATIENCE)

        @hookimpl
        def lambda_task_boot(self) -> None: ...

    with override_settings(LAMBDA_TASKS_PLUGINS=[Slow]):
        loading = threading.Thread(target=hooks)
        loading.start()
        begun.wait(PATIENCE)
        try:
            answer = in_child(lambda: hooks() and len(plugins.manager.get_plugins()))
        finally:
            go_on.set()
            loading.join()
    assert answer == "2"


def test_child_of_an_eager_task_has_its_queue() -> None:
    eager._line.jobs = "those of the parent"
    try:
        assert in_child(lambda: vars(eager._line)) == "{}"
    finally:
        del eager._line.jobs
