"""Errors as text that any database stores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from traceback import TracebackException

from lambda_tasks.masking import MASK, scrubbed, without_pieces
from lambda_tasks.storable import storable


@cache
def _own_folders() -> tuple[str, str]:
    import pluggy  # has called the task; a logger alone does not need it

    return str(Path(__file__).parent), str(Path(pluggy.__file__).parent)


def begin_at_task(error: BaseException) -> None:
    """Let the traceback of `error` begin where the executor called the task, if it comes from there.

    How the executor and the plugins around it came to call the function explains nothing about the
    error, in the record as in the log.
    """
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_name == "lambda_task_call" and tb.tb_next is not None:
            error.__traceback__ = tb.tb_next
        tb = tb.tb_next


def traceback_text(error: BaseException, *, hiding: Sequence[object] = ()) -> str:
    """Return the traceback as Python prints it, without the frames of the library around the task's.

    What stands in the values `hiding` is masked wherever the text quotes it. An error that cannot be
    printed is named by its type: what ends a task must be recorded.
    """
    try:
        text = _printed(error)
        if not hiding:
            return storable(text)
        # Before the text is shortened, which may cut a value in two; and after, since somebody else may have.
        return without_pieces(storable(scrubbed(text, hiding)), hiding)
    except Exception as second:
        name = type(error).__qualname__
        return storable(f"{name}: {MASK}" if hiding else f"{name}: <its traceback raised {type(second).__qualname__}>")


def _printed(error: BaseException) -> str:
    summary = TracebackException.from_exception(error)
    link: TracebackException | None = summary
    while link is not None:
        _keep_the_task(link)
        link = link.__cause__ or link.__context__
    return "".join(summary.format())


def _keep_the_task(summary: TracebackException) -> None:
    """Drop the frames that lead from the executor to the task, and from the task to an alarm.

    An error that is wholly the library's keeps all of them.
    """
    foreign = [i for i, frame in enumerate(summary.stack) if not frame.filename.startswith(_own_folders())]
    if foreign:
        del summary.stack[foreign[-1] + 1 :]
        del summary.stack[: foreign[0]]
