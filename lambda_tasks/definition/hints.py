"""What to write here for names of Celery's API, and for those of version 0.8.

Errors about names that do not exist read it. `lambda_tasks.contrib.celery` reads from it what it carries over, and
`manage.py lambda_tasks from_celery` what it reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from lambda_tasks.settings import app_settings

#: The page that compares both libraries, in the documentation.
PAGE: Final = "docs/howto/from-celery.md"

_DELAY: Final = "task.using(delay=60).execute_on_commit(…)"

#: Attributes of a task.
ATTRIBUTES: Final = {
    "apply_async": "call execute_on_commit(…), or with options using(delay=…, queue=…).execute_on_commit(…)",
    "delay_on_commit": "call execute_on_commit(…), which always waits for the commit",
    "apply_async_on_commit": "call execute_on_commit(…), which always waits for the commit",
    "apply": "call the task itself, task(…), or message.execute_immediately() for a run with a record",
    "s": "call invocation(…), which can be sent, stored, and follow other tasks",
    "si": "call invocation(…), which takes a result only where an argument is RESULT",
    "subtask": "call invocation(…), which can be sent, stored, and follow other tasks",
    "map": "send group([task.invocation(…) for …])",
    "starmap": "send group([task.invocation(…) for …])",
    "chunks": "send group([task.invocation(…) for …])",
    "request": "call current_task() inside the task, for its id, its attempt and the time that is left",
    "update_state": "call current_task().progress(done, total, note) inside the task",
    "AsyncResult": "call TaskHandle.from_id(message_id, task)",
    "app": "there is no app: the settings are Django's",
    "backend": "results are in TaskRecord; handle.result() reads them",
    "run": "call the task itself, task(…), or its attribute function",
}

#: Options of the decorator.
OPTIONS: Final = {
    "bind": "call current_task() inside the task; its first parameter is not self",
    "base": "write a plugin with the hooks lambda_task_started and lambda_task_finished",
    "name": "a task is named by the dotted path of its function, and aliases contains former paths",
    "autoretry_for": "use retry_on=(…)",
    "retry_kwargs": "use max_retries and retry_delay, or retry=RetryPolicy(…)",
    "retry_backoff_max": "use retry=RetryPolicy(backoff=True, max_delay=…)",
    "retry_jitter": "use retry=RetryPolicy(jitter=…)",
    "default_retry_delay": "use retry_delay",
    "dont_autoretry_for": "use retry={Exception: RetryPolicy(…), KeyError: RetryPolicy(max_retries=0)}",
    "throws": "use ignore_errors, for errors that are not failures",
    "time_limit": "use hard_timeout, at most 900 seconds, or LAMBDA_TASKS_MAX_TIMEOUT",
    "soft_time_limit": "use soft_timeout, less than 900 seconds, or LAMBDA_TASKS_MAX_TIMEOUT",
    "rate_limit": "use max_concurrency, or the maximum concurrency of the event source mapping",
    "acks_late": "remove it: a message is acknowledged after the end of its task is recorded",
    "reject_on_worker_lost": "remove it, or use on_crash='fail' for tasks that must not run again",
    "acks_on_failure_or_timeout": "remove it: failures are recorded and acknowledged",
    "ignore_result": "remove it: a result costs no more than a record without one",
    "store_errors_even_if_ignored": "remove it: errors are always recorded",
    "track_started": "remove it: a running task has the status RUNNING",
    "send_events": "remove it, and write a plugin for metrics",
    "serializer": "remove it: arguments are JSON",
    "compression": "remove it: messages are not compressed",
    "expires": "use expires_in, in seconds",
    "countdown": f"use delay, or {_DELAY}",
    "eta": f"use a delay in seconds, as in {_DELAY}",
    "priority": "use a queue of its own: SQS has no priorities",
    "routing_key": "use queue",
    "exchange": "use queue",
    "link": "use on_success",
    "link_error": "use on_failure",
    "shared": "remove it: a task belongs to no app",
    "typing": "remove it: arguments are always checked",
    "pydantic": "remove it: arguments may be pydantic models",
}

#: Keywords of a call that are options there.
CALL_KEYWORDS: Final = {
    "countdown": f"use {_DELAY}",
    "eta": f"use a delay in seconds, as in {_DELAY}",
    "delay": f"use {_DELAY}",
    "queue": 'use task.using(queue="…").execute_on_commit(…)',
    "_queue": 'use task.using(queue="…").execute_on_commit(…)',
    "expires": "use the option expires_in of the decorator",
    "priority": "use a queue of its own: SQS has no priorities",
    "link": "use task.using(on_success=…).execute_on_commit(…)",
    "link_error": "use task.using(on_failure=…).execute_on_commit(…)",
    "task_id": "the call returns its id: handle.message_id",
    "args": "pass the arguments themselves, by their names",
    "kwargs": "pass the arguments themselves, by their names",
}

#: Options of the decorator that exist here too, with what is different about them.
SHARED_OPTIONS: Final = {
    "queue": "keep it: the name of a queue in LAMBDA_TASKS_QUEUES",
    "max_retries": "keep it, and write it where it is missing: Celery's default is 3",
    "retry_backoff": "use retry=RetryPolicy(backoff=True, delay=…), with the seconds in delay",
}

#: Options of `apply_async()`, in addition to `CALL_KEYWORDS`.
CALL_OPTIONS: Final = {
    "routing_key": 'use task.using(queue="…").execute_on_commit(…)',
    "exchange": 'use task.using(queue="…").execute_on_commit(…)',
    "serializer": "remove it: arguments are JSON",
    "compression": "remove it: messages are not compressed",
    "ignore_result": "remove it: a result costs no more than a record without one",
    "retry": "remove it: boto3 repeats requests, and the outbox repeats them until SQS accepts the message",
    "retry_policy": "remove it: boto3 repeats requests, and the outbox repeats them until SQS accepts the message",
    "shadow": "remove it: the record has the name of the task",
    "headers": "pass the values as arguments of the task",
    "time_limit": "use the option hard_timeout of the decorator",
    "soft_time_limit": "use the option soft_timeout of the decorator",
    "chord": "send group([…], then=…)",
    "producer": "remove it: there is no connection to a broker",
    "connection": "remove it: there is no connection to a broker",
}

#: Names that are imported from Celery.
NAMES: Final = {
    "Celery": "there is no app: the settings are Django's",
    "current_app": "there is no app: the settings are Django's",
    "app_or_default": "there is no app: the settings are Django's",
    "shared_task": "use @lambda_task",
    "Task": "call current_task() inside the task; in place of a base class, write a plugin with hooks",
    "current_task": "call lambda_tasks.current_task() inside the task",
    "chain": "send chain(first.invocation(…), second.invocation(value=RESULT))",
    "group": "send group([task.invocation(…), …])",
    "chord": "send group([…], then=…), whose task reads the results with FlowHandle.from_id(group_id).results()",
    "signature": "call task.invocation(…)",
    "Signature": "use TaskInvocation, which task.invocation(…) returns",
    "subtask": "call task.invocation(…)",
    "maybe_signature": "call task.invocation(…)",
    "chunks": "send group([task.invocation(…) for …])",
    "xmap": "send group([task.invocation(…) for …])",
    "xstarmap": "send group([task.invocation(…) for …])",
    "AsyncResult": "call TaskHandle.from_id(message_id, task)",
    "GroupResult": "call FlowHandle.from_id(flow_id)",
    "crontab": 'use the option schedule=Cron("0 3 * * *") of the task',
    "schedule": "use the option schedule=Every(minutes=5) of the task",
    "solar": "use the option schedule=Cron(…) of the task",
    "send_task": "import the task and call its execute_on_commit(…)",
    "get_task_logger": "use lambda_tasks.logging.task_logger, or logging.getLogger(__name__)",
    "SoftTimeLimitExceeded": "import it from lambda_tasks.timeouts",
    "MaxRetriesExceededError": "import it from lambda_tasks.exceptions",
    "Retry": "raise lambda_tasks.RetryLater",
    "Ignore": "return from the task",
    "Reject": "raise an exception: the record of the failed task can be run again",
    "Terminated": "call handle.cancel(), and ask current_task().cancelled inside the task",
    **dict.fromkeys(
        (
            *("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry", "task_revoked"),
            *("before_task_publish", "after_task_publish", "task_received", "task_unknown", "task_rejected"),
            *("worker_init", "worker_ready", "worker_process_init", "worker_process_shutdown", "worker_shutdown"),
            *("setup_logging", "after_setup_logger", "after_setup_task_logger"),
        ),
        "write a plugin with hooks",
    ),
}

#: Settings of Celery with a counterpart, by their names without the prefix.
SETTINGS: Final = {
    "TASK_ALWAYS_EAGER": "LAMBDA_TASKS_EAGER",
    "TASK_EAGER_PROPAGATES": "LAMBDA_TASKS_EAGER_PROPAGATES",
    "TASK_TIME_LIMIT": "LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT",
    "TASK_SOFT_TIME_LIMIT": "LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT",
    "TASK_QUEUES": "LAMBDA_TASKS_QUEUES",
    "TASK_DEFAULT_QUEUE": "LAMBDA_TASKS_QUEUES",
    "TASK_ROUTES": "the option queue of @lambda_task",
    "BROKER_URL": "LAMBDA_TASKS_QUEUES",
    "BEAT_SCHEDULE": "the option schedule of @lambda_task",
    "RESULT_EXPIRES": "the task cleanup_task_records",
    "WORKER_MAX_MEMORY_PER_CHILD": "the option --max-memory of `manage.py lambda_tasks worker`, in megabytes",
    "WORKER_MAX_TASKS_PER_CHILD": "the option --max-messages of `manage.py lambda_tasks worker`",
}

# Version 0.8

#: The page on upgrading, in the documentation.
FORMER_PAGE: Final = "docs/howto/from-0.x.md"

FORMER_OPTIONS: Final = {
    "retry_singleton": 'use on_contention="skip" for False, and remove it for True, which is the default',
}
FORMER_KEYWORDS: Final = {"_delay": f"use {_DELAY}"}
#: Settings, with their prefix.
FORMER_SETTINGS: Final = {
    "LAMBDA_TASKS_LOCAL_WORKERS": "run `manage.py lambda_tasks worker --concurrency N`",
}


#: Whether `lambda_tasks.contrib.celery` gives a name its meaning, accepts it without an effect, or refuses it.
Fate: TypeAlias = Literal["carried", "dropped", "refused"]

#: The names that `lambda_tasks.contrib.celery` exports.
CARRIED_NAMES: Final = frozenset(
    {"shared_task", "Task", "chain", "group", "Signature", "AsyncResult", "GroupResult", "get_task_logger"}
    | {"SoftTimeLimitExceeded", "MaxRetriesExceededError", "Retry"}
)
#: The attributes of a task that it adds.
CARRIED_ATTRIBUTES: Final = frozenset(
    {"delay", "apply_async", "delay_on_commit", "apply_async_on_commit", "s", "si", "signature", "run"}
    | {
        "AsyncResult",
        "request",
        "update_state",
        "retry",
        "name",
        "max_retries",
        "default_retry_delay",
        "MaxRetriesExceededError",
    }
)
#: The attributes of `self.request` that it has.
CARRIED_REQUEST: Final = frozenset(
    {"id", "correlation_id", "args", "kwargs", "retries", "task", "called_directly", "is_eager", "delivery_info"}
    | {"timelimit", "hostname"}
)
#: The options of the decorator whose meaning it carries over.
CARRIED_OPTIONS: Final = frozenset(
    {"bind", "name", "queue", "expires", "time_limit", "soft_time_limit", "max_retries", "default_retry_delay"}
    | {"autoretry_for", "dont_autoretry_for", "retry_kwargs", "retry_backoff", "retry_backoff_max", "retry_jitter"}
    | {"acks_late", "reject_on_worker_lost"}
)
#: The keywords of `apply_async()` whose meaning it carries over.
CARRIED_CALLS: Final = frozenset({"args", "kwargs", "countdown", "eta", "queue", "expires", "link"})
_ANY: Final = None
_TRUTH: Final = (True, False, None)
#: The options that it accepts without an effect, each with the values for which that changes nothing.
DROPPED_OPTIONS: Final[Mapping[str, tuple[object, ...] | None]] = {
    "ignore_result": _TRUTH,
    "store_errors_even_if_ignored": _TRUTH,
    "track_started": _TRUTH,
    "send_events": _TRUTH,
    "shared": _TRUTH,
    "typing": _TRUTH,
    "acks_on_failure_or_timeout": (True, None),
    "pydantic": (False, None),
    "serializer": ("json", None),
    "compression": _ANY,
}
#: The same for the keywords of `apply_async()`.
DROPPED_CALLS: Final[Mapping[str, tuple[object, ...] | None]] = {
    "ignore_result": _TRUTH,
    "serializer": ("json", None),
    "compression": _ANY,
    "retry": _TRUTH,
    "retry_policy": _ANY,
    "shadow": _ANY,
}


def fate_of_option(name: str, value: Any) -> Fate:
    """Return what `lambda_tasks.contrib.celery` does with an option of the decorator that has this value."""
    if name == "name" and isinstance(value, str) and "." not in value:
        return "dropped"  # no message of this library has such a name
    limits = ("time_limit", "soft_time_limit")
    if name in limits and isinstance(value, int | float) and value > app_settings.max_timeout:
        return "refused"
    return _fate(name, value, CARRIED_OPTIONS, DROPPED_OPTIONS)


def fate_of_call(name: str, value: Any) -> Fate:
    """Return what `lambda_tasks.contrib.celery` does with a keyword of `apply_async()` that has this value."""
    return _fate(name, value, CARRIED_CALLS, DROPPED_CALLS)


def _fate(name: str, value: Any, carried: frozenset[str], dropped: Mapping[str, tuple[object, ...] | None]) -> Fate:
    if name in carried:
        return "carried"
    if name not in dropped:
        return "refused"
    harmless = dropped[name]
    return "dropped" if harmless is None or any(value is each or value == each for each in harmless) else "refused"


def for_attribute(name: str) -> str | None:
    """Return a sentence for an attribute that a task lacks; None for a name that is not Celery's."""
    return _sentence(name, ATTRIBUTES.get(name))


def for_options(names: Iterable[str]) -> str:
    """Return sentences for unknown options of the decorator, or an empty string."""
    return _sentences(names, OPTIONS) + _former_sentences(names, FORMER_OPTIONS)


def for_call(name: str) -> str | None:
    """Return a sentence for a keyword of `apply_async()`; None for a name that is not Celery's."""
    return _sentence(name, CALL_KEYWORDS.get(name) or CALL_OPTIONS.get(name))


def for_name(name: str) -> str | None:
    """Return a sentence for a name that is imported from Celery; None for a name that is not Celery's."""
    return _sentence(name, NAMES.get(name))


def for_keywords(names: Iterable[str]) -> str:
    """Return sentences for arguments of a call that are not parameters of the task, or an empty string."""
    return _sentences(names, CALL_KEYWORDS) + _former_sentences(names, FORMER_KEYWORDS)


def for_former_setting(name: str) -> str:
    """Return a sentence for a setting of version 0.8, or an empty string."""
    return _former_sentences((name,), FORMER_SETTINGS).strip()


def _sentences(names: Iterable[str], table: dict[str, str]) -> str:
    found = (_sentence(name, table.get(name)) for name in sorted(names))
    return "".join(f" {sentence}" for sentence in found if sentence)


def _former_sentences(names: Iterable[str], table: dict[str, str]) -> str:
    found = (name for name in sorted(names) if name in table)
    return "".join(f" In place of {name} in version 0.8, {table[name]} ({FORMER_PAGE})." for name in found)


def _sentence(name: str, instead: str | None) -> str | None:
    return f"In place of Celery's {name}, {instead} ({PAGE})." if instead else None
