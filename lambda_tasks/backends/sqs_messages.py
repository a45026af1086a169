"""What SQS accepts as a message: its size, and the names and values of its attributes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.jobs import Job, carries_first_sent
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.attributes import FIRST_SENT_ATTRIBUTE, OWN_ATTRIBUTES, is_group
from lambda_tasks.wire.signing import SIGNATURE_BYTES

MAX_BYTES: Final = 1_048_576
#: The most bytes of a message with arguments that are stored outside of it, unless an option says otherwise. Records
#: contain arguments with all characters escaped, in up to 3.5 times as many bytes, and MariaDB accepts 16 MiB.
MAX_LARGE_BYTES: Final = 4 * 1_048_576
#: The most bytes of a body that refers to such arguments: the name of the task, the place and its key, escaped.
MAX_REFERENCE: Final = 4_096
MAX_ATTRIBUTES: Final = 10
#: Bytes by which a retry may be larger than the first message: its `n_retries`.
RETRY_HEADROOM: Final = len(',"n_retries":2147483647')
#: The bytes by which a signed retry may be larger than the first message without a signature.
MARGIN: Final = RETRY_HEADROOM + SIGNATURE_BYTES
_ATTRIBUTE_NAME: Final = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9_.-]{0,254}[A-Za-z0-9_-])?")
_ILLEGAL_CHARACTER: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def size(body: str, attributes: Mapping[str, str]) -> int:
    """Return the size as SQS counts it: the body, and the name, type and value of each attribute, in UTF-8."""
    texts = "".join([*attributes, *attributes.values()])
    return _bytes(body) + _bytes(texts) + len("String") * len(attributes)


def excessive_size(job: Job, attributes: Mapping[str, str], limit: int) -> int:
    """Return the size of the message of `job`, or of its largest retry, if it is more than `limit` bytes; otherwise 0.

    That is the size with a signature, if messages are signed.
    """
    whole = size(job.body, attributes) + RETRY_HEADROOM + (SIGNATURE_BYTES if app_settings.signing_keys else 0)
    return whole if whole > limit else 0


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def attributes_of_retry(job: Job) -> dict[str, str]:
    """Return the attributes of the job, and those that a retry of it adds: a retry must fit too."""
    attributes = job.message_attributes()
    if job.task is not None and carries_first_sent(job.task, job.root_id):
        attributes.setdefault(FIRST_SENT_ATTRIBUTE, "0" * len("1700000000000"))
    return attributes


def check_attributes(job: Job, attributes: Mapping[str, str], sent: Mapping[str, str]) -> None:
    """Refuse attributes that SQS rejects, or too many of them, as they are `sent`."""
    if len(sent) > MAX_ATTRIBUTES:
        raise InvalidArguments(
            f"The message of {job.task_name} must have at most {MAX_ATTRIBUTES} attributes, not {len(sent)} "
            f"({', '.join(sent)}). Let a plugin write several values into one attribute."
        )
    if job.group is not None and not is_group(job.group):
        raise InvalidArguments(
            f"The group of {job.task_name} must be 1 to 128 ASCII letters, digits and punctuation characters, without "
            f"spaces, not {job.group!r}."
        )
    for name, value in attributes.items():
        if name not in OWN_ATTRIBUTES and not _is_name(name):
            raise InvalidArguments(f"Message attribute {name!r} of {job.task_name} has a name that SQS rejects.")
        if not _is_text(value):
            raise InvalidArguments(
                f"Message attribute {name!r} of {job.task_name} must be a non-empty string of characters that SQS "
                "accepts."
            )


def _is_name(name: str) -> bool:
    return bool(
        _ATTRIBUTE_NAME.fullmatch(name) and ".." not in name and not name.lower().startswith(("aws.", "amazon."))
    )


def _is_text(value: object) -> bool:
    """Return whether SQS accepts `value`, which a plugin may have set regardless of its annotation."""
    if not isinstance(value, str) or not value:
        return False
    # Ids are printable ASCII, which needs no search.
    return (value.isascii() and value.isprintable()) or not _ILLEGAL_CHARACTER.search(value)
