"""Sign messages, so that workers run only those of senders that know a key.

The signature is the last field of the body, and is computed from the body without it and from the attributes that the
library reads. No error, log line or `repr()` of the library contains a key.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Final

from lambda_tasks.exceptions import InvalidSignature
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.attributes import CONTEXT_ATTRIBUTE, OWN_ATTRIBUTES

_SIGNED: Final = OWN_ATTRIBUTES | {CONTEXT_ATTRIBUTE}
#: Matches the end of a signed body. A digest of SHA-256 has 43 characters in base64, without padding.
_END: Final = re.compile(r',"signature":"([A-Za-z0-9_-]{43})"\}\Z')
#: The bytes by which a signature makes a body larger.
SIGNATURE_BYTES: Final = len(',"signature":""') + 43
#: What is signed begins with this text, so that a key that is also used elsewhere signs nothing else in this form.
_PURPOSE: Final = b"lambda_tasks message 1\n"


def signed_if_configured(body: str, attributes: Mapping[str, str]) -> str:
    """Return `body` with a signature by the first key of LAMBDA_TASKS_SIGNING_KEYS, or as it is without keys."""
    keys = app_settings.signing_keys
    return signed(body, attributes, keys[0]) if keys else body


def signed(body: str, attributes: Mapping[str, str], key: str) -> str:
    """Return `body`, a JSON object that is not empty and has no signature, with a signature by `key`."""
    return f'{body[:-1]},"signature":"{_digest(body, attributes, key)}"}}'


def signed_again(body: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return `body` for other attributes. It is returned unchanged unless one of the keys has signed it `before`."""
    if not (keys := app_settings.signing_keys) or not _END.search(body):
        return body
    try:
        verify(body, before, keys)
    except InvalidSignature:
        return body
    return signed(_END.sub("}", body), after, keys[0])


def verify(body: str, attributes: Mapping[str, str], keys: Sequence[str]) -> None:
    """Raise `InvalidSignature` unless one of `keys` has signed a message, or unsigned messages are accepted now."""
    match = _END.search(body)
    if match is None:
        if _accepts_unsigned(app_settings.accept_unsigned):
            return
        raise InvalidSignature(
            "The message is not signed, and LAMBDA_TASKS_SIGNING_KEYS is set. Give its sender a key, or set "
            "LAMBDA_TASKS_ACCEPT_UNSIGNED until all senders have one."
        )
    plain = f"{body[: match.start()]}}}"
    for key in keys:
        if hmac.compare_digest(_digest(plain, attributes, key), match[1]):
            return
    raise InvalidSignature(
        "No key in LAMBDA_TASKS_SIGNING_KEYS has signed the message. It was changed, or another program has signed it, "
        "or its key was removed from the setting."
    )


def _accepts_unsigned(setting: bool | datetime) -> bool:
    return setting if isinstance(setting, bool) else datetime.now(timezone.utc) < setting


def _digest(body: str, attributes: Mapping[str, str], key: str) -> str:
    hashed = hmac.new(key.encode(), _PURPOSE, "sha256")
    # The length of each part comes first, so that no two messages have the same text.
    for name in sorted(_SIGNED & attributes.keys()):
        for part in (name.encode(), attributes[name].encode("utf-8", "surrogatepass")):
            hashed.update(b"%d:%b" % (len(part), part))
    hashed.update(b"body:")
    hashed.update(body.encode("utf-8", "surrogatepass"))
    return urlsafe_b64encode(hashed.digest()).decode().rstrip("=")
