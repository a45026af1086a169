"""Format tracebacks as strings that any database can store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from traceback import TracebackException
from typing import Final

from lambda_tasks.recording.masking import MASK, WITHHELD, Needles, TooMuch
from lambda_tasks.recording.storable import storable

#: The maximum number of task names in the sentence about dropped tasks.
_MOST_NAMES: Final = 10
#: The part of that sentence that is always the same.
_DROPPED: Final = " not sent, because the transaction was rolled back: "
#: The lines that Python prints between an error and the error that it caused.
_CAUSED: Final = "\n\nThe above exception was the direct cause of the following exception:\n\n"


@cache
def _own_folders() -> tuple[str, str]:
    import pluggy  # imported here, since a process that only logs does not need it

    return str(Path(__file__).parents[1]), str(Path(pluggy.__file__).parent)


def begin_at_task(error: BaseException) -> None:
    """Remove the frames of `error` before the executor's call of the task, if it comes from there.

    The frames of the executor and of the plugins around the task do not explain the error, in the record or in the
    log.
    """
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_name == "lambda_task_call" and tb.tb_next is not None:
            error.with_traceback(tb.tb_next)  # unlike an assignment, it works for frozen dataclasses
        tb = tb.tb_next


def traceback_text(error: BaseException, *, hiding: Sequence[object] = ()) -> str:
    """Return the traceback as Python prints it, without the library's frames around those of the task.

    The strings and numbers in the values `hiding` are masked. If an error cannot be printed, the result is its type,
    since every error that ends a task must be recorded.
    """
    try:
        text = _printed(error)
        if not hiding:
            return storable(text)
        try:
            needles = Needles(hiding)
            # Mask whole values before `storable` shortens the text, which may cut a value in two. Then mask pieces,
            # since other code, such as pydantic, may have shortened a value.
            return needles.without_pieces(storable(needles.scrubbed(text)))
        except TooMuch:
            return storable(_without_message(error))
    except Exception as second:
        name = type(error).__qualname__
        return storable(f"{name}: {MASK}" if hiding else f"{name}: <its traceback raised {type(second).__qualname__}>")


def _without_message(error: BaseException) -> str:
    """Return the traceback of `error` with its type but without its message.

    The frames show only source code, which does not contain the arguments.
    """
    summary = TracebackException.from_exception(error)
    _keep_the_task(summary)
    frames = "".join(summary.stack.format())
    return f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}: {WITHHELD}\n"


def _printed(error: BaseException) -> str:
    summary = TracebackException.from_exception(error)
    link: TracebackException | None = summary
    while link is not None:
        _keep_the_task(link)
        link = link.__cause__ or link.__context__
    return "".join(summary.format())


def _keep_the_task(summary: TracebackException) -> None:
    """Remove the frames from the executor to the task, and those from the task to an alarm.

    If all frames belong to the library, keep them.
    """
    foreign = [i for i, frame in enumerate(summary.stack) if not frame.filename.startswith(_own_folders())]
    if foreign:
        del summary.stack[foreign[-1] + 1 :]
        del summary.stack[: foreign[0]]


def dropped_text(task_names: Sequence[str]) -> str:
    """Return the sentence about tasks that a run had enqueued and that were dropped with its transaction."""
    counts = Counter(task_names)
    shown = [f"{name} ({count})" if count > 1 else name for name, count in counts.most_common(_MOST_NAMES)]
    others = f" and {len(counts) - len(shown)} other names" if len(counts) > len(shown) else ""
    tasks = "1 enqueued task was" if len(task_names) == 1 else f"{len(task_names)} enqueued tasks were"
    return f"{tasks}{_DROPPED}{', '.join(shown)}{others}."


def without_later_lines(text: str, *, cause: bool) -> str:
    """Return the end of a recorded traceback up to the line that names the error, or with `cause` its direct cause.

    The sentence about dropped tasks follows that line in the record.
    """
    if cause and _CAUSED in text:
        text = text.rpartition(_CAUSED)[0]
    before, _, last_line = text.rstrip().rpartition("\n")
    return (before if before and _DROPPED in last_line else text).rstrip()
