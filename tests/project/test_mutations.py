"""The list of mutations fits the code: a stale entry would have no effect."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutations import ROOT, all_mutations
from tests.named_tests import find_class, find_test
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
    """Otherwise pytest stops with an error, and shows nothing about the mutation."""
    named = {mutation.tests for mutation in all_mutations()}
    assert [tests for tests in sorted(named) if not exists(tests)] == []


def exists(tests: str) -> bool:
    """Return whether a file, a class or a test exists, as pytest names it."""
    path, *names = tests.partition("[")[0].split("::")
    if not names:
        return Path(ROOT, path).exists()
    if len(names) == 1 and names[0].startswith("Test"):
        return find_class(ROOT / path, names[0]) is not None
    return find_test(ROOT / path, *names) is not None


def test_all_families_are_counted() -> None:
    assert len(all_mutations()) >= 218


def test_mutated_source_is_valid_python() -> None:
    """A mutation that does not compile would be noticed by any test, and would show nothing."""
    for mutation in all_mutations():
        source = (ROOT / "lambda_tasks" / mutation.file).read_text()
        compile(source.replace(mutation.text, mutation.instead), mutation.name, "exec")
