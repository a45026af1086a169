"""Mutations of the upgrade of tables from published versions, and of migrations of large tables."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

TESTS: Final = "tests/database/test_upgrade.py"
TABLE: Final = TESTS + "::TestPublishedTable"
INDEXES: Final = TESTS + "::TestIndexes"

MUTATIONS: Final = (
    Mutation(
        "published tables are not upgraded",
        "database/published.py",
        "        upgrade(schema_editor, model)\n",
        "        pass\n",
        TABLE,
    ),
    Mutation(
        "an existing table is created again",
        "database/online.py",
        "if schema_editor.collect_sql or not column_names(schema_editor.connection, model._meta.db_table):",
        "if True:",
        TABLE + "::test_table_without_recorded_migration_is_upgraded",
    ),
    Mutation(
        "statuses of 0.8 keep their names",
        "database/published.py",
        'STATUSES: Final = {"SUCCEEDED": "SUCCESS", "RETRIED": "RETRYING"}',
        'STATUSES: Final = {"NONE": "SUCCESS"}',
        TABLE + "::test_every_record_is_kept",
    ),
    Mutation(
        "all records are renamed in one statement",
        "database/published.py",
        "for keys in _ranges(connection, table):",
        'for keys in ["1 = 1"]:',
        TESTS + "::test_records_are_renamed_in_batches",
    ),
    Mutation(
        "the old constraint on statuses is kept",
        "database/published.py",
        'if about["check"] and list(about["columns"]) == ["status"]:',
        "if False:",
        TABLE,
    ),
    Mutation(
        "RUNNING records do not get a lease",
        "database/published.py",
        'cursor.execute(f"SELECT 1 FROM {quote(table)} WHERE {where} LIMIT 1")',
        'cursor.execute(f"SELECT 1 FROM {quote(table)} WHERE {where} AND {lease} IS NOT NULL LIMIT 1")',
        TABLE + "::test_running_record_belongs_to_its_worker",
    ),
    Mutation(
        "unknown tables are upgraded",
        "database/published.py",
        "    refuse_unless_known(connection, table)\n    if connection.vendor",
        "    if connection.vendor",
        TESTS + "::TestOtherTable",
    ),
    Mutation(
        "workers of the published version cannot insert records",
        "database/published.py",
        "{takeovers} integer DEFAULT 0 NOT NULL",
        "{takeovers} integer NOT NULL",
        TABLE,
    ),
    Mutation(
        "an upgrade cannot be continued",
        "database/online.py",
        "if not schema_editor.collect_sql and index.name in constraints(connection, table):",
        "if False:",
        TABLE + "::test_interrupted_upgrade_is_continued",
    ),
    Mutation(
        "indexes block writers",
        "database/online.py",
        'return {"concurrently": True} if',
        "return {} if",
        INDEXES + "::test_indexes_are_built_concurrently",
    ),
    Mutation(
        "indexes are built concurrently inside transactions",
        "database/online.py",
        " and not connection.in_atomic_block else {}",
        " else {}",
        INDEXES + "::test_plain_index_is_built_inside_a_transaction",
    ),
    Mutation(
        "an invalid index counts as built",
        "database/online.py",
        "        if not is_invalid(connection, table, index.name):\n            return",
        "        return",
        INDEXES + "::test_invalid_index_is_rebuilt",
    ),
    Mutation(
        "a constraint is validated under an exclusive lock",
        "database/published.py",
        "{zero} NOT VALID",
        "{zero}",
        INDEXES + "::test_indexes_are_built_concurrently",
    ),
)
