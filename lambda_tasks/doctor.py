"""What about the queues and functions on AWS, the outbox, and the database settings would lose or repeat work.

`diagnose()` asks and returns findings; `manage.py lambda_tasks doctor` prints them. Nothing is changed
anywhere, and no message is received or sent.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from django.db import connections
from django.db.models import Count, Min

from lambda_tasks import registry
from lambda_tasks.backends.relay import from_now
from lambda_tasks.databases import DATABASE_ERRORS
from lambda_tasks.handler import ANSWER_RESERVE
from lambda_tasks.maintenance import outbox
from lambda_tasks.models import OutboxMessage
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.timeouts import KILL_GRACE

if TYPE_CHECKING:
    from datetime import datetime

Level: TypeAlias = Literal["error", "warning", "unasked"]

#: Every finding, and how bad it is. `error`: work is lost, or cannot be done. `warning`: it is lost or
#: repeated in bad moments. `unasked`: it could not be asked, so nobody knows.
LEVELS: Final[Mapping[str, Level]] = {
    "D001": "unasked",
    "D101": "error",
    "D102": "error",
    "D103": "error",
    "D104": "warning",
    "D105": "error",
    "D106": "warning",
    "D107": "warning",
    "D108": "warning",
    "D109": "warning",
    "D110": "error",
    "D201": "warning",
    "D202": "error",
    "D203": "error",
    "D204": "warning",
    "D205": "error",
    "D206": "error",
    "D301": "warning",
    "D302": "warning",
    "D303": "warning",
    "D304": "warning",
    "D401": "error",
    "D402": "error",
    "D403": "warning",
}

#: Receives below which good messages end in the dead letter queue, and the number to advise.
LEAST_RECEIVES: Final = 5
ADVISED_RECEIVES: Final = 10
#: AWS's own advice: visibility timeout by function timeout.
VISIBILITY_FACTOR: Final = 6
#: Seconds that an invocation needs beside the hard timeout of a task.
RESERVE: Final = KILL_GRACE + ANSWER_RESERVE
#: Days for which `cleanup_task_records` keeps records unless it is told otherwise.
DEFAULT_CLEANUP_DAYS: Final = 7
#: Seconds after which a message of the outbox that is due is one that nobody relays: it is put off for half as long
#: at most, and relays come by every minute.
OVERDUE: Final = 600
_DAY: Final = 86_400
#: Characters of an error that a finding quotes.
_QUOTED: Final = 200
#: Seconds within which somebody must have repaired what is broken, a weekend and a day.
_LEAST_RETENTION: Final = 3 * _DAY
#: Seconds that the doctor waits for an answer of AWS.
_PATIENCE: Final = 10

_REGION_IN_ARN: Final = re.compile(r"arn:[\w-]+:\w+:([\w-]+):")

#: Makes a boto3 client from the name of a service and a region, None for the one of the environment.
Connect: TypeAlias = Callable[[str, "str | None"], Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or that could not be asked.

    `id` is documented in `docs/reference/doctor.md`. `subject` is what it is about, as
    "queue 'default'"; `text` says what and why it matters, `remedy` what to do.
    """

    id: str
    subject: str
    text: str
    remedy: str

    @property
    def level(self) -> Level:
        """`error`, `warning`, or `unasked`."""
        return LEVELS[self.id]

    def __str__(self) -> str:
        return f"{self.level} {self.id}, {self.subject}: {self.text}\n    {self.remedy}"


def diagnose(*, function: str | None = None, connect: Connect | None = None) -> list[Finding]:
    """Ask about every queue of LAMBDA_TASKS_QUEUES, its functions, the outbox, and the record's database.

    `function` is the name of the Lambda function that takes from the queues; without it, the functions
    are those of the queues' event source mappings. What AWS or an outbox's database does not answer (a missing
    permission, no network) is a finding of the level `unasked`.

    Raises ImproperlyConfigured for settings that cannot be used.
    """
    doctor = _Doctor(connect or connect_to_aws, function)
    for name, url in app_settings.queues.items():
        doctor.look_at_queue(_Queue(name, url))
    doctor.look_at_database(get_store().database)
    if (kept := outbox()) is not None:
        for database in kept.databases:
            doctor.look_at_outbox(database)
    return doctor.findings


def connect_to_aws(service: str, region: str | None) -> Any:
    """Return a boto3 client; the environment says which account, and which address if not AWS's."""
    import boto3  # half a second that only this command pays
    from botocore.config import Config

    session = boto3.session.Session()
    config = Config(connect_timeout=_PATIENCE, read_timeout=_PATIENCE, retries={"mode": "standard"})
    return session.client(service, region_name=region or session.region_name or "us-east-1", config=config)


@dataclass(frozen=True, slots=True)
class _Queue:
    """A queue of LAMBDA_TASKS_QUEUES."""

    name: str
    url: str

    def __str__(self) -> str:
        return f"queue {self.name!r}"

    @property
    def hard_timeout(self) -> int:
        """The longest hard timeout, in seconds, of the tasks that are known to go there."""
        limits = [task.timeouts()[1] for task in registry.registered_tasks() if task.queue == self.name]
        return max(limits, default=app_settings.default_hard_timeout)


class _Doctor:
    """Asks, and collects what it finds."""

    def __init__(self, connect: Connect, function: str | None) -> None:
        self.findings: list[Finding] = []
        self._connect = connect
        self._function = function

    def find(self, id: str, subject: object, text: str, remedy: str) -> None:
        self.findings.append(Finding(id, str(subject), text, remedy))

    def ask(self, subject: object, permission: str, call: Callable[[], Any]) -> Any:
        """Return the answer, or None after noting down that there was none."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call()
        except (BotoCoreError, ClientError) as error:
            self.find(
                "D001",
                subject,
                f"could not be asked: {error}.",
                f"Give who runs the doctor {permission}, or look yourself; this is not to say that all is well.",
            )
            return None

    # Queues

    def look_at_queue(self, queue: _Queue) -> None:
        from lambda_tasks.local.event_source import region_in

        if queue.url.endswith(".fifo"):
            self.find(
                "D102",
                queue,
                f"{queue.url} is a FIFO queue, which refuses messages without a group and with a delay of their own.",
                "Make a standard queue, and put its URL into LAMBDA_TASKS_QUEUES.",
            )
        client = self._connect("sqs", region_in(queue.url))
        attributes = self._attributes(client, queue)
        if attributes is None:
            return
        self._check_redrive(client, queue, attributes)
        self._check_retention(queue, attributes)
        self._check_size(queue, attributes)
        visibility = int(attributes["VisibilityTimeout"])
        if visibility < queue.hard_timeout + RESERVE:
            self.find(
                "D105",
                queue,
                f"VisibilityTimeout is {visibility} s, and its tasks may take {queue.hard_timeout} s: messages are "
                "delivered again while they run, and use up receives until good ones are in the dead letter queue.",
                f"Set it to {VISIBILITY_FACTOR} times the function's timeout, plus the batching window.",
            )
        self._look_at_mappings(queue, attributes["QueueArn"], visibility)

    def _attributes(self, client: Any, queue: _Queue) -> Mapping[str, str] | None:
        from botocore.exceptions import ClientError

        def call() -> Any:
            try:
                return client.get_queue_attributes(QueueUrl=queue.url, AttributeNames=["All"])
            except ClientError as error:
                if "NonExistentQueue" not in error.response["Error"]["Code"]:
                    raise
                self.find(
                    "D101",
                    queue,
                    f"there is no queue {queue.url}: everything that is sent there is lost.",
                    "Correct its URL in LAMBDA_TASKS_QUEUES, or the account and region that you work with.",
                )
                return {}

        answer = self.ask(queue, "sqs:GetQueueAttributes", call)
        return (answer or {}).get("Attributes")

    def _check_redrive(self, client: Any, queue: _Queue, attributes: Mapping[str, str]) -> None:
        policy = json.loads(attributes.get("RedrivePolicy") or "{}")
        if not policy:
            self.find(
                "D103",
                queue,
                "it has no dead letter queue: a message that cannot be settled comes back until its retention ends, "
                "and is then deleted without a trace.",
                f"Give it a RedrivePolicy with a maxReceiveCount of {ADVISED_RECEIVES}.",
            )
            return
        receives = int(policy["maxReceiveCount"])
        if receives < LEAST_RECEIVES:
            self.find(
                "D104",
                queue,
                f"maxReceiveCount is {receives}: throttling, a deploy, or a neighbour in the batch that crashes uses "
                "up receives too, and good messages end in the dead letter queue.",
                f"Set it to {ADVISED_RECEIVES}, or to {LEAST_RECEIVES} at least.",
            )
        self._check_dead_letters(client, queue, attributes, policy["deadLetterTargetArn"])

    def _check_dead_letters(self, client: Any, queue: _Queue, attributes: Mapping[str, str], arn: str) -> None:
        *_, account, name = arn.split(":")

        def call() -> Any:
            url = client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
            return client.get_queue_attributes(QueueUrl=url, AttributeNames=["MessageRetentionPeriod"])["Attributes"]

        dead = self.ask(
            f"dead letter queue of {queue}", "sqs:GetQueueUrl and sqs:GetQueueAttributes on dead letter queues", call
        )
        if dead is None:
            return
        kept, kept_dead = int(attributes["MessageRetentionPeriod"]), int(dead["MessageRetentionPeriod"])
        if kept_dead <= kept:
            self.find(
                "D106",
                queue,
                f"its dead letter queue keeps messages for {_days(kept_dead)}, and it does so itself for "
                f"{_days(kept)}. The time counts from when they were first sent, so they may be deleted on arrival.",
                "Set the dead letter queue's MessageRetentionPeriod to 14 days (1209600).",
            )

    def _check_retention(self, queue: _Queue, attributes: Mapping[str, str]) -> None:
        kept = int(attributes["MessageRetentionPeriod"])
        if kept > DEFAULT_CLEANUP_DAYS * _DAY:
            self.find(
                "D107",
                queue,
                f"MessageRetentionPeriod is {_days(kept)}, and cleanup_task_records deletes records that are "
                f"{DEFAULT_CLEANUP_DAYS} days old unless it is told otherwise (what your schedule tells it cannot be "
                "seen from here). A message that outlives its record runs again.",
                f"Call cleanup_task_records with retention_days above {kept / _DAY:.0f}, or shorten the retention.",
            )
        if kept < _LEAST_RETENTION:
            self.find(
                "D108",
                queue,
                f"MessageRetentionPeriod is {_days(kept)}: what waits longer, as over a weekend on which nothing "
                "works, is deleted without a trace.",
                "Set it to 4 days (345600), which is what AWS gives a new queue.",
            )

    def _check_size(self, queue: _Queue, attributes: Mapping[str, str]) -> None:
        backend = get_backend()
        ours = getattr(getattr(backend, "transport", backend), "max_message_bytes", None)
        theirs = int(attributes.get("MaximumMessageSize") or 0)
        if ours is not None and theirs and theirs < ours:
            self.find(
                "D110",
                queue,
                f"MaximumMessageSize is {theirs:,} bytes, and the backend lets messages of {ours:,} pass: SQS refuses "
                "those in between after the commit, when it is too late.",
                f'Raise it to {ours}, or set the backend\'s option "max_message_bytes": {theirs}.',
            )

    # Functions

    def _look_at_mappings(self, queue: _Queue, arn: str, visibility: int) -> None:
        region = _REGION_IN_ARN.match(arn)
        client = self._connect("lambda", region[1] if region else None)
        mappings = self.ask(
            f"event source mapping of {queue}",
            "lambda:ListEventSourceMappings",
            lambda: [
                mapping
                for page in client.get_paginator("list_event_source_mappings").paginate(EventSourceArn=arn)
                for mapping in page["EventSourceMappings"]
            ],
        )
        if mappings is None:
            if self._function:
                self._look_at_function(client, queue, self._function, visibility, mapping={})
            return
        if self._function:
            mappings = [mapping for mapping in mappings if _is_of(mapping["FunctionArn"], self._function)]
        if all(mapping.get("State") == "Disabled" for mapping in mappings):
            whose = f"function {self._function!r}" if self._function else "a function of this account"
            what = "its event source mapping is disabled" if mappings else f"it has no event source mapping to {whose}"
            self.find(
                "D201",
                queue,
                f"{what}: nobody takes its messages, and they are deleted when their retention ends.",
                "Create the event source mapping, or enable it; or correct --function.",
            )
        for mapping in mappings:
            self._check_mapping(queue, mapping)
            self._look_at_function(client, queue, mapping["FunctionArn"], visibility, mapping)

    def _check_mapping(self, queue: _Queue, mapping: Mapping[str, Any]) -> None:
        if "ReportBatchItemFailures" not in (mapping.get("FunctionResponseTypes") or ()):
            self.find(
                "D202",
                _mapping_of(queue, mapping),
                "FunctionResponseTypes has no ReportBatchItemFailures, so Lambda does not read the handler's answer "
                "and deletes the whole batch. Lost without an error are messages of unknown tasks, those for which "
                "there was no time, those that run in a worker that then dies, and those whose database was away.",
                "Set FunctionResponseTypes to ReportBatchItemFailures.",
            )

    def _look_at_function(
        self, client: Any, queue: _Queue, name: str, visibility: int, mapping: Mapping[str, Any]
    ) -> None:
        function = f"function {_short(name)!r} for {queue}"
        configuration = self.ask(
            function, "lambda:GetFunctionConfiguration", lambda: client.get_function_configuration(FunctionName=name)
        )
        if configuration is not None:
            self._check_timeouts(queue, function, int(configuration["Timeout"]), visibility, mapping)
        concurrency = self.ask(
            function,
            "lambda:GetFunctionConcurrency",
            lambda: client.get_function_concurrency(FunctionName=_unqualified(name)),
        )
        if concurrency is not None and mapping:
            self._check_concurrency(queue, concurrency.get("ReservedConcurrentExecutions"), mapping)
        recursion = self.ask(
            function,
            "lambda:GetFunctionRecursionConfig (and boto3 1.35 or later)",
            lambda: _recursion(client, _unqualified(name)),
        )
        if recursion is not None and recursion.get("RecursiveLoop") != "Allow":
            self.find(
                "D206",
                function,
                "RecursiveLoop is not Allow: Lambda takes retries, and tasks that enqueue tasks, for a loop, and stops "
                "them after about 16 rounds; they end in the dead letter queue.",
                f"aws lambda put-function-recursion-config --function-name {_short(name)} --recursive-loop Allow",
            )

    def _check_timeouts(
        self, queue: _Queue, function: str, timeout: int, visibility: int, mapping: Mapping[str, Any]
    ) -> None:
        needed = queue.hard_timeout + RESERVE
        if timeout < needed:
            self.find(
                "D203",
                function,
                f"its timeout is {timeout} s, and the longest task needs {needed:g} s (its hard timeout of "
                f"{queue.hard_timeout} s, and {RESERVE:g} s to end and to answer): it is cut short where it comes "
                "first in a batch, and else handed back each time, until its receives are used up.",
                f"Raise the function's timeout to {needed:g} s or more (900 is the most), or lower hard_timeout.",
            )
        window = int(mapping.get("MaximumBatchingWindowInSeconds") or 0)
        advised = VISIBILITY_FACTOR * timeout + window
        if visibility < advised:
            self.find(
                "D109",
                queue,
                f"VisibilityTimeout is {visibility} s, less than {VISIBILITY_FACTOR} times the timeout of {function} "
                f"({timeout} s){f' plus its batching window ({window} s)' if window else ''}: while Lambda is "
                "throttled, messages show up again and use up receives.",
                f"Set VisibilityTimeout to {advised} s.",
            )

    def _check_concurrency(self, queue: _Queue, reserved: int | None, mapping: Mapping[str, Any]) -> None:
        if reserved is None:
            return
        maximum = (mapping.get("ScalingConfig") or {}).get("MaximumConcurrency")
        if reserved == 0:
            self.find(
                "D205",
                _mapping_of(queue, mapping),
                "the function's reserved concurrency is 0: it never runs, and each attempt uses up a receive.",
                "Remove the reserved concurrency, or disable the event source mapping while nothing is to run.",
            )
        elif maximum is None or maximum > reserved:
            self.find(
                "D204",
                _mapping_of(queue, mapping),
                f"the function's reserved concurrency is {reserved}, and the mapping's MaximumConcurrency is "
                f"{'not set' if maximum is None else maximum}: more messages are fetched than may run, and each one "
                "that is throttled uses up a receive.",
                f"Set ScalingConfig.MaximumConcurrency to {max(reserved, 2)} or less (2 is the least that AWS takes).",
            )

    # The database

    def look_at_database(self, alias: str) -> None:
        """Look at the settings of the record's database; nothing is asked of it."""
        settings = connections[alias].settings_dict
        subject = f"database {alias!r}"
        if settings.get("CONN_MAX_AGE", 0) != 0 and not settings.get("CONN_HEALTH_CHECKS"):
            self.find(
                "D302",
                subject,
                "connections are kept (CONN_MAX_AGE) and not checked: a container that wakes up with a dead one "
                "notices it by an error. The claim is then made again; what a plugin asked before it just fails.",
                'Set "CONN_HEALTH_CHECKS": True.',
            )
        if connections[alias].vendor == "postgresql":
            self.findings += _missing_limits(subject, settings.get("OPTIONS", {}))

    # The outbox

    def look_at_outbox(self, alias: str) -> None:
        """Ask how many messages of the outbox in this database are dead, or due for too long."""
        subject = f"outbox in database {alias!r}"
        try:
            if OutboxMessage._meta.db_table in connections[alias].introspection.table_names():
                self._look_at_messages(alias, subject)
            else:
                self.find(
                    "D401",
                    subject,
                    "there is no table for it: every commit with a task fails.",
                    f"Run `manage.py migrate --database {alias}`, and see that DATABASE_ROUTERS allow it.",
                )
        except DATABASE_ERRORS as error:
            self.find(
                "D001",
                subject,
                f"could not be asked: {error}".strip().rstrip(".") + ".",
                "See that the database can be reached from here, or look yourself; this is not to say that all is "
                "well.",
            )

    def _look_at_messages(self, alias: str, subject: str) -> None:
        messages = OutboxMessage.objects.using(alias)
        dead = messages.filter(due_at=None)
        if number := dead.count():
            oldest = dead.order_by("created_at", "id").defer("body", "attributes")[0]
            self.find(
                "D402",
                subject,
                f"{_messages(number)} dead, the oldest since {_minute(oldest.created_at)} ({oldest.task_name}: "
                f"{oldest.error[:_QUOTED]}). What was refused is not tried again: these tasks do not run.",
                "Look at them in the admin (/lambda_tasks/outboxmessage/?state=dead); repair what is wrong and send "
                "them, or discard them.",
            )
        overdue = messages.filter(due_at__lt=from_now(-OVERDUE)).aggregate(number=Count("pk"), since=Min("due_at"))
        if overdue["number"]:
            self.find(
                "D403",
                subject,
                f"{_messages(overdue['number'])} due for more than {OVERDUE // 60} minutes, the first since "
                f"{_minute(overdue['since'])}: nobody relays them, or not fast enough.",
                'Have EventBridge send {"lambda_tasks": "maintenance"} to the function every minute, or run '
                "`manage.py lambda_tasks relay`; its log says what goes wrong.",
            )


def _messages(number: int) -> str:
    return "1 message is" if number == 1 else f"{number:,} messages are"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}{' UTC' if moment.tzinfo else ''}"


def _missing_limits(subject: str, options: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what PostgreSQL's client would wait for without an end."""
    if "service" in options:
        return  # the limits stand in a file of its own
    if not _is_set(options.get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT")):
        yield Finding(
            "D301",
            subject,
            "there is no connect_timeout: where the server does not answer, an invocation waits until Lambda ends it.",
            'Set "connect_timeout": 3 in its OPTIONS.',
        )
    if not _is_set(options.get("tcp_user_timeout")):
        yield Finding(
            "D303",
            subject,
            "there is no tcp_user_timeout: a server that went away without saying so, as in a failover, is noticed "
            "after many minutes.",
            'Set "tcp_user_timeout": 30_000 and the keepalives in its OPTIONS.',
        )
    if "statement_timeout" not in f"{options.get('options', '')}{os.environ.get('PGOPTIONS', '')}":
        yield Finding(
            "D304",
            subject,
            "there is no statement_timeout: a query that waits for a lock waits until the task's hard timeout, or for "
            "ever where there is none, as while an outcome is recorded.",
            'Set "options": "-c statement_timeout=120s" in its OPTIONS; a limit of the role (ALTER ROLE … SET) does as '
            "well, and cannot be seen from here.",
        )


def _recursion(client: Any, function: str) -> Any:
    from botocore.exceptions import UnknownClientMethodError

    if not hasattr(client, "get_function_recursion_config"):
        raise UnknownClientMethodError(method_name="get_function_recursion_config")
    return client.get_function_recursion_config(FunctionName=function)


def _is_set(limit: object) -> bool:
    return str(limit or "0") != "0"


def _days(seconds: int) -> str:
    return f"{seconds / _DAY:.3g} days" if seconds != _DAY else "1 day"


def _unqualified(function: str) -> str:
    """Return the function's name or ARN without a version or an alias, which some operations do not take."""
    parts = function.split(":")
    if parts[0] == "arn":
        return ":".join(parts[:7])
    return parts[0]


def _short(function: str) -> str:
    return _unqualified(function).rpartition(":")[2]


def _is_of(arn: str, function: str) -> bool:
    return _short(arn) == _short(function)


def _mapping_of(queue: _Queue, mapping: Mapping[str, Any]) -> str:
    return f"event source mapping from {queue} to function {_short(mapping['FunctionArn'])!r}"
