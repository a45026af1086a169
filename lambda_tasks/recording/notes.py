"""Notes on exceptions, which tell a reader of a traceback which task has raised it."""

from __future__ import annotations


def add_note(error: BaseException, note: str) -> None:
    """Add `note` to `error` once. Python prints notes from version 3.11 on, and pytest prints them in every version."""
    notes = vars(error).setdefault("__notes__", [])  # like add_note(), also in Python 3.10
    if isinstance(notes, list) and note not in notes:
        notes.append(note)


def name_task(error: BaseException, *, task_name: str, message_id: str) -> None:
    """Add a note that names the invocation whose task has raised `error`."""
    add_note(error, f"Raised by the task {task_name} [{message_id}].")
