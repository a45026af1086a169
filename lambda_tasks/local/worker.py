"""The local worker, which passes messages from SQS queues to processes of Lambda's runtime client."""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks.foundation.forks import random
from lambda_tasks.local import progress
from lambda_tasks.local.event_source import (
    SQS_ERRORS,
    EventSource,
    Message,
    ReceivedBatch,
    Verdict,
    judge,
    open_sources,
)
from lambda_tasks.local.health import Pulse
from lambda_tasks.local.holding import HeldMessages, Waiting
from lambda_tasks.local.options import (
    Options,
    check_seconds,
    not_drained,
    short_function,
    short_visibility,
    too_much_memory,
)
from lambda_tasks.local.runtime import Function, Runtime, RuntimeStartError
from lambda_tasks.local.tally import Schedule, Tally, finished, maintained
from lambda_tasks.local.ticking import Ticker
from lambda_tasks.maintenance import MAINTENANCE_EVENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Unpack

    from lambda_tasks.local.options import OptionValues

logger = logging.getLogger("lambda_tasks.local")

DEFAULT_HANDLER: Final = "lambda_tasks.handler.handler"
#: Seconds that one poll of an empty queue takes. A message ends the poll immediately, but `stop()` does not.
POLL_SECONDS: Final = 2
POLL_SECONDS_UNTIL_IDLE: Final = 1
#: Seconds between two polls of a queue after SQS has failed. They double with each failure, up to a maximum.
RETRY_SECONDS: Final = 2
MAX_RETRY_SECONDS: Final = 60
#: Seconds between two looks of the main thread at the time that is left for stopping.
_GLANCE: Final = 0.2
#: Seconds that the end of the worker waits for its threads to hand back messages after their processes were killed.
_LAST_REQUESTS: Final = 10.0
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

    `function_timeout` is in seconds. The default is LAMBDA_TASKS_MAX_TIMEOUT, or 900 without settings, because the
    handler immediately returns messages for which too little time is left. More than the queue's visibility timeout
    requires `heartbeat`, which extends the visibility timeout of messages while this worker holds them.

    With `one_by_one`, a process gets one message at a time, and the others of a batch wait in this process. They are
    handed back when the worker stops.

    `drain_seconds` is how long running batches may take after `stop()`. Then their processes are killed, and their
    messages are handed back. By default, they may take any time.

    `poll_seconds` is how long a poll waits for messages, and thereby how long an idle worker takes to stop.

    After `max_messages`, and if it uses more than `max_memory` megabytes after a batch, a process is replaced by a new
    one.

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
        environment: Mapping[str, str] | None = None,
        endpoint_url: str | None = None,
        maintenance_every: float | None = None,
        tick_every: float | None = None,
        report: Callable[[progress.Event], None] = log,
        **options: Unpack[OptionValues],
    ) -> None:
        if not queues:
            raise ValueError("queues must contain at least one name with its URL.")
        self._options = Options(**options)
        check_seconds("maintenance_every", maintenance_every)
        self._queues = dict(queues)
        self._endpoint_url = endpoint_url
        endpoint = {"AWS_ENDPOINT_URL_SQS": endpoint_url} if endpoint_url else {}
        self._function = Function(
            handler, self._options.function_timeout, environment={**endpoint, **(environment or {})}
        )
        self._report_to = report
        self._report_lock = threading.RLock()  # a signal handler may report while its thread is reporting
        self._tally = Tally()
        self._held = HeldMessages(is_on=self._options.heartbeat, report=self._report)
        self._schedule = Schedule(maintenance_every)
        self._stopping = threading.Event()
        self._ticker = Ticker(tick_every, stopping=self._stopping, report=self._report)
        self._killed = threading.Event()
        self._stop_by: float | None = None
        self._pulses: list[Pulse] = []
        self._waiting: dict[str, Waiting] = {}
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
            batch_size=self._options.batch_size,
            batching_window_seconds=self._options.batching_window,
            wait_seconds=self._seconds_of_a_poll(),
        )
        self._report(progress.Started(self._queues, self._function.handler, self._options.concurrency))
        self._warn_of_short_visibility()
        self._warn_of_short_function()
        with self._stopped_by_signals(), self._ticker.running(), self._held.beating():
            self._serve_all()
        if self._failures:
            raise self._failures[0]
        self._report(self._tally.summary)
        return self._tally.summary

    def stop(self) -> None:
        """Stop after the running batches, without starting others. Can be called from any thread.

        Messages that were received and have not begun are handed back.
        """
        if self._options.drain_seconds is not None and self._stop_by is None:
            self._stop_by = time.monotonic() + self._options.drain_seconds
        self._stopping.set()

    def kill(self) -> None:
        """Kill the processes, and hand their messages back. Can be called from any thread."""
        self._stop_by = time.monotonic()
        self._killed.set()
        self._stopping.set()
        for runtime in self._runtimes:
            runtime.kill()

    @property
    def was_killed(self) -> bool:
        """Whether the worker ended before its batches did: by `kill()`, a second signal, or after `drain_seconds`."""
        return self._killed.is_set() and self._tally.summary.handed_back > 0

    def problems(self) -> list[str]:
        """Return why the worker is unhealthy: threads that are stuck, or SQS that does not answer for minutes."""
        return [problem for pulse in list(self._pulses) if (problem := pulse.problem()) is not None]

    # Start and end.

    def _seconds_of_a_poll(self) -> int:
        if self._options.poll_seconds is not None:
            return self._options.poll_seconds
        return POLL_SECONDS_UNTIL_IDLE if self._until_idle else POLL_SECONDS

    def _warn_of_short_visibility(self) -> None:
        for source in [] if self._options.heartbeat else self._sources:
            if source.visibility_timeout < self._function.timeout_seconds:
                self._report(progress.Warned(short_visibility(source, self._function.timeout_seconds)))

    def _warn_of_short_function(self) -> None:
        if not settings.configured:
            return  # a handler without Django
        from lambda_tasks.handler import longest_time_needed

        timeout = self._function.timeout_seconds
        with suppress(ImproperlyConfigured):  # which `manage.py check` reports
            for name in self._queues:
                if timeout < (needed := longest_time_needed(name)):
                    self._report(progress.Warned(short_function(name, timeout, needed)))

    def _serve_all(self) -> None:
        threads = [
            threading.Thread(target=self._serve_or_stop, args=(source, name), name=name, daemon=True)
            for source in self._sources
            for name in (f"{source.name}-{number}" for number in range(1, self._options.concurrency + 1))
        ]
        for thread in threads:
            thread.start()
        handing_back = threading.Thread(target=self._hand_back_waiting, name="hands back", daemon=True)
        for thread in threads:
            while thread.is_alive() and not self._is_abandoned():
                thread.join(_GLANCE)
                if self._stopping.is_set() and handing_back.ident is None:
                    handing_back.start()  # another thread, since SQS may not answer

    def _is_abandoned(self) -> bool:
        """Kill the processes if the time for stopping is over. Return whether the time after that is over, too."""
        now = time.monotonic()
        if self._stop_by is None or now < self._stop_by:
            return False
        if not self._killed.is_set():
            self._report(progress.Warned(not_drained(self._options.drain_seconds or 0)))
            self.kill()
        return now >= self._stop_by + _LAST_REQUESTS

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
            self._report(progress.Stopping(self._options.drain_seconds))

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
        pulse = Pulse(name)
        self._pulses.append(pulse)
        failures = 0
        with closing(runtime):
            while not self._stopping.is_set():
                self._make_ready(runtime, name, pulse)  # first, so that a broken handler does not use up receives
                if self._schedule.is_due():
                    self._maintain(runtime, name, pulse)
                    self._make_ready(runtime, name, pulse)
                try:
                    messages = self._receive(source, pulse)
                except SQS_ERRORS as error:
                    self._wait_for_sqs(error, failures, source, name, pulse)
                    failures += 1
                    continue
                failures = 0
                self._run(messages, source, runtime, name, pulse)

    def _make_ready(self, runtime: Runtime, name: str, pulse: Pulse) -> None:
        if self._is_worn_out(runtime, name):
            runtime.close()
        if not runtime.is_alive:
            pulse.step("starting its process", self._function.init_timeout_seconds)
            pid = runtime.start()
            self._report(progress.RuntimeReady(name, pid, is_restart=runtime.starts > 1))

    def _is_worn_out(self, runtime: Runtime, name: str) -> bool:
        most, limit = self._options.max_messages, self._options.max_memory
        if most is not None and runtime.messages >= most:
            return True
        # Replacing a process that has run nothing would not help.
        if limit is None or not runtime.messages or (used := runtime.resident_mb) is None or used <= limit:
            return False
        self._report(progress.Warned(too_much_memory(name, used, limit)))
        return True

    def _maintain(self, runtime: Runtime, name: str, pulse: Pulse) -> None:
        with self._tally.running():  # it may send messages
            pulse.step("running the maintenance", self._function.longest_invocation)
            result = runtime.invoke(MAINTENANCE_EVENT)
        report = maintained(name, result)
        if report.done or report.reason:
            self._report(report)

    def _receive(self, source: EventSource, pulse: Pulse) -> list[Message]:
        if self._until_idle and self._nothing_is_left():
            self.stop()
        pulse.step("waiting for its turn to poll", None)
        return source.gather(self._stopping, on_turn=lambda: pulse.step("polling its queue", source.longest_gathering))

    def _wait_for_sqs(self, error: Exception, failures: int, source: EventSource, name: str, pulse: Pulse) -> None:
        pulse.sqs_failed()
        source.renew_client(error)
        # With jitter, so that workers do not return together after an outage.
        seconds = min(RETRY_SECONDS * 2**failures, MAX_RETRY_SECONDS) * random.uniform(0.5, 1)
        self._report(progress.Trouble(name, f"SQS failed, polling again in {seconds:.0f} s: {error}"))
        pulse.step("waiting for SQS", seconds)
        self._stopping.wait(seconds)

    def _run(self, messages: list[Message], source: EventSource, runtime: Runtime, name: str, pulse: Pulse) -> None:
        """Run the messages batch by batch, and hand back those that have not begun when the worker stops."""
        pulse.sqs_answered()
        self._held.add(source, messages)
        waiting = Waiting(source, name, source.batches(messages, one_by_one=self._options.one_by_one))
        self._waiting[name] = waiting
        try:
            while not self._stopping.is_set() and (batch := waiting.next()) is not None:
                self._make_ready(runtime, name, pulse)
                pulse.step("running a batch", self._function.longest_invocation)
                self._deliver(batch, source, runtime, name)
        finally:
            self._hand_back(waiting.all_messages(), source, name)

    def _hand_back_waiting(self) -> None:
        """Hand back the messages that wait for a running one to end."""
        for waiting in list(self._waiting.values()):
            self._hand_back(waiting.all_messages(), waiting.source, waiting.name)

    def _deliver(self, batch: ReceivedBatch, source: EventSource, runtime: Runtime, name: str) -> None:
        self._report(progress.Received(name, batch.message_ids))
        began = time.monotonic()
        with self._tally.running():
            result = runtime.invoke(batch.event)
            verdict = judge(result, batch.message_ids)
            self._held.release(batch.messages)  # the handler may have chosen when those that it keeps are visible
            self._delete_succeeded(batch, verdict, source, name)
        report = finished(name, batch, result, verdict, seconds=time.monotonic() - began)
        runtime.messages += len(batch.messages)
        self._tally.add(report)
        self._report(report)
        if self._killed.is_set() and report.outcome == "crashed":
            self._hand_back(batch.messages, source, name)

    def _delete_succeeded(self, batch: ReceivedBatch, verdict: Verdict, source: EventSource, name: str) -> None:
        try:
            complaints = source.delete_succeeded(batch, verdict)
        except SQS_ERRORS as error:
            complaints = [f"SQS did not delete finished messages, so they will be redelivered: {error}"]
        for complaint in complaints:
            self._report(progress.Trouble(name, complaint))

    def _hand_back(self, messages: Sequence[Message], source: EventSource, name: str) -> None:
        """Make messages visible immediately, which this worker does not run."""
        self._held.release(messages)
        if not messages:
            return
        try:
            complaints = source.change_visibility(messages, 0)
        except SQS_ERRORS as error:
            complaints = [f"SQS did not take messages back, which return when their visibility timeout ends: {error}"]
        for complaint in complaints:
            self._report(progress.Trouble(name, complaint))
        self._tally.add_handed_back(len(messages))
        self._report(progress.HandedBack(name, tuple(message["MessageId"] for message in messages)))

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
