"""Send messages from the outbox at an operator's request, and report the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

from django.contrib import messages
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lambda_tasks.backends.relay import Relayed
from lambda_tasks.models import OutboxMessage

if TYPE_CHECKING:
    from lambda_tasks.backends.outbox import OutboxBackend

#: The maximum number of characters of an error that a page shows.
START: Final = 200
#: The maximum number of errors that a report quotes.
_REASONS: Final = 3


@dataclass(slots=True)
class Sending:
    """Send messages now, and count the results."""

    outbox: OutboxBackend
    database: str
    tried: int = 0
    done: Relayed = field(default_factory=Relayed)
    #: The errors of messages that will be retried, and of dead messages, with the number of messages.
    failures: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def queues_are_unavailable(self) -> bool:
        """Whether all messages so far failed: the queues neither accepted nor rejected any."""
        return self.done.failed > 0 and not self.done.sent and not self.done.dead

    def send(self, keys: Sequence[UUID]) -> None:
        relayed = self.outbox.send_now(keys, using=self.database)
        self.tried += len(keys)
        self.done.sent += relayed.sent
        self.done.failed += relayed.failed
        self.done.dead += relayed.dead
        if relayed.failed or relayed.dead:
            left = OutboxMessage.objects.using(self.database).filter(pk__in=keys).exclude(error="")
            for due_at, error in left.order_by("id").values_list("due_at", "error"):
                (self.refusals if due_at is None else self.failures)[error] += 1

    def report(self, *, chosen: int) -> Iterable[tuple[int, str]]:
        """Yield a level and a sentence for each kind of result, out of the number of selected messages."""
        if not chosen:
            yield messages.INFO, str(_("The selected messages are no longer in the outbox: they were sent or deleted."))
        sent, failed, dead = self.done.sent, self.done.failed, self.done.dead
        if sent:
            yield messages.SUCCESS, ngettext("%d message was sent.", "%d messages were sent.", sent) % sent
        if failed:
            text = ngettext(
                "%d message could not be sent and will be retried: %s",
                "%d messages could not be sent and will be retried: %s",
                failed,
            )
            yield messages.WARNING, text % (failed, _reasons(self.failures))
        if dead:
            text = ngettext(
                "%d message was rejected and is dead: %s",
                "%d messages were rejected and are dead: %s",
                dead,
            )
            yield messages.ERROR, text % (dead, _reasons(self.refusals))
        if others := self.tried - self.done.total:
            text = ngettext(
                "%d message was skipped: it is no longer in the outbox, or another process is sending it.",
                "%d messages were skipped: they are no longer in the outbox, or another process is sending them.",
                others,
            )
            yield messages.INFO, text % others
        if untried := chosen - self.tried:
            text = ngettext(
                "%d message was not attempted: the messages before it took too long or could not be sent.",
                "%d messages were not attempted: the messages before them took too long or could not be sent.",
                untried,
            )
            yield messages.WARNING, text % untried


def _reasons(counted_errors: Counter[str]) -> str:
    shown = [Truncator(error).chars(START) for error, _ in counted_errors.most_common(_REASONS)]
    return "; ".join([*shown, "…"] if len(counted_errors) > _REASONS else shown)
