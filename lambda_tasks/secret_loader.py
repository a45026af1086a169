"""Load settings from AWS Secrets Manager into the environment before Django starts.

`LAMBDA_TASKS_SECRET_FOO=<arn>:<json-key>:<version-stage>:<version-id>` requests the variable
`FOO`. `resolve_secrets_into_env()` sets it, and the settings module reads `os.environ` as usual.

**How secrets stay hidden.** The messages, exception chains, `repr`s and log lines of this module
do not contain secrets, and neither do the local variables of frames that raise its errors. A
fetched secret is wrapped in a `_Secret`, whose `repr` does not show it, and functions that handle
the plain text return a description of the problem instead of raising an exception. At DEBUG,
`botocore` would write the response body to its own log, which this module suppresses.

This module cannot protect `os.environ` itself (setting it is the purpose), the frames of botocore,
urllib3 and `http.client` if a connection breaks during a response, an interrupt
(`KeyboardInterrupt`, `MemoryError`) while a plain text is being handled, and code that reads
this module's globals on purpose.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from lambda_tasks.foundation.forks import ForkSafeLock
from lambda_tasks.foundation.frozen import frozen

__all__ = ["forget_secrets", "resolve_secrets_into_env"]

PREFIX = "LAMBDA_TASKS_SECRET_"

# Version 0.8 read all variables from the secret of this name.
_FORMER = "LAMBDA_TASKS_ENVIRONMENT_SECRETS_MANAGER_ARN"

_SHAPE = "<arn>:<json-key>:<version-stage>:<version-id>"
_ARN_SEGMENTS = 7
_SEGMENTS = _ARN_SEGMENTS + 3
_ARN = r"arn:[a-z][a-z0-9-]*:secretsmanager:[a-z0-9]+(-[a-z0-9]+)+:[0-9]+:secret:[^:\s]+"

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
# Variables that dynamic linkers, shells, interpreters, TLS libraries, Django's startup, and AWS's runtime and SDKs
# read. Their values determine which code runs, or its identity, so anyone who can write the secret could run any code.
_REFUSED = (
    r"(LD|DYLD|_LAMBDA|_X_AMZN|AWS_LAMBDA|AWS_CONTAINER|GIT_CONFIG)_\w*|AWS_ENDPOINT_URL\w*|PYTHON\w*|PERL5\w*"
    r"|AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|SECURITY_TOKEN|PROFILE|DEFAULT_PROFILE|CONFIG_FILE"
    r"|SHARED_CREDENTIALS_FILE|CA_BUNDLE|DATA_PATH|ROLE_ARN|WEB_IDENTITY_TOKEN_FILE|REGION|DEFAULT_REGION|EXECUTION_ENV)"
    r"|BOTO_CONFIG|LAMBDA_TASK_ROOT|LAMBDA_RUNTIME_DIR|_HANDLER|DJANGO_SETTINGS_MODULE|PATH|HOME|TMPDIR|_"
    r"|SHELL|SHELLOPTS|BASHOPTS|BASH_ENV|IFS|PS4|PROMPT_COMMAND|CDPATH|BROWSER|EDITOR|VISUAL|PAGER"
    r"|GCONV_PATH|GLIBC_TUNABLES|LOCPATH|NLSPATH|RUBYLIB|RUBYOPT|NODE_OPTIONS|NODE_PATH|CLASSPATH"
    r"|(_JAVA|JAVA_TOOL|JDK_JAVA)_OPTIONS|GIT_(SSH|SSH_COMMAND|ASKPASS|EXEC_PATH|PROXY_COMMAND)|SSH_ASKPASS"
    r"|OPENSSL_(CONF|MODULES|ENGINES)|SSL_CERT_(FILE|DIR)|SSLKEYLOGFILE|(REQUESTS|CURL)_CA_BUNDLE"
)

_CONNECT_TIMEOUT_SECONDS = 2
_READ_TIMEOUT_SECONDS = 5
_ATTEMPTS = 3  # including the first one; botocore's standard mode waits with jitter between attempts

logger = logging.getLogger(__name__)


def resolve_secrets_into_env() -> None:
    """Set `FOO` from the secret that `LAMBDA_TASKS_SECRET_FOO` refers to, for every such variable.

    It sets either all variables or none: it checks every reference before the first call to AWS,
    and has every value before it sets the first variable. If a call raises an exception, the
    environment and the cache are unchanged, and the next call starts from the beginning. After a
    successful call, another one changes nothing and fetches only secrets that it has not fetched
    before. A variable that this process has set itself does not conflict with its reference.
    Without references, boto3 is not imported.

    It makes one `GetSecretValue` call for each (ARN, version stage, version id), in the region of
    the ARN.

    Raises `ValueError` for invalid references and secrets, with one line for each of them.
    Exceptions from boto3 (`ClientError`, `BotoCoreError`) propagate, with the variables, the ARN and
    a remedy added to their messages.
    """
    with _lock:
        references = _read_references(list(os.environ), os.getenv)
        secrets = _fetched | _fetch_missing(references)
        _refuse(_flaws(references, secrets))
        for reference in references:
            _set_variable(reference, secrets[reference.version])
        _fetched.update(secrets)


def forget_secrets() -> None:
    """Clear the cached secrets, and unset the variables that `resolve_secrets_into_env()` has set.

    The next `resolve_secrets_into_env()` then fetches the secrets again. This is intended for tests
    and for Lambda SnapStart: the handler calls it before the snapshot is taken. A variable that other
    code has changed since then is kept.

    Values that were already read from the environment are not affected: Django's settings keep the
    values that they have read. Python does not overwrite the memory that it frees, so a snapshot may
    still contain a secret that was fetched before.
    """
    with _lock:
        for target in _written:
            if _is_ours(target):
                del os.environ[target]
        _written.clear()
        _fetched.clear()


# References


@frozen
class _Version:
    """One version of one secret, which a single call fetches."""

    arn: str
    stage: str
    id: str

    @property
    def region(self) -> str:
        return self.arn.split(":")[3]

    def __str__(self) -> str:
        return f"{self.arn} (version stage {self.stage}, version id {self.id})"


@frozen
class _Reference:
    """The content of `variable`: a reference to the field `key` of `version`, whose value is set as `target`."""

    variable: str
    version: _Version
    key: str

    @property
    def target(self) -> str:
        return self.variable.removeprefix(PREFIX)


def arns_of_secrets(references: Mapping[str, str]) -> list[str]:
    """Return the ARNs of the secrets that references name, without fetching anything.

    `references` maps variables, with the prefix, to their values. Raises `ValueError` for invalid references, as
    `resolve_secrets_into_env()` does.
    """

    def read(name: str) -> str | None:  # unlike that of `references.get`, its `repr` does not contain the values
        return references.get(name)

    found = _read_references(references, read)
    return sorted({reference.version.arn for reference in found})


def _read_references(names: Iterable[str], read: Callable[[str], str | None]) -> list[_Reference]:
    names = list(names)
    variables = sorted(name for name in names if name.startswith(PREFIX))
    if _FORMER in names and not variables:
        _refuse([f"{_FORMER} is a variable of version 0.8. Set {PREFIX}<key>={_SHAPE} for each key of the secret."])
    _refuse(problem for variable in variables for problem in _problems_with(variable, read))
    return [_reference(variable, read) for variable in variables]


def _problems_with(variable: str, read: Callable[[str], str | None]) -> Iterator[str]:
    # The messages do not show the value of a variable until it is known to be a reference: the most
    # likely mistake is to put the secret itself there.
    target = variable.removeprefix(PREFIX)
    if target and not re.fullmatch(_IDENTIFIER, target):
        yield (
            f"{variable!r} must end with a valid variable name, not {target!r}. Use letters, digits and "
            "underscores, and do not start with a digit."
        )
        return
    if not target:
        yield f"{variable} must end with the name of the variable to set. Append it, as in {PREFIX}DATABASE_URL."
    elif target.startswith(PREFIX):
        yield f"{variable} must not set another reference. Write the prefix {PREFIX} only once."
    elif re.fullmatch(_REFUSED, target):
        yield (
            f"{variable} must not set {target}, which determines what code processes run or whom they trust. "
            "Set it in the function's configuration, or choose another name."
        )
    elif read(target) is not None and not _is_ours(target):
        yield (
            f"Both {variable} and {target} are set. Unset {target} to take the value from "
            f"Secrets Manager, or unset {variable} to keep the plain value."
        )

    segments = _segments(read(variable))
    if len(segments) != _SEGMENTS:
        yield (
            f"{variable} must have {_SEGMENTS} segments separated by colons, not {len(segments)}. "
            f"Write it as {_SHAPE}, where the ARN has {_ARN_SEGMENTS} of them. "
            "(Its value is not shown, in case it is the secret itself.)"
        )
        return
    if not re.fullmatch(_ARN, ":".join(segments[:_ARN_SEGMENTS])):
        yield (
            f"{variable} must start with the ARN of a Secrets Manager secret. Write "
            "arn:<partition>:secretsmanager:<region>:<account>:secret:<name> before the json-key. "
            "(Its value is not shown, in case it is the secret itself.)"
        )
    names = ("json-key", "version-stage", "version-id")
    for name, segment in zip(names, segments[_ARN_SEGMENTS:], strict=True):
        if not segment:
            yield f"{variable} must not have an empty {name}. Write all four parts of {_SHAPE}."


def _reference(variable: str, read: Callable[[str], str | None]) -> _Reference:
    *arn, key, stage, version_id = _segments(read(variable))
    return _Reference(variable, _Version(":".join(arn), stage, version_id), key)


def _segments(value: str | None) -> list[str]:
    # Template languages often leave a newline at the end, which a reference cannot contain.
    return (value or "").strip().split(":")


# Secrets

_NO_TEXT = object()
_NOT_JSON = object()


class _Secret:
    """The content of a fetched secret. Its `repr` does not show it, so any frame may contain this object."""

    __slots__ = ("_content",)

    def __init__(self, response: Mapping[str, Any]) -> None:
        text = response.get("SecretString")
        self._content = _NO_TEXT if text is None else _decode(text)

    def __repr__(self) -> str:
        return "<secret, not shown>"

    def value(self, key: str) -> str:
        """Return the field *key*, for which `flaw()` must have returned None."""
        fields: Any = self._content
        value: str = fields[key]
        return value

    def flaw(self, key: str) -> str | None:
        """Return why *key* cannot be read from this secret, and a remedy; None if it can be read."""
        content = self._content
        if content is _NO_TEXT:
            return "it contains binary data; store a JSON object as a string (SecretString)"
        if content is _NOT_JSON:
            return "it is not valid JSON; store a JSON object"
        if not isinstance(content, dict):
            return f"it is not a JSON object but {_kind(content)}; store a JSON object"
        if key not in content:
            return f"it does not contain the key {key!r}; add the key to the secret, or correct the json-key"
        return _flaw_of_field(key, content[key])


def _decode(text: str) -> object:
    # A JSONDecodeError contains the whole text, so it must not become the __context__ of another error. Therefore, this
    # function returns a marker, and its callers raise their errors outside of this except block.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _flaw_of_field(key: str, value: object) -> str | None:
    if not isinstance(value, str):
        return f"the value of its key {key!r} is {_kind(value)}, not a string; store a string"
    if not _fits_the_environment(value):
        return (
            f"the value of its key {key!r} has a character that an environment variable cannot contain "
            "(NUL, or one that cannot be encoded); store it encoded, for example in base64"
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
    # Imported here because the import takes a considerable part of a second, which would slow down the
    # cold start of functions without references.
    import boto3
    from botocore.config import Config

    from lambda_tasks.real_aws import guarded

    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=_READ_TIMEOUT_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    return guarded(boto3.client("secretsmanager", region_name=region, config=config))


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
        # add_note() does not exist in Python 3.10, and Lambda reports str(error) without its notes.
        code = type(error).__name__
        if isinstance(error, ClientError):
            code = error.response.get("Error", {}).get("Code", code)
        error.args = (f"{error}\n{_explanation(code, version, variables)}",)
        raise


def _explanation(code: str, version: _Version, variables: Iterable[str]) -> str:
    failure = f"The error occurred while resolving {', '.join(variables)} from {version}, and no variable was set."
    return f"{failure} {_REMEDIES.get(code, _ANY_OTHER_REMEDY)}"


_REMEDIES = {
    "AccessDeniedException": (
        "Grant the function's role secretsmanager:GetSecretValue on this ARN, "
        "and kms:Decrypt if the secret has its own KMS key."
    ),
    "ResourceNotFoundException": (
        "Check the name, account and region in the ARN, and that this version exists: "
        "aws secretsmanager list-secret-version-ids --secret-id <arn>."
    ),
    "InvalidRequestException": (
        "The version stage and the version id must name the same version, which is no longer the case "
        "when a rotation moves the stage. Put the id that has the stage now into the reference. "
        "A secret that is scheduled for deletion is rejected as well."
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
    # At DEBUG, this logger writes every response body, and AWS_LAMBDA_LOG_LEVEL=DEBUG is enough to
    # write the secrets to CloudWatch. So this filter drops the lines of this thread during the call.
    parsers, fetching_thread = logging.getLogger("botocore.parsers"), threading.get_ident()

    def from_elsewhere(_record: logging.LogRecord) -> bool:
        return threading.get_ident() != fetching_thread

    parsers.addFilter(from_elsewhere)
    try:
        yield
    finally:
        parsers.removeFilter(from_elsewhere)


# The state of this process

_lock = ForkSafeLock()
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
