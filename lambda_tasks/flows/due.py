"""Invocations that the end of a task owes: with their ids and the values of their placeholders, as rows keep them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lambda_tasks import registry
from lambda_tasks.definition.groups import group_if_valid
from lambda_tasks.definition.steps import Step, read
from lambda_tasks.jobs import Job, carries_first_sent
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.wire import ids, marks

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task


@dataclass(frozen=True, slots=True)
class Due:
    """An invocation that must be sent. Its id is derived, so that it runs once, however often it is sent."""

    message_id: str
    step: Step
    #: The values of its placeholders, as JSON values.
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: The id of the chain, if it is a step of one.
    chain_id: str = ""
    #: The attributes that its message inherits from that of the ended task.
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)

    def serialize(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": self.message_id,
            "step": self.step.serialize(),
            "values": {name: self.values[name] for name in set(self.step.takes.values())},
            "chain_id": self.chain_id,
        }
        return {**row, "attributes": dict(self.attributes)} if self.attributes else row

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Due:
        return cls(row["id"], read(row["step"]), row["values"], row["chain_id"], row.get("attributes", {}))

    def job(self, database: str) -> Job:
        """Return the job that sends the invocation."""
        task = task_named(self.step.task_name)
        chain = {"kind": marks.CHAIN, "flow_id": self.chain_id} if self.chain_id else {}
        message = self.step.message(self.values)
        return Job(
            message=message,
            message_id=self.message_id,
            root_id=self.message_id,
            queue=self.step.queue,
            delay=self.step.delay,
            attributes=dict(self.attributes),
            task=task,
            # A derived id contains no time.
            first_sent=time.time() if task is None or carries_first_sent(task, self.message_id) else None,
            flow=marks.mark(call=self.step.is_followed, **chain),
            group=self.step.group or group_if_valid(task, message),
            database=database,
        )


def dues(
    ended_id: str,
    place: str,
    steps: Iterable[Mapping[str, Any] | Step],
    values: Mapping[str, Any],
    attributes: Mapping[str, str],
) -> list[Due]:
    """Return what is due after the end of the task, the chain or the group with the id `ended_id`."""
    return [
        Due(
            ids.follow_up_id(ended_id, f"{place} {number}"),
            step if isinstance(step, Step) else read(step),
            values,
            attributes=attributes,
        )
        for number, step in enumerate(steps)
    ]


def serialized(owed: Sequence[Due]) -> list[dict[str, Any]]:
    return [due.serialize() for due in owed]


def task_named(name: str) -> Task | None:
    """Return the task, or None if this process cannot import it: the worker that gets a message of it says why."""
    try:
        return registry.find_task(name)
    except SoftTimeLimitExceeded:
        raise
    except Exception:  # importing its module may raise anything
        return None
