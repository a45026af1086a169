"""Tasks that are written for Celery, and the report about them."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

CELERY: Final = "tests/contrib/test_celery.py"
APPLICATION: Final = "tests/contrib/test_celery_application.py"
REPORT: Final = "tests/operations/test_from_celery.py"

MUTATIONS: Final = (
    Mutation(
        "a call of Celery runs after it has expired",
        "contrib/celery/parameters.py",
        "if expires is not None and time.time() >= expires:",
        "if False:",
        APPLICATION,
    ),
    Mutation(
        "the result does not come first in a chain",
        "contrib/celery/signatures.py",
        "named((*leading, *self.args), self.kwargs)",
        "named((*self.args, *leading), self.kwargs)",
        CELERY + "::TestCalls::test_result_comes_first_in_a_chain",
    ),
    Mutation(
        "retries of Celery have the limit of the settings",
        "contrib/celery/bound.py",
        "limit is not None and self.request.retries >= limit",
        "False",
        APPLICATION,
    ),
    Mutation(
        "a task of Celery that is called directly asks for a retry",
        "contrib/celery/bound.py",
        "        if self.request.called_directly:\n            raise exc\n",
        "",
        CELERY + "::TestBoundSelf",
    ),
    Mutation(
        "refused options of Celery are dropped",
        "definition/hints.py",
        '    if name not in dropped:\n        return "refused"\n',
        '    if name not in dropped:\n        return "dropped"\n',
        CELERY,
    ),
    Mutation(
        "early acknowledgement is ignored",
        "contrib/celery/options.py",
        'return {"on_crash": "fail"} if early else {}',
        "return {}",
        CELERY + "::TestDefinition",
    ),
    Mutation(
        "a copy of Celery's task loses its methods",
        "decorators.py",
        "LambdaTaskWrapper.__new__(type(self))",
        "LambdaTaskWrapper.__new__(LambdaTaskWrapper)",
        CELERY + "::TestCalls",
    ),
    Mutation(
        "mutable arguments of any type are shared with the message",
        "definition/arguments.py",
        "        return deepcopy\n",
        "        return lambda value: value\n",
        "tests/definition/test_plain.py",
    ),
    Mutation(
        "files that cannot be parsed end the report",
        "operations/from_celery/sources.py",
        "except SyntaxError as error:",
        "except ZeroDivisionError as error:",
        REPORT + "::TestFiles",
    ),
    Mutation(
        "writes before a raise are not reported",
        "operations/from_celery/doubts.py",
        "if isinstance(handler, ast.ExceptHandler) and _gives_up(handler.body):",
        "if False:",
        REPORT + "::TestTasks",
    ),
)
