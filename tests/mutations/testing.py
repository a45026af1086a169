"""Mutations of the helpers for tests of projects."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

EAGER: Final = "tests/backends/test_eager.py::TestPropagatedErrors"
NOOP: Final = "tests/backends/test_noop.py"
QUEUE: Final = "tests/project/test_testing_queue.py"
REAL: Final = "tests/project/test_real_aws.py"

MUTATIONS: Final = (
    Mutation(
        "eager mode hides errors",
        "backends/eager.py",
        "                        errors.append(failure)\n",
        "",
        EAGER,
    ),
    Mutation(
        "eager mode always raises errors",
        "backends/eager.py",
        " and app_settings.eager_propagates:",
        ":",
        EAGER,
    ),
    Mutation(
        "a raised error does not name its task",
        "recording/notes.py",
        "        notes.append(note)\n",
        "        pass\n",
        EAGER,
    ),
    Mutation(
        "a cancelled task is an error",
        "outcomes.py",
        " and not isinstance(outcome.error, TaskCancelled)",
        "",
        QUEUE + "::TestErrors",
    ),
    Mutation(
        "discarded calls hold the keys of unique tasks",
        "backends/noop.py",
        "                job.unsent()\n",
        "                pass\n",
        NOOP,
    ),
    Mutation(
        "eager mode runs calls that are to be discarded",
        "strategies.py",
        "    if app_settings.noop_execution:\n        return NOOP_BACKEND, {}\n",
        "",
        NOOP,
    ),
    Mutation(
        "discarded tasks are not reported",
        "operations/checks.py",
        "if discards and not django_settings.DEBUG and not tested:",
        "if False:",
        NOOP,
    ),
    Mutation(
        "an error of a task stays in its record",
        "testing/queue.py",
        "if raise_errors and (error := self._errors.first) is not None:",
        "if False and (error := self._errors.first) is not None:",
        QUEUE + "::TestErrors",
    ),
    Mutation(
        "the error of an earlier run is raised again",
        "testing/queue.py",
        "        self._errors.clear()\n",
        "",
        QUEUE + "::TestErrors",
    ),
    Mutation(
        "the listener stays after the batch",
        "testing/errors.py",
        "                manager.unregister(self)\n",
        "                pass\n",
        QUEUE + "::TestErrors",
    ),
    Mutation(
        "a misspelt argument is never enqueued",
        "testing/expected.py",
        "        if name not in parameters:\n",
        "        if False:\n",
        QUEUE + "::TestAssertions",
    ),
    Mutation(
        "an assertion shows sensitive arguments",
        "testing/expected.py",
        "arguments = masked(job.message.kwargs, job.task.sensitive if job.task else ())",
        "arguments = job.message.kwargs",
        QUEUE + "::TestAssertions",
    ),
    Mutation(
        "calls without a commit are not mentioned",
        "testing/expected.py",
        "if waiting := waiting_jobs():",
        "if waiting := ():",
        QUEUE + "::TestAssertions",
    ),
    Mutation(
        "a killed worker records the failure of its task",
        "execution/pipeline.py",
        "    except failpoints.WorkerKilled:\n        raise  # a process that was killed records nothing\n",
        "",
        QUEUE + "::TestCrashes",
    ),
    Mutation(
        "a dead worker reaches further failpoints",
        "testing/crashing.py",
        "        if self._is_dead:\n            raise WorkerKilled\n        if self._points",
        "        if self._points",
        QUEUE + "::TestCrashes",
    ),
    Mutation(
        "a dead worker executes statements",
        "testing/crashing.py",
        "if self._is_dead and not sql.startswith(_LEAVING):",
        "if False:",
        QUEUE + "::TestCrashes",
    ),
    Mutation(
        "a dead worker's savepoint cannot be left",
        "testing/crashing.py",
        " and not sql.startswith(_LEAVING)",
        "",
        QUEUE + "::TestInsideATransaction",
    ),
    Mutation(
        "callbacks of committed work die with the worker",
        "testing/queue.py",
        "                        self._crashes.revive()\n",
        "",
        QUEUE + "::TestInsideATransaction",
    ),
    Mutation(
        "a crash that never happens passes",
        "testing/queue.py",
        "        self._crashes.refuse_unreached(self._errors.first)\n",
        "",
        QUEUE + "::TestCrashes",
    ),
    Mutation(
        "a message that is delivered twice is lost",
        "testing/queue.py",
        "        self._take(list(batch.values()))\n",
        "        self._take(list(waiting))\n",
        QUEUE + "::TestRedelivery",
    ),
    Mutation(
        "stored times stay when time passes",
        "testing/clock.py",
        "            _move_stored_times(alias, timedelta(seconds=passing))\n",
        "            pass\n",
        QUEUE + "::TestTime",
    ),
    Mutation(
        "times in tables with proxy models move twice",
        "testing/clock.py",
        " and not model._meta.proxy:",
        ":",
        QUEUE + "::TestTime",
    ),
    Mutation(
        "messages do not age when time passes",
        "testing/clock.py",
        "[_older(job, passing) for job in self._backend.jobs]",
        "list(self._backend.jobs)",
        QUEUE + "::TestTime",
    ),
    Mutation(
        "a job that was sent before keeps its delay",
        "testing/clock.py",
        "        self._note_sent()\n        self._passed += passing\n",
        "        self._passed += passing\n",
        QUEUE + "::TestTime",
    ),
    Mutation(
        "schedules begin with the first tick",
        "testing/clock.py",
        "            sent = fire_due(self._began).sent\n",
        "",
        QUEUE + "::TestTime",
    ),
    Mutation(
        "a test sends requests to AWS",
        "real_aws.py",
        "    return _Refusal(request.url,",
        "    return None and _Refusal(request.url,",
        REAL,
    ),
    Mutation(
        "an emulator is refused",
        "real_aws.py",
        " or not _is_on_aws(request.url):",
        ":",
        REAL,
    ),
    *(
        Mutation(f"a test sends requests to {service}", file, f"guarded({made}", f"({made}", REAL)
        for service, file, made in (
            ("S3", "backends/bucket.py", 'boto3.client("s3"'),
            ("Secrets Manager", "secret_loader.py", 'boto3.client("secretsmanager"'),
            ("the APIs of operators", "operations/aws.py", "session.client(service"),
        )
    ),
    Mutation(
        "the addresses of some partitions are not refused",
        "real_aws.py",
        "amazonaws\\.(?:com|eu)",
        "amazonaws\\.com",
        REAL,
    ),
    Mutation(
        "moto is asked after the refusal",
        "real_aws.py",
        'register_last("before-send", _answer)',
        'register_last("before-send.sqs", _answer)',
        REAL,
    ),
    Mutation(
        "the local worker receives messages from AWS in a test",
        "local/event_source.py",
        'return guarded(session.client("sqs", **options))',
        'return session.client("sqs", **options)',
        REAL,
    ),
    Mutation(
        "the marker does not allow requests to AWS",
        "testing/plugin.py",
        "    with allow_real_queues():\n        return (yield)\n",
        "    return (yield)\n",
        REAL,
    ),
)
