"""What operators see: the records, and the messages that are still in the outbox.

Both tables may have millions of rows. No page of a list counts, sorts or searches all of them.
"""

from lambda_tasks.admin.outbox import OutboxMessageAdmin
from lambda_tasks.admin.records import TaskRecordAdmin

__all__ = ["OutboxMessageAdmin", "TaskRecordAdmin"]
