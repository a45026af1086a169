"""The named points of the protocol: a worker may die at each of them, and nothing is lost or done twice.

Nothing happens at a point in production: a call of an empty function. The fault suite puts an action
there (a SIGKILL, a freeze, a database that goes away) and looks at what is left when all is at rest.
"""

from __future__ import annotations

from typing import Final

#: Every point, in the order in which an invocation meets them, and what has happened up to there.
POINTS: Final = {
    "enqueue:before_commit": "the job waits for the commit of its transaction",
    "outbox:before_insert": "the jobs are about to be written into the transaction",
    "outbox:after_insert": "they are written, COMMIT comes next",
    "enqueue:after_commit": "the transaction is committed, nothing is sent yet",
    "send:before": "jobs are about to be given to the transport",
    "relay:held": "messages of the outbox are locked, and not sent",
    "relay:sent": "they are sent, and stand in the outbox still",
    "relay:settled": "they are deleted, COMMIT comes next",
    "send:after": "the transport has taken them",
    "batch:start": "a batch has arrived",
    "batch:next": "a message of the batch is about to be run",
    "claim:before": "the message is read, nothing is written yet",
    "claim:before_takeover": "a record was met whose lease is over",
    "claim:after": "the record stands as RUNNING",
    "lock:before_acquire": "a singleton task is about to ask for its lock",
    "lock:after_acquire": "the lock is held",
    "task:before_begin": "the transaction is about to begin",
    "task:enter": "the transaction is open, the function is about to be called",
    "task:leave": "the function has returned, its writes are not committed",
    "finish:before_commit": "SUCCESS is written, COMMIT comes next",
    "finish:after_commit": "the work and its SUCCESS are committed",
    "lock:before_release": "the transaction is over, the lock still held",
    "lock:after_release": "the lock is given back",
    "retry:before_send": "the task is to be retried, nothing is sent yet",
    "retry:between": "the retry is sent, and not yet recorded",
    "settle:before_write": "an outcome other than success is about to be recorded",
    "settle:after_write": "it is recorded",
    "release:before": "the claim is about to be given back",
    "batch:before_return": "every message of the batch is settled, the answer is not given yet",
}


def reached(point: str) -> None:
    """Do nothing; the fault suite puts a function of its own in this place."""
