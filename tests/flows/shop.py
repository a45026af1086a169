"""Tasks that note that they ran, and tools that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

from django.test import override_settings

from lambda_tasks import ERROR, FLOW_ID, RESULT, TASK_ID, FlowHandle, lambda_task
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.models import TaskFlow, TaskFlowMember
from lambda_tasks.strategies import get_backend, get_store
from tests.app.models import Effect
from tests.courier import COURIER, OUTBOX, later, outbox
from tests.faults.workers import deliver, stored_in

#: The two ways in which a message leaves: written into the transaction, and sent after it.
TRANSPORTS: Final = ("outbox", "direct")

#: What the next run of a task with this name does.
actions: dict[str, Callable[[], object]] = {}


class Again(Exception):
    """An error after which `work` is retried."""


def note(text: str) -> None:
    Effect.objects.using(get_store().database).create(name=text)


@lambda_task
def report(*, text: str = "", value: Any = None, task_id: UUID | None = None, error: str = "") -> None:
    """Note what it was told about the task before."""
    known = [text, *([f"value {value}"] if value is not None else []), *([error] if error else [])]
    note(": ".join(known))


@lambda_task(retry_on=(Again,), max_retries=1)
def work(*, name: str) -> Any:
    note(name)
    return actions.pop(name, lambda: f"{name} is done")()


@lambda_task
def add(*, number: int, to: int = 0) -> int:
    note(f"{number} + {to}")
    return number + to


@lambda_task(
    on_success=report.invocation(text="decorated success", value=RESULT),
    on_failure=report.invocation(text="decorated failure", error=ERROR),
)
def decorated(*, name: str) -> str:
    note(name)
    actions.pop(name, lambda: None)()
    return name


@lambda_task(unique=True)
def single() -> None: ...


@lambda_task
def summarize(*, group_id: UUID) -> None:
    note(f"results {FlowHandle.from_id(group_id).results()}")


def fail() -> None:
    raise ValueError("the warehouse is closed")


def notes() -> list[str]:
    """Return what the tasks noted, in their order."""
    return list(Effect.objects.using(get_store().database).order_by("id").values_list("name", flat=True))


@contextmanager
def shop_on(database: str, transport: str) -> Iterator[None]:
    """Store records in `database`, and have messages leave by a transport of `TRANSPORTS`."""
    actions.clear()
    with stored_in(database):
        if transport == "direct":
            yield
            queue().clear()
            return
        with override_settings(LAMBDA_TASKS_BACKEND={"BACKEND": OUTBOX, "OPTIONS": {"transport": COURIER}}):
            yield


def queue() -> list[Any]:
    """Return the messages on the queue, which the caller may change."""
    backend = get_backend()
    memory: Any = backend if isinstance(backend, MemoryBackend) else outbox().transport
    return memory.jobs  # type: ignore[no-any-return]


def run_next(count: int = 1) -> list[Any]:
    """Deliver messages to the handler, and return them."""
    jobs = queue()[:count]
    del queue()[:count]
    deliver(*jobs)
    return jobs


def run_all() -> None:
    while queue():
        run_next(10)


def flow_rows() -> list[TaskFlow]:
    return list(TaskFlow.objects.using(get_store().database).order_by("created_at"))


def member_rows() -> list[TaskFlowMember]:
    return list(TaskFlowMember.objects.using(get_store().database).order_by("position"))


__all__ = ["ERROR", "FLOW_ID", "RESULT", "TASK_ID", "later"]
