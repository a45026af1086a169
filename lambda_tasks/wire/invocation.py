"""Read and write the invocation of a task in the body of a message, without pydantic."""

from __future__ import annotations

import json
import math
import re
from dataclasses import field, replace
from functools import lru_cache
from typing import Any, Final

from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.recording.storable import MAX_DEPTH, shown, unstorable
from lambda_tasks.wire.foreign import kind_of, kind_of_text
from lambda_tasks.wire.stored import Stored
from lambda_tasks.wire.stored import problem_of as problem_of_stored

# Most processes need none of the expressions, which are not compiled until then.
_NAME_PART: Final = r"[^\s.\x00-\x1f\x7f-\x9f\ud800-\udfff]+"
#: Matches task names: dotted paths of at least two parts, without spaces, control characters and lone surrogates.
_TASK_NAME: Final = rf"{_NAME_PART}(\.{_NAME_PART})+"
#: The limits of the columns of a record.
MAX_NAME_LENGTH: Final = 255
MAX_RETRY_NUMBER: Final = 2**31 - 1
#: The number of unknown fields that an error names.
_NAMED: Final = 5
_REMEDY: Final = ". The fields of an invocation are task_name, kwargs and n_retries"
_FIELDS: Final = frozenset({"task_name", "kwargs", "n_retries", "stored", "signature"})
#: Matches a possible NUL or lone surrogate, escaped or not. Only if it matches, every string is checked.
_SUSPICIOUS: Final = r"\\u(?:0000|[dD][89a-fA-F])|[\ud800-\udfff]"

_encoder: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False)
#: Matches what must be escaped in a body: the characters that SQS rejects, and lone surrogates, which UTF-8 lacks.
#: JSON escapes the control characters.
_UNSENDABLE: Final = "[\ud800-\udfff\ufffe\uffff]"


@lru_cache(maxsize=1_000)
def is_task_name(text: str) -> bool:
    """Return whether `text` may be the name of a task."""
    if text.replace(".", "").isidentifier() and "." in text and ".." not in text and text.strip(".") == text:
        return True  # nearly every name
    return re.fullmatch(_TASK_NAME, text) is not None


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_a_number(text)


def _not_a_number(text: str) -> Any:
    raise ValueError("a number is NaN or infinite, which JSON cannot represent")


_decoder: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_not_a_number)


@frozen
class Invocation:
    """One call of a task: its name, its arguments as JSON values, and how often it was retried."""

    task_name: str
    kwargs: dict[str, Any] = field(repr=False)
    n_retries: int
    #: Where the arguments are, if they are too large for a message. A message has no `kwargs` then: see `with_stored`.
    stored: Stored | None

    def __init__(
        self, task_name: str, kwargs: dict[str, Any] | None = None, n_retries: int = 0, stored: Stored | None = None
    ) -> None:
        vars(self).update(
            task_name=task_name, kwargs={} if kwargs is None else kwargs, n_retries=n_retries, stored=stored
        )

    @classmethod
    def of_body(cls, body: str) -> Invocation:
        """Read the body of a message, or raise `InvalidMessage`, which does not quote the arguments."""
        try:
            content = _decoder.decode(body)
        except RecursionError:
            problem: str | None = f"kwargs: is nested more than {MAX_DEPTH - 1} levels deep"
        except ValueError as error:
            problem = kind_of_text(body) or f"body: {_without_text(error)}"
        else:
            problem = _problem_of(content, body)
        if problem is not None:
            # Raise outside of the except block, so that an error that contains the body is not chained to this one.
            raise InvalidMessage(f"The message is not a valid task invocation: {problem}")
        stored = Stored.of_json(content["stored"]) if "stored" in content else None
        return cls(content["task_name"], content.get("kwargs", {}), content.get("n_retries", 0), stored)

    def problem(self) -> str | None:
        """Return why `of_body` would reject this invocation; None if it would not."""
        content = {"task_name": self.task_name, "kwargs": self.kwargs, "n_retries": self.n_retries}
        return _problem_of(content, None)

    def to_body(self) -> str:
        """Return the body of a message as JSON, in which only the characters that SQS rejects are escaped."""
        shape: dict[str, Any] = {"task_name": self.task_name, "kwargs": self.kwargs}
        if self.stored is not None:
            shape = {"task_name": self.task_name, "stored": self.stored.to_json()}
        body = _encoder.encode(shape | {"n_retries": self.n_retries} if self.n_retries else shape)
        return body if body.isascii() else re.sub(_UNSENDABLE, _escaped, body)

    def kwargs_text(self) -> str:
        """Return the arguments as JSON in the same form, to be stored outside of the message."""
        return re.sub(_UNSENDABLE, _escaped, _encoder.encode(self.kwargs))

    def with_stored(self, text: str) -> Invocation:
        """Return this invocation with the arguments in `text`, which was stored outside of its message.

        Raise `InvalidMessage`, which does not quote the arguments, if the text does not contain arguments.
        """
        try:
            kwargs = _decoder.decode(text)
            problem = _problem_of_kwargs(kwargs, text)
        except (RecursionError, ValueError):
            problem = "is not valid JSON"
        if problem is not None:
            # Outside of the except block, as in `of_body`.
            raise InvalidMessage(f"The stored arguments of {self.task_name} are invalid: {problem}")
        return replace(self, kwargs=kwargs)

    def next_retry(self) -> Invocation:
        """Return the invocation that retries this one."""
        return replace(self, n_retries=self.n_retries + 1)


def _escaped(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"


def in_ascii(body: str) -> str:
    """Return the same JSON with every character escaped that is not ASCII, for a database with another charset."""
    return body if body.isascii() else re.sub("[^\x00-\x7f]", lambda character: json.dumps(character[0])[1:-1], body)


def _without_text(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON ({error.msg} at character {error.pos})"
    return str(error) if error.args and "JSON" in str(error) else "is not valid JSON (a number is too long)"


def _problem_of(content: Any, body: str | None) -> str | None:
    """Return the problem of a decoded `body`, without quoting an argument; None if it is valid."""
    if not isinstance(content, dict):
        return f"body: must be a JSON object, not {type(content).__name__}"
    if "task_name" not in content and (kind := kind_of(content)):
        return kind
    if not content.keys() <= _FIELDS:
        return _problem_of_fields(content)
    return (
        _problem_of_name(content)
        or _problem_of_retries(content.get("n_retries", 0))
        or _problem_of_kwargs(content.get("kwargs", {}), body)
        or (_problem_of_reference(content) if "stored" in content else None)
    )


def _problem_of_fields(content: dict[str, Any]) -> str:
    unknown = sorted(content.keys() - _FIELDS)
    names = ", ".join(repr(shown(name)) for name in unknown[:_NAMED])
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    return f"body: has unknown fields: {names}{more}{'' if 'task_name' in content else _REMEDY}"


def _problem_of_name(content: dict[str, Any]) -> str | None:
    if "task_name" not in content:
        return "task_name: is missing"
    name = content["task_name"]
    if not isinstance(name, str):
        return f"task_name: must be a string, not {type(name).__name__}"
    if len(name) > MAX_NAME_LENGTH:
        return f"task_name: must have at most {MAX_NAME_LENGTH} characters"
    if not is_task_name(name):
        return "task_name: must be the dotted path of a task"
    return None


def _problem_of_retries(n_retries: Any) -> str | None:
    if type(n_retries) is not int or not 0 <= n_retries <= MAX_RETRY_NUMBER:
        return f"n_retries: must be an integer from 0 to {MAX_RETRY_NUMBER}"
    return None


def _problem_of_reference(content: dict[str, Any]) -> str | None:
    if "kwargs" in content:
        return "stored: must be left out of a message with kwargs"
    problem = problem_of_stored(content["stored"])
    return None if problem is None else f"stored: {problem}"


def _problem_of_kwargs(kwargs: Any, body: str | None) -> str | None:
    if not isinstance(kwargs, dict):
        return f"kwargs: must be a JSON object, not {type(kwargs).__name__}"
    # A body with at most MAX_DEPTH opening brackets cannot be nested more deeply than that.
    harmless = (
        body is not None
        and body.count("[") + body.count("{") <= MAX_DEPTH
        and ((body.isascii() and "\\u" not in body) or not re.search(_SUSPICIOUS, body))
    )
    problem = None if harmless else unstorable(kwargs, uncounted=1)
    return None if problem is None else f"kwargs: {problem}"
