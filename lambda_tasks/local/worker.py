"""The local worker: queues on one side, processes of the real runtime client on the other."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.local import progress
from lambda_tasks.local.event_source import (
    MAX_BATCH_SIZE,
    MAX_BATCHING_WINDOW,
    MAX_PER_CALL,
    SQS_ERRORS,
    Batch,
    EventSource,
    Verdict,
    judge,
    open_sources,
)
from lambda_tasks.local.runtime import Function, Runtime, RuntimeStartError
from lambda_tasks.local.runtime_api import Answered, Crashed, Errored, InvocationResult, TimedOut
from lambda_tasks.maintenance import MAINTENANCE_EVENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

logger = logging.getLogger("lambda_tasks.local")

DEFAULT_HANDLER: Final = "lambda_tasks.handler.handler"
#: Seconds: the longest timeout that a Lambda function may have.
MAX_FUNCTION_TIMEOUT: Final = 900
MAX_CONCURRENCY: Final = 1000
#: Seconds that one poll of an empty queue takes. A message ends it at once, `stop()` does not.
POLL_SECONDS: Final = 2
POLL_SECONDS_UNTIL_IDLE: Final = 1
#: Seconds between two polls of a queue while SQS does not answer.
RETRY_SECONDS: Final = 2
#: Seconds between two events of the schedule, where there is one.
MAINTENANCE_SECONDS: Final = 10


def log(event: progress.Event) -> None:
    """Log `event` as a line of the logger `lambda_tasks.local`."""
    unwelcome = isinstance(event, progress.Warned | progress.Trouble)
    if isinstance(event, progress.Maintained):
        unwelcome = bool(event.reason)
    logger.log(logging.WARNING if unwelcome else logging.INFO, "%s", event)


class LocalWorker:
    """Runs a Lambda handler on this machine for what arrives in SQS queues.

        worker = LocalWorker({"default": url}, concurrency=2)
        summary = worker.run(until_idle=True)

    Each queue has `concurrency` processes of its own, as on AWS each queue's event source mapping
    has its own maximum, so that a slow queue does not hold up another. A process takes one batch at
    a time.

    `batch_size` is 1 to 10,000, and more than 10 only with a `batching_window` of 1 to 300 seconds.
    `function_timeout` is in seconds; its default is the longest that Lambda has, since the handler
    hands back at once what it has no time for. `environment` are variables for the processes beside
    this process's own. `endpoint_url` is SQS's, here and there; AWS_ENDPOINT_URL_SQS does the same.
    `maintenance_every` so many seconds one of the processes gets the event that a schedule of
    EventBridge's would bring, which relays the outbox; without it none does.
    `report` gets everything that there is to tell, one call at a time, from any thread.

    A worker runs once.
    """

    def __init__(
        self,
        queues: Mapping[str, str],
        handler: str = DEFAULT_HANDLER,
        *,
        concurrency: int = 1,
        batch_size: int = 10,
        batching_window: int = 0,
        function_timeout: float = MAX_FUNCTION_TIMEOUT,
        environment: Mapping[str, str] | None = None,
        endpoint_url: str | None = None,
        maintenance_every: float | None = None,
        report: Callable[[progress.Event], None] = log,
    ) -> None:
        if not queues:
            raise ValueError("There is no queue to serve; give at least one name with its URL.")
        _check("concurrency", concurrency, 1, MAX_CONCURRENCY)
        _check("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        _check("batching_window", batching_window, 0, MAX_BATCHING_WINDOW)
        if batch_size > MAX_PER_CALL and not batching_window:
            raise ValueError(f"batch_size is {batch_size}; above {MAX_PER_CALL}, set batching_window too.")
        if not 0 < function_timeout <= MAX_FUNCTION_TIMEOUT:
            raise ValueError(f"function_timeout is {function_timeout}; give up to {MAX_FUNCTION_TIMEOUT} seconds.")
        if maintenance_every is not None and not maintenance_every > 0:
            raise ValueError(f"maintenance_every is {maintenance_every:g}; give seconds, more than 0, or None.")
        self._queues = dict(queues)
        self._concurrency = concurrency
        self._batch_size = batch_size
        self._batching_window = batching_window
        self._endpoint_url = endpoint_url
        endpoint = {"AWS_ENDPOINT_URL_SQS": endpoint_url} if endpoint_url else {}
        self._function = Function(handler, function_timeout, environment={**endpoint, **(environment or {})})
        self._report_to = report
        self._report_lock = threading.RLock()  # a signal may want to report while its thread does
        self._tally = _Tally()
        self._schedule = _Schedule(maintenance_every)
        self._stopping = threading.Event()
        self._killed = threading.Event()
        self._until_idle = False
        self._sources: list[EventSource] = []
        self._runtimes: list[Runtime] = []
        self._failures: list[BaseException] = []

    def run(self, *, until_idle: bool = False) -> progress.Summary:
        """Serve the queues until `stop()`, or, with `until_idle`, until nothing is left in them.

        Messages that are delayed, or failed and wait to be delivered again, count as left. In the
        main thread SIGINT and SIGTERM stop the worker; a second one kills what runs. Raises
        `QueueUnavailable` or `RuntimeStartError` if it cannot begin, or go on.
        """
        self._until_idle = until_idle
        self._sources = open_sources(
            self._queues,
            endpoint_url=self._endpoint_url,
            batch_size=self._batch_size,
            batching_window_seconds=self._batching_window,
            wait_seconds=POLL_SECONDS_UNTIL_IDLE if until_idle else POLL_SECONDS,
        )
        self._report(progress.Started(self._queues, self._function.handler, self._concurrency))
        self._warn_of_short_visibility()
        with self._stopped_by_signals():
            self._serve_all()
        if self._failures:
            raise self._failures[0]
        self._report(self._tally.summary)
        return self._tally.summary

    def stop(self) -> None:
        """Ask for the end, from any thread: batches that run are finished, no others begun."""
        self._stopping.set()

    def kill(self) -> None:
        """End at once, from any thread: what the killed processes had stays in the queue."""
        self._killed.set()
        self._stopping.set()
        for runtime in self._runtimes:
            runtime.kill()

    # Beginning and end.

    def _warn_of_short_visibility(self) -> None:
        for source in self._sources:
            if source.visibility_timeout < self._function.timeout_seconds:
                self._report(progress.Warned(_short_visibility(source, self._function.timeout_seconds)))

    def _serve_all(self) -> None:
        threads = [
            threading.Thread(target=self._serve_or_stop, args=(source, name), name=name, daemon=True)
            for source in self._sources
            for name in (f"{source.name}-{number}" for number in range(1, self._concurrency + 1))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {each: signal.signal(each, self._on_signal) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, *_: object) -> None:
        if self._stopping.is_set():
            self.kill()
        else:
            self.stop()
            self._report(progress.Stopping())

    # One process, in one thread from its start to its end.

    def _serve_or_stop(self, source: EventSource, name: str) -> None:
        try:
            self._serve(source, name)
        except BaseException as error:  # run() raises it, in its caller's thread
            was_killed = self._stopping.is_set() and isinstance(error, RuntimeStartError)
            if not was_killed:
                self._failures.append(error)
            self.stop()

    def _serve(self, source: EventSource, name: str) -> None:
        runtime = Runtime(replace(self._function, region=source.region), on_output=self._output_of(name))
        self._runtimes.append(runtime)
        with closing(runtime):
            while not self._stopping.is_set():
                self._make_ready(runtime, name)  # first: what cannot start must not use up receives
                if self._schedule.is_due():
                    self._maintain(runtime, name)
                    self._make_ready(runtime, name)
                self._take_turn(source, runtime, name)

    def _make_ready(self, runtime: Runtime, name: str) -> None:
        if not runtime.is_alive:
            pid = runtime.start()
            self._report(progress.RuntimeReady(name, pid, is_restart=runtime.starts > 1))

    def _maintain(self, runtime: Runtime, name: str) -> None:
        with self._tally.running():  # it may send messages
            result = runtime.invoke(MAINTENANCE_EVENT)
        maintained = _maintained(name, result)
        if maintained.done or maintained.reason:
            self._report(maintained)

    def _take_turn(self, source: EventSource, runtime: Runtime, name: str) -> None:
        try:
            if self._until_idle and self._nothing_is_left():
                self.stop()
            for batch in source.batches(source.gather(self._stopping)):
                if self._killed.is_set():
                    return  # what the last poll brought stays in the queue as well
                self._make_ready(runtime, name)
                self._deliver(batch, source, runtime, name)
        except SQS_ERRORS as error:
            self._report(progress.Trouble(name, f"SQS failed, polling again in {RETRY_SECONDS} s: {error}"))
            self._stopping.wait(RETRY_SECONDS)

    def _deliver(self, batch: Batch, source: EventSource, runtime: Runtime, name: str) -> None:
        self._report(progress.Received(name, batch.message_ids))
        began = time.monotonic()
        with self._tally.running():
            result = runtime.invoke(batch.event)
            verdict = judge(result, batch.message_ids)
            self._delete_succeeded(batch, verdict, source, name)
        finished = _finished(name, batch, result, verdict, seconds=time.monotonic() - began)
        self._tally.add(finished)
        self._report(finished)

    def _delete_succeeded(self, batch: Batch, verdict: Verdict, source: EventSource, name: str) -> None:
        try:
            complaints = source.delete_succeeded(batch, verdict)
        except SQS_ERRORS as error:
            complaints = [f"SQS did not delete what is done, so it comes again: {error}"]
        for complaint in complaints:
            self._report(progress.Trouble(name, complaint))

    def _nothing_is_left(self) -> bool:
        # The queues are asked one after the other, and a task may send to one that was asked before.
        # So their answers count only if no batch ran, nor began, while they were asked.
        before = self._tally.moment()
        return (
            before.running == 0 and all(source.is_idle() for source in self._sources) and self._tally.moment() == before
        )

    # Reports.

    def _report(self, event: progress.Event) -> None:
        with self._report_lock:
            self._report_to(event)

    def _output_of(self, name: str) -> Callable[[str], None]:
        return lambda line: self._report(progress.Output(name, line))


class _Schedule:
    """Says for all threads, to one of them at a time, when it is time again; the first time at once."""

    def __init__(self, every: float | None) -> None:
        self._every = every
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        if self._every is None:
            return False
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return False
            self._next = now + self._every
            return True


@dataclass(frozen=True, slots=True)
class _Moment:
    begun: int = 0
    running: int = 0


class _Tally:
    """Counts for all threads: what runs now, and how everything ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moment = _Moment()
        self._summary = progress.Summary()

    @property
    def summary(self) -> progress.Summary:
        return self._summary

    def moment(self) -> _Moment:
        return self._moment

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._lock:
            self._moment = _Moment(self._moment.begun + 1, self._moment.running + 1)
        try:
            yield
        finally:
            with self._lock:
                self._moment = replace(self._moment, running=self._moment.running - 1)

    def add(self, finished: progress.Finished) -> None:
        with self._lock:
            total = self._summary
            self._summary = progress.Summary(
                batches=total.batches + 1,
                done=total.done + len(finished.done_ids),
                kept=total.kept + len(finished.kept_ids),
                raised=total.raised + (finished.outcome == "raised"),
                crashed=total.crashed + (finished.outcome == "crashed"),
                timed_out=total.timed_out + (finished.outcome == "timed out"),
            )


def _finished(
    name: str, batch: Batch, result: InvocationResult, verdict: Verdict, *, seconds: float
) -> progress.Finished:
    return progress.Finished(
        environment=name,
        outcome=_outcome(result),
        done_ids=tuple(each for each in batch.message_ids if each not in verdict.failed_ids),
        kept_ids=tuple(each for each in batch.message_ids if each in verdict.failed_ids),
        reason=verdict.reason,
        seconds=seconds,
    )


def _maintained(name: str, result: InvocationResult) -> progress.Maintained:
    if not isinstance(result, Answered):
        return progress.Maintained(name, reason=judge(result, ()).reason)
    try:
        answer = json.loads(result.body)
    except ValueError as error:
        return progress.Maintained(name, reason=f"the handler's answer is not JSON ({error})")
    parts = answer.items() if isinstance(answer, dict) else ()
    return progress.Maintained(
        name,
        done={
            part: {what: number for what, number in numbers.items() if number}
            for part, numbers in parts
            if isinstance(numbers, dict) and any(numbers.values())
        },
    )


def _outcome(result: InvocationResult) -> progress.Outcome:
    match result:
        case Answered():
            return "answered"
        case Errored():
            return "raised"
        case Crashed():
            return "crashed"
        case TimedOut():
            return "timed out"


def _short_visibility(source: EventSource, function_timeout: float) -> str:
    return (
        f"queue {source.name!r} has a visibility timeout of {source.visibility_timeout} s, less than the function's "
        f"timeout of {function_timeout:g} s: a batch that takes longer is delivered again while it runs. "
        f"AWS refuses such a pair; give the queue a longer one."
    )


def _check(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; give a whole number of {low} to {high}.")
