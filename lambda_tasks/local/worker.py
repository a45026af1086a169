"""The local worker, which passes messages from SQS queues to processes of Lambda's runtime client."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks.local import progress
from lambda_tasks.local.event_source import (
    MAX_BATCH_SIZE,
    MAX_PER_CALL,
    SQS_ERRORS,
    EventSource,
    ReceivedBatch,
    Verdict,
    judge,
    open_sources,
)
from lambda_tasks.local.runtime import Function, Runtime, RuntimeStartError
from lambda_tasks.local.runtime_api import Answered, Crashed, Errored, InvocationResult, TimedOut
from lambda_tasks.local.ticking import Ticker
from lambda_tasks.maintenance import MAINTENANCE_EVENT
from lambda_tasks.settings import MAX_INSTANCES_TIMEOUT, MAX_TIMEOUT, app_settings
from lambda_tasks.wire.visibility import MAX_BATCHING_WINDOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

logger = logging.getLogger("lambda_tasks.local")

DEFAULT_HANDLER: Final = "lambda_tasks.handler.handler"
MAX_CONCURRENCY: Final = 1000
#: Seconds that one poll of an empty queue takes. A message ends the poll immediately, but `stop()` does not.
POLL_SECONDS: Final = 2
POLL_SECONDS_UNTIL_IDLE: Final = 1
#: Seconds between two polls of a queue while SQS does not answer.
RETRY_SECONDS: Final = 2
#: Seconds between two maintenance events.
MAINTENANCE_SECONDS: Final = 10


def log(event: progress.Event) -> None:
    """Log `event` as a line to the logger `lambda_tasks.local`."""
    unwelcome = isinstance(event, progress.Warned | progress.Trouble)
    if isinstance(event, progress.Maintained):
        unwelcome = bool(event.reason)
    logger.log(logging.WARNING if unwelcome else logging.INFO, "%s", event)


class LocalWorker:
    """Run a Lambda handler on this machine for messages in SQS queues.

        worker = LocalWorker({"default": url}, concurrency=2)
        summary = worker.run(until_idle=True)

    Each queue has its own `concurrency` processes, just as each queue's event source mapping on AWS has its own
    maximum, so that a slow queue does not delay other queues. A process takes one batch at a time.

    `batch_size` is 1 to 10,000. More than 10 requires a `batching_window` of 1 to 300 seconds.

    `function_timeout` is in seconds, at most 5,400. The default is LAMBDA_TASKS_MAX_TIMEOUT, or 900 without it, because
    the handler immediately returns messages for which too little time is left.

    `environment` contains additional variables for the processes.

    `endpoint_url` is the URL of SQS for the worker and its processes. AWS_ENDPOINT_URL_SQS has the same effect.

    Every `maintenance_every` seconds, one of the processes receives the maintenance event, which relays the outbox. On
    AWS, an EventBridge schedule sends this event. By default, it is not sent.

    Every `tick_every` seconds, this process starts the periodic tasks that are due. By default, it does not.

    `report` is called with each event of `lambda_tasks.local.progress`, from any thread, but one call at a time.

    A worker can run only once.
    """

    def __init__(
        self,
        queues: Mapping[str, str],
        handler: str = DEFAULT_HANDLER,
        *,
        concurrency: int = 1,
        batch_size: int = 10,
        batching_window: int = 0,
        function_timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        endpoint_url: str | None = None,
        maintenance_every: float | None = None,
        tick_every: float | None = None,
        report: Callable[[progress.Event], None] = log,
    ) -> None:
        if not queues:
            raise ValueError("queues must contain at least one name with its URL.")
        _check("concurrency", concurrency, 1, MAX_CONCURRENCY)
        _check_batches(batch_size, batching_window)
        timeout = _function_timeout(function_timeout)
        if maintenance_every is not None and not maintenance_every > 0:
            raise ValueError(f"maintenance_every must be more than 0 seconds, or None, not {maintenance_every:g}.")
        self._queues = dict(queues)
        self._concurrency = concurrency
        self._batch_size = batch_size
        self._batching_window = batching_window
        self._endpoint_url = endpoint_url
        endpoint = {"AWS_ENDPOINT_URL_SQS": endpoint_url} if endpoint_url else {}
        self._function = Function(handler, timeout, environment={**endpoint, **(environment or {})})
        self._report_to = report
        self._report_lock = threading.RLock()  # a signal handler may report while its thread is reporting
        self._tally = _Tally()
        self._schedule = _Schedule(maintenance_every)
        self._stopping = threading.Event()
        self._ticker = Ticker(tick_every, stopping=self._stopping, report=self._report)
        self._killed = threading.Event()
        self._until_idle = False
        self._sources: list[EventSource] = []
        self._runtimes: list[Runtime] = []
        self._failures: list[BaseException] = []

    def run(self, *, until_idle: bool = False) -> progress.Summary:
        """Serve the queues until `stop()`, or with `until_idle`, until the queues are empty.

        A queue with delayed messages, or with failed messages that wait for redelivery, is not empty. In the main
        thread, SIGINT and SIGTERM stop the worker, and a second signal kills the running batches.

        Raise `QueueUnavailable` or `RuntimeStartError` if the worker cannot start or continue.
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
        self._warn_of_short_function()
        with self._stopped_by_signals(), self._ticker.running():
            self._serve_all()
        if self._failures:
            raise self._failures[0]
        self._report(self._tally.summary)
        return self._tally.summary

    def stop(self) -> None:
        """Stop after the running batches, without starting others. Can be called from any thread."""
        self._stopping.set()

    def kill(self) -> None:
        """Kill the processes. Their messages stay in the queue. Can be called from any thread."""
        self._killed.set()
        self._stopping.set()
        for runtime in self._runtimes:
            runtime.kill()

    # Start and end.

    def _warn_of_short_visibility(self) -> None:
        for source in self._sources:
            if source.visibility_timeout < self._function.timeout_seconds:
                self._report(progress.Warned(_short_visibility(source, self._function.timeout_seconds)))

    def _warn_of_short_function(self) -> None:
        if not settings.configured:
            return  # a handler without Django
        from lambda_tasks.handler import longest_time_needed

        timeout = self._function.timeout_seconds
        with suppress(ImproperlyConfigured):  # which `manage.py check` reports
            for name in self._queues:
                if timeout < (needed := longest_time_needed(name)):
                    self._report(progress.Warned(_short_function(name, timeout, needed)))

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

    # One process, started and closed in one thread.

    def _serve_or_stop(self, source: EventSource, name: str) -> None:
        try:
            self._serve(source, name)
        except BaseException as error:  # run() raises it in its caller's thread
            was_killed = self._stopping.is_set() and isinstance(error, RuntimeStartError)
            if not was_killed:
                self._failures.append(error)
            self.stop()

    def _serve(self, source: EventSource, name: str) -> None:
        runtime = Runtime(replace(self._function, region=source.region), on_output=self._output_of(name))
        self._runtimes.append(runtime)
        with closing(runtime):
            while not self._stopping.is_set():
                self._make_ready(runtime, name)  # first, so that a broken handler does not use up receives
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
                    return  # the messages of the last poll stay in the queue as well
                self._make_ready(runtime, name)
                self._deliver(batch, source, runtime, name)
        except SQS_ERRORS as error:
            self._report(progress.Trouble(name, f"SQS failed, polling again in {RETRY_SECONDS} s: {error}"))
            self._stopping.wait(RETRY_SECONDS)

    def _deliver(self, batch: ReceivedBatch, source: EventSource, runtime: Runtime, name: str) -> None:
        self._report(progress.Received(name, batch.message_ids))
        began = time.monotonic()
        with self._tally.running():
            result = runtime.invoke(batch.event)
            verdict = judge(result, batch.message_ids)
            self._delete_succeeded(batch, verdict, source, name)
        finished = _finished(name, batch, result, verdict, seconds=time.monotonic() - began)
        self._tally.add(finished)
        self._report(finished)

    def _delete_succeeded(self, batch: ReceivedBatch, verdict: Verdict, source: EventSource, name: str) -> None:
        try:
            complaints = source.delete_succeeded(batch, verdict)
        except SQS_ERRORS as error:
            complaints = [f"SQS did not delete finished messages, so they will be redelivered: {error}"]
        for complaint in complaints:
            self._report(progress.Trouble(name, complaint))

    def _nothing_is_left(self) -> bool:
        # The queues are checked one after the other, and a task may send messages to a queue that was already checked.
        # The results therefore count only if no batch started or ran during the checks.
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
    """Tell one of the threads when an interval has passed. The first one passes immediately."""

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
    started: int = 0
    running: int = 0


class _Tally:
    """Count the running and the finished batches of all threads."""

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
            self._moment = _Moment(self._moment.started + 1, self._moment.running + 1)
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
    name: str, batch: ReceivedBatch, result: InvocationResult, verdict: Verdict, *, seconds: float
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
        return progress.Maintained(name, reason=f"the handler's response is not JSON ({error})")
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
        f"The visibility timeout of queue {source.name!r} is {source.visibility_timeout} s, less than the function's "
        f"timeout of {function_timeout:g} s. A batch that takes longer is redelivered while it runs. AWS rejects this "
        f"configuration. Raise the queue's visibility timeout."
    )


def _short_function(queue: str, function_timeout: float, needed: float) -> str:
    return (
        f"The function's timeout of {function_timeout:g} s is shorter than the {needed:g} s that the longest task of "
        f"queue {queue!r} needs. Time limits are shortened to the remaining time of an invocation. Raise "
        "--function-timeout and the timeout of the function on AWS, or lower hard_timeout."
    )


def _function_timeout(seconds: float | None) -> float:
    if seconds is None:  # without settings, the handler does not use Django
        return app_settings.max_timeout if settings.configured else MAX_TIMEOUT
    if not 0 < seconds <= MAX_INSTANCES_TIMEOUT:
        raise ValueError(
            f"function_timeout must be more than 0 and at most {MAX_INSTANCES_TIMEOUT} seconds, not {seconds}."
        )
    return seconds


def _check_batches(batch_size: int, batching_window: int) -> None:
    _check("batch_size", batch_size, 1, MAX_BATCH_SIZE)
    _check("batching_window", batching_window, 0, MAX_BATCHING_WINDOW)
    if batch_size > MAX_PER_CALL and not batching_window:
        raise ValueError(
            f"batch_size must be at most {MAX_PER_CALL} without a batching_window, not {batch_size}. "
            "Lower it, or set batching_window."
        )


def _check(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, not {value!r}.")
