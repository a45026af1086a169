"""The specifications of all hooks, in the order in which they are called for an invocation.

Hooks extend the executor. They cannot replace the lock, the transaction, the time limits and the record, but they can
change everything around them. Each specification states when the hook is called, what surrounds the call, what the
hook returns, and what an exception in it does. A *listener* is notified and cannot change anything: an exception in it
is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pluggy

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task
    from lambda_tasks.jobs import Job, Run
    from lambda_tasks.outcomes import Outcome, Wait

PROJECT: Final = "lambda_tasks"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

_Spec = TypeVar("_Spec", bound=Callable[..., object])

_listeners: set[str] = set()
_questions: set[str] = set()


def _listener(spec: _Spec) -> _Spec:
    """Mark a hook that is only notified. Each implementation is called separately, and an exception in it is logged."""
    _listeners.add(spec.__name__)
    return hookspec(spec)


def _question(spec: _Spec) -> _Spec:
    """Mark a hook that decides how to handle an error. Its implementations are called until one returns a value."""
    _questions.add(spec.__name__)
    return hookspec(firstresult=True)(spec)


class Hooks:
    """The specifications of the hooks. `lambda_tasks.plugins.hooks()` is typed as this class and calls the plugins."""

    @hookspec
    def lambda_task_boot(self) -> None:
        """Prepare the process of a worker.

        When: once per container, after `django.setup()`: on its first invocation, or earlier if Lambda makes the
            container early. On Managed Instances, this may be in the parent of the processes.
        Inside: nothing.
        Return: nothing.
        Raising: fails the invocation, whose messages stay on the queue. The next invocation calls the hook again. In a
            container that is made early, it fails the start of the container.
        """

    @hookspec
    def lambda_task_sending(self, job: Job) -> None:
        """Add message attributes to a job, or reject it.

        When: at `execute_on_commit()`, before the job is checked and waits for the commit; also before
        a retry is sent.
        Inside: the caller's transaction; for a retry, no transaction.
        Return: nothing. Write to `job.attributes`: strings, at most seven more attributes, or six for tasks with
        `expires_in` or `max_age`, since SQS allows ten. In the worker, they are in `run.attributes`. The job of a
        retry, or of an invocation that follows another one, has inherited only the context.
        Raising: rejects the job, and the exception propagates to the caller. If a retry is rejected, its message stays
        on the queue.
        """

    @_listener
    def lambda_task_sent(self, job: Job) -> None:
        """Observe a job that the transport has accepted.

        When: after the commit, once the queue has responded. In eager mode: when the job is queued.
        Inside: Django's `on_commit` callbacks; for a retry, or in a relay of the outbox, no transaction.
        Return: nothing.
        Raising: is logged.
        """

    @_listener
    def lambda_task_unsent(self, message_id: str, task_name: str, queue: str, error: Exception, dead: bool) -> None:
        """Observe a message that could not be sent and stays in the outbox.

        When: after each failed attempt, after the commit or in a relay. Only with the outbox. If `dead` is true, the
        message can never be sent, and waits for an operator. Otherwise, sending it is tried again.
        Inside: Django's `on_commit` callbacks; in a relay, nothing.
        Return: nothing.
        Raising: is logged.
        """

    @hookspec(firstresult=True)
    def lambda_task_resolve(self, task_name: str) -> Task | None:
        """Find the task of a message.

        When: before any other step for a message.
        Inside: nothing.
        Return: the task, or None to leave the decision to the next plugin, and finally to the registry.
        Raising: returns the message to the queue; nothing is recorded.
        """

    @_listener
    def lambda_task_skipped(self, message_id: str, reason: str) -> None:
        """Observe a delivery that is not run.

        When: after the claim. The reason is "finished" (an earlier delivery has finished the invocation; the message
        is acknowledged), "running" (another worker is running it; the message stays on the queue), "mismatch" (the
        message does not belong to the invocation with its id; it stays on the queue) or "waiting" (the run was started,
        but waits for a lock; the message is acknowledged, and was sent again with a delay).
        Inside: nothing.
        Return: nothing.
        Raising: is logged.
        """

    @_listener
    def lambda_task_started(self, run: Run) -> None:
        """Observe the start of a run.

        When: after the claim, before the lock and the transaction.
        Inside: nothing; the record is RUNNING.
        Return: nothing.
        Raising: is logged.
        """

    @hookspec(firstresult=True)
    def lambda_task_call(self, run: Run) -> object:
        """Call the task's function. This hook is intended for wrappers (spans, timing, the tenant's context).

        When: in the middle of the run.
        Inside: the lock, the time limits and the transaction. Writes commit with the task.
        Return: the function's result; a wrapper returns the value of its `yield`.
        Raising: has the same effect as an exception in the function.
        """

    @_question
    def lambda_task_classify(self, run: Run, error: BaseException) -> Outcome | Wait | None:
        """Decide the outcome of a task that raised an exception.

        When: after the function, the lock or the commit has raised an exception.
        Inside: nothing; the transaction is rolled back.
        Return: `Ignored`, `Retry` or `Failed`, or None to leave it to `ignore_errors`, `retry_on` and `retry`.
        Raising: is logged; the next plugin, or the default, decides.
        """

    @_question
    def lambda_task_retry_delay(self, run: Run, error: BaseException) -> int | None:
        """Choose the delay of a retry.

        When: after an error was classified as a retry by the default.
        Inside: nothing.
        Return: seconds from 0 to 900, or up to a year with the outbox (larger values are capped), or None for the
        delay of the task's policy or of its `retry_delay`, with jitter.
        Raising: is logged; the next plugin, or the default, decides.
        """

    @_listener
    def lambda_task_finished(self, run: Run, outcome: Outcome) -> None:
        """Observe the outcome of a run.

        When: after the outcome is recorded and a retry is sent. Also for a lost task that is not sent again, in the
        process that found it.
        Inside: nothing.
        Return: nothing.
        Raising: is logged.
        """

    @_listener
    def lambda_task_returned(self, run: Run, error: Exception) -> None:
        """Observe a run that ends without an outcome, because its message stays on the queue.

        When: after the claim, if the outcome cannot be decided or recorded now, for example because the database is
        unavailable. `error` is a `Redeliver`. A later delivery continues the invocation.
        Inside: nothing. The database may be unavailable.
        Return: nothing.
        Raising: is logged.
        """

    @_listener
    def lambda_task_batch_finished(
        self, event: Mapping[str, Any], response: Mapping[str, Any], deadline: float | None
    ) -> None:
        """Observe the end of a batch. Flush exporters here, since the container may be frozen afterwards.

        For a maintenance event, `response` contains the results of the maintenance. `deadline` is the time, by
        `time.monotonic()`, at which Lambda ends the invocation, or None if that is unknown.

        When: at the end of each invocation of the handler, before it returns `response`.
        Inside: nothing.
        Return: nothing.
        Raising: is logged.
        """


#: The names of the hooks with these marks. They cannot be wrapped.
LISTENERS: Final = frozenset(_listeners)
QUESTIONS: Final = frozenset(_questions)
