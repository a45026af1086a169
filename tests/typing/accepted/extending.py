"""Plugins, a transport, time limits and the log, as a project writes them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from typing_extensions import assert_type

from lambda_tasks.backends.base import BaseBackend, Taken
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.logging import task_logger
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded, TimeoutContext


class Spans:
    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        job.attributes["traceparent"] = job.message_id

    @hookimpl(wrapper=True)
    def lambda_task_call(self, run: Run) -> Generator[None, object, object]:
        return (yield)

    @hookimpl
    def lambda_task_classify(self, run: Run, error: BaseException) -> Outcome | None:
        return Retry(error, delay=60) if isinstance(error, OSError) else None

    @hookimpl
    def lambda_task_finished(self, run: Run, outcome: Outcome) -> None:
        match outcome:
            case Succeeded(result):
                task_logger.info("%s gave %r after %.1f s", run.task_name, result, run.duration)
            case Retry(error, delay):
                task_logger.info("again in %d s: %s", delay, error)
            case Failed(error) | Ignored(error):
                assert_type(error, BaseException)


class Printing(BaseBackend):
    def __init__(self, *, prefix: str = "") -> None:
        self.prefix = prefix

    def send(self, jobs: Sequence[Job]) -> Iterator[Taken]:
        for job in jobs:
            task_logger.info("%s %s", self.prefix, job.message.to_body())
            yield Taken(job)


def limited() -> None:
    try:
        with TimeoutContext(soft_timeout=5, hard_timeout=10.5):
            pass
    except (SoftTimeLimitExceeded, HardTimeLimitExceeded):
        raise
