"""Create tables of many records, for measurements on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from django.db import connection, transaction

TABLE: Final = "lambda_tasks_taskrecord"
#: The queue of records that a measurement adds to the table.
EXTRA: Final = "extra"
DAYS: Final = 90
TASKS: Final = 30

# Of 1,000 records 970 are SUCCESS, 20 FAILED with tracebacks of about 3 KB, 5 RETRYING and 5 RUNNING. Their
# ids are UUIDv7 in the order of their start times; the records after a RETRYING one are its retries.
_FILL = f"""
INSERT INTO {TABLE} (id, task_name, kwargs, status, start_time, end_time, result, traceback, n_retries, root_id,
    queue, claim, lease_until, takeovers)
SELECT id, 'shop.part_' || n %% 5 || '.tasks.step_' || n %% {TASKS},
    jsonb_build_object('order_id', n, 'email', 'ada@example.com'), status, moment,
    CASE WHEN status <> 'RUNNING' THEN moment + interval '250 ms' END,
    CASE WHEN status = 'SUCCESS' THEN jsonb_build_object('receipt', n) END,
    CASE WHEN status IN ('FAILED', 'RETRYING') THEN (
        SELECT string_agg('  File "/srv/shop/' || md5((n + line)::text) || '.py", line ' || line, chr(10))
        FROM generate_series(1, 45) line) || chr(10) || 'shop.errors.PrinterOnFire: tray ' || n
    END,
    (n %% 200 = 5)::int, CASE WHEN n %% 200 = 5 THEN md5(n::text)::uuid ELSE id END,
    %(queue)s, md5('claim' || n)::uuid, moment + interval '309 s' + running_for, 0
FROM (
    SELECT n, moment, (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0')
            || '7' || substr(md5(n::text), 1, 3) || 'a' || substr(md5(n::text), 4, 15))::uuid AS id,
        CASE WHEN n %% 1000 < 20 THEN 'FAILED' WHEN n %% 200 = 104 THEN 'RETRYING'
             WHEN n %% 200 = 105 THEN 'RUNNING' ELSE 'SUCCESS' END AS status,
        CASE WHEN n %% 200 = 105 THEN interval '1 year' ELSE interval '0' END AS running_for
    FROM (
        SELECT n, statement_timestamp() - interval '1 day' * (%(youngest)s
            + (%(oldest)s - %(youngest)s) * (1 - n::float / %(rows)s)) AS moment
        FROM generate_series(1, %(rows)s) n
    ) numbered
) made
"""


def make_table(schema: str, rows: int) -> None:
    """Create a copy of the table of records with all its indexes in `schema`, and fill it with `rows` records."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {schema}")
        cursor.execute(f"CREATE TABLE {schema}.{TABLE} (LIKE public.{TABLE} INCLUDING DEFAULTS)")
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = %s", [TABLE])
        definitions = [definition for (definition,) in cursor.fetchall()]
        use_table(schema)
        fill(rows)
        for definition in definitions:
            cursor.execute(definition.replace("public.", f"{schema}."))
        cursor.execute(f"VACUUM ANALYZE {TABLE}")


def use_table(schema: str) -> None:
    """Use the records of `schema` for the following statements on this connection."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET search_path TO {schema}, public")


def fill(rows: int, *, oldest: float = DAYS, youngest: float = 0, queue: str = "default") -> None:
    """Insert `rows` records that began between `oldest` and `youngest` days ago."""
    with connection.cursor() as cursor:
        cursor.execute(_FILL, {"rows": rows, "oldest": oldest, "youngest": youngest, "queue": queue})


def take_out_extra() -> None:
    """Delete the records that a measurement has added in the last hour, and vacuum the table."""
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {TABLE} WHERE queue = %s AND start_time > now() - interval '1 hour'", [EXTRA])
        cursor.execute(f"VACUUM {TABLE}")


def sizes(schema: str) -> dict[str, int]:
    """Return the size of the table and of each of its indexes, in bytes."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relnamespace = %s::regnamespace"
            " AND relkind IN ('r', 'i') ORDER BY relkind DESC, relname",
            [schema],
        )
        return dict(cursor.fetchall())


@contextmanager
def undone() -> Iterator[None]:
    """Roll back all writes inside the block."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)
