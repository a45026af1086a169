"""The record of an invocation, and the documented home of the message classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from lambda_tasks.exceptions import MaxRetriesExceededError

if TYPE_CHECKING:
    from django.core.checks import CheckMessage

    from lambda_tasks.messages import SQSLambdaTask, SQSLambdaTaskMessage

__all__ = [
    "MaxRetriesExceededError",
    "OutboxMessage",
    "SQSLambdaTask",
    "SQSLambdaTaskMessage",
    "TaskRecord",
    "TaskStatus",
]


class DatabaseNow(Now):
    """The database's time, as Django stores moments: no worker's clock decides anything.

    On MySQL and MariaDB `Now()` is the time of the session's zone, which Django leaves at the server's,
    while it stores UTC.
    """

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        function = "UTC_TIMESTAMP" if connection.timezone_name == "UTC" else "CURRENT_TIMESTAMP"
        return self.as_sql(compiler, connection, template=f"{function}(6)", **extra)


class TaskStatus(models.TextChoices):
    """Where an invocation stands. All but RUNNING are final."""

    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    RETRYING = "RETRYING"


class TaskRecordQuerySet(models.QuerySet["TaskRecord"]):
    """Records, with the question that needs to know their indexes."""

    def chain(self, root_id: UUID | str) -> TaskRecordQuerySet:
        """Return the records of a chain of retries, the first invocation first.

        `root_id` is the id of the first one: `handle.message_id`, or the `root_id` of any of them.
        """
        retries = models.Q(root_id=root_id, n_retries__gt=0)  # as the condition of the index says
        chain: TaskRecordQuerySet = self.filter(models.Q(pk=root_id) | retries).order_by("n_retries")
        return chain


class TaskRecord(models.Model):
    """One invocation of a task: what was asked for, how it stands, what came of it."""

    TaskStatus = TaskStatus

    id = models.UUIDField(_("message id"), primary_key=True, editable=False)
    task_name = models.CharField(_("task"), max_length=255)
    kwargs = models.JSONField(_("arguments"), default=dict)
    status = models.CharField(_("status"), max_length=16, choices=TaskStatus, default=TaskStatus.RUNNING)
    start_time = models.DateTimeField(_("started"), null=True, blank=True)
    end_time = models.DateTimeField(_("ended"), null=True, blank=True)
    result = models.JSONField(_("result"), null=True, blank=True)
    traceback = models.TextField(_("traceback"), null=True, blank=True)  # noqa: DJ001, documented as None

    n_retries = models.PositiveIntegerField(_("retry"), default=0)
    #: The first invocation of the chain of retries that this one belongs to.
    root_id = models.UUIDField(_("first invocation"), null=True, editable=False)

    #: The queue that it came from, by its name in LAMBDA_TASKS_QUEUES. The database has the default too:
    #: workers of the version before it are still inserting rows while a deploy is under way.
    queue = models.CharField(_("queue"), max_length=255, blank=True, default="", db_default="", editable=False)

    #: Who may write the outcome: the token of the worker that runs it; None when it was given back.
    claim = models.UUIDField(null=True, editable=False)
    #: When another worker may take it over, in the database's time.
    lease_until = models.DateTimeField(null=True, editable=False)
    #: How many workers died while they ran it.
    takeovers = models.PositiveIntegerField(_("crashes"), default=0)

    objects = TaskRecordQuerySet.as_manager()

    class Meta:
        verbose_name = _("task record")
        verbose_name_plural = _("task records")
        indexes = (
            models.Index(fields=["start_time"], name="lambda_tasks_start"),
            models.Index(fields=["status", "start_time"], name="lambda_tasks_status_start"),
            # A first invocation is found by its id, which is its root_id: only retries need another index.
            models.Index(fields=["root_id"], condition=models.Q(n_retries__gt=0), name="lambda_tasks_retries"),
        )

    def __str__(self) -> str:
        return f"{self.task_name} [{self.pk}] {self.status}"

    @classmethod
    def check(cls, **kwargs: Any) -> list[CheckMessage]:
        # W037: MariaDB and MySQL put all rows into the index of retries, which is larger and does as well.
        return [message for message in super().check(**kwargs) if message.id != "models.W037"]


class OutboxMessage(models.Model):
    """One message that is not on its queue yet: written with the transaction that wants it, deleted when it is sent."""

    id = models.UUIDField(_("message id"), primary_key=True, editable=False)
    task_name = models.CharField(_("task"), max_length=255)
    queue = models.CharField(_("queue"), max_length=255)
    body = models.TextField(_("message"))
    #: All message attributes: the ids, and what plugins have added.
    attributes = models.JSONField(_("attributes"), default=dict)
    created_at = models.DateTimeField(_("enqueued"))
    #: When a worker may have it, if not at once.
    run_at = models.DateTimeField(_("delayed until"), null=True, blank=True)
    #: When it may be sent, in the database's time: with a delay that the queue itself takes, that much
    #: earlier than `run_at`. None if it is dead: refused by the queue, and kept for somebody to look at.
    due_at = models.DateTimeField(_("next try"), null=True, blank=True)
    attempts = models.PositiveIntegerField(_("failed tries"), default=0)
    error = models.TextField(_("error"), blank=True, default="")
    #: Who is sending it, on databases that cannot skip what others have locked.
    holder = models.UUIDField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("message in the outbox")
        verbose_name_plural = _("messages in the outbox")
        indexes = (models.Index(fields=["due_at", "id"], name="lambda_tasks_due"),)

    def __str__(self) -> str:
        return f"{self.task_name} [{self.pk}]"


def __getattr__(name: str) -> Any:
    # On demand: a process that only reads records needs no pydantic.
    if name in ("SQSLambdaTask", "SQSLambdaTaskMessage"):
        from lambda_tasks import messages

        return getattr(messages, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
