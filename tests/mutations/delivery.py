"""Mutations of the delivery of messages: which are postponed, and for how long."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

BATCHES: Final = "tests/faults/test_batches.py"
BACKOFF: Final = "tests/execution/test_backoff.py"
KEPT: Final = "tests/execution/test_handler.py::TestKept"

MUTATIONS: Final = (
    Mutation(
        "functions with a short timeout hand back every message",
        "handler.py",
        "        if self._full_time < enough:\n",
        "        if False:\n",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "the full time excludes the start of Django",
        "handler.py",
        "    full_time = full_time_of(deadline)\n    boot()\n",
        "    boot()\n    full_time = deadline and deadline - time.monotonic()\n",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "functions with a short timeout start every message",
        "handler.py",
        "            enough = self._full_time * max(START_SHARE",
        "            enough = 0 * max(START_SHARE",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "the required time does not shrink with each receive",
        "handler.py",
        "max(START_SHARE ** max(receives, 1), LEAST_SHARE)",
        "START_SHARE",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "messages that were handed back return immediately",
        "handler.py",
        "visible_in=handed_back_pause(delivery.receives))",
        "visible_in=0)",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "messages are handed back without a warning",
        "handler.py",
        "        if self._handed_back:\n",
        "        if False:\n",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "five receives last only minutes",
        "execution/backoff.py",
        "OUTAGE_FACTOR: Final = 10.0",
        "OUTAGE_FACTOR: Final = 2.0",
        BACKOFF,
    ),
    Mutation(
        "the last receive counts as a pause",
        "execution/backoff.py",
        "    receives = range(1, max_receive_count)\n",
        "    receives = range(1, max_receive_count + 1)\n",
        BACKOFF,
    ),
    Mutation(
        "SQS refuses the longest pauses",
        "execution/backoff.py",
        "MAX_OUTAGE_PAUSE: Final = 28_800.0",
        "MAX_OUTAGE_PAUSE: Final = 43_200.0",
        BACKOFF,
    ),
    Mutation(
        "pauses have no jitter",
        "execution/backoff.py",
        "seconds * random.uniform(1, 1 + JITTER)",
        "seconds",
        BACKOFF,
    ),
    Mutation(
        "jitter shortens pauses",
        "execution/backoff.py",
        "random.uniform(1, 1 + JITTER)",
        "random.uniform(1 - JITTER, 1 + JITTER)",
        BACKOFF,
    ),
    Mutation(
        "errors outside the database leave the pause to the queue",
        "handler.py",
        "            self._keep(delivery, visible_in=outage_pause(delivery.receives))\n",
        "            self._keep(delivery)\n",
        KEPT,
    ),
    Mutation(
        "pauses between redeliveries do not grow",
        "handler.py",
        "    return max(known or 0.0, outage_pause(receives))",
        "    return known",
        KEPT,
    ),
    Mutation(
        "pauses before the end of a lease grow with each receive",
        "handler.py",
        "    if redeliver.exact:\n",
        "    if False:\n",
        KEPT,
    ),
    Mutation(
        "messages return a second before the lease ends",
        "handler.py",
        "random.uniform(_ROUNDING, _JITTER)",
        "random.uniform(0, _JITTER)",
        KEPT,
    ),
    Mutation(
        "pauses for a locked record do not grow",
        "execution/claiming.py",
        "exact=not locked)",
        "exact=True)",
        KEPT,
    ),
    Mutation(
        "messages return while their claim is held",
        "execution/pipeline.py",
        "        redeliver.visible_in = max(redeliver.visible_in or 0.0, attempt.lease_left)\n",
        "        pass\n",
        KEPT,
    ),
    Mutation(
        "messages of lost leases are postponed",
        "execution/settling.py",
        "        raise Redeliver(reason, exact=True) from error",
        "        raise Redeliver(reason) from error",
        KEPT,
    ),
    Mutation(
        "the doctor does not report the longest outage",
        "operations/doctor/queues.py",
        "    doctor.note(f",
        "    str(f",
        "tests/operations/test_doctor.py",
    ),
    Mutation(
        "loggers stay disabled after the setup of Django",
        "apps.py",
        "        enable_loggers(configured=_disables_loggers())  # early",
        "        pass  # early",
        "tests/project/test_logging.py::TestColdStart",
    ),
    Mutation(
        "loggers stay disabled after a plugin's boot",
        "handler.py",
        "        enable_loggers()  # a plugin",
        "        pass  # a plugin",
        "tests/project/test_logging.py::TestColdStart",
    ),
    Mutation(
        "loggers outside the library are enabled",
        "apps.py",
        "        if ours and isinstance(",
        "        if isinstance(",
        "tests/project/test_logging.py::TestColdStart",
    ),
    Mutation(
        "the doctor overlooks leases",
        "operations/doctor/queues.py",
        "    elif visibility < queue.lease:\n",
        "    elif False:\n",
        "tests/operations/test_doctor.py",
    ),
    Mutation(
        "the doctor overlooks the leases of tasks that start late",
        "operations/doctor/functions.py",
        "if queue.lease <= visibility < latest_lease else",
        "if False else",
        "tests/operations/test_doctor.py",
    ),
    Mutation(
        "the worker does not warn about a short function timeout",
        "local/worker.py",
        "if timeout < (needed := longest_time_needed(name)):",
        "if (needed := longest_time_needed(name)) < 0:",
        "tests/local/test_local_worker.py::test_worker_warns_about_a_short_function_timeout",
    ),
)
