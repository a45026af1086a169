"""Admin pages for task records, for the messages in the outbox, for schedules, and with an overview of all of them.

The first two tables may have millions of rows, so no list page counts, sorts or searches all of them. Unique keys and
requests to cancel have no page: a key that is deleted by hand admits a second call, and both are cleaned up.
"""

from lambda_tasks.admin.flows import TaskFlowAdmin
from lambda_tasks.admin.outbox import OutboxMessageAdmin
from lambda_tasks.admin.overview import TasksOverviewAdmin
from lambda_tasks.admin.records import TaskRecordAdmin
from lambda_tasks.admin.schedules import TaskScheduleAdmin

__all__ = ["OutboxMessageAdmin", "TaskFlowAdmin", "TaskRecordAdmin", "TaskScheduleAdmin", "TasksOverviewAdmin"]
