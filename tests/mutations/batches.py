"""The batch, and the options of tasks."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

BATCHES: Final = "tests/faults/test_batches.py"
ALIASES: Final = "tests/test_aliases.py"
EXPIRY: Final = "tests/test_expiry.py"
RETRIES: Final = "tests/test_retry_options.py"

MUTATIONS: Final = (
    Mutation(
        "what was begun does not run last",
        "handler.py",
        "key=lambda delivery: (delivery.message_id in begun, delivery.receives",
        "key=lambda delivery: (False, delivery.receives",
        BATCHES + "::TestPoison",
    ),
    Mutation(
        "what was received often runs first",
        "handler.py",
        "delivery.receives >= SUSPICIOUS_RECEIVES)",
        "False)",
        BATCHES + "::TestPoison",
    ),
    Mutation(
        "what was given back is suspected",
        "stores/orm.py",
        ".exclude(claim=None, takeovers=0)",
        ".all()",
        BATCHES + "::TestPoison",
    ),
    Mutation(
        "the first task of a batch may be refused",
        "handler.py",
        "if self._deadline is None or not self._started_any:",
        "if self._deadline is None:",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "what could not be read counts as the first",
        "handler.py",
        "        try:\n            message = read_message",
        "        self._started_any, started = True, self._started_any\n        try:\n            message = read_message",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "time limits outlast the invocation",
        "executor.py",
        "    if left >= hard:\n        return soft, hard\n    return min(soft, 0.9 * left), left",
        "    return soft, hard",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "an event without messages is done",
        "deliveries.py",
        "    if not isinstance(records, list):",
        "    if records is None:\n        return []\n    if not isinstance(records, list):",
        BATCHES + "::TestEvents",
    ),
    Mutation(
        "a message twice in a batch is named twice",
        "deliveries.py",
        "        found.setdefault(delivery.raw_id, delivery)\n",
        "        found[delivery.raw_id + str(len(found))] = delivery\n",
        BATCHES + "::TestCopies",
    ),
    Mutation(
        "old names are unknown",
        "registry.py",
        "    _aliases.update(dict.fromkeys(task.aliases, task.name))\n",
        "",
        ALIASES,
    ),
    Mutation(
        "aliases may clash",
        "registry.py",
        "        if other is not None and other.name != task.name:",
        "        if False:",
        ALIASES,
    ),
    Mutation(
        "a task defined anew keeps its old aliases",
        "registry.py",
        "return task if task is not None and task_name in task.aliases else None",
        "return task",
        ALIASES,
    ),
    Mutation(
        "a renamed singleton has one lock",
        "singletons.py",
        "for name in (run.task.name, *run.task.aliases)]",
        "for name in (run.task.name,)]",
        ALIASES,
    ),
    Mutation(
        "a singleton is locked under the message's name",
        "singletons.py",
        "for name in (run.task.name, *run.task.aliases)]",
        "for name in (run.task_name,)]",
        ALIASES,
    ),
    Mutation(
        "apps are not searched for aliases",
        "registry.py",
        "    _import_tasks_of_apps()\n    if task :=",
        "    if task :=",
        ALIASES,
    ),
    Mutation(
        "a broken app hides the tasks of others",
        "registry.py",
        '            except Exception:\n                logger.exception("%s cannot be imported',
        '            except ImportError:\n                logger.exception("%s cannot be imported',
        ALIASES,
    ),
    Mutation(
        "an unknown task uses up its receives",
        "handler.py",
        "            pause = FOREIGN_PAUSE * 4 ** min(delivery.receives - 1, 5)",
        "            pause = FOREIGN_PAUSE",
        ALIASES,
    ),
    Mutation(
        "nothing expires",
        "executor.py",
        "return _crashed_too_often(run) or _expired(run)",
        "return _crashed_too_often(run)",
        EXPIRY,
    ),
    Mutation(
        "a retry is as young as its message",
        "jobs.py",
        "first_sent=None if self.task.expires_in is None else self.first_sent,",
        "first_sent=None,",
        EXPIRY,
    ),
    Mutation(
        "every retry carries when its chain began",
        "jobs.py",
        "first_sent=None if self.task.expires_in is None else self.first_sent,",
        "first_sent=self.first_sent,",
        EXPIRY,
    ),
    Mutation(
        "plugins see when a chain began",
        "jobs.py",
        "QUEUE_ATTRIBUTE, FIRST_SENT_ATTRIBUTE})",
        "QUEUE_ATTRIBUTE})",
        EXPIRY,
    ),
    Mutation(
        "a task's own limit of retries is not looked at",
        "executor.py",
        "    if own is not None and (",
        "    if False and (",
        RETRIES,
    ),
    Mutation(
        "retries do not back off",
        "default_plugin.py",
        "    elif run.task.retry_backoff:",
        "    elif False:",
        RETRIES + "::TestBackoff",
    ),
    Mutation(
        "backoff has no jitter",
        "default_plugin.py",
        "return random.randint(1, min(run.task.retry_delay * 2 ** min(run.n_retries, 10), longest))",
        "return min(run.task.retry_delay * 2 ** min(run.n_retries, 10), longest)",
        RETRIES + "::TestStorm::test_what_failed_together_does_not_come_back_together",
    ),
    Mutation(
        "backoff knows no bound",
        "default_plugin.py",
        "min(run.n_retries, 10), longest))",
        "min(run.n_retries, 10), 10**9))",
        RETRIES + "::TestBackoff",
    ),
)
