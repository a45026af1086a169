"""What a store of records is: claim, record, and the two questions after an accident."""

from __future__ import annotations

from abc import ABC, abstractmethod

from django.core.checks import CheckMessage

from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Claim, Outcome


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
        """

    @abstractmethod
    def record(self, run: Run, outcome: Outcome) -> None:
        """Write how `run` ended: inside its transaction for `Succeeded`, outside for all others.

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

    def check(self) -> list[CheckMessage]:
        """Return what `manage.py check` has to say about the options."""
        return []
