"""Answers to names of Celery's API."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

HINTS: Final = "tests/definition/test_hints.py"

MUTATIONS: Final = (
    Mutation(
        "attributes of Celery are not answered",
        "decorators.py",
        "            hint = for_attribute(name)\n",
        "            hint = None\n",
        HINTS + "::TestAttributes",
    ),
    Mutation(
        "options of Celery are not answered",
        "definition/options.py",
        "{for_options(unknown)}",
        "",
        HINTS + "::TestOptions",
    ),
    Mutation(
        "parameters are taken for keywords of Celery",
        "definition/signatures.py",
        "for_keywords(arguments.keys() - self.parameters.keys())",
        "for_keywords(arguments)",
        HINTS + "::TestCalls",
    ),
    Mutation(
        "Celery's settings are not named",
        "operations/checks.py",
        " if short in SETTINGS}",
        " if False}",
        HINTS + "::TestSettings",
    ),
)
