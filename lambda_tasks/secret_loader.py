"""Settings from AWS Secrets Manager, put into the environment before Django starts.

`LAMBDA_TASKS_SECRET_FOO=<arn>:<json-key>:<version-stage>:<version-id>` asks for the variable
`FOO`. `resolve_secrets_into_env()` sets it; the settings module reads `os.environ` as ever.

**How secrets are kept out of sight.** No message, exception chain, `repr` or log line of this
module holds a secret, nor does a local variable of a frame that raises one of its errors: what
was fetched travels in a `_Secret`, whose `repr` shows nothing, and functions that touch the bare
text answer with what is wrong instead of raising. `botocore` would write the response body to
its own log at DEBUG; that is held back too. Beyond its reach are `os.environ` itself (the
point of the exercise), the frames of botocore, urllib3 and `http.client` if a connection breaks
in the middle of an answer, an interrupt (`KeyboardInterrupt`, `MemoryError`) that hits while
a bare text is in hand, and whoever looks into this module's globals on purpose.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["forget_secrets", "resolve_secrets_into_env"]

PREFIX = "LAMBDA_TASKS_SECRET_"

_SHAPE = "<arn>:<json-key>:<version-stage>:<version-id>"
_ARN_SEGMENTS = 7
_SEGMENTS = _ARN_SEGMENTS + 3
_ARN = re.compile(r"arn:[a-z][a-z0-9-]*:secretsmanager:[a-z0-9]+(-[a-z0-9]+)+:[0-9]+:secret:[^:\s]+")

_CONNECT_TIMEOUT_SECONDS = 2
_READ_TIMEOUT_SECONDS = 5
_ATTEMPTS = 3  # the first one included; botocore's standard mode waits with jitter in between

logger = logging.getLogger(__name__)


def resolve_secrets_into_env() -> None:
    """Set `FOO` from the secret that `LAMBDA_TASKS_SECRET_FOO` refers to, for every such variable.

    All or nothing: every reference is checked before the first call to AWS, and every value is at
    hand before the first variable is set. A call that raises leaves the environment and the cache
    as they were, so the next one starts afresh. A call after a successful one changes nothing and
    asks AWS for nothing but what it has not seen: what this process set itself is no conflict with
    the reference that it came from. Without references, boto3 is not even imported.

    One `GetSecretValue` call is made for each (ARN, version stage, version id), in the region that
    the ARN names.

    Raises `ValueError` for references and secrets that cannot be used; it tells of all of them at
    once, a line each. What boto3 raises (`ClientError`, `BotoCoreError`) passes through with the
    variables, the ARN and a remedy added to its message.
    """
    with _lock:
        references = _read_references()
        secrets = _fetched | _fetch_missing(references)
        _refuse(_flaws(references, secrets))
        for reference in references:
            _set_variable(reference, secrets[reference.version])
        _fetched.update(secrets)


def forget_secrets() -> None:
    """Drop the cached secrets, and unset the variables that `resolve_secrets_into_env()` set.

    The next `resolve_secrets_into_env()` then asks AWS again. Meant for Lambda SnapStart, so that
    no secret of this module lies in the snapshot (forget before it is taken, resolve after each
    restore), and for tests. A variable that was changed since is somebody else's and stays.

    What has been read from the environment meanwhile is out of reach: Django's settings keep
    the value they saw.
    """
    with _lock:
        for target in _written:
            if _is_ours(target):
                del os.environ[target]
        _written.clear()
        _fetched.clear()


# References: what is asked for


@dataclass(frozen=True, slots=True)
class _Version:
    """One version of one secret: what a single call brings."""

    arn: str
    stage: str
    id: str

    @property
    def region(self) -> str:
        return self.arn.split(":")[3]

    def __str__(self) -> str:
        return f"{self.arn} (version stage {self.stage}, version id {self.id})"


@dataclass(frozen=True, slots=True)
class _Reference:
    """What `variable` asks for: the field `key` of `version`, to be set as `target`."""

    variable: str
    version: _Version
    key: str

    @property
    def target(self) -> str:
        return self.variable.removeprefix(PREFIX)


def _read_references() -> list[_Reference]:
    variables = sorted(name for name in os.environ if name.startswith(PREFIX))
    _refuse(problem for variable in variables for problem in _problems_with(variable))
    return [_reference(variable) for variable in variables]


def _problems_with(variable: str) -> Iterator[str]:
    # No message shows what a variable holds before it is known to be a reference: the likeliest
    # mistake is to put the secret itself there.
    target = variable.removeprefix(PREFIX)
    if not target:
        yield f"{variable} names no variable to set; append one, as in {PREFIX}DATABASE_URL."
    elif target.startswith(PREFIX):
        yield f"{variable} would set another reference; write the prefix {PREFIX} only once."
    elif target in os.environ and not _is_ours(target):
        yield (
            f"Both {variable} and {target} are set. Unset {target} to take the value from "
            f"Secrets Manager, or unset {variable} to keep the plain one."
        )

    segments = _segments(variable)
    if len(segments) != _SEGMENTS:
        yield (
            f"{variable} has {len(segments)} segments between colons, not {_SEGMENTS}; "
            f"write it as {_SHAPE}, where the ARN has {_ARN_SEGMENTS} of them. "
            "(Its value is not shown here, in case it is the secret itself.)"
        )
        return
    if not _ARN.fullmatch(":".join(segments[:_ARN_SEGMENTS])):
        yield (
            f"{variable} does not begin with the ARN of a Secrets Manager secret; write "
            "arn:<partition>:secretsmanager:<region>:<account>:secret:<name> before the json-key. "
            "(Its value is not shown here, in case it is the secret itself.)"
        )
    names = ("json-key", "version-stage", "version-id")
    for name, segment in zip(names, segments[_ARN_SEGMENTS:], strict=True):
        if not segment:
            yield f"{variable} has an empty {name}; write all four parts of {_SHAPE}."


def _reference(variable: str) -> _Reference:
    *arn, key, stage, version_id = _segments(variable)
    return _Reference(variable, _Version(":".join(arn), stage, version_id), key)


def _segments(variable: str) -> list[str]:
    # A template language likes to leave a newline at the end, and no reference can hold one.
    return os.environ[variable].strip().split(":")


# Secrets: what AWS answers

_NO_TEXT = object()
_NOT_JSON = object()


class _Secret:
    """What one call brought. Its `repr` says nothing, so it may lie in any frame."""

    __slots__ = ("_content",)

    def __init__(self, response: Mapping[str, Any]) -> None:
        text = response.get("SecretString")
        self._content = _NO_TEXT if text is None else _decode(text)

    def __repr__(self) -> str:
        return "<secret, not shown>"

    def value(self, key: str) -> str:
        """The field *key*, of a secret in which it has no flaw."""
        fields: Any = self._content
        value: str = fields[key]
        return value

    def flaw(self, key: str) -> str | None:
        """Why *key* cannot be had from this secret, and what to do; None if it can."""
        content = self._content
        if content is _NO_TEXT:
            return "it holds binary data; store it as text (SecretString), a JSON object"
        if content is _NOT_JSON:
            return "it is not valid JSON; store a JSON object"
        if not isinstance(content, dict):
            return f"it is not a JSON object but {_kind(content)}; store a JSON object"
        if key not in content:
            return f"it has no key {key!r}; add the key to the secret, or correct the json-key"
        return _flaw_of_field(key, content[key])


def _decode(text: str) -> object:
    # A JSONDecodeError carries the whole text, so it must not become anybody's __context__:
    # it ends here, and whoever raises does so outside of this except block.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _flaw_of_field(key: str, value: object) -> str | None:
    if not isinstance(value, str):
        return f"its key {key!r} holds {_kind(value)}, not a string; store a string there"
    if not _fits_the_environment(value):
        return (
            f"its key {key!r} has a character that an environment variable cannot hold "
            "(NUL, or one that cannot be encoded); store it encoded, in base64 for example"
        )
    return None


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _fits_the_environment(value: str) -> bool:
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _flaws(references: Iterable[_Reference], secrets: Mapping[_Version, _Secret]) -> Iterator[str]:
    for reference in references:
        flaw = secrets[reference.version].flaw(reference.key)
        if flaw:
            yield f"{reference.variable} refers to {reference.version}, but {flaw}."


# Fetching


def _fetch_missing(references: Iterable[_Reference]) -> dict[_Version, _Secret]:
    missing: dict[_Version, list[str]] = {}
    for reference in references:
        if reference.version not in _fetched:
            missing.setdefault(reference.version, []).append(reference.variable)

    secrets: dict[_Version, _Secret] = {}
    for region in sorted({version.region for version in missing}):
        with closing(_client(region)) as client:
            for version, variables in missing.items():
                if version.region == region:
                    secrets[version] = _fetch(client, version, variables)
    return secrets


def _client(region: str) -> Any:
    # Imported here because it costs a cold start a good part of a second, which a function
    # without references should not have to pay.
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=_READ_TIMEOUT_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    return boto3.client("secretsmanager", region_name=region, config=config)


def _fetch(client: Any, version: _Version, variables: Iterable[str]) -> _Secret:
    logger.info("Fetching %s for %s", version, ", ".join(variables))
    with _explaining_errors(version, variables), _response_bodies_unlogged():
        return _Secret(client.get_secret_value(SecretId=version.arn, VersionStage=version.stage, VersionId=version.id))


@contextmanager
def _explaining_errors(version: _Version, variables: Iterable[str]) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        # Not add_note(): Python 3.10 has none, and Lambda reports str(error) without its notes.
        code = type(error).__name__
        if isinstance(error, ClientError):
            code = error.response.get("Error", {}).get("Code", code)
        error.args = (f"{error}\n{_explanation(code, version, variables)}",)
        raise


def _explanation(code: str, version: _Version, variables: Iterable[str]) -> str:
    wanted = f"This was to resolve {', '.join(variables)} from {version}; no variable was set."
    return f"{wanted} {_REMEDIES.get(code, _ANY_OTHER_REMEDY)}"


_REMEDIES = {
    "AccessDeniedException": (
        "Allow secretsmanager:GetSecretValue on this ARN to the function's role, "
        "and kms:Decrypt if the secret has a KMS key of its own."
    ),
    "ResourceNotFoundException": (
        "Check name, account and region in the ARN, and that this version exists: "
        "aws secretsmanager list-secret-version-ids --secret-id <arn>."
    ),
    "InvalidRequestException": (
        "Version stage and version id must name the same version, which ceases to be so when a "
        "rotation moves the stage; put the id that has the stage now into the reference. "
        "A secret that is scheduled for deletion is refused as well."
    ),
    "ParamValidationError": (
        "A version id has 32 to 64 characters; find it with "
        "aws secretsmanager list-secret-version-ids --secret-id <arn>."
    ),
    "NoCredentialsError": "Give this process AWS credentials, or unset the reference and set the plain variable.",
}
_ANY_OTHER_REMEDY = (
    "Check that the function reaches Secrets Manager in that region (in a VPC: a NAT gateway "
    "or an interface endpoint) and may use the secret and its KMS key."
)


@contextmanager
def _response_bodies_unlogged() -> Iterator[None]:
    # At DEBUG this logger writes every response body. AWS_LAMBDA_LOG_LEVEL=DEBUG is enough to
    # put the secrets into CloudWatch, so what it says about this thread is dropped meanwhile.
    parsers, fetching_thread = logging.getLogger("botocore.parsers"), threading.get_ident()

    def from_elsewhere(_record: logging.LogRecord) -> bool:
        return threading.get_ident() != fetching_thread

    parsers.addFilter(from_elsewhere)
    try:
        yield
    finally:
        parsers.removeFilter(from_elsewhere)


# What this process has done so far

_lock = threading.Lock()
_fetched: dict[_Version, _Secret] = {}
_written: dict[str, str] = {}


def _is_ours(target: str) -> bool:
    return target in _written and os.environ.get(target) == _written[target]


def _set_variable(reference: _Reference, secret: _Secret) -> None:
    _written[reference.target] = os.environ[reference.target] = secret.value(reference.key)


def _refuse(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))
