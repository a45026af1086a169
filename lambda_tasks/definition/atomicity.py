"""The option `atomic` of `@lambda_task`."""

from __future__ import annotations


def check_atomic(value: object) -> None:
    """Raise TypeError for a value other than True and False."""
    if not isinstance(value, bool):
        raise TypeError(
            f"atomic must be True (the task and its SUCCESS are one transaction) or False (its writes commit as it "
            f"goes), not {value!r}."
        )
