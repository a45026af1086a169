"""Mutations of the worker in production, and of jobs on AWS Batch."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

WORKER: Final = "tests/local/test_local_worker.py"
HOLDING: Final = "tests/local/test_holding.py"
HEALTH: Final = "tests/local/test_worker_health.py"
SENDING: Final = "tests/backends/test_batch_jobs.py"
RUNNING: Final = "tests/operations/test_batch_jobs.py"

MUTATIONS: Final = (
    Mutation(
        "a stopping worker keeps the messages that wait",
        "local/worker.py",
        "                    handing_back.start()",
        "                    pass",
        f"{WORKER}::TestDraining",
    ),
    Mutation(
        "a stopping worker starts the messages that wait",
        "local/worker.py",
        "while not self._stopping.is_set() and (batch := waiting.next()) is not None:",
        "while (batch := waiting.next()) is not None:",
        f"{WORKER}::TestDraining",
    ),
    Mutation(
        "running batches delay the end of a worker for ever",
        "local/worker.py",
        "if self._stop_by is None or now < self._stop_by:",
        "if True:",
        f"{WORKER}::TestDraining",
    ),
    Mutation(
        "the messages of a killed batch stay invisible",
        "local/worker.py",
        'if self._killed.is_set() and report.outcome == "crashed":',
        "if False:",
        f"{WORKER}::TestDraining",
    ),
    Mutation(
        "a process is not replaced after its messages",
        "local/worker.py",
        "            runtime.close()\n",
        "            pass\n",
        f"{WORKER}::test_process_is_replaced_after_its_messages",
    ),
    Mutation(
        "received messages have no heartbeat",
        "local/worker.py",
        "        self._held.add(source, messages)\n",
        "",
        f"{WORKER}::test_heartbeat_extends_a_running_message",
    ),
    Mutation(
        "expired credentials are used again and again",
        "local/event_source.py",
        "            self._client = self._connect()\n",
        "            pass\n",
        f"{WORKER}::TestSqsFailures",
    ),
    Mutation(
        "released messages have heartbeats",
        "local/holding.py",
        'self._held.pop(message["ReceiptHandle"], None)',
        "pass",
        HOLDING,
    ),
    Mutation(
        "a failed heartbeat is not repeated before the timeout ends",
        "local/holding.py",
        "wait = _AGAIN if complaints else _interval(source)",
        "wait = source.visibility_timeout",
        HOLDING,
    ),
    Mutation(
        "heartbeats exceed the twelve hours of SQS",
        "local/holding.py",
        "return min(max(self.source.visibility_timeout, MIN_EXTENSION), left)",
        "return max(self.source.visibility_timeout, MIN_EXTENSION)",
        HOLDING,
    ),
    Mutation(
        "a stuck thread is healthy",
        "local/health.py",
        "if due is not None and now > due:",
        "if False:",
        HEALTH,
    ),
    Mutation(
        "a worker that SQS does not answer is healthy",
        "local/health.py",
        "if self._failing_since is not None and now - self._failing_since > SQS_PATIENCE:",
        "if False:",
        HEALTH,
    ),
    Mutation(
        "the file of the health stays although a thread is stuck",
        "local/health.py",
        "    if problems():\n",
        "    if False:\n",
        HEALTH,
    ),
    Mutation(
        "a job that ECS would fail is submitted",
        "backends/batch_jobs.py",
        "return size if size > MAX_OVERRIDES else 0",
        "return 0",
        f"{SENDING}::TestSize",
    ),
    Mutation(
        "the retry of the largest job is too large",
        "backends/batch_jobs.py",
        ".encode()) + _HEADROOM",
        ".encode())",
        f"{SENDING}::TestSize",
    ),
    Mutation(
        "the delay of a job is lost",
        "backends/batch_jobs.py",
        "    if job.delay:\n",
        "    if False:\n",
        SENDING,
    ),
    Mutation(
        "the outbox submits a job before it is due",
        "backends/sqs.py",
        "return 0 if isinstance(app_settings.queues.get(queue), JobQueue) else self.max_delay",
        "return self.max_delay",
        SENDING,
    ),
    Mutation(
        "a test submits jobs to AWS",
        "backends/batch_jobs.py",
        "self._clients[key] = guarded(",
        "self._clients[key] = (",
        SENDING,
    ),
    Mutation(
        "the container of a job does not wait for its time",
        "operations/batch_jobs.py",
        "    sleep(max(job.not_before - time.time(), 0.0))\n",
        "",
        RUNNING,
    ),
    Mutation(
        "a job waits for the whole lease of a copy",
        "operations/batch_jobs.py",
        "visible_in=min(redeliver.visible_in or GLANCE, GLANCE), exact=True",
        "visible_in=redeliver.visible_in, exact=True",
        RUNNING,
    ),
    Mutation(
        "a job waits for an outage without an end",
        "operations/batch_jobs.py",
        "if result.visible_in is None or result.visible_in > MAX_PAUSE:",
        "if result.visible_in is None or len(str(receives)) > 1:",
        f"{RUNNING}::TestOutages",
    ),
    Mutation(
        "a job does not relay the outbox",
        "operations/batch_jobs.py",
        "        maintenance.relay_now_and_then(None)\n",
        "        pass\n",
        RUNNING,
    ),
    Mutation(
        "functions may not submit jobs",
        "operations/infrastructure/permissions.py",
        "*(reading, postponing, sending, *_submit_jobs(job_queues), logging),",
        "*(reading, postponing, sending, logging),",
        "tests/operations/test_infrastructure.py",
    ),
)
