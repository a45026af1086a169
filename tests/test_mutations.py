"""The list of mutations fits the code: a stale entry would have no effect."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutations import ROOT, all_mutations
from tests.simulation.protocols import PROTOCOLS

pytestmark = pytest.mark.once


def test_mutated_source_is_found_exactly_once() -> None:
    stale = {mutation.name: mutation.occurrences for mutation in all_mutations() if mutation.occurrences != 1}
    assert stale == {}


def test_protocol_source_is_found_exactly_once() -> None:
    mutations = [protocol.mutation for protocol in PROTOCOLS if protocol.mutation is not None]
    assert {mutation.name: mutation.occurrences for mutation in mutations if mutation.occurrences != 1} == {}


def test_names_are_unique() -> None:
    names = Counter(mutation.name for mutation in all_mutations())
    assert [name for name, count in names.items() if count > 1] == []


def test_each_mutation_changes_something() -> None:
    assert [mutation.name for mutation in all_mutations() if mutation.text == mutation.instead] == []


def test_tests_of_each_mutation_exist() -> None:
    files = {mutation.tests.partition("::")[0].partition(" ")[0] for mutation in all_mutations()}
    assert [file for file in sorted(files) if not Path(ROOT, file).exists()] == []


def test_all_families_are_counted() -> None:
    assert len(all_mutations()) >= 218


def test_mutated_source_is_valid_python() -> None:
    """A mutation that does not compile would be noticed by any test, and would show nothing."""
    for mutation in all_mutations():
        source = (ROOT / "lambda_tasks" / mutation.file).read_text()
        compile(source.replace(mutation.text, mutation.instead), mutation.name, "exec")
