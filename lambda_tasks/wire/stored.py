"""The reference in a message to arguments that are stored elsewhere, because they are too large for the message."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any, Final

from lambda_tasks.foundation.frozen import frozen

#: The place of arguments in a database. The alias of the database follows.
DATABASE: Final = "database:"
#: The place of arguments in a bucket of Amazon S3. The name of the bucket and an optional prefix follow.
S3: Final = "s3://"

_MAX_PLACE: Final = 1_200
_KEY: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DIGEST: Final = r"[0-9a-f]{64}"
_FIELDS: Final = frozenset({"place", "key", "bytes", "sha256"})


@frozen
class Stored:
    """Where the arguments of an invocation are, and what they are: their size in bytes, and their digest."""

    #: `database:` with the alias of a database, or `s3://` with a bucket and a prefix.
    place: str
    key: str
    size: int
    digest: str

    @classmethod
    def of(cls, text: str, *, place: str, key: str) -> Stored:
        """Return the reference to `text`, which is stored under `key`."""
        content = text.encode()
        return cls(place, key, len(content), sha256(content).hexdigest())

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Stored:
        """Return the reference in a message, in which `problem_of` has found no problem."""
        return cls(value["place"], value["key"], value["bytes"], value["sha256"])

    @property
    def is_in_database(self) -> bool:
        return self.place.startswith(DATABASE)

    def to_json(self) -> dict[str, Any]:
        return {"place": self.place, "key": self.key, "bytes": self.size, "sha256": self.digest}

    def belongs_to(self, text: str) -> bool:
        """Return whether `text` is what was stored."""
        content = text.encode("utf-8", "surrogatepass")
        return len(content) == self.size and sha256(content).hexdigest() == self.digest

    def __str__(self) -> str:
        return f"{self.size:,} bytes in {self.place}, key {self.key}"


def problem_of(value: Any) -> str | None:
    """Return why `value`, decoded from JSON, is not a reference to stored arguments; None if it is one."""
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        return f"must be an object with {', '.join(sorted(_FIELDS))}"
    place = value["place"]
    if not isinstance(place, str) or not place.startswith((DATABASE, S3)) or len(place) > _MAX_PLACE:
        return f"place: must be a string that begins with {DATABASE} or {S3}"
    if not isinstance(value["key"], str) or not re.fullmatch(_KEY, value["key"]):
        return "key: must be a UUID"
    if type(value["bytes"]) is not int or value["bytes"] < 0:
        return "bytes: must be an integer of at least 0"
    if not isinstance(value["sha256"], str) or not re.fullmatch(_DIGEST, value["sha256"]):
        return "sha256: must be 64 hexadecimal digits"
    return None
