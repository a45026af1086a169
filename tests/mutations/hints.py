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
        "calls of version 0.8 are not answered",
        "definition/hints.py",
        " + _former_sentences(names, FORMER_KEYWORDS)",
        "",
        HINTS + "::TestVersion08",
    ),
    Mutation(
        "queues of version 0.8 are not answered",
        "settings/values.py",
        'if "queue_url" in value:',
        "if False:",
        HINTS + "::TestVersion08",
    ),
    Mutation(
        "a function starts without the secret of version 0.8",
        "secret_loader.py",
        "    if _FORMER in names and not variables:\n",
        "    if False:\n",
        "tests/project/test_secret_loader.py",
    ),
    Mutation(
        "parameters are taken for keywords of Celery",
        "definition/converting.py",
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
