"""Mutations of the batch and the options of tasks."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

BATCHES: Final = "tests/faults/test_batches.py"
ALIASES: Final = "tests/definition/test_aliases.py"
EXPIRY: Final = "tests/execution/test_expiry.py"
RETRIES: Final = "tests/definition/test_retry_options.py"

MUTATIONS: Final = (
    Mutation(
        "messages that were claimed before do not run last",
        "handler.py",
        "key=lambda delivery: (delivery.message_id in begun, delivery.receives",
        "key=lambda delivery: (False, delivery.receives",
        BATCHES + "::TestPoisonPills",
    ),
    Mutation(
        "messages with many receives do not run last",
        "handler.py",
        "delivery.receives >= SUSPICIOUS_RECEIVES)",
        "False)",
        BATCHES + "::TestPoisonPills",
    ),
    Mutation(
        "messages with a released claim run last",
        "stores/orm.py",
        ".exclude(claim=None, takeovers=0)",
        ".all()",
        BATCHES + "::TestPoisonPills",
    ),
    Mutation(
        "the first task of a batch can be handed back",
        "handler.py",
        "return not self._started_any or self._deadline",
        "return self._deadline",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "a malformed message counts as the first task",
        "handler.py",
        "        try:\n            message = Invocation.of_body(",
        "        self._started_any, started = True, self._started_any\n        try:\n            message = Invocation.of_body(",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "time limits exceed the time left in the invocation",
        "execution/pipeline.py",
        "    if left >= hard:\n        return soft, hard\n    return min(soft, 0.9 * left), left",
        "    return soft, hard",
        BATCHES + "::TestTime",
    ),
    Mutation(
        "an event without records is accepted",
        "wire/deliveries.py",
        "    if not isinstance(records, list):",
        "    if records is None:\n        return []\n    if not isinstance(records, list):",
        BATCHES + "::TestEvents",
    ),
    Mutation(
        "duplicates in a batch are handled separately",
        "wire/deliveries.py",
        "        found.setdefault(delivery.raw_id, delivery)\n",
        "        found[delivery.raw_id + str(len(found))] = delivery\n",
        BATCHES + "::TestCopies",
    ),
    Mutation(
        "aliases are not registered",
        "registry.py",
        "    _aliases.update(dict.fromkeys(task.aliases, task.name))\n",
        "",
        ALIASES,
    ),
    Mutation(
        "conflicting aliases are accepted",
        "registry.py",
        "        if other is not None and other.name != task.name:",
        "        if False:",
        ALIASES,
    ),
    Mutation(
        "a redefined task keeps its former aliases",
        "registry.py",
        "return task if task is not None and task_name in task.aliases else None",
        "return task",
        ALIASES,
    ),
    Mutation(
        "a singleton is locked under its current name only",
        "definition/keys.py",
        "for name in (task.name, *task.aliases)]",
        "for name in (task.name,)]",
        ALIASES,
    ),
    Mutation(
        "a singleton with an alias is locked under its alias only",
        "definition/keys.py",
        "for name in (task.name, *task.aliases)]",
        "for name in task.aliases or (task.name,)]",
        ALIASES,
    ),
    Mutation(
        "apps are not imported to find an alias",
        "registry.py",
        "    _import_tasks_of_apps()\n    if task :=",
        "    if task :=",
        ALIASES,
    ),
    Mutation(
        "an error in one app hides the tasks of other apps",
        "registry.py",
        "            except Exception as error:\n                failed[module_name]",
        "            except ImportError as error:\n                failed[module_name]",
        ALIASES,
    ),
    Mutation(
        "pauses for an unknown task do not grow",
        "execution/backoff.py",
        "_growing(FOREIGN_PAUSE, FOREIGN_FACTOR, MAX_FOREIGN_PAUSE, receives)",
        "FOREIGN_PAUSE",
        ALIASES,
    ),
    Mutation(
        "expired tasks run",
        "execution/claiming.py",
        "return _crashed_too_often(run) or _expired(run) or",
        "return _crashed_too_often(run) or",
        EXPIRY,
    ),
    Mutation(
        "the age of a retry starts at its own message",
        "jobs.py",
        "first_sent=self.first_sent if carries_first_sent(self.task, self.root_id) else None,",
        "first_sent=None,",
        EXPIRY,
    ),
    Mutation(
        "the age of a plain retry starts at its own message",
        "jobs.py",
        "        carried = self.first_sent if carries_first_sent(self.task, self.root_id) else None\n",
        "        carried = self.first_sent\n",
        "tests/execution/test_current_task.py::TestTimes",
    ),
    Mutation(
        "retries carry the first send time without expires_in",
        "jobs.py",
        "first_sent=self.first_sent if carries_first_sent(self.task, self.root_id) else None,",
        "first_sent=self.first_sent,",
        EXPIRY,
    ),
    Mutation(
        "plugins see the attribute with the first send time",
        "wire/attributes.py",
        "        QUEUE_ATTRIBUTE,\n        FIRST_SENT_ATTRIBUTE,\n",
        "        QUEUE_ATTRIBUTE,\n",
        EXPIRY,
    ),
    Mutation(
        "the max_retries of a task is ignored",
        "execution/errors.py",
        "    if own is not None and (",
        "    if False and (",
        RETRIES,
    ),
    Mutation(
        "retry_backoff is ignored",
        "definition/task.py",
        "backoff=self.retry_backoff\n",
        "backoff=False\n",
        RETRIES + "::TestBackoff",
    ),
    Mutation(
        "backoff has no jitter",
        "definition/retry.py",
        "return random.randint(1, max(math.ceil(seconds), 1))",
        "return max(math.ceil(seconds), 1)",
        RETRIES + "::TestStorm::test_failures_of_one_moment_are_retried_separately",
    ),
    Mutation(
        "backoff has no upper bound",
        "definition/retry.py",
        "return min(self.seconds * self.factor**n_retries, self.longest_delay)",
        "return self.seconds * self.factor**n_retries",
        RETRIES + "::TestBackoff",
    ),
)
