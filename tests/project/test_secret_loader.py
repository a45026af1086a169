"""Settings from AWS Secrets Manager, tested with moto's HTTP server."""

import io
import json
import logging
import os
import socket
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ParamValidationError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from lambda_tasks.secret_loader import _client, forget_secrets, resolve_secrets_into_env

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:myapp/prod"
ANY_VERSION_ID = "0" * 32


@dataclass(frozen=True)
class Stored:
    """A version of a secret in Secrets Manager."""

    arn: str
    version_id: str

    def reference(self, key: str, *, stage: str = "AWSCURRENT") -> str:
        return f"{self.arn}:{key}:{stage}:{self.version_id}"


class SecretsManager:
    """Records the GetSecretValue calls to moto's server, and can refuse some of them.

    It is WSGI middleware in front of moto, so that it counts HTTP requests.
    """

    def __init__(self, moto: Callable[..., Any]) -> None:
        self.moto = moto
        self.calls: list[dict[str, str]] = []
        self.refusals: list[tuple[str, str]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ.get("HTTP_X_AMZ_TARGET") == "secretsmanager.GetSecretValue":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = io.BytesIO(body)
            self.calls.append(json.loads(body))
            if self.refusals:
                status, code = self.refusals.pop(0)
                start_response(status, [("Content-Type", "application/x-amz-json-1.1")])
                return [json.dumps({"__type": code, "message": "refused by the test"}).encode()]
        return self.moto(environ, start_response)

    def client(self, region: str) -> Any:
        return boto3.client("secretsmanager", region_name=region)

    def store(self, content: object, *, region: str = "eu-west-1") -> Stored:
        """Create a secret from a string, from bytes, or from the JSON of any other value."""
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        field = "SecretString" if isinstance(content, str) else "SecretBinary"
        answer = self.client(region).create_secret(Name=f"myapp/{uuid.uuid4().hex}", **{field: content})
        return Stored(answer["ARN"], answer["VersionId"])

    def rotate(self, secret: Stored, content: object) -> Stored:
        answer = self.client("eu-west-1").put_secret_value(SecretId=secret.arn, SecretString=json.dumps(content))
        return Stored(secret.arn, answer["VersionId"])


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, SecretsManager]]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    wsgi_server: Any = moto._server  # the server has no public attribute for its application
    wsgi_server.app = secrets_manager = SecretsManager(wsgi_server.app)
    yield f"http://{host}:{port}", secrets_manager
    moto.stop()


@pytest.fixture(autouse=True)
def secrets_manager(server: tuple[str, SecretsManager], monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretsManager]:
    """Remove references from the environment, and configure boto3 to use the server."""
    url, secrets_manager = server
    for name in [name for name in os.environ if name.startswith("LAMBDA_TASKS_SECRET_")]:
        monkeypatch.delenv(name)
    for name in ("DATABASE_URL", "SECRET_KEY", "API_KEY"):
        monkeypatch.setenv(name, "")  # so that monkeypatch removes values that a test sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    secrets_manager.calls.clear()
    secrets_manager.refusals.clear()
    forget_secrets()
    yield secrets_manager
    forget_secrets()


@pytest.fixture
def refer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function: `refer(FOO=reference)` sets LAMBDA_TASKS_SECRET_FOO."""

    def set_references(**references: str) -> None:
        for target, reference in references.items():
            monkeypatch.setenv(f"LAMBDA_TASKS_SECRET_{target}", reference)

    return set_references


def values(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


# Variables that are set


def test_named_key_becomes_the_variable_without_the_prefix(secrets_manager, refer):
    secret = secrets_manager.store({"url": "postgres://db/prod", "other": "x"})
    refer(DATABASE_URL=secret.reference("url"))

    resolve_secrets_into_env()

    assert values("DATABASE_URL") == ["postgres://db/prod"]


def test_value_with_any_characters_is_unchanged(secrets_manager, refer):
    value = 'ä "quoted" \\ : {} \n€ 🐘 =' + " "
    refer(API_KEY=secrets_manager.store({"k": value}).reference("k"))

    resolve_secrets_into_env()

    assert values("API_KEY") == [value]


def test_empty_string_is_a_value(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": ""}).reference("k"))

    resolve_secrets_into_env()

    assert values("API_KEY") == [""]


def test_keys_of_one_version_share_a_call(secrets_manager, refer):
    secret = secrets_manager.store({"DATABASE_URL": "d", "SECRET_KEY": "s"})
    refer(
        DATABASE_URL=secret.reference("DATABASE_URL"),
        SECRET_KEY=secret.reference("SECRET_KEY"),
        API_KEY=secret.reference("SECRET_KEY"),
    )

    resolve_secrets_into_env()

    assert values("DATABASE_URL", "SECRET_KEY", "API_KEY") == ["d", "s", "s"]
    assert secrets_manager.calls == [
        {"SecretId": secret.arn, "VersionStage": "AWSCURRENT", "VersionId": secret.version_id}
    ]


def test_versions_are_requested_by_stage_and_id(secrets_manager, refer):
    before = secrets_manager.store({"k": "before"})
    after = secrets_manager.rotate(before, {"k": "after"})
    refer(
        SECRET_KEY=after.reference("k"),
        API_KEY=before.reference("k", stage="AWSPREVIOUS"),
    )

    resolve_secrets_into_env()

    assert values("SECRET_KEY", "API_KEY") == ["after", "before"]
    assert len(secrets_manager.calls) == 2


def test_version_with_two_stages_is_requested_by_each(secrets_manager, refer):
    secret = secrets_manager.store({"k": "v"})
    secrets_manager.client("eu-west-1").update_secret_version_stage(
        SecretId=secret.arn, VersionStage="release-42", MoveToVersionId=secret.version_id
    )
    refer(SECRET_KEY=secret.reference("k"), API_KEY=secret.reference("k", stage="release-42"))

    resolve_secrets_into_env()

    assert values("SECRET_KEY", "API_KEY") == ["v", "v"]
    assert sorted(call["VersionStage"] for call in secrets_manager.calls) == [
        "AWSCURRENT",
        "release-42",
    ]


def test_secret_is_requested_in_its_arns_region(secrets_manager, refer, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    refer(
        SECRET_KEY=secrets_manager.store({"k": "here"}, region="eu-west-1").reference("k"),
        API_KEY=secrets_manager.store({"k": "there"}, region="us-east-2").reference("k"),
    )

    resolve_secrets_into_env()

    assert values("SECRET_KEY", "API_KEY") == ["here", "there"]


def test_whitespace_around_a_reference_does_not_matter(secrets_manager, refer):
    refer(API_KEY=f" {secrets_manager.store({'k': 'v'}).reference('k')}\n")

    resolve_secrets_into_env()

    assert values("API_KEY") == ["v"]


def test_boto3_and_django_are_imported_only_for_references():
    program = (
        "import sys\n"
        "from lambda_tasks.secret_loader import resolve_secrets_into_env\n"
        "resolve_secrets_into_env()\n"
        "print({'boto3', 'botocore', 'django'} & set(sys.modules))\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"


# Repeated calls


def test_second_call_does_nothing(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    resolve_secrets_into_env()
    before = dict(os.environ)

    resolve_secrets_into_env()

    assert dict(os.environ) == before
    assert len(secrets_manager.calls) == 1


def test_other_key_of_fetched_version_needs_no_call(secrets_manager, refer):
    secret = secrets_manager.store({"k": "v", "later": "w"})
    refer(API_KEY=secret.reference("k"))
    resolve_secrets_into_env()

    refer(SECRET_KEY=secret.reference("later"))
    resolve_secrets_into_env()

    assert values("API_KEY", "SECRET_KEY") == ["v", "w"]
    assert len(secrets_manager.calls) == 1


def test_changed_reference_is_resolved_again(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "old"}).reference("k"))
    resolve_secrets_into_env()

    refer(API_KEY=secrets_manager.store({"k": "new"}).reference("k"))
    resolve_secrets_into_env()

    assert values("API_KEY") == ["new"]


def test_concurrent_threads_make_one_call(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(resolve_secrets_into_env) for _ in range(4)]:
            future.result()

    assert values("API_KEY") == ["v"]
    assert len(secrets_manager.calls) == 1


def test_next_call_after_an_error_fetches_again(secrets_manager, refer):
    secret = secrets_manager.store({"k": "v"})
    refer(API_KEY=secret.reference("k"))
    secrets_manager.refusals.append(("400 Bad Request", "AccessDeniedException"))
    with pytest.raises(ClientError):
        resolve_secrets_into_env()

    resolve_secrets_into_env()

    assert values("API_KEY") == ["v"]
    assert len(secrets_manager.calls) == 2


def test_failed_call_caches_nothing(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("typo"))
    with pytest.raises(ValueError, match="'typo'"):
        resolve_secrets_into_env()
    with pytest.raises(ValueError, match="'typo'"):
        resolve_secrets_into_env()

    assert len(secrets_manager.calls) == 2


# References that are refused


def refusal() -> str:
    with pytest.raises(ValueError, match="LAMBDA_TASKS_SECRET_") as caught:
        resolve_secrets_into_env()
    return str(caught.value)


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "myapp/prod",
        ARN,
        f"{ARN}:KEY",
        f"{ARN}:KEY:AWSCURRENT",
        f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}:",
        f"{ARN}:KEY:with:colons:AWSCURRENT:{ANY_VERSION_ID}",
        f"{{{{resolve:secretsmanager:{ARN}:SecretString:KEY:AWSCURRENT:v1}}}}",
    ],
)
def test_reference_must_have_ten_segments(reference, secrets_manager, refer):
    refer(API_KEY=reference)

    message = refusal()

    assert "LAMBDA_TASKS_SECRET_API_KEY must have 10 segments" in message
    assert f", not {reference.count(':') + 1}." in message
    assert "<arn>:<json-key>:<version-stage>:<version-id>" in message
    assert secrets_manager.calls == []


@pytest.mark.parametrize(
    ("tail", "empty"),
    [
        (f":AWSCURRENT:{ANY_VERSION_ID}", "json-key"),
        (f"KEY::{ANY_VERSION_ID}", "version-stage"),
        ("KEY:AWSCURRENT:", "version-id"),
        ("KEY:AWSCURRENT:\n", "version-id"),
    ],
)
def test_reference_with_an_empty_part_is_refused(tail, empty, secrets_manager, refer):
    refer(API_KEY=f"{ARN}:{tail}")

    assert f"LAMBDA_TASKS_SECRET_API_KEY must not have an empty {empty}" in refusal()
    assert secrets_manager.calls == []


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:ssm:eu-west-1:123456789012:parameter:myapp/prod",
        "arn:aws:secretsmanager:eu-west-1:123456789012:policy:myapp/prod",
        "arn:aws:secretsmanager:eu-west-1:123456789012:secret:",
        "arn:aws:secretsmanager:eu-west-1:123456789012:secret:my app",
        "arn:aws:secretsmanager::123456789012:secret:myapp/prod",
        "arn:aws:secretsmanager:eu-west-1.example.org/:123456789012:secret:myapp/prod",
        "arn:aws:secretsmanager:eu-west-1::secret:myapp/prod",
        "arn::secretsmanager:eu-west-1:123456789012:secret:myapp/prod",
        "nra:aws:secretsmanager:eu-west-1:123456789012:secret:myapp/prod",
        "::::::",
    ],
)
def test_reference_must_begin_with_a_secrets_arn(arn, secrets_manager, refer):
    refer(API_KEY=f"{arn}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    message = refusal()

    assert "LAMBDA_TASKS_SECRET_API_KEY must start with the ARN of a" in message
    assert "arn:<partition>:secretsmanager:<region>:<account>:secret:<name>" in message
    assert secrets_manager.calls == []


@pytest.mark.parametrize("partition_and_region", ["aws-cn:cn-north-1", "aws-us-gov:us-gov-east-1"])
def test_secrets_of_other_partitions_are_accepted(partition_and_region, secrets_manager, refer):
    partition, _, region = partition_and_region.partition(":")
    secret = secrets_manager.store({"k": "v"}, region=region)
    assert secret.arn.startswith(f"arn:{partition}:")
    refer(API_KEY=secret.reference("k"))

    resolve_secrets_into_env()

    assert values("API_KEY") == ["v"]


@pytest.mark.parametrize("plain", ["postgres://localhost/dev", ""])
def test_variable_with_value_and_reference_is_refused(plain, secrets_manager, refer, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", plain)
    refer(DATABASE_URL=secrets_manager.store({"k": "v"}).reference("k"))

    assert "Both LAMBDA_TASKS_SECRET_DATABASE_URL and DATABASE_URL are set" in refusal()
    assert values("DATABASE_URL") == [plain]
    assert secrets_manager.calls == []


def test_resolved_variable_changed_meanwhile_is_refused(secrets_manager, refer, monkeypatch):
    refer(DATABASE_URL=secrets_manager.store({"k": "v"}).reference("k"))
    resolve_secrets_into_env()
    monkeypatch.setenv("DATABASE_URL", "changed")

    assert "Both LAMBDA_TASKS_SECRET_DATABASE_URL and DATABASE_URL are set" in refusal()
    assert values("DATABASE_URL") == ["changed"]


def test_secret_of_version_08_is_refused(secrets_manager, monkeypatch):
    monkeypatch.setenv("LAMBDA_TASKS_ENVIRONMENT_SECRETS_MANAGER_ARN", ARN)
    with pytest.raises(ValueError, match=r"is a variable of version 0\.8\. Set LAMBDA_TASKS_SECRET_<key>=<arn>"):
        resolve_secrets_into_env()


def test_both_secrets_may_be_configured(secrets_manager, refer, monkeypatch):
    monkeypatch.setenv("LAMBDA_TASKS_ENVIRONMENT_SECRETS_MANAGER_ARN", ARN)
    refer(API_KEY=secrets_manager.store({"k": "secret"}).reference("k"))
    resolve_secrets_into_env()
    assert values("API_KEY") == ["secret"]


def test_bare_prefix_is_refused(secrets_manager, monkeypatch):
    monkeypatch.setenv("LAMBDA_TASKS_SECRET_", f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    assert "LAMBDA_TASKS_SECRET_ must end with the name of the variable" in refusal()
    assert secrets_manager.calls == []


@pytest.mark.parametrize(
    "target",
    [
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "GCONV_PATH", "GLIBC_TUNABLES"),
        *("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONWARNINGS", "DJANGO_SETTINGS_MODULE"),
        *(
            "PATH",
            "HOME",
            "TMPDIR",
            "BASH_ENV",
            "IFS",
            "NODE_OPTIONS",
            "PERL5OPT",
            "JAVA_TOOL_OPTIONS",
            "GIT_SSH_COMMAND",
        ),
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_SQS"),
        *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_LAMBDA_RUNTIME_API", "_HANDLER", "LAMBDA_TASK_ROOT"),
        *("OPENSSL_CONF", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSLKEYLOGFILE"),
    ],
)
def test_variable_that_controls_imported_code_is_refused(secrets_manager, monkeypatch, target):
    variable = f"LAMBDA_TASKS_SECRET_{target}"
    monkeypatch.setenv(variable, f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    assert f"{variable} must not set {target}, which determines what code" in refusal()
    assert secrets_manager.calls == []


@pytest.mark.parametrize("target", ["1ST", "A-B", "A B", "A.B", "É", "A\nB", "-"])
def test_target_that_is_not_an_identifier_is_refused(secrets_manager, monkeypatch, target):
    monkeypatch.setenv(f"LAMBDA_TASKS_SECRET_{target}", f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    assert "must end with a valid variable name" in (refused := refusal())
    assert len(refused.splitlines()) == 1
    assert secrets_manager.calls == []


@pytest.mark.parametrize("target", ["AWS_S3_SECRET_ACCESS_KEY", "HTTPS_PROXY", "GIT_TOKEN", "db_password", "_X"])
def test_other_names_stay_allowed(secrets_manager, refer, target):
    stored = secrets_manager.store({"KEY": "s3cret"})
    refer(**{target: stored.reference("KEY")})
    resolve_secrets_into_env()

    assert values(target) == ["s3cret"]


def test_secret_cannot_become_another_reference(secrets_manager, refer):
    refer(LAMBDA_TASKS_SECRET_API_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    assert "Write the prefix LAMBDA_TASKS_SECRET_ only once" in refusal()
    assert secrets_manager.calls == []


def test_all_invalid_references_are_reported_together(refer, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "plain")
    refer(DATABASE_URL=f"{ARN}::AWSCURRENT:", SECRET_KEY="one:two", API_KEY=ARN)

    lines = refusal().splitlines()

    assert [line.split(" ")[0] for line in lines] == [
        "LAMBDA_TASKS_SECRET_API_KEY",
        "Both",
        "LAMBDA_TASKS_SECRET_DATABASE_URL",
        "LAMBDA_TASKS_SECRET_DATABASE_URL",
        "LAMBDA_TASKS_SECRET_SECRET_KEY",
    ]


def test_one_invalid_reference_prevents_every_call(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"), SECRET_KEY="oops")

    refusal()

    assert secrets_manager.calls == []
    assert values("API_KEY") == [None]


# Secrets that are refused


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"other": "x"}, "it does not contain the key 'k'; add the key to the secret, or correct the json-key"),
        ("k=v", "it is not valid JSON; store a JSON object"),
        ("[" * 50_000, "it is not valid JSON; store a JSON object"),
        ('{"k": ' + "1" * 5_000 + "}", "it is not valid JSON; store a JSON object"),
        ([{"k": "v"}], "it is not a JSON object but an array; store a JSON object"),
        ('"k"', "it is not a JSON object but a string; store a JSON object"),
        ("null", "it is not a JSON object but null; store a JSON object"),
        ("5432", "it is not a JSON object but a number; store a JSON object"),
        ("true", "it is not a JSON object but a boolean; store a JSON object"),
        (b'{"k": "v"}', "it contains binary data; store a JSON object as a string"),
        ({"k": 5432}, "the value of its key 'k' is a number, not a string; store a string"),
        ({"k": 1.5}, "the value of its key 'k' is a number, not a string; store a string"),
        ({"k": False}, "the value of its key 'k' is a boolean, not a string; store a string"),
        ({"k": None}, "the value of its key 'k' is null, not a string; store a string"),
        ({"k": ["v"]}, "the value of its key 'k' is an array, not a string; store a string"),
        ({"k": {"v": "w"}}, "the value of its key 'k' is an object, not a string; store a string"),
        ({"k": "v\0w"}, "its key 'k' has a character that an environment variable cannot contain"),
        ({"k": "\ud800"}, "its key 'k' has a character that an environment variable cannot contain"),
    ],
)
def test_unusable_secret_is_refused_with_a_remedy(content, expected, secrets_manager, refer):
    if "1" * 5_000 in str(content) and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python reads integers of any length")
    secret = secrets_manager.store(content)
    refer(API_KEY=secret.reference("k"))

    message = refusal()

    assert message.startswith(f"LAMBDA_TASKS_SECRET_API_KEY refers to {secret.arn} (")
    assert expected in message
    assert values("API_KEY") == [None]


def test_one_unusable_secret_leaves_every_variable_unset(secrets_manager, refer):
    refer(
        API_KEY=secrets_manager.store({"k": "v"}).reference("k"),
        DATABASE_URL=secrets_manager.store("not JSON").reference("k"),
        SECRET_KEY=secrets_manager.store({"k": "v"}).reference("typo"),
    )

    lines = refusal().splitlines()

    assert [line.split(" ")[0] for line in lines] == [
        "LAMBDA_TASKS_SECRET_DATABASE_URL",
        "LAMBDA_TASKS_SECRET_SECRET_KEY",
    ]
    assert values("API_KEY", "DATABASE_URL", "SECRET_KEY") == [None, None, None]


# AWS refuses or is unreachable


def test_access_denied_names_the_variables_and_the_permission(secrets_manager, refer):
    secret = secrets_manager.store({"k": "v"})
    refer(API_KEY=secret.reference("k"), SECRET_KEY=secret.reference("k"))
    secrets_manager.refusals.append(("400 Bad Request", "AccessDeniedException"))

    with pytest.raises(ClientError) as caught:
        resolve_secrets_into_env()

    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    message = str(caught.value)
    assert "refused by the test" in message
    assert "LAMBDA_TASKS_SECRET_API_KEY, LAMBDA_TASKS_SECRET_SECRET_KEY" in message
    assert secret.arn in message
    assert "secretsmanager:GetSecretValue" in message
    assert "no variable was set" in message


def test_unknown_secret_raises_with_a_remedy(refer):
    refer(API_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    with pytest.raises(ClientError, match="resolving LAMBDA_TASKS_SECRET_API_KEY from") as caught:
        resolve_secrets_into_env()

    assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
    assert "Check the name, account and region" in str(caught.value)


def test_pinned_id_with_awscurrent_fails_after_a_rotation(secrets_manager, refer):
    pinned = secrets_manager.store({"k": "before"})
    secrets_manager.rotate(pinned, {"k": "after"})
    refer(API_KEY=pinned.reference("k"))

    with pytest.raises(ClientError, match="when a rotation moves the stage") as caught:
        resolve_secrets_into_env()

    assert caught.value.response["Error"]["Code"] == "InvalidRequestException"


def test_short_version_id_is_refused_with_a_remedy(secrets_manager, refer):
    """The AWS documentation uses short version ids in its examples."""
    refer(DATABASE_URL=f"{ARN}:DATABASE_URL:AWSCURRENT:v1")

    with pytest.raises(ParamValidationError, match="valid min length: 32") as caught:
        resolve_secrets_into_env()

    assert "LAMBDA_TASKS_SECRET_DATABASE_URL" in str(caught.value)
    assert "A version id has 32 to 64 characters" in str(caught.value)
    assert secrets_manager.calls == []


def test_one_refused_secret_leaves_every_variable_unset(secrets_manager, refer):
    refer(
        API_KEY=secrets_manager.store({"k": "v"}).reference("k"),
        SECRET_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}",
    )

    with pytest.raises(ClientError):
        resolve_secrets_into_env()

    assert values("API_KEY", "SECRET_KEY") == [None, None]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses between retries."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_throttled_call_is_repeated(secrets_manager, refer, no_waiting):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    secrets_manager.refusals += [
        ("400 Bad Request", "ThrottlingException"),
        ("500 Internal Server Error", "InternalServiceError"),
    ]

    resolve_secrets_into_env()

    assert values("API_KEY") == ["v"]
    assert len(secrets_manager.calls) == 3


def test_last_error_is_raised_after_three_attempts(secrets_manager, refer, no_waiting):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    secrets_manager.refusals += [("500 Internal Server Error", "InternalServiceError")] * 9

    with pytest.raises(ClientError, match="LAMBDA_TASKS_SECRET_API_KEY"):
        resolve_secrets_into_env()

    assert len(secrets_manager.calls) == 3


def test_unreachable_endpoint_raises_with_the_variables(refer, monkeypatch, no_waiting):
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        port = nobody_listens.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{port}")
        refer(API_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

        with pytest.raises(EndpointConnectionError, match="Could not connect") as caught:
            resolve_secrets_into_env()

    assert "LAMBDA_TASKS_SECRET_API_KEY" in str(caught.value)
    assert "Check that the function reaches Secrets Manager" in str(caught.value)


def test_client_has_timeouts_of_seconds():
    config = _client("eu-west-1").meta.config

    assert (config.connect_timeout, config.read_timeout) == (2, 5)
    assert config.retries["mode"] == "standard"


# Secrets in errors and logs

CANARY, CANARY_NUMBER = "canary-7c1f9e", 9021055177701


def canary_contents(text: str) -> dict[str, object]:
    """Return unusable secrets that contain the canary, by kind."""
    return {
        "text": text,
        "broken JSON": '{"k": "' + text,
        "text before JSON": text + '{"k": "v"}',
        "deep JSON": "[" * 20_000 + text,
        "array": [text],
        "string": json.dumps(text),
        "another key": {"other": text},
        "canary as key": {text: "v"},
        "number": {"k": CANARY_NUMBER},
        "array in the key": {"k": [text]},
        "object in the key": {"k": {"v": text}},
        "NUL": {"k": text + "\0"},
        "lone surrogate": {"k": "\ud83d" + text},
        "binary": text.encode(),
    }


def plain_references(text: str) -> dict[str, str]:
    """Return values that contain the secret itself instead of a reference, by kind."""
    return {
        "one segment": text,
        "a URL": f"postgres://user:{text}@db:5432/prod",
        "ten segments": ":".join([text] * 10),
        "after an ARN": f"{ARN}:{text}",
        "without a key": f"nra:{text}:secretsmanager:{text}:1:secret:x:::",
    }


def error_of_resolving() -> Exception | None:
    # A separate function keeps the local variables of the tests out of the traceback.
    try:
        resolve_secrets_into_env()
    except Exception as error:
        return error
    return None


def everything_shown_by(error: Exception) -> str:
    """Return everything that a log, a terminal, or an error tracker with local variables would show."""
    with_locals = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = [*traceback.format_exception(error), *with_locals.format(chain=True)]
    seen: BaseException | None = error
    while seen is not None:
        shown += [str(seen), repr(seen), repr(seen.args), repr(vars(seen))]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(shown)


def assert_canary_is_hidden(text: str) -> None:
    assert CANARY not in text
    assert str(CANARY_NUMBER) not in text


surroundings = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
a_few_examples = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],  # any example of a leak is sufficient; shrinking it would take minutes of HTTP requests
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("kind", list(canary_contents("")))
@given(before=surroundings, after=surroundings)
@a_few_examples
def test_refused_secret_is_not_shown(kind, before, after, secrets_manager, refer, caplog):
    secret = secrets_manager.store(canary_contents(before + CANARY + after)[kind])
    refer(API_KEY=secret.reference("k"))
    with caplog.at_level(logging.DEBUG):
        caplog.clear()
        error = error_of_resolving()

    assert isinstance(error, ValueError)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert_canary_is_hidden(everything_shown_by(error))
    assert_canary_is_hidden(caplog.text)


@pytest.mark.parametrize("kind", list(plain_references("")))
@given(before=surroundings, after=surroundings)
@a_few_examples
def test_secret_instead_of_a_reference_is_not_shown(kind, before, after, refer, caplog):
    refer(API_KEY=plain_references(before + CANARY + after)[kind])
    with caplog.at_level(logging.DEBUG):
        error = error_of_resolving()

    assert isinstance(error, ValueError)
    assert_canary_is_hidden(everything_shown_by(error))
    assert_canary_is_hidden(caplog.text)


def test_error_of_another_secret_shows_no_value(secrets_manager, refer, caplog):
    refer(
        API_KEY=secrets_manager.store({"k": CANARY}).reference("k"),
        DATABASE_URL=secrets_manager.store({"k": CANARY}).reference("k"),
        SECRET_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}",
    )
    with caplog.at_level(logging.DEBUG):
        caplog.clear()
        error = error_of_resolving()

    assert isinstance(error, ClientError)
    assert len(secrets_manager.calls) == 3
    assert_canary_is_hidden(everything_shown_by(error))
    assert_canary_is_hidden(caplog.text)


def test_conflict_shows_neither_value(secrets_manager, refer, monkeypatch):
    refer(API_KEY=secrets_manager.store({"k": CANARY}).reference("k"))
    resolve_secrets_into_env()
    monkeypatch.setenv("SECRET_KEY", CANARY)
    refer(SECRET_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    error = error_of_resolving()

    assert isinstance(error, ValueError)
    assert_canary_is_hidden(everything_shown_by(error))


def test_success_logs_references_without_values(secrets_manager, refer, caplog):
    secret = secrets_manager.store({"k": CANARY})
    refer(API_KEY=secret.reference("k"))
    with caplog.at_level(logging.DEBUG):
        caplog.clear()
        resolve_secrets_into_env()

    assert values("API_KEY") == [CANARY]
    version = f"{secret.arn} (version stage AWSCURRENT, version id {secret.version_id})"
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("lambda_tasks")]
    assert ours == [f"Fetching {version} for LAMBDA_TASKS_SECRET_API_KEY"]
    assert "botocore.endpoint" in {record.name for record in caplog.records}
    assert_canary_is_hidden(caplog.text)


def test_botocore_logs_normally_after_the_call(secrets_manager, refer, caplog):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    resolve_secrets_into_env()
    with caplog.at_level(logging.DEBUG):
        secrets_manager.store({"k": "v"})

    assert "botocore.parsers" in {record.name for record in caplog.records}


# Forgetting secrets


def test_forgetting_unsets_the_resolved_variables(secrets_manager, refer):
    """The next call of `resolve_secrets_into_env()` fetches the secrets again."""
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    resolve_secrets_into_env()

    forget_secrets()
    assert values("API_KEY") == [None]

    resolve_secrets_into_env()
    assert values("API_KEY") == ["v"]
    assert len(secrets_manager.calls) == 2


def test_forgetting_keeps_variables_set_by_others(secrets_manager, refer, monkeypatch):
    secret = secrets_manager.store({"k": "v"})
    refer(API_KEY=secret.reference("k"), DATABASE_URL=secret.reference("k"))
    monkeypatch.setenv("SECRET_KEY", "plain")
    resolve_secrets_into_env()
    monkeypatch.setenv("API_KEY", "changed")
    monkeypatch.delenv("DATABASE_URL")

    forget_secrets()

    assert values("API_KEY", "SECRET_KEY", "DATABASE_URL") == ["changed", "plain", None]


def test_forgetting_before_the_first_call_does_nothing():
    before = dict(os.environ)

    forget_secrets()

    assert dict(os.environ) == before
