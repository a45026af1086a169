"""Named points in the protocol: if a worker dies at any of them, no work is lost or done twice.

In production, a point is a call of an empty function. The fault suite replaces it with an action (a SIGKILL, a freeze,
a database outage), and checks the final state.
"""

from __future__ import annotations

from typing import Final

#: All points, in the order in which an invocation reaches them, with the state at each point.
POINTS: Final = {
    "schedule:due": "ticks of a schedule are due, and its row is locked if the database can; nothing is sent",
    "schedule:sent": "the ticks are sent or wait for COMMIT, which comes next and moves the schedule on",
    "schedule:moved": "the ticks are sent or kept, and the schedule has moved on",
    "arguments:stored": "arguments that are too large are stored, the job does not wait for COMMIT yet",
    "enqueue:before_commit": "the job waits for the commit of its transaction",
    "unique:after_key": "the unique key is written or locked in the transaction, the job does not wait for COMMIT yet",
    "outbox:before_insert": "the jobs are about to be inserted in the transaction",
    "unique:before_replaced": "the new call is sent or kept, the call that it replaces is not recorded yet",
    "unique:after_replaced": "the replaced call is recorded",
    "outbox:after_insert": "the jobs are inserted, COMMIT comes next",
    "enqueue:after_commit": "the transaction is committed, the jobs are not sent yet",
    "send:before": "jobs are about to be passed to the transport",
    "relay:held": "messages of the outbox are locked, but not sent",
    "relay:sent": "the messages are sent, but still in the outbox",
    "relay:settled": "the messages are deleted, COMMIT comes next",
    "send:after": "the transport has accepted the jobs",
    "batch:start": "a batch has arrived",
    "batch:next": "a message of the batch is about to be run",
    "arguments:fetched": "arguments that were stored outside of the message are read, the claim is not written yet",
    "claim:before": "the message is decoded, the claim is not written yet",
    "claim:before_takeover": "a record with an expired lease was found",
    "claim:after": "the record is RUNNING",
    "lock:before_acquire": "a singleton task is about to ask for its lock",
    "lock:after_acquire": "the lock is held",
    "task:before_begin": "the transaction is about to begin",
    "task:enter": "the transaction is open, the function is about to be called",
    "task:leave": "the function has returned, its writes are not committed",
    "finish:before_commit": "SUCCESS is written, COMMIT comes next",
    "finish:after_commit": "the work and its SUCCESS are committed",
    "lock:before_release": "the transaction has ended, the lock is still held",
    "lock:after_release": "the lock is released",
    "retry:before_send": "the task will be retried, the retry is not sent yet",
    "retry:between": "the retry is sent, but not recorded yet",
    "wait:before_send": "a task waits for its lock, its message is not sent again yet",
    "wait:between": "the message is sent again, the claim is not released yet",
    "wait:after_release": "the claim is released, the message that is handled is not acknowledged yet",
    "settle:before_write": "an outcome other than success is about to be recorded",
    "settle:after_write": "the outcome is recorded",
    "flow:before_end": "the end of a task is written, the tasks that follow it are not kept or noted yet",
    "flow:after_end": "the tasks that follow are kept or noted in the same transaction",
    "flow:after_commit": "the end is committed, the tasks that follow are not sent yet, and the group has not ended",
    "flow:last_member": "all members of a group have ended, and its row is locked",
    "flow:sent": "the tasks that follow are sent, but still noted as owed",
    "release:before": "the claim is about to be released",
    "cancel:before_write": "an invocation that no worker holds is about to be recorded as cancelled",
    "cancel:after_write": "it is recorded as cancelled, but its message is still in the outbox",
    "cancel:after_request": "a started invocation was requested to end",
    "batch:before_return": "every message of the batch is settled, the response is not returned yet",
}


class WorkerKilled(BaseException):
    """Ends a worker at a failpoint as SIGKILL would, in tests that must not lose their process. Nothing handles it."""


def reached(point: str) -> None:
    """Do nothing. The fault suite, and `TaskQueue.crash_at()`, replace this function."""
