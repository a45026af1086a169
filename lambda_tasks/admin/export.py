"""Download records as CSV or as JSON lines, without holding all of them in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from django.http import StreamingHttpResponse

from lambda_tasks.admin.record_page import visible_arguments
from lambda_tasks.models import TaskRecord

if TYPE_CHECKING:
    from uuid import UUID

#: The formats by name, with the content type of each.
FORMATS: Final = {"csv": "text/csv; charset=utf-8", "json": "application/x-ndjson"}
#: The number of records that one query reads.
_BATCH: Final = 200
#: The first characters with which a spreadsheet takes a cell for a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")

_FIELDS: Final = ("id", "root_id", "task_name", "status", "reason", "queue", "n_retries", "takeovers")
_TIMES: Final = ("start_time", "end_time")
COLUMNS: Final = (*_FIELDS, *_TIMES, "kwargs", "result", "traceback")


class _Line:
    """A file for `csv.writer` that returns what is written."""

    def write(self, text: str) -> str:
        return text


def response(keys: Sequence[UUID], database: str, *, form: str, with_arguments: bool) -> StreamingHttpResponse:
    """Return the records with these keys as a download, in their order. `form` is a key of `FORMATS`."""
    rows = _rows(keys, database, with_arguments=with_arguments)
    lines = _csv(rows, with_arguments=with_arguments) if form == "csv" else _json(rows)
    ending = "csv" if form == "csv" else "jsonl"
    headers = {
        "Content-Disposition": f'attachment; filename="task-records.{ending}"',
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingHttpResponse(lines, content_type=FORMATS[form], headers=headers)


def _rows(keys: Sequence[UUID], database: str, *, with_arguments: bool) -> Iterator[dict[str, Any]]:
    records = TaskRecord.objects.using(database)
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        found = records.in_bulk(batch)
        for key in batch:
            if record := found.get(key):  # it may have been deleted since
                yield _row(record, with_arguments=with_arguments)


def _row(record: TaskRecord, *, with_arguments: bool) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in _FIELDS}
    row |= {name: str(row[name]) for name in ("id", "root_id") if row[name] is not None}
    for name in _TIMES:
        moment = getattr(record, name)
        row[name] = moment and moment.isoformat()
    if with_arguments:
        row["kwargs"] = visible_arguments(record)
    return row | {"result": record.result, "traceback": record.traceback}


def _json(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _csv(rows: Iterable[dict[str, Any]], *, with_arguments: bool) -> Iterator[str]:
    writer = csv.writer(_Line())
    columns = [column for column in COLUMNS if with_arguments or column != "kwargs"]
    yield writer.writerow(columns)
    for row in rows:
        yield writer.writerow([_cell(row[column], plain=column in _FIELDS or column in _TIMES) for column in columns])


def _cell(value: Any, *, plain: bool) -> str:
    """Return a value as a cell that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(value) if plain else json.dumps(value, ensure_ascii=False)
    return f"'{text}" if text.startswith(_FORMULA) else text
