"""Protections of running a record again."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

RERUNNING: Final = "tests/operations/test_rerunning.py"

MUTATIONS: Final = (
    Mutation(
        "a record that has not ended is run again",
        "operations/rerunning.py",
        "if record.status not in (TaskStatus.SUCCESS, TaskStatus.FAILED):",
        "if False:",
        RERUNNING,
    ),
    Mutation(
        "a task runs again with masked arguments",
        "operations/rerunning.py",
        "        if masked:\n",
        "        if False:\n",
        RERUNNING,
    ),
    Mutation(
        "arguments that the task does not take are sent again",
        "operations/rerunning.py",
        "            arguments_of(task, kwargs)\n",
        "            pass\n",
        RERUNNING,
    ),
    Mutation(
        "a rerun whose message was refused is linked",
        "operations/rerunning.py",
        "    outgoing.leave_on_commit(replace(job, unsent=undo))",
        "    outgoing.leave_on_commit(job)",
        RERUNNING,
    ),
    Mutation(
        "the key of a refused rerun is held",
        "operations/rerunning.py",
        "    if unsent is not None:\n        unsent()\n",
        "",
        RERUNNING,
    ),
    Mutation(
        "a rerun changes the arguments of a waiting call",
        "operations/rerunning.py",
        "        if not handle.created:",
        "        if False:",
        RERUNNING,
    ),
    Mutation(
        "the cleanup keeps the links of deleted reruns",
        "operations/forgetting.py",
        "for model in (TaskProgress, TaskRerun, EnqueuedTask):",
        "for model in (TaskProgress, EnqueuedTask):",
        RERUNNING,
    ),
    Mutation(
        "the cleanup keeps the links of lost reruns",
        "tasks.py",
        "        TaskRerun.objects.using(database).filter(rerun_at__lt=gone).delete()\n",
        "        pass\n",
        RERUNNING,
    ),
)
