"""The models of records and outbox messages. The message classes can be imported from here as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from django.db import models
from django.utils.translation import gettext_lazy as _

from lambda_tasks.exceptions import MaxRetriesExceededError
from lambda_tasks.recording.statuses import TaskReason, TaskStatus

if TYPE_CHECKING:
    from django.core.checks import CheckMessage

    from lambda_tasks.messages import SQSLambdaTask, SQSLambdaTaskMessage

__all__ = [
    "CancelRequest",
    "EnqueuedTask",
    "FlowKind",
    "MaxRetriesExceededError",
    "MemberStatus",
    "OutboxMessage",
    "SQSLambdaTask",
    "SQSLambdaTaskMessage",
    "TaskFlow",
    "TaskFlowMember",
    "TaskProgress",
    "TaskReason",
    "TaskRecord",
    "TaskRerun",
    "TaskSchedule",
    "TaskStatus",
    "TasksOverview",
    "UniqueKey",
]


class TaskRecordQuerySet(models.QuerySet["TaskRecord"]):
    """A query set with a method that uses the index of retries."""

    def chain(self, root_id: UUID | str) -> TaskRecordQuerySet:
        """Return the records of a chain of retries, the first invocation first.

        `root_id` is the id of the first invocation: `handle.message_id`, or the `root_id` of any record in the chain.
        """
        retries = models.Q(root_id=root_id, n_retries__gt=0)  # matches the condition of the index
        chain: TaskRecordQuerySet = self.filter(models.Q(pk=root_id) | retries).order_by("n_retries")
        return chain

    def cancel(self) -> int:
        """Cancel the invocations of these records that have not ended, and return how many chains of retries these are.

        `TaskHandle.cancel()` describes what becomes of each. An invocation that waits for its first run has no record:
        cancel it by its handle.
        """
        from lambda_tasks.handles import cancel

        unended = self.filter(status__in=(TaskStatus.RUNNING, TaskStatus.RETRYING))
        roots = {str(root or pk) for pk, root in unended.values_list("pk", "root_id")}
        return sum(cancel(root, database=self.db) for root in sorted(roots))


class TaskRecordManager(models.Manager["TaskRecord"]):
    """The manager of records. Unlike `as_manager()`, type checkers understand it without a plugin."""

    def get_queryset(self) -> TaskRecordQuerySet:
        return TaskRecordQuerySet(self.model, using=self._db, hints=self._hints)  # type: ignore[attr-defined]  # missing in the stubs

    def chain(self, root_id: UUID | str) -> TaskRecordQuerySet:
        """Return the records of a chain of retries, the first invocation first; see `TaskRecordQuerySet.chain()`."""
        return self.get_queryset().chain(root_id)

    if TYPE_CHECKING:

        def all(self) -> TaskRecordQuerySet: ...
        def filter(self, *conditions: Any, **lookups: Any) -> TaskRecordQuerySet: ...
        def exclude(self, *conditions: Any, **lookups: Any) -> TaskRecordQuerySet: ...
        def using(self, alias: str | None) -> TaskRecordQuerySet: ...


class TaskRecord(models.Model):
    """One invocation of a task: its arguments, its status and its result."""

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

    #: The name in LAMBDA_TASKS_QUEUES of the queue that it came from. The column has a database default, because during
    #: a deployment, workers of an earlier version still insert rows.
    queue = models.CharField(_("queue"), max_length=255, blank=True, default="", db_default="", editable=False)

    #: The token of the worker that runs it, which alone may write the outcome; None after the worker released it.
    claim = models.UUIDField(null=True, editable=False)
    #: The time, by the database's clock, from which another worker may take it over.
    lease_until = models.DateTimeField(null=True, editable=False)
    #: The number of workers that died while they ran it. The column has a database default for workers of earlier
    #: versions.
    takeovers = models.PositiveIntegerField(_("crashes"), default=0, db_default=0)

    #: Why it has its status. The column has a database default for workers of earlier versions.
    reason = models.CharField(
        _("reason"), max_length=16, choices=TaskReason, blank=True, default="", db_default="", editable=False
    )
    #: Since when it waited for its lock without using up retries; None if it did not wait.
    waiting_since = models.DateTimeField(_("waiting since"), null=True, blank=True, editable=False)

    objects: ClassVar[TaskRecordManager] = TaskRecordManager()

    class Meta:
        # There is no `ordering`, which would sort the whole table for queries that do not ask for an order.
        get_latest_by = "start_time"
        verbose_name = _("task record")
        verbose_name_plural = _("task records")
        #: For the actions of the admin. Django's own permissions are for viewing and deleting records.
        permissions = (
            ("run_again_taskrecord", "Can run tasks again"),
            ("cancel_taskrecord", "Can cancel tasks"),
            ("export_taskrecord", "Can export task records"),
        )
        indexes = (
            models.Index(fields=["start_time"], name="lambda_tasks_start"),
            models.Index(fields=["status", "start_time"], name="lambda_tasks_status_start"),
            # The root_id of a first invocation is its id, so only retries need an additional index.
            models.Index(fields=["root_id"], condition=models.Q(n_retries__gt=0), name="lambda_tasks_retries"),
            # Most records succeed and have no reason. An INSERT of a claim does not touch this index.
            models.Index(
                fields=["reason", "start_time"], condition=models.Q(reason__gt=""), name="lambda_tasks_reason"
            ),
        )

    def __str__(self) -> str:
        return f"{self.task_name} [{self.pk}] {self.status}"

    @classmethod
    def check(cls, **kwargs: Any) -> list[CheckMessage]:
        # W037: MariaDB and MySQL do not support conditional indexes. Their index of retries contains all rows, so it
        # is larger but works as well.
        return [message for message in super().check(**kwargs) if message.id != "models.W037"]


class TasksOverview(TaskRecord):
    """The admin's page with an overview of all tasks, which has a permission of its own."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("tasks overview")
        verbose_name_plural = _("tasks overview")


class OutboxMessage(models.Model):
    """A message that is not on its queue yet. The caller's transaction inserts it, and sending it deletes it."""

    id = models.UUIDField(_("message id"), primary_key=True, editable=False)
    task_name = models.CharField(_("task"), max_length=255)
    queue = models.CharField(_("queue"), max_length=255)
    body = models.TextField(_("message"))
    #: All message attributes: the ids, and those that plugins have added.
    attributes = models.JSONField(_("attributes"), default=dict)
    created_at = models.DateTimeField(_("enqueued"))
    #: The earliest time at which a worker may receive it; None if there is no delay.
    run_at = models.DateTimeField(_("delayed until"), null=True, blank=True)
    #: The earliest time, by the database's clock, at which it may be sent. The queue's own delay makes it earlier than
    #: `run_at`. None for a dead message, which the queue has rejected and which is kept for an operator.
    due_at = models.DateTimeField(_("next attempt"), null=True, blank=True)
    attempts = models.PositiveIntegerField(_("failed attempts"), default=0)
    error = models.TextField(_("error"), blank=True, default="")
    #: The token of the process that is sending it, on databases without SKIP LOCKED.
    holder = models.UUIDField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("message in the outbox")
        verbose_name_plural = _("messages in the outbox")
        indexes = (models.Index(fields=["due_at", "id"], name="lambda_tasks_due"),)

    def __str__(self) -> str:
        return f"{self.task_name} [{self.pk}]"


class CancelRequest(models.Model):
    """A request to cancel an invocation that a worker has already started. Its retries are not run either."""

    #: The first invocation of the chain of retries.
    root_id = models.UUIDField(_("first invocation"), primary_key=True, editable=False)
    requested_at = models.DateTimeField(_("requested"))

    class Meta:
        verbose_name = _("request to cancel")
        verbose_name_plural = _("requests to cancel")

    def __str__(self) -> str:
        return str(self.root_id)


class TaskProgress(models.Model):
    """How much of its work an invocation has done, as it has last reported. Only tasks that report have a row."""

    id = models.UUIDField(_("message id"), primary_key=True, editable=False)
    done = models.BigIntegerField(_("done"))
    #: None if the task does not know it.
    total = models.BigIntegerField(_("total"), null=True, blank=True)
    note = models.CharField(_("note"), max_length=255, blank=True, default="")
    updated_at = models.DateTimeField(_("updated"))

    class Meta:
        verbose_name = _("progress")
        verbose_name_plural = _("progress")

    def __str__(self) -> str:
        return f"{self.done} [{self.pk}]"


class FlowKind(models.TextChoices):
    """What a flow follows: one call, a chain of tasks, or a group of tasks."""

    CALL = "call"
    CHAIN = "chain"
    GROUP = "group"


class TaskFlow(models.Model):
    """The invocations that are sent when a task, a chain of tasks or a group of tasks has ended.

    The row of a call has the id of its invocation, and is deleted when nothing is left to send.
    """

    id = models.UUIDField(_("id"), primary_key=True, editable=False)
    kind = models.CharField(_("kind"), max_length=8, choices=FlowKind, editable=False)
    #: The name of the first task.
    task_name = models.CharField(_("first task"), max_length=255, editable=False)
    size = models.PositiveIntegerField(_("tasks"), editable=False)
    #: The later steps of a chain.
    steps = models.JSONField(_("later steps"), default=list, editable=False)
    on_success = models.JSONField(_("on success"), default=list, editable=False)
    on_failure = models.JSONField(_("on failure"), default=list, editable=False)
    created_at = models.DateTimeField(_("created"), editable=False)
    ended_at = models.DateTimeField(_("ended"), null=True, editable=False)
    failed = models.BooleanField(_("failed"), default=False, editable=False)
    cancelled_at = models.DateTimeField(_("cancelled"), null=True, editable=False)
    #: What the end of a task owes, with its arguments, until the transport has accepted it; None without a debt.
    owed = models.JSONField(_("to be sent"), null=True, editable=False)
    owed_since = models.DateTimeField(_("to be sent since"), null=True, editable=False)
    #: Identifies what is owed, so that the process that has sent it does not forget what is owed since.
    debt = models.UUIDField(null=True, editable=False)

    class Meta:
        verbose_name = _("chain or group")
        verbose_name_plural = _("chains and groups")
        indexes = (
            models.Index(fields=["ended_at", "created_at"], name="lambda_tasks_flow_ended"),
            models.Index(fields=["owed_since"], name="lambda_tasks_flow_owed"),
        )

    def __str__(self) -> str:
        return f"{self.kind} [{self.pk}]"


class MemberStatus(models.TextChoices):
    """How far a member of a chain or a group has come."""

    PENDING = "PENDING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    #: A step of a chain before it has failed.
    SKIPPED = "SKIPPED"


class TaskFlowMember(models.Model):
    """One task of a chain or a group, which counts once, whatever is delivered again."""

    #: The first invocation of its chain of retries.
    id = models.UUIDField(_("message id"), primary_key=True, editable=False)
    flow_id = models.UUIDField(_("chain or group"), editable=False)
    position = models.PositiveIntegerField(_("position"), editable=False)
    status = models.CharField(
        _("status"), max_length=8, choices=MemberStatus, default=MemberStatus.PENDING, editable=False
    )

    class Meta:
        verbose_name = _("member of a chain or a group")
        verbose_name_plural = _("members of chains and groups")
        indexes = (models.Index(fields=["flow_id", "status", "id"], name="lambda_tasks_member"),)

    def __str__(self) -> str:
        return f"{self.position} [{self.pk}]"


class EnqueuedTask(models.Model):
    """A call of one of Django's tasks, from which its result is read until a worker has claimed it.

    The caller's transaction inserts it, in `lambda_tasks.contrib.django_tasks`.
    """

    id = models.UUIDField(_("message id"), primary_key=True, editable=False)
    task_name = models.CharField(_("task"), max_length=255, editable=False)
    #: As in the message, with sensitive arguments masked.
    kwargs = models.JSONField(_("arguments"), default=dict, editable=False)
    #: The alias in TASKS.
    backend = models.CharField(_("backend"), max_length=255, editable=False)
    queue_name = models.CharField(_("queue"), max_length=255, editable=False)
    run_after = models.DateTimeField(_("delayed until"), null=True, editable=False)
    enqueued_at = models.DateTimeField(_("enqueued"), editable=False)

    class Meta:
        verbose_name = _("enqueued task")
        verbose_name_plural = _("enqueued tasks")
        indexes = (models.Index(fields=["enqueued_at"], name="lambda_tasks_enqueued"),)

    def __str__(self) -> str:
        return f"{self.task_name} [{self.pk}]"


class StoredArguments(models.Model):
    """Arguments that are too large for a message, and when a message with their key was last sent or received."""

    id = models.UUIDField(_("key"), primary_key=True, editable=False)
    content = models.TextField(_("arguments"), editable=False)
    used_at = models.DateTimeField(_("last used"), db_index=True, editable=False)

    class Meta:
        verbose_name = verbose_name_plural = _("stored arguments")

    def __str__(self) -> str:
        return str(self.pk)


class UniqueKey(models.Model):
    """The invocation that holds a unique key, until it has ended. The caller's transaction inserts it."""

    #: A digest of the task's name and of the values that must be unique.
    key = models.CharField(_("key"), max_length=64, primary_key=True, editable=False)
    task_name = models.CharField(_("task"), max_length=255)
    #: The first invocation of the chain of retries that holds the key.
    message_id = models.UUIDField(_("message id"), editable=False)
    #: Until when it holds the key if it has neither a record nor a row in the outbox.
    expires_at = models.DateTimeField(_("expires"))

    class Meta:
        verbose_name = _("unique key")
        verbose_name_plural = _("unique keys")
        indexes = (models.Index(fields=["expires_at"], name="lambda_tasks_expires"),)

    def __str__(self) -> str:
        return f"{self.task_name} [{self.message_id}]"


class TaskSchedule(models.Model):
    """The state of one schedule of a task: up to which time its ticks were sent, and whether it is paused."""

    #: The task's name and the schedule's own name.
    key = models.CharField(_("schedule"), max_length=255, primary_key=True, editable=False)
    task_name = models.CharField(_("task"), max_length=255)
    #: The time of the latest tick that was sent or skipped. For a new schedule, the time at which it was first seen. In
    #: seconds since 1970, because local times, which some databases store, repeat an hour in autumn.
    last_tick = models.BigIntegerField(_("last run"))
    paused = models.BooleanField(_("paused"), default=False)

    class Meta:
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")

    def __str__(self) -> str:
        return self.key


class TaskRerun(models.Model):
    """A record that an operator has run again, and the invocation that does its work again.

    The transaction that enqueues the invocation inserts the row. `lambda_tasks.operations.rerunning` reads it in both
    directions.
    """

    #: The id of the new invocation, which will be the primary key of its record.
    id = models.UUIDField(_("message id"), primary_key=True, editable=False)
    #: The primary key of the record that was run again. It may be deleted earlier than this row.
    original_id = models.UUIDField(_("original"), db_index=True, editable=False)
    rerun_at = models.DateTimeField(_("run again"))
    #: Who has asked for it; empty if that is unknown, as for a command.
    username = models.CharField(_("user"), max_length=255, blank=True, default="")

    class Meta:
        verbose_name = _("rerun")
        verbose_name_plural = _("reruns")

    def __str__(self) -> str:
        return f"{self.original_id} → {self.pk}"


if not TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name):
        # Imported on demand, since a process that only reads records does not need pydantic.
        if name in ("SQSLambdaTask", "SQSLambdaTaskMessage"):
            from lambda_tasks import messages

            return getattr(messages, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
