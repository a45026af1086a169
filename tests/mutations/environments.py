"""Mutations of early starts, snapshots and Managed Instances."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

EARLY: Final = "tests/environments/test_early_start.py"
INSTANCES: Final = "tests/environments/test_instances.py"
MEMORY: Final = "tests/faults/test_memory_limit.py"
LEAK: Final = "tests/environments/test_instances.py::test_process_that_leaks_is_replaced_between_tasks"

MUTATIONS: Final = (
    Mutation(
        "jitter comes from a generator that a snapshot copies",
        "foundation/forks.py",
        "random: Final = SystemRandom()",
        "random: Final = __import__('random')",
        f"{EARLY}::test_snapshot_cannot_repeat_jitter_or_ids",
    ),
    Mutation(
        "restored environments continue with the same random numbers",
        "environments/snapshots.py",
        "    random.seed()\n",
        "",
        f"{EARLY}::TestSnapshot",
    ),
    Mutation(
        "a snapshot contains secrets",
        "environments/snapshots.py",
        "    if any(name.startswith(PREFIX) for name in os.environ):\n",
        "    if False:\n",
        f"{EARLY}::TestSnapshot",
    ),
    Mutation(
        "a snapshot contains open connections",
        "environments/snapshots.py",
        "        preparing.prepare(boot)\n    preparing.release()\n",
        "        preparing.prepare(boot)\n",
        f"{EARLY}::TestSnapshot",
    ),
    Mutation(
        "a snapshot is taken before Django is set up",
        "environments/snapshots.py",
        "        preparing.prepare(boot)\n",
        "        pass\n",
        f"{EARLY}::TestSnapshot",
    ),
    Mutation(
        "the handler sets Django up inside of its setup",
        "environments/preparing.py",
        "    elif not apps.ready:\n        return\n",
        "",
        f"{EARLY}::TestInAdvance",
    ),
    Mutation(
        "settings that come later fail an environment",
        "environments/preparing.py",
        '        if "DJANGO_SETTINGS_MODULE" not in os.environ:\n',
        "        if False:\n",
        f"{EARLY}::TestInAdvance",
    ),
    Mutation(
        "pools stay open in copies of a process",
        "environments/preparing.py",
        "                connection.close_pool()",
        "                pass",
        f"{EARLY}::TestRelease",
    ),
    Mutation(
        "copies of a process share the clients of strategies",
        "environments/preparing.py",
        "        strategies.forget_all()\n",
        "",
        f"{EARLY}::TestRelease",
    ),
    Mutation(
        "copies of a process share caches",
        "environments/preparing.py",
        "                del caches[alias]\n",
        "                pass\n",
        f"{EARLY}::TestRelease",
    ),
    Mutation(
        "credentials stay in copies of a process",
        "environments/preparing.py",
        '        sys.modules["boto3"].DEFAULT_SESSION = None',
        "        pass",
        f"{EARLY}::TestRelease",
    ),
    Mutation(
        "environments with provisioned concurrency are not prepared",
        "handler.py",
        'Final = ("provisioned-concurrency", "lambda-managed-instances")',
        'Final = ("lambda-managed-instances",)',
        f"{EARLY}::TestInAdvance",
    ),
    Mutation(
        "each process of an instance sets Django up",
        "instances/__main__.py",
        "    preparing.prepare(boot)\n",
        "",
        f"{INSTANCES}::test_four_processes_run_tasks_side_by_side",
    ),
    Mutation(
        "an ended process is not replaced",
        "instances/processes.py",
        "            self._reap()\n",
        "",
        f"{INSTANCES}::TestReplacing",
    ),
    Mutation(
        "replacements that die at the start do not wait",
        "instances/processes.py",
        "        slot.due = now + pause(slot.early_deaths)\n",
        "        slot.due = now\n",
        f"{INSTANCES}::TestReplacing",
    ),
    Mutation(
        "replacements wait longer although their predecessors worked",
        "instances/processes.py",
        "0 if now - slot.started >= STEADY else slot.early_deaths + 1",
        "slot.early_deaths + 1",
        f"{INSTANCES}::TestReplacing",
    ),
    Mutation(
        "an exception leaves a forked process and runs the code of its parent",
        "instances/processes.py",
        "    except BaseException:\n        traceback.print_exc()\n        return 1\n",
        "",
        f"{INSTANCES}::TestReplacing",
    ),
    Mutation(
        "a process that ignores SIGTERM delays the shutdown",
        "instances/processes.py",
        "        self._kill(signal.SIGKILL)\n",
        "",
        f"{INSTANCES}::TestReplacing",
    ),
    Mutation(
        "processes outlive their parent",
        "instances/processes.py",
        "        die_with(parent)\n",
        "",
        f"{INSTANCES}::test_processes_end_with_their_parent",
    ),
    Mutation(
        "a process does not note its invocation",
        "instances/serving.py",
        '        self._note.write(Invocation(request.invoke_id, getattr(request, "invocation_id", None)))\n',
        "",
        f"{INSTANCES}::test_killed_process_leaves_its_message_on_the_queue",
    ),
    Mutation(
        "the settings cannot remove Lambda's log handler",
        "instances/serving.py",
        "            self._root.handlers[:] = self._configured\n",
        "            pass\n",
        f"{INSTANCES}::TestLogging",
    ),
    Mutation(
        "lines are logged by the parent's handler too",
        "instances/serving.py",
        "        self._root.removeHandler(self._lambdas)\n",
        "",
        f"{INSTANCES}::TestLogging",
    ),
    Mutation(
        "the lines of forked processes lack the fields of the invocation",
        "instances/serving.py",
        "        add_fields_on_lambda()\n",
        "",
        f"{INSTANCES}::TestLogging",
    ),
    Mutation(
        "each process of an environment may use the whole memory",
        "contrib/memory.py",
        "* SHARE) // parts",
        "* SHARE)",
        MEMORY + "::TestLimit",
    ),
    Mutation(
        "a process that leaks memory is not replaced",
        "instances/serving.py",
        "if why := retiring.reason():",
        "if why := '':",
        LEAK,
    ),
    Mutation(
        "a process that asks for another one counts as dead",
        "instances/processes.py",
        "if code == RETIRED and slot.note.read() is None:",
        "if False:",
        LEAK,
    ),
    Mutation(
        "a process that starts with too much memory is replaced again and again",
        "contrib/memory.py",
        "* REPLACED_ABOVE and not _starts_above:",
        "* REPLACED_ABOVE:",
        MEMORY + "::TestReplacement",
    ),
    Mutation(
        "the worker keeps processes that use too much memory",
        "local/worker.py",
        "        self._report(progress.Warned(too_much_memory(name, used, limit)))\n        return True\n",
        "        return False\n",
        "tests/local/test_local_worker.py::test_large_process_is_replaced_after_its_batch",
    ),
)
