"""Summarize how PostgreSQL executes the statements of some code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction

from benchmarks.records import TABLE


@dataclass(frozen=True, slots=True)
class Plan:
    """One statement: its beginning, its plan and its cost."""

    statement: str
    nodes: str
    rows: int
    buffers: int
    milliseconds: float


def plans(work: Callable[[], object]) -> list[Plan]:
    """Do `work`, and return the plans of its statements on the table of records from EXPLAIN (ANALYZE, BUFFERS)."""
    found: list[Plan] = []

    def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if TABLE in sql and sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
            with transaction.atomic():
                cursor = connection.connection.cursor()
                cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
                [answer] = cursor.fetchone()
                transaction.set_rollback(True)
            [top] = json.loads(answer) if isinstance(answer, str) else answer
            found.append(_plan(sql, top))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        work()
    return found


def _plan(sql: str, top: dict[str, Any]) -> Plan:
    root = top["Plan"]
    return Plan(
        statement=_words(sql),
        nodes=" ← ".join(_nodes(root)),
        rows=root["Actual Rows"],
        buffers=root["Shared Hit Blocks"] + root["Shared Read Blocks"],
        milliseconds=top["Execution Time"],
    )


def _nodes(node: dict[str, Any]) -> Iterator[str]:
    name = node["Node Type"]
    if name == "ModifyTable":
        name = node["Operation"]
    if index := node.get("Index Name"):
        backward = " backward" if node.get("Scan Direction") == "Backward" else ""
        name = f"{name}{backward} {index.removeprefix('lambda_tasks_')}"
    yield name
    children = [" ← ".join(_nodes(child)) for child in node.get("Plans", ())]
    if len(children) == 1:
        yield children[0]
    elif children:
        yield f"({'; '.join(children)})"


def _words(sql: str) -> str:
    words = sql.replace(f'"{TABLE}".', "").replace(f'"{TABLE}"', "records").replace('"', "")
    verb, _, rest = words.partition(" ")
    if verb == "SELECT":
        columns, _, rest = rest.partition(" FROM ")
        shown = columns if len(columns) < 30 else columns.split(",")[0] + ", …"
        words = f"SELECT {shown} FROM {rest}"
    elif verb == "INSERT":
        words = "INSERT INTO records"
    words = " ".join(words.split()).replace("|", "\\|")
    return words if len(words) < 170 else words[:80] + " … " + words[-85:]
