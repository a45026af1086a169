"""Mutations of periodic tasks."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

FAULTS: Final = "tests/faults/test_schedule_faults.py"
TASKS: Final = "tests/operations/test_periodic_tasks.py"
TIMES: Final = "tests/definition/test_schedules.py"

MUTATIONS: Final = (
    Mutation(
        "each process sends a tick under an id of its own",
        "operations/schedules.py",
        "tick_id = ids.tick_id(self.task.name, self.schedule.label, tick)",
        "tick_id = ids.new_message_id()",
        FAULTS + "::TestCrashes",
    ),
    Mutation(
        "a schedule moves on although a newer state is stored",
        "operations/schedules.py",
        "filter(pk=state.pk, last_tick=state.last_tick, paused=False)",
        "filter(pk=state.pk, paused=False)",
        FAULTS + "::TestInterleavings",
    ),
    Mutation(
        "a pause after the state was read is ignored",
        "operations/schedules.py",
        "filter(pk=state.pk, last_tick=state.last_tick, paused=False)",
        "filter(pk=state.pk, last_tick=state.last_tick)",
        FAULTS + "::TestInterleavings",
    ),
    Mutation(
        "a schedule waits for the row that a frozen process holds",
        "operations/schedules.py",
        "select_for_update(skip_locked=True)",
        "select_for_update()",
        FAULTS + "::TestSessions",
    ),
    Mutation(
        "a schedule moves on without its ticks",
        "operations/schedules.py",
        "        outgoing.dispatch(leaving)\n",
        "        transaction.on_commit(partial(outgoing.dispatch, leaving), using=get_store().database)\n",
        FAULTS + "::TestCrashes",
    ),
    Mutation(
        "one failing schedule stops the others",
        "operations/schedules.py",
        "        fired.failed += 1\n",
        "        raise\n",
        TASKS + "::TestTicks",
    ),
    Mutation(
        "ticks ignore the unique key of their task",
        "operations/schedules.py",
        "        handle = outgoing.accept(job, leave)\n",
        "        leave(job)\n        return True\n",
        TASKS + "::TestUnique",
    ),
    Mutation(
        "a duplicate tick fails its schedule",
        "operations/schedules.py",
        "    except DuplicateTask as duplicate:\n        handle = duplicate.handle\n",
        "    except ZeroDivisionError:\n        raise\n",
        TASKS + "::TestUnique",
    ),
    Mutation(
        "a retried tick loses the time at which it was sent",
        "jobs.py",
        "    return task.measures_age or not ids.tells_time(root_id)\n",
        "    return task.measures_age\n",
        TASKS + "::TestTicks",
    ),
    Mutation(
        "any id is taken for one that contains a time",
        "wire/ids.py",
        '    return version == "7" and variant in {"8", "9", "a", "b"}\n',
        "    return True\n",
        TASKS + "::TestTicks",
    ),
    Mutation(
        "a new schedule runs immediately",
        "operations/schedules.py",
        "task_name=entry.task.name, last_tick=_stored(now))",
        "task_name=entry.task.name, last_tick=0)",
        TASKS + "::TestTicks",
    ),
    Mutation(
        "a resumed schedule makes up for its pause",
        "operations/schedules.py",
        "update(paused=False, last_tick=_stored(now))",
        "update(paused=False)",
        TASKS + "::TestControl",
    ),
    Mutation(
        "a retry loses its scheduled time",
        "jobs.py",
        "            scheduled_for=self.scheduled_for,\n",
        "",
        TASKS + "::TestTicks",
    ),
    Mutation(
        "a task that was lost loses its scheduled time",
        "operations/reaping.py",
        "        scheduled_for=_scheduled_for(lost, task),\n        group=",
        "        group=",
        FAULTS + "::test_lost_tick_keeps_its_scheduled_time",
    ),
    Mutation(
        "a repeated hour runs a fixed time in the past",
        "definition/schedules.py",
        "if (run := int(moment.timestamp())) > after:",
        "if (run := int(moment.timestamp())) is not None:",
        TIMES + "::TestNightsOfTheChange",
    ),
    Mutation(
        "a test depends on the time of day",
        "maintenance.py",
        "        if not get_backend().leaves_process:\n            return\n",
        "",
        TASKS + "::TestProcesses",
    ),
    Mutation(
        "an invocation imports all tasks at its end",
        "maintenance.py",
        "fire_due(discover=False, seconds=RELAY_SECONDS)",
        "fire_due(seconds=RELAY_SECONDS)",
        TASKS + "::TestProcesses",
    ),
)
