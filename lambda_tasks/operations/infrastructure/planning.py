"""Compute the description of a deployment from the settings, the tasks and the options.

The numbers are those that the doctor expects, and come from the same constants.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks import registry
from lambda_tasks.execution.backoff import in_words, survived_outage
from lambda_tasks.maintenance import MAINTENANCE_EVENT, outbox
from lambda_tasks.operations.doctor import findings
from lambda_tasks.operations.doctor.findings import DAY, RESERVE, max_message_bytes
from lambda_tasks.operations.infrastructure import alarms, permissions
from lambda_tasks.operations.infrastructure.addresses import DEAD_LETTER_SUFFIX, Address, read_addresses
from lambda_tasks.operations.infrastructure.buckets import buckets_of
from lambda_tasks.operations.infrastructure.code import read_code
from lambda_tasks.operations.infrastructure.described import (
    BucketPlan,
    CleanupPlan,
    Format,
    FunctionPlan,
    Infrastructure,
    MaintenancePlan,
    MappingPlan,
    Number,
    QueuePlan,
)
from lambda_tasks.operations.infrastructure.options import Options
from lambda_tasks.recording.storable import shown
from lambda_tasks.secret_loader import PREFIX, arns_of_secrets
from lambda_tasks.settings import MAX_FUNCTION_TIMEOUT, app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.signing import signed_if_configured
from lambda_tasks.wire.visibility import VISIBILITY_FACTOR, advised_visibility

HANDLER: Final = "lambda_tasks.handler.handler"
#: The batch size for which a function's timeout has room, if the limit of Lambda allows it.
BATCH_SIZE: Final = 10
#: The share of its hard timeout that a task is assumed to take usually. The settings do not tell.
USUAL_SHARE: Final = 0.1
#: The largest batch without a batching window.
_LARGEST_BATCH_WITHOUT_WINDOW: Final = 10
_MINUTE: Final = 60
#: At night, by UTC.
_CLEANUP_EXPRESSION: Final = "cron(0 3 * * ? *)"


def describe(options: Options, *, format: Format = "cloudformation") -> Infrastructure:
    """Return what the settings and the tasks need on AWS.

    The `tasks` modules of all installed apps are imported first, since the numbers depend on the tasks' time limits.

    Raise ImproperlyConfigured for settings from which no template can be made, and ValueError for unusable options.
    """
    _import_tasks()
    addresses = read_addresses(app_settings.queue_urls, options.queues)
    region = addresses[0].region
    options.check_region(region)
    _check_queue_names(options, addresses)
    secrets = _secrets(options)
    needs = [Need.of(address) for address in addresses]
    # Together with the plain variables, since a variable must not be set twice.
    buckets = buckets_of(get_backend(), create=options.create_bucket)
    functions = tuple(_functions(options, needs, arns_of_secrets({**options.environment, **secrets}), buckets))
    queues = tuple(_queue(need, options, functions) for need in needs)
    keys = [queue.key for queue in queues]
    return Infrastructure(
        account=addresses[0].account,
        region=region,
        queues=queues,
        functions=functions,
        sender_statements=permissions.for_sender(keys, options.kms_key, app_settings.job_queues.values(), buckets),
        maintenance=_maintenance(),
        cleanup=_cleanup(options, queues),
        alarms=tuple(alarms.alarms_of(queues, functions)),
        buckets=buckets,
        code=read_code(options.code, options.package, format, region),
        handler=HANDLER,
        runtime=options.runtime,
        architecture=options.architecture,
        environment=_environment(options, secrets),
        log_retention_days=Number(options.log_retention_days, "Without a retention period, logs are kept forever."),
        kms_key=options.kms_key,
        alarm_topic=options.alarm_topic,
        vpc=options.vpc,
    )


def _import_tasks() -> None:
    for module_name, error in registry.import_tasks_of_apps().items():
        raise ImproperlyConfigured(
            f"Module {module_name!r} cannot be imported: {type(error).__name__}: {shown(str(error))}. The numbers of a "
            "template depend on its tasks. Correct the module."
        ) from error


def _check_queue_names(options: Options, addresses: Sequence[Address]) -> None:
    """Refuse a number for a queue that the template does not create, or for a function that serves several queues."""
    aliases = {alias for address in addresses for alias in address.aliases}
    for name in ("function_timeout", "memory", "batch_size", "batching_window", "maximum_concurrency"):
        option = f"--{name.replace('_', '-')}"
        for queue, value in getattr(options, name).of_queue.items():
            if queue not in aliases:
                raise ValueError(
                    f"{option} {queue}={value} must name one of the queues {', '.join(sorted(aliases))}, not {queue!r}."
                )
            if name in ("function_timeout", "memory") and not options.function_per_queue:
                raise ValueError(
                    f"{option} {queue}={value} must be one number for all queues, since one function serves them. Add "
                    "--function-per-queue, or leave out the name of the queue."
                )


@dataclass(frozen=True, slots=True)
class Need:
    """The time that the longest task of a queue needs, in seconds; `task` is its name, if the queue has tasks."""

    address: Address
    hard_timeout: int
    task: str | None

    @classmethod
    def of(cls, address: Address) -> Need:
        hard_timeout = max(findings.Queue(alias, "").hard_timeout for alias in address.aliases)
        tasks = (task for task in registry.registered_tasks() if task.queue in address.aliases)
        longest = [task.name for task in tasks if task.timeouts()[1] == hard_timeout]
        # Rather a task of the project than one of the library.
        longest.sort(key=lambda name: name.startswith("lambda_tasks."))
        return cls(address, hard_timeout, longest[0] if longest else None)

    @property
    def invocation(self) -> int:
        """Seconds that an invocation needs for the longest task."""
        return math.ceil(self.hard_timeout + RESERVE)

    @property
    def usual(self) -> float:
        """Seconds that a task is assumed to take usually."""
        return self.hard_timeout * USUAL_SHARE

    @property
    def whose(self) -> str:
        return self.task or f"a task of queue {self.address.aliases[0]!r} with the default limits"

    def best_timeout(self) -> int:
        """Return the function timeout, in whole minutes, for a batch of usual tasks and the longest one at its end."""
        wanted = self.invocation + (BATCH_SIZE - 1) * self.usual
        return min(math.ceil(wanted / _MINUTE) * _MINUTE, _longest_timeout())

    def best_batch(self, timeout: int) -> int:
        """Return how many usual tasks can start within the timeout so that the last one has time for its limit."""
        return max(1, min(BATCH_SIZE, 1 + int((timeout - self.invocation) / self.usual)))


def _functions(
    options: Options, needs: Sequence[Need], secrets: Sequence[str], buckets: Sequence[BucketPlan]
) -> list[FunctionPlan]:
    name = options.function or f"{needs[0].address.name}-tasks"[:64]
    if not options.function_per_queue:
        return [_function("", name, needs, needs, options, secrets, buckets)]
    planned = []
    for need in needs:
        key = "" if need is needs[0] else need.address.key
        own = f"{name}-{key.replace('_', '-')}" if key else name
        planned.append(_function(key, own, [need], needs, options, secrets, buckets))
    return planned


def _function(
    key: str,
    name: str,
    own: Sequence[Need],
    needs: Sequence[Need],
    options: Options,
    secrets: Sequence[str],
    buckets: Sequence[BucketPlan],
) -> FunctionPlan:
    if len(name) > 64:
        raise ValueError(
            f"--function must leave room for the names of queues: Lambda allows 64 characters in {name!r}."
        )
    aliases = [alias for need in own for alias in need.address.aliases]
    timeout = _timeout(options.function_timeout.of(aliases), own)
    memory = options.memory.of(aliases) or 0
    return FunctionPlan(
        key=key,
        name=name,
        timeout=timeout,
        memory=Number(memory, "Lambda assigns CPU time in proportion to memory."),
        mappings=tuple(_mapping(need, timeout.value, options) for need in own),
        statements=(
            *permissions.for_function(
                [need.address.key for need in own],
                [need.address.key for need in needs],
                key,
                kms_key=options.kms_key,
                secrets=secrets,
                job_queues=app_settings.job_queues.values(),
            ),
            *permissions.for_arguments(buckets),
            *(permissions.for_network(name) if options.vpc else ()),
        ),
    )


def _longest_timeout() -> int:
    """Return the longest timeout, in seconds, that a function of the template may have."""
    return min(app_settings.max_timeout, MAX_FUNCTION_TIMEOUT)


def _or_longer_functions(most: int) -> str:
    if most == MAX_FUNCTION_TIMEOUT:
        return f". Lambda stops a function after {most} s, except on Managed Instances, which the template lacks"
    return f", or raise LAMBDA_TASKS_MAX_TIMEOUT, to {MAX_FUNCTION_TIMEOUT} at most"


def _timeout(chosen: int | None, own: Sequence[Need]) -> Number:
    longest = max(own, key=lambda need: need.invocation)
    most = _longest_timeout()
    if longest.invocation > most:
        raise ImproperlyConfigured(
            f"The hard timeout of {longest.whose} must be at most {most - RESERVE:g} s, not {longest.hard_timeout}: "
            f"ending the task and responding takes {RESERVE:g} s more, and a function of the template has at most "
            f"{most} s. Lower hard_timeout, or LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT{_or_longer_functions(most)}."
        )
    if chosen is not None and chosen > most:
        raise ValueError(
            f"--function-timeout must be at most {most}, not {chosen}. Lower it{_or_longer_functions(most)}."
        )
    if chosen is not None and chosen < longest.invocation:
        raise ValueError(
            f"--function-timeout must be at least {longest.invocation} (the hard timeout of {longest.whose}, "
            f"{longest.hard_timeout} s, and {RESERVE:g} s to end it and to respond), not {chosen}. Raise it, or lower "
            "hard_timeout."
        )
    return Number(
        chosen or max(need.best_timeout() for need in own),
        f"At least {longest.invocation} s: the hard timeout of {longest.whose} ({longest.hard_timeout} s) plus "
        f"{RESERVE:g} s to end it and to respond. The rest is for the other tasks of a batch.",
    )


def _mapping(need: Need, timeout: int, options: Options) -> MappingPlan:
    aliases = need.address.aliases
    window, batch = options.batching_window.of(aliases) or 0, options.batch_size.of(aliases)
    if batch is not None and batch > _LARGEST_BATCH_WITHOUT_WINDOW and not window:
        raise ValueError(
            f"--batch-size must be at most {_LARGEST_BATCH_WITHOUT_WINDOW} without a batching window, not {batch}. Add "
            "--batching-window 1, or lower it."
        )
    concurrency = options.maximum_concurrency.of(aliases)
    return MappingPlan(
        queue=need.address.key,
        batch_size=Number(
            batch or need.best_batch(timeout),
            f"If tasks usually take {need.usual:g} s or less, the last one of a batch still has its {need.invocation} "
            "s. Choose less for slower tasks.",
        ),
        batching_window=Number(window, "Seconds to wait for more messages. Waiting delays tasks."),
        maximum_concurrency=None
        if concurrency is None
        else Number(concurrency, "Each running function holds a database connection."),
    )


def _queue(need: Need, options: Options, functions: Sequence[FunctionPlan]) -> QueuePlan:
    key, name = need.address.key, need.address.name
    function, mapping = next(
        (function, mapping) for function in functions for mapping in function.mappings if mapping.queue == key
    )
    timeout, window = function.timeout.value, mapping.batching_window.value
    size = max_message_bytes()
    retention, dead_retention = findings.ADVISED_RETENTION, findings.LONGEST_RETENTION
    survives = in_words(min(survived_outage(options.max_receives), retention))
    return QueuePlan(
        key=key,
        aliases=need.address.aliases,
        name=name,
        dead_letter_name=f"{name}{DEAD_LETTER_SUFFIX}",
        visibility_timeout=Number(
            advised_visibility(timeout, window),
            f"{VISIBILITY_FACTOR} x the timeout of the function ({timeout} s) + the batching window ({window} s).",
        ),
        retention=Number(retention, f"{retention // DAY} days: enough for an outage over a weekend."),
        dead_letter_retention=Number(
            dead_retention, f"{dead_retention // DAY} days, the maximum: it counts from the first send."
        ),
        max_receives=Number(
            options.max_receives,
            f"Throttling and deployments use up receives too. Messages survive an outage of {survives}.",
        ),
        max_message_bytes=None if size is None else Number(size, "What the backend sends at most."),
    )


def _maintenance() -> MaintenancePlan:
    scheduled = any(task.schedule for task in registry.registered_tasks())
    relays = outbox() is not None
    works = [
        *(["starts periodic tasks"] if scheduled else []),
        *(["relays the outbox"] if relays else []),
        "recovers lost tasks",
    ]
    return MaintenancePlan(
        rate="rate(1 minute)" if scheduled or relays else "rate(1 hour)",
        reason=f"The maintenance event {' and '.join(works)}.",
        event=json.dumps(MAINTENANCE_EVENT),
    )


def _cleanup(options: Options, queues: Sequence[QueuePlan]) -> CleanupPlan | None:
    days = options.cleanup_days
    if not days:
        return None
    kept = findings.ADVISED_RETENTION // DAY
    if days <= kept:
        raise ValueError(
            f"--cleanup-days must be more than {kept}, not {days}: a message that outlives its record runs again. Use "
            "0 for no cleanup."
        )
    target = queues[0].key
    body = json.dumps({"task_name": "lambda_tasks.tasks.cleanup_task_records", "kwargs": {"retention_days": days}})
    Invocation.of_body(body)  # raises an error for a body that no worker could read
    body = signed_if_configured(body, {})
    return CleanupPlan(
        queue=target,
        expression=_CLEANUP_EXPRESSION,
        body=body,
        reason=f"Deletes records that are older than {days} days: later than messages, which are kept for {kept} days.",
        statements=permissions.for_sender([target], options.kms_key),
    )


def _secrets(options: Options) -> dict[str, str]:
    """Return the references to secrets: those of this process, and those of the options."""
    own = {name: value.strip() for name, value in os.environ.items() if name.startswith(PREFIX)}
    return dict(sorted({**own, **{f"{PREFIX}{name}": value for name, value in options.secrets.items()}}.items()))


def _environment(options: Options, secrets: dict[str, str]) -> dict[str, str]:
    name = "DJANGO_SETTINGS_MODULE"
    module = options.environment.get(name) or getattr(django_settings, "SETTINGS_MODULE", None) or os.environ.get(name)
    if not module:
        raise ImproperlyConfigured(
            f"{name} must name the settings of the functions, but is not set. Set it, or pass --environment {name}=…."
        )
    return {name: module, **dict(sorted(options.environment.items())), **secrets}
