"""Run records again at an operator's request, and report the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from lambda_tasks.exceptions import CannotRunAgain
from lambda_tasks.models import TaskRecord
from lambda_tasks.operations import rerunning

if TYPE_CHECKING:
    from lambda_tasks.handles import TaskHandle

#: The maximum number of problems that a page quotes, and of characters of each.
_QUOTED: Final = 3
_CHARACTERS: Final = 400


@dataclass(slots=True)
class Rerunning:
    """The records that were run again, and the problems of the others."""

    sent: list[tuple[TaskRecord, TaskHandle[Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def sorted_out(rows: Sequence[TaskRecord]) -> tuple[list[TaskRecord], list[str]]:
    """Return the records that can be run again, and a few sentences about the others."""
    whole = _whole(rows)
    problems = [(record, rerunning.problem_of(record)) for record in whole]
    possible = [record for record, problem in problems if problem is None]
    return possible, list(_quoted(problem for _, problem in problems if problem is not None))


def run_again(records: Iterable[TaskRecord], *, username: str) -> Rerunning:
    """Run the records again, each in its own transaction, until an unexpected error, such as an unavailable queue."""
    done = Rerunning()
    refused: list[str] = []
    for record in records:
        try:
            done.sent.append((record, rerunning.run_again(record, username=username)))
        except CannotRunAgain as error:
            refused.append(str(error))
        except Exception as error:
            refused.append(_("%(record)s was not run again: %(error)s.") % {"record": record, "error": _named(error)})
            break
    done.problems = list(_quoted(refused))
    return done


def _whole(rows: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Return the records with all of their columns, in one query."""
    if not rows:
        return []
    found = TaskRecord.objects.using(rows[0]._state.db).in_bulk([row.pk for row in rows])
    return [found[row.pk] for row in rows if row.pk in found]


def _quoted(problems: Iterable[str]) -> Iterable[str]:
    counted = Counter(Truncator(problem).chars(_CHARACTERS) for problem in problems)
    yield from list(counted)[:_QUOTED]
    if others := sum(list(counted.values())[_QUOTED:]):
        yield ngettext("%d other task has a similar problem.", "%d other tasks have similar problems.", others) % others


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")
