"""Compare a message with the records that it refers to, since a sender can put any id into a message.

The id, the chain and the number of retries in a message have no effect until this comparison has succeeded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.recording.masking import MASK
from lambda_tasks.recording.storable import shown
from lambda_tasks.wire import ids

if TYPE_CHECKING:
    from lambda_tasks.jobs import Run

#: The relative tolerance for numbers, since a database may store them in a different type.
_PRECISION: Final = 1e-12


@frozen
class Recorded:
    """The columns of a record that its message repeats with each delivery."""

    task_name: str
    #: As recorded: sensitive arguments may be masked.
    kwargs: Any
    n_retries: int
    #: None if it is not recorded.
    root_id: UUID | str | None


def misfit_of_ids(run: Run) -> str | None:
    """Return why the ids of `run` cannot belong together; None if they can.

    The id of a retry is derived from the id of the first invocation in its chain. An invocation with any number of
    retries may be its own root, since messages of older versions contain that number but no ids.
    """
    if not run.n_retries or run.root_id == run.message_id:
        return None
    if run.message_id != ids.retry_id(run.root_id, run.n_retries):
        return f"it claims to be retry {run.n_retries} of {run.root_id}, but its id is not the id of that retry"
    return None


def misfit(run: Run, recorded: Recorded, *, arguments: bool = True) -> str | None:
    """Return why the record with the id of `run` cannot belong to the same invocation; None if it can.

    `arguments=False` does not compare the arguments, which a record may lack.
    """
    return _difference(run, recorded, run.n_retries, "the record of its id", arguments=arguments)


def misfit_of_sender(run: Run, recorded: Recorded) -> str | None:
    """Return why `run` cannot be a retry of the invocation with the id `run.predecessor_id`; None if it can."""
    return _difference(run, recorded, run.n_retries - 1, "the record of the invocation that it claims to retry")


def _difference(run: Run, recorded: Recorded, n_retries: int, record: str, *, arguments: bool = True) -> str | None:
    names = (run.task_name, run.task.name, *run.task.aliases)
    if recorded.task_name not in names:
        return f"{record} belongs to a different task, {shown(recorded.task_name)}"
    if recorded.n_retries != n_retries:
        return f"{record} has n_retries={recorded.n_retries}"
    if run.n_retries and recorded.root_id is not None and str(recorded.root_id) != run.root_id:
        return f"{record} belongs to the chain of {recorded.root_id}"
    if arguments and not _same_arguments(run, recorded.kwargs):
        return f"{record} has different arguments"
    return None


def _same_arguments(run: Run, recorded: Any) -> bool:
    sent = run.message.kwargs
    if not isinstance(recorded, Mapping) or (sent and not recorded and _has_required(run)):
        return True  # no valid message of the task has these arguments, so there is nothing to compare
    # Different arguments may have been sensitive when the record was written, so skip those that are masked as well.
    hidden = {*run.task.sensitive, *(name for name, value in recorded.items() if value == MASK)}
    names = sent.keys() - hidden
    return names == recorded.keys() - hidden and all(_same(sent[name], recorded[name]) for name in names)


def _has_required(run: Run) -> bool:
    parameters = run.task.signature.parameters.values()
    return any(parameter.default is parameter.empty for parameter in parameters)


def _same(sent: Any, stored: Any) -> bool:
    """Compare JSON values as databases return them: 1e30 may be returned as an integer, and 2**70 as a float."""
    if isinstance(sent, bool) or isinstance(stored, bool):
        return sent is stored
    if isinstance(sent, float) or isinstance(stored, float):
        return _close(sent, stored)
    if isinstance(sent, dict) and isinstance(stored, dict):
        return sent.keys() == stored.keys() and all(_same(value, stored[key]) for key, value in sent.items())
    if isinstance(sent, list) and isinstance(stored, list):
        return len(sent) == len(stored) and all(map(_same, sent, stored))
    return type(sent) is type(stored) and bool(sent == stored)


def _close(sent: Any, stored: Any) -> bool:
    if not (isinstance(sent, int | float) and isinstance(stored, int | float)):
        return False
    try:
        return math.isclose(sent, stored, rel_tol=_PRECISION)
    except OverflowError:  # an integer that is too large for a float
        return False
