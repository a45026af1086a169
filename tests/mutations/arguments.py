"""Mutations of the arguments of calls: what is accepted, how it is written, and how it is read."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

UNIONS: Final = "tests/definition/test_unions.py"
ARGUMENTS: Final = "tests/definition/test_arguments.py"
DECORATOR: Final = "tests/definition/test_decorator.py"
UNKNOWN: Final = "tests/definition/test_unknown_arguments.py"
SQS: Final = "tests/backends/test_sqs.py"

MUTATIONS: Final = (
    Mutation(
        "a union reads a string as a member that writes another one",
        "definition/schemas.py",
        "        if self._serializer.to_json(value, warnings=False) != text:\n            raise ValueError\n",
        "",
        UNIONS,
    ),
    Mutation(
        "words arrive as the bytes whose base64 form they are",
        "definition/schemas.py",
        '            if kind == "bytes" and has_text:\n                continue',
        '            if kind == "bytes" and not kind:\n                continue',
        UNIONS,
    ),
    Mutation(
        "strings that look like another member are refused",
        "definition/schemas.py",
        "return found is not None and found[1].has(sent)",
        "return False",
        UNIONS,
    ),
    Mutation(
        "a value that its union does not accept is sent",
        "definition/schemas.py",
        "return found is not None and found[1].has(sent)",
        "return found is not None",
        UNIONS,
    ),
    Mutation(
        "a value that loses a part in a union is sent",
        "definition/roundtrip.py",
        "return not own_type and read_as_another_member(sent, arrived)",
        "return read_as_another_member(sent, arrived)",
        UNIONS,
    ),
    Mutation(
        "unions inside of models are read as before",
        "definition/schemas.py",
        'return {"_use_prebuilt": False} if',
        'return {"_use_prebuilt": True} if',
        UNIONS,
    ),
    Mutation(
        "a Decimal is sent as a float",
        "definition/converting.py",
        "conversion(given, value, (name,)) or first_difference(",
        "first_difference(",
        ARGUMENTS,
    ),
    Mutation(
        "an int loses digits as a float",
        "definition/schemas.py",
        '                return {"type": "union", "choices": [part, {"type": "int"}]}\n',
        "                return part\n",
        ARGUMENTS,
    ),
    Mutation(
        "computed fields are sent, and refused by the worker",
        "definition/schemas.py",
        'return {**part, "serialization_exclude": True} if computed else part',
        "return part",
        ARGUMENTS,
    ),
    Mutation(
        "an error queries the database",
        "definition/problems.py",
        '        return f"<{type(x).__qualname__} object>"\n\n\n_repr',
        "        return repr(x)\n\n\n_repr",
        ARGUMENTS,
    ),
    Mutation(
        "unknown arguments are dropped by default",
        "execution/arguments.py",
        'app_settings.unknown_arguments != "drop"',
        'app_settings.unknown_arguments == "neither"',
        UNKNOWN,
    ),
    Mutation(
        "arguments are dropped silently",
        "execution/arguments.py",
        "    if warn:\n",
        "    if not warn:\n",
        UNKNOWN,
    ),
    Mutation(
        "names of dropped arguments are logged at any length",
        "execution/arguments.py",
        "map(shown, islice(sorted(unknown), _NAMED))",
        "map(str, islice(sorted(unknown), _NAMED))",
        UNKNOWN,
    ),
    Mutation(
        "a body has characters that SQS rejects",
        "wire/invocation.py",
        "return body if body.isascii() else re.sub(_UNSENDABLE, _escaped, body)",
        "return body",
        SQS + "::test_body_has_only_characters_that_sqs_accepts",
    ),
    Mutation(
        "an INSERT of messages counts characters",
        "backends/outbox.py",
        'return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))',
        "return len(text)",
        "tests/backends/test_outbox.py::test_bytes_of_one_insert_are_limited",
    ),
    Mutation(
        "escaped characters of a row are sent escaped",
        "backends/rows.py",
        'call.to_body() if "\\\\u" in message.body else message.body',
        "message.body",
        "tests/backends/test_outbox.py::test_escaped_row_is_sent_compactly",
    ),
    Mutation(
        "a task that no worker can import is sent",
        "sending/outgoing.py",
        "if job.message.n_retries == 0 and (reason := registry.unimportable_reason(job.task)):",
        "if job.message.n_retries < 0 and (reason := registry.unimportable_reason(job.task)):",
        DECORATOR + "::TestUnreachable",
    ),
    Mutation(
        "a task of a factory is sent after another took its name",
        "registry.py",
        "known.function is task.function and _is_kept(task)",
        "_is_kept(task)",
        DECORATOR + "::TestReachable",
    ),
    Mutation(
        "a type that is always ignored may be listed as retried",
        "definition/options.py",
        "if issubclass(error_type, ignored):",
        "if error_type is ignored:",
        DECORATOR + "::TestRefusedOptions",
    ),
    Mutation(
        "a task in a dataclass becomes a dict",
        "definition/task.py",
        "    _OptionAttributes = object\n",
        "    _OptionAttributes = Options\n",
        DECORATOR + "::TestCopies",
    ),
    Mutation(
        "the choices of unions are not noted",
        "definition/converting.py",
        "        if not self._has_choices:\n",
        "        if True:\n",
        "tests/definition/test_unions.py",
    ),
)
