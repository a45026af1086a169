"""Mutations of the backend of Django's tasks."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

TESTS: Final = "tests/contrib/test_django_tasks.py"
FOLDER: Final = "contrib/django_tasks/"

MUTATIONS: Final = (
    Mutation(
        "a call and its kept message do not commit together",
        FOLDER + "sending.py",
        "    return transaction.atomic(using=database)\n",
        "    return nullcontext()\n",
        TESTS + "::TestEnqueueing",
    ),
    Mutation(
        "a refused call stays READY",
        FOLDER + "sending.py",
        "        job = replace(job, unsent=partial(_delete_row, job.message_id, job.unsent))\n",
        "        pass\n",
        TESTS + "::TestEnqueueing",
    ),
    Mutation(
        "a kept call loses its result",
        FOLDER + "sending.py",
        "    if not get_backend().keeps:",
        "    if True:",
        TESTS + "::TestEnqueueing",
    ),
    Mutation(
        "a call on another database is written before its commit",
        FOLDER + "sending.py",
        "    if store == job.database:\n",
        "    if True:\n",
        TESTS + "::TestEnqueueing",
    ),
    Mutation(
        "a replaced call shows its old arguments",
        FOLDER + "sending.py",
        '    if job.task.on_duplicate == "replace":\n',
        "    if False:\n",
        TESTS + "::TestOptions",
    ),
    Mutation(
        "the row of a call shows sensitive arguments",
        FOLDER + "sending.py",
        "    return masked(job.message.kwargs, job.task.sensitive)\n",
        "    return dict(job.message.kwargs)\n",
        TESTS + "::TestRunning",
    ),
    Mutation(
        "Django's log shows sensitive arguments",
        FOLDER + "hooks.py",
        "    if not isinstance(outcome, Failed) or run.task.sensitive:",
        "    if not isinstance(outcome, Failed):",
        TESTS + "::TestRunning",
    ),
    Mutation(
        "a task is finished before its retries",
        FOLDER + "hooks.py",
        "    if not isinstance(run.task, DjangoTask) or isinstance(outcome, Retry):\n",
        "    if not isinstance(run.task, DjangoTask):\n",
        TESTS + "::TestSignals",
    ),
    Mutation(
        "a worker does not find a task of another backend",
        FOLDER + "hooks.py",
        "    return None if registry.known_task(task_name) else find_adapter(task_name)\n",
        "    return None\n",
        TESTS + "::TestWorkers",
    ),
    Mutation(
        "settings do not add the plugin at startup",
        "apps.py",
        '            add_plugin(f"{DJANGO_TASKS}.hooks")',
        "            pass",
        TESTS + "::TestWorkers",
    ),
    Mutation(
        "dicts arrive with other keys",
        FOLDER + "calls.py",
        "            if json.loads(json.dumps(value)) != value:\n",
        "            if False:\n",
        TESTS + "::TestEnqueueing",
    ),
    Mutation(
        "a keyword replaces a positional argument",
        FOLDER + "calls.py",
        "            if name == CALL or name in self._call.parameters:\n",
        "            if False:\n",
        TESTS + "::TestEnqueueing",
    ),
    Mutation(
        "variadic arguments are dropped as unknown",
        FOLDER + "calls.py",
        "        return set() if self._takes_any else encoded.keys() - known\n",
        "        return encoded.keys() - self.parameters.keys()\n",
        TESTS + "::TestRunning",
    ),
    Mutation(
        "a task of a schedule forgets its backend",
        FOLDER + "calls.py",
        "        return self.encode_call((), arguments, backend=self._backend)\n",
        '        return self.encode_call((), arguments, backend="default")\n',
        TESTS + "::TestOptions",
    ),
    Mutation(
        "options above the task have no effect",
        FOLDER + "adapters.py",
        "        if known.declared is declared_options(task.func):\n",
        "        if True:\n",
        TESTS + "::TestOptions",
    ),
    Mutation(
        "a queue that is gone hides results",
        FOLDER + "values.py",
        "    except InvalidTask:\n",
        "    except ArithmeticError:\n",
        TESTS + "::TestResults",
    ),
    Mutation(
        "a task that waits for its retry looks finished",
        FOLDER + "results.py",
        "    }.get(newest.status, TaskResultStatus.READY)\n",
        "    }.get(newest.status, TaskResultStatus.FAILED)\n",
        TESTS + "::TestRunning",
    ),
    Mutation(
        "a cancelled call counts as an attempt",
        FOLDER + "values.py",
        "    return record.claim is not None or record.takeovers > 0 or not ended\n",
        "    return True\n",
        TESTS + "::TestRunning",
    ),
    Mutation(
        "the cleanup lets a finished task look ready",
        "operations/forgetting.py",
        "    for model in (TaskProgress, TaskRerun, EnqueuedTask):\n",
        "    for model in (TaskProgress, TaskRerun):\n",
        TESTS + "::TestResults",
    ),
    Mutation(
        "the cleanup deletes calls that are not due",
        "tasks.py",
        "    due = Q(run_after=None) | Q(run_after__lt=limit)\n",
        "    due = Q()\n",
        TESTS + "::TestResults",
    ),
)
