"""What a store of records is: claim, record, and the two questions after an accident."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from django.core.checks import CheckMessage

from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Claim, Failed, Lost, Outcome


class BaseStore(ABC):
    """Base class of stores; chosen by LAMBDA_TASKS_STORE and made once per process.

    The OPTIONS of the setting are the keyword arguments of `__init__`. Methods may be called from any
    thread. `lambda_tasks.testing.contracts.StoreContract` checks an implementation.
    """

    @property
    @abstractmethod
    def database(self) -> str:
        """The alias of the database in whose transactions tasks run and SUCCESS is written."""

    @abstractmethod
    def claim(self, run: Run) -> Claim:
        """Make `run` the holder of its invocation, if nobody else is; committed at once.

        `Claimed` if it is new, was given back, or its holder's lease is over: then `takeovers` counts
        the holders that died. `Finished` if it has ended. `Busy` if another holder's lease is alive, or
        was faster just now. Of two runs that claim at once, one gets it. A run that claims again, since
        it did not hear the answer, gets what it has.

        The claim of a retry first ends the invocation that has sent it as RETRYING, if its worker died
        before it could record that. If it has ended in another way since, the retry is `Finished` too: the
        work must not be done here and there.
        """

    @abstractmethod
    def record(self, run: Run, outcome: Outcome) -> None:
        """Write how `run` ended: inside its transaction for `Succeeded`, outside for all others.

        A `Retry` may be recorded although that retry has ended the run already, since it was faster.

        Raises `LeaseLost` if the claim is not the run's any more, and `ResultNotSerializable` for a
        result that cannot be stored; then nothing is written.
        """

    @abstractmethod
    def release(self, run: Run) -> None:
        """Give the claim of `run` back, so that the next delivery may take it at once.

        It does not count as a death of the holder. Nothing happens if the claim is another's by now.
        """

    @abstractmethod
    def has_succeeded(self, run: Run) -> bool:
        """Tell whether the SUCCESS of `run` is committed, waiting for a COMMIT that is under way."""

    def begun(self, message_ids: Sequence[str]) -> set[str]:
        """Return those of the invocations that a worker has begun, and none has ended.

        Asked of messages that come again: what brought their worker down is among these, and runs
        after the others. A store that leaves this out knows of none.
        """
        return set()

    def status(self, message_id: str) -> str | None:
        """Return the status of an invocation's record; None if there is none. For `TaskHandle.status`."""
        return None

    def lost(self, *, older_than: float, limit: int, after: str = "") -> list[Lost]:
        """Return invocations that stand as RUNNING and whose lease was over more than `older_than` seconds ago.

        At most `limit`, in the order of their ids, those whose id comes after `after`. Called in a
        transaction, and passes over what another one holds at the moment. A store that leaves this
        out has no lost invocations: its records stay as they are until their messages come back.
        """
        return []

    def offer(self, lost: Lost, *, older_than: float) -> bool:
        """Take a lost invocation from its holder, so that the next delivery may have it, and count a takeover.

        False, and nothing is changed, if it is not as it was seen: somebody took it over, or ended it.
        """
        raise NotImplementedError

    def give_up(self, lost: Lost, outcome: Failed, *, older_than: float) -> bool:
        """Record how a lost invocation ended. False, and nothing is changed, if it is not as it was seen."""
        raise NotImplementedError

    def check(self) -> list[CheckMessage]:
        """Return what `manage.py check` has to say about the options."""
        return []
