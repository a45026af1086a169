"""All hooks, in the order in which an invocation meets them.

Hooks are the joints of the executor: lock, transaction, time limits and record cannot be replaced by
one, everything around them can. Each says when it is called, inside of what, what to return, and what
raising does. A *listener* is told and can change nothing: what it raises is logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    from lambda_tasks.decorators import LambdaTaskWrapper
    from lambda_tasks.jobs import Job, Run
    from lambda_tasks.outcomes import Outcome

PROJECT: Final = "lambda_tasks"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

#: The hooks that are only told: each implementation is called on its own, and what it raises is logged.
LISTENERS: Final = frozenset(
    {
        "lambda_task_sent",
        "lambda_task_unsent",
        "lambda_task_skipped",
        "lambda_task_started",
        "lambda_task_finished",
        "lambda_task_batch_finished",
    }
)

#: The hooks that decide something about an error: each is asked on its own until one answers.
QUESTIONS: Final = frozenset({"lambda_task_classify", "lambda_task_retry_delay"})


class Hooks:
    """The specifications; `lambda_tasks.plugins.hooks()` is typed as this class and calls the plugins."""

    @hookspec
    def lambda_task_boot(self) -> None:
        """Prepare a worker's process.

        When: once per container, on its first invocation, after `django.setup()`.
        Inside: nothing.
        Return: nothing.
        Raising: fails the invocation, whose messages stay on the queue; the next one boots again.
        """

    @hookspec
    def lambda_task_sending(self, job: Job) -> None:
        """Add message attributes to a job, or refuse it.

        When: at `execute_on_commit()`, before the job is checked and waits for the commit; and before
        a retry is sent.
        Inside: the caller's transaction; for a retry, outside of any.
        Return: nothing; write to `job.attributes` (text, at most seven more, six for tasks with
        `expires_in`: SQS takes ten). In the worker they are in `run.attributes`.
        Raising: refuses the job, and reaches the caller. A retry that is refused leaves its message
        on the queue.
        """

    @hookspec
    def lambda_task_sent(self, job: Job) -> None:
        """Hear of a job that the transport has taken.

        When: after the commit, once the queue has answered. In eager mode: when it is put in line.
        Inside: Django's `on_commit` callbacks; for a retry, or from a relay of the outbox, outside of any
        transaction.
        Return: nothing.
        Raising: is logged.
        """

    @hookspec
    def lambda_task_unsent(self, message_id: str, task_name: str, queue: str, error: Exception, dead: bool) -> None:
        """Hear of a message that was not sent and stays in the outbox.

        When: after each try that failed: after the commit, or in a relay. Only with the outbox. `dead` says
        that it can never be sent and waits for somebody to look at it; otherwise it is tried again.
        Inside: Django's `on_commit` callbacks; in a relay, nothing.
        Return: nothing.
        Raising: is logged.
        """

    @hookspec(firstresult=True)
    def lambda_task_resolve(self, task_name: str) -> LambdaTaskWrapper[..., Any] | None:
        """Find the task of a message.

        When: before anything else is done with a message.
        Inside: nothing.
        Return: the task, or None to leave it to the next plugin and at last to the registry.
        Raising: hands the message back to the queue; nothing is recorded.
        """

    @hookspec
    def lambda_task_skipped(self, message_id: str, reason: str) -> None:
        """Hear of a delivery that is not run.

        When: after the claim. The reason is "finished" (an earlier delivery ended it: acknowledged)
        or "running" (another worker has it: left on the queue).
        Inside: nothing.
        Return: nothing.
        Raising: is logged.
        """

    @hookspec
    def lambda_task_started(self, run: Run) -> None:
        """Hear of a run that begins.

        When: after the claim, before lock and transaction.
        Inside: nothing; the record stands as RUNNING.
        Return: nothing.
        Raising: is logged.
        """

    @hookspec(firstresult=True)
    def lambda_task_call(self, run: Run) -> object:
        """Call the task's function: meant for wrappers (spans, timing, the tenant's context).

        When: in the middle of the run.
        Inside: lock, time limits and transaction: what is written here commits with the task.
        Return: the function's result; a wrapper returns what it got from `yield`.
        Raising: counts as if the function had raised it.
        """

    @hookspec(firstresult=True)
    def lambda_task_classify(self, run: Run, error: BaseException) -> Outcome | None:
        """Decide what an error of the task means.

        When: after the function, lock or commit has raised.
        Inside: nothing; the transaction is rolled back.
        Return: `Ignored`, `Retry` or `Failed`, or None to leave it to `ignore_errors` and `retry_on`.
        Raising: is logged; the next plugin, or the default, decides.
        """

    @hookspec(firstresult=True)
    def lambda_task_retry_delay(self, run: Run, error: BaseException) -> int | None:
        """Choose the delay of a retry.

        When: after an error was classified as a retry by the default.
        Inside: nothing.
        Return: seconds, 0 to 900, and with the outbox up to a year (more is capped); or None for the task's
        `retry_delay` and jitter.
        Raising: is logged; the next plugin, or the default, decides.
        """

    @hookspec
    def lambda_task_finished(self, run: Run, outcome: Outcome) -> None:
        """Hear how a run ended.

        When: after the outcome is recorded, and a retry is sent. Also for a lost task that is given up,
        in the process that found it.
        Inside: nothing.
        Return: nothing.
        Raising: is logged.
        """

    @hookspec
    def lambda_task_batch_finished(self, event: Mapping[str, Any], response: Mapping[str, Any]) -> None:
        """Hear of a batch that is done: flush exporters here, the container may freeze afterwards.

        For the event that asks for maintenance, `response` is what was done.

        When: at the end of each invocation of the handler, before it returns `response`.
        Inside: nothing.
        Return: nothing.
        Raising: is logged.
        """
