"""Django's own tests of task backends pass with ours, but for the exceptions that are named here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import django
import pytest

from tests.contrib.djangos_tests import (
    COMMAND,
    EAGER,
    FOLDER_VARIABLE,
    MEMORY,
    find_distribution,
    folder,
    repointed,
    run,
)

pytestmark = pytest.mark.skipif(
    django.VERSION < (6, 0), reason="Django 5.2 has no tasks, and the package django-tasks is distributed without tests"
)

ON_COMMIT: Final = "the message leaves when the caller's transaction commits"
RESULTS: Final = "our results can be read and refreshed"
DEFERS: Final = "our backend supports run_after"
PRIORITY: Final = "queues of SQS have no priorities"
SYNCHRONOUS: Final = "the test calls a method in a coroutine that uses the database; ours names its async form"
DUMMY: Final = "the test changes a result inside of Django's dummy; our results are in the database"

#: Each test that fails, with the reason.
EXCEPTIONS: Final[dict[str, dict[str, str]]] = {
    "ImmediateBackendTestCase": {
        "test_cannot_get_result": RESULTS,
        "test_cannot_pass_run_after": DEFERS,
        "test_cannot_refresh_result": RESULTS,
    },
    "ImmediateBackendTransactionTestCase": {"test_doesnt_wait_until_transaction_commit_by_default": ON_COMMIT},
    "DummyBackendTestCase": {"test_refresh_result": DUMMY, "test_refresh_result_async": DUMMY},
    "DummyBackendTransactionTestCase": {},
    "TaskTestCase": {
        "test_chained_using": PRIORITY,
        "test_invalid_priority": PRIORITY,
        "test_refresh_result": SYNCHRONOUS,
        "test_using_priority": PRIORITY,
    },
}


@pytest.mark.parametrize(
    ("module", "class_name", "at_least"),
    [
        ("test_immediate_backend", "ImmediateBackendTestCase", 16),
        ("test_immediate_backend", "ImmediateBackendTransactionTestCase", 0),
        ("test_dummy_backend", "DummyBackendTestCase", 14),
        ("test_dummy_backend", "DummyBackendTransactionTestCase", 1),
        ("test_tasks", "TaskTestCase", 30),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_class_passes_but_for_named_exceptions(
    module: str, class_name: str, at_least: int, tmp_path: Path, settings: Any
) -> None:
    distribution = find_distribution()
    if distribution is None:
        problem = f"the source distribution of Django {django.get_version()} is not in {folder()}; run {COMMAND}"
        if FOLDER_VARIABLE in os.environ:
            pytest.fail(problem)
        pytest.skip(problem)
    settings.LAMBDA_TASKS_EAGER = "immediate" in module
    form = EAGER if settings.LAMBDA_TASKS_EAGER else MEMORY
    with repointed(distribution, tmp_path, form):
        count, failed = run(module, class_name)
    assert failed.keys() == EXCEPTIONS[class_name].keys(), "\n".join(map(str, failed.items()))
    assert count - len(failed) >= at_least
