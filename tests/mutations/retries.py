"""Mutations of retry policies, of requested retries, and of what a running task knows about itself."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

POLICY: Final = "tests/definition/test_retry_policy.py"
CURRENT: Final = "tests/execution/test_current_task.py"

MUTATIONS: Final = (
    Mutation(
        "ignore_errors swallows a requested retry",
        "execution/default_plugin.py",
        "    if isinstance(error, RetryLater):\n        return _retry(run, error)",
        "    if False:\n        return _retry(run, error)",
        POLICY + "::TestRetryLater",
    ),
    Mutation(
        "RetryLater may be listed in ignore_errors",
        "definition/options.py",
        "        refuse_to_ignore_retries(self.ignore_errors)\n",
        "",
        POLICY + "::TestRetryLaterItself",
    ),
    Mutation(
        "the delay of a requested retry is that of the task",
        "execution/default_plugin.py",
        "    if isinstance(error, RetryLater) and error.delay is not None:\n",
        "    if False:\n",
        POLICY + "::TestRetryLater",
    ),
    Mutation(
        "the record of a requested retry has a traceback",
        "jobs.py",
        "        if isinstance(error, RetryLater):\n",
        "        if False:\n",
        POLICY + "::TestRetryLater",
    ),
    Mutation(
        "the recorded reason quotes sensitive arguments",
        "jobs.py",
        "{self.scrubbed(error.reason)}",
        "{error.reason}",
        POLICY + "::TestRetryLater",
    ),
    Mutation(
        "the logged reason quotes sensitive arguments",
        "execution/pipeline.py",
        "printable(run.scrubbed(reason),",
        "printable(reason,",
        POLICY + "::TestRetryLater",
    ),
    Mutation(
        "max_age is not enforced",
        "execution/errors.py",
        "    if age <= policy.age_limit:\n",
        "    if True:\n",
        POLICY + "::TestMaxAge",
    ),
    Mutation(
        "a retry may start after max_age",
        "execution/errors.py",
        "    age = run.age + delay\n",
        "    age = run.age\n",
        POLICY + "::TestMaxAge",
    ),
    Mutation(
        "a lock outage is limited by max_age",
        "execution/errors.py",
        "    if not own_error or run.age is None:\n",
        "    if run.age is None:\n",
        POLICY + "::TestErrors",
    ),
    Mutation(
        "retries with max_age do not carry the first send time",
        "definition/task.py",
        "self.measures_age = options.expires_in is not None or any(",
        "self.measures_age = options.expires_in is not None and any(",
        POLICY + "::TestMaxAge",
    ),
    Mutation(
        "the first class of a mapping decides",
        "definition/task.py",
        "for kind in type(error).__mro__ if kind in self.retry)",
        "for kind in self.retry if isinstance(error, kind))",
        POLICY + "::TestErrors",
    ),
    Mutation(
        "the mapping of a task can change",
        "definition/retry.py",
        "MappingProxyType(dict(retry))",
        "MappingProxyType(retry)",
        POLICY + "::TestValues",
    ),
    Mutation(
        "a policy and its short form contradict each other",
        "definition/retry.py",
        "if short := [name for name, default in _SHORT_FORM.items() if others[name] != default]:",
        "if short := list[str]():",
        POLICY + "::TestOption",
    ),
    Mutation(
        "a policy names a type that is always ignored",
        "definition/retry.py",
        "        if issubclass(error_type, ignored) and",
        "        if False and",
        POLICY + "::TestIgnoredTypes",
    ),
    Mutation(
        "the policy of a singleton task names LockError",
        "definition/keys.py",
        "    if locks(options) and any(map(is_lock_error_type, types)):",
        "    if False:",
        POLICY + "::TestIgnoredTypes",
    ),
    Mutation(
        "no policy may name LockError",
        "definition/keys.py",
        "    if locks(options) and any(map(is_lock_error_type, types)):",
        "    if any(map(is_lock_error_type, types)):",
        POLICY + "::TestIgnoredTypes",
    ),
    Mutation(
        "a policy may have delays that SQS refuses",
        "decorators.py",
        "for policy in task.own_policies()]\n    for name",
        "for policy in ()]\n    for name",
        POLICY + "::TestOption",
    ),
    Mutation(
        "retries come earlier than the service asks",
        "execution/default_plugin.py",
        "    if requested := min(requested_delay(error), policy.longest_request):\n",
        "    if requested := 0.0:\n",
        POLICY + "::TestRetryAfter",
    ),
    Mutation(
        "a service can ask for more than max_delay",
        "execution/default_plugin.py",
        "min(requested_delay(error), policy.longest_request)",
        "requested_delay(error)",
        POLICY + "::TestRetryAfter",
    ),
    Mutation(
        "tasks that a service turned away come back together",
        "execution/default_plugin.py",
        "math.ceil(requested) + (policy.spread() if policy.jitter else 0)",
        "math.ceil(requested)",
        POLICY + "::TestRetryAfter",
    ),
    Mutation(
        "an attribute of a foreign exception changes the outcome",
        "execution/retry_after.py",
        "    with suppress(Exception):\n",
        "    with suppress(KeyError):\n",
        POLICY + "::TestRetryAfter",
    ),
    Mutation(
        "a task that has ended is still the current one",
        "execution/strangers.py",
        "            _in_context.reset(self._token)\n",
        "            pass\n",
        CURRENT + "::TestWhere",
    ),
    Mutation(
        "threads of a worker's task do not belong to it",
        "execution/strangers.py",
        "    return in_main_thread if in_main_thread.run.limited else None\n",
        "    return None\n",
        CURRENT + "::TestWhere",
    ),
    Mutation(
        "other threads of a web server belong to an eager task",
        "execution/strangers.py",
        "    return in_main_thread if in_main_thread.run.limited else None\n",
        "    return in_main_thread\n",
        CURRENT + "::TestEagerMode",
    ),
    Mutation(
        "is_last_attempt overlooks max_age",
        "execution/current.py",
        " and age_of_retry <= policy.age_limit:\n",
        ":\n",
        CURRENT + "::TestLastAttempt",
    ),
    Mutation(
        "is_last_attempt overlooks the other policies of a mapping",
        "execution/current.py",
        "for policy in run.task.retry_policies():",
        "for policy in run.task.retry_policies()[:1]:",
        CURRENT + "::TestLastAttempt",
    ),
    Mutation(
        "a retry has its own send time",
        "execution/current.py",
        "ids.made_at(run.root_id) or run.first_sent",
        "run.first_sent or ids.made_at(run.root_id)",
        CURRENT + "::TestTimes",
    ),
)
