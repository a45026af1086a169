"""Settings from AWS Secrets Manager, played against moto's HTTP server."""

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
    """A version of a secret, as Secrets Manager has it."""

    arn: str
    version_id: str

    def reference(self, key: str, *, stage: str = "AWSCURRENT") -> str:
        return f"{self.arn}:{key}:{stage}:{self.version_id}"


class SecretsManager:
    """The server, with a record of the GetSecretValue calls and a way to have some refused.

    It stands before moto as WSGI middleware, so that what it counts are HTTP requests.
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
                return [json.dumps({"__type": code, "message": "as the test wants it"}).encode()]
        return self.moto(environ, start_response)

    def client(self, region: str) -> Any:
        return boto3.client("secretsmanager", region_name=region)

    def store(self, content: object, *, region: str = "eu-west-1") -> Stored:
        """Create a secret: of the text, of the bytes, or of the JSON of anything else."""
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
    wsgi_server: Any = moto._server  # the only way to put something before the application
    wsgi_server.app = secrets_manager = SecretsManager(wsgi_server.app)
    yield f"http://{host}:{port}", secrets_manager
    moto.stop()


@pytest.fixture(autouse=True)
def secrets_manager(server: tuple[str, SecretsManager], monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretsManager]:
    """An environment without references, in which boto3 finds the server."""
    url, secrets_manager = server
    for name in [name for name in os.environ if name.startswith("LAMBDA_TASKS_SECRET_")]:
        monkeypatch.delenv(name)
    for name in ("DATABASE_URL", "SECRET_KEY", "API_KEY"):
        monkeypatch.setenv(name, "")  # makes it undo whatever a test leaves there
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
    """`refer(FOO=text)` sets LAMBDA_TASKS_SECRET_FOO."""

    def set_references(**references: str) -> None:
        for target, reference in references.items():
            monkeypatch.setenv(f"LAMBDA_TASKS_SECRET_{target}", reference)

    return set_references


def values(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


# What is set


def test_the_named_key_becomes_the_variable_without_the_prefix(secrets_manager, refer):
    secret = secrets_manager.store({"url": "postgres://db/prod", "other": "x"})
    refer(DATABASE_URL=secret.reference("url"))

    resolve_secrets_into_env()

    assert values("DATABASE_URL") == ["postgres://db/prod"]


def test_a_value_arrives_as_it_is_stored_whatever_its_characters(secrets_manager, refer):
    value = 'ä "quoted" \\ : {} \n€ 🐘 =' + " "
    refer(API_KEY=secrets_manager.store({"k": value}).reference("k"))

    resolve_secrets_into_env()

    assert values("API_KEY") == [value]


def test_an_empty_string_is_a_value(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": ""}).reference("k"))

    resolve_secrets_into_env()

    assert values("API_KEY") == [""]


def test_keys_of_the_same_version_cost_one_call_together(secrets_manager, refer):
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


def test_each_version_of_a_secret_is_asked_for_by_stage_and_id(secrets_manager, refer):
    before = secrets_manager.store({"k": "before"})
    after = secrets_manager.rotate(before, {"k": "after"})
    refer(
        SECRET_KEY=after.reference("k"),
        API_KEY=before.reference("k", stage="AWSPREVIOUS"),
    )

    resolve_secrets_into_env()

    assert values("SECRET_KEY", "API_KEY") == ["after", "before"]
    assert len(secrets_manager.calls) == 2


def test_a_version_with_two_stages_is_asked_for_once_by_each(secrets_manager, refer):
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


def test_each_secret_is_asked_for_in_the_region_of_its_arn(secrets_manager, refer, monkeypatch):
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


def test_without_references_neither_boto3_nor_django_is_imported():
    program = (
        "import sys\n"
        "from lambda_tasks.secret_loader import resolve_secrets_into_env\n"
        "resolve_secrets_into_env()\n"
        "print({'boto3', 'botocore', 'django'} & set(sys.modules))\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"


# Called again


def test_the_second_call_changes_nothing_and_asks_for_nothing(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    resolve_secrets_into_env()
    before = dict(os.environ)

    resolve_secrets_into_env()

    assert dict(os.environ) == before
    assert len(secrets_manager.calls) == 1


def test_another_key_of_a_version_that_is_known_costs_no_call(secrets_manager, refer):
    secret = secrets_manager.store({"k": "v", "later": "w"})
    refer(API_KEY=secret.reference("k"))
    resolve_secrets_into_env()

    refer(SECRET_KEY=secret.reference("later"))
    resolve_secrets_into_env()

    assert values("API_KEY", "SECRET_KEY") == ["v", "w"]
    assert len(secrets_manager.calls) == 1


def test_a_reference_that_was_changed_is_resolved_anew(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "old"}).reference("k"))
    resolve_secrets_into_env()

    refer(API_KEY=secrets_manager.store({"k": "new"}).reference("k"))
    resolve_secrets_into_env()

    assert values("API_KEY") == ["new"]


def test_threads_that_resolve_at_once_make_one_call_together(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(resolve_secrets_into_env) for _ in range(4)]:
            future.result()

    assert values("API_KEY") == ["v"]
    assert len(secrets_manager.calls) == 1


def test_after_a_call_that_failed_the_next_one_tries_again(secrets_manager, refer):
    secret = secrets_manager.store({"k": "v"})
    refer(API_KEY=secret.reference("k"))
    secrets_manager.refusals.append(("400 Bad Request", "AccessDeniedException"))
    with pytest.raises(ClientError):
        resolve_secrets_into_env()

    resolve_secrets_into_env()

    assert values("API_KEY") == ["v"]
    assert len(secrets_manager.calls) == 2


def test_a_call_that_failed_keeps_nothing_it_fetched(secrets_manager, refer):
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
def test_a_reference_without_exactly_ten_segments_is_refused(reference, secrets_manager, refer):
    refer(API_KEY=reference)

    message = refusal()

    assert "LAMBDA_TASKS_SECRET_API_KEY has" in message
    assert "not 10" in message
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
def test_a_reference_with_an_empty_part_is_refused(tail, empty, secrets_manager, refer):
    refer(API_KEY=f"{ARN}:{tail}")

    assert f"LAMBDA_TASKS_SECRET_API_KEY has an empty {empty}" in refusal()
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
def test_what_is_not_the_arn_of_a_secret_is_refused(arn, secrets_manager, refer):
    refer(API_KEY=f"{arn}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    message = refusal()

    assert "LAMBDA_TASKS_SECRET_API_KEY does not begin with the ARN of a" in message
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
def test_a_variable_that_is_set_both_ways_is_refused(plain, secrets_manager, refer, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", plain)
    refer(DATABASE_URL=secrets_manager.store({"k": "v"}).reference("k"))

    assert "Both LAMBDA_TASKS_SECRET_DATABASE_URL and DATABASE_URL are set" in refusal()
    assert values("DATABASE_URL") == [plain]
    assert secrets_manager.calls == []


def test_a_resolved_variable_that_somebody_changed_is_set_both_ways(secrets_manager, refer, monkeypatch):
    refer(DATABASE_URL=secrets_manager.store({"k": "v"}).reference("k"))
    resolve_secrets_into_env()
    monkeypatch.setenv("DATABASE_URL", "changed")

    assert "Both LAMBDA_TASKS_SECRET_DATABASE_URL and DATABASE_URL are set" in refusal()
    assert values("DATABASE_URL") == ["changed"]


def test_the_bare_prefix_names_no_variable_and_is_refused(secrets_manager, monkeypatch):
    monkeypatch.setenv("LAMBDA_TASKS_SECRET_", f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    assert "LAMBDA_TASKS_SECRET_ names no variable" in refusal()
    assert secrets_manager.calls == []


def test_a_secret_cannot_become_another_reference(secrets_manager, refer):
    refer(LAMBDA_TASKS_SECRET_API_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    assert "write the prefix LAMBDA_TASKS_SECRET_ only once" in refusal()
    assert secrets_manager.calls == []


def test_all_that_is_wrong_with_the_references_is_told_at_once(refer, monkeypatch):
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


def test_one_bad_reference_among_good_ones_prevents_every_call(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"), SECRET_KEY="oops")

    refusal()

    assert secrets_manager.calls == []
    assert values("API_KEY") == [None]


# Secrets that are refused


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"other": "x"}, "it has no key 'k'; add the key to the secret, or correct the json-key"),
        ("k=v", "it is not valid JSON; store a JSON object"),
        ("[" * 50_000, "it is not valid JSON; store a JSON object"),
        ('{"k": ' + "1" * 5_000 + "}", "it is not valid JSON; store a JSON object"),
        ([{"k": "v"}], "it is not a JSON object but an array; store a JSON object"),
        ('"k"', "it is not a JSON object but a string; store a JSON object"),
        ("null", "it is not a JSON object but null; store a JSON object"),
        ("5432", "it is not a JSON object but a number; store a JSON object"),
        ("true", "it is not a JSON object but a boolean; store a JSON object"),
        (b'{"k": "v"}', "it holds binary data; store it as text"),
        ({"k": 5432}, "its key 'k' holds a number, not a string; store a string there"),
        ({"k": 1.5}, "its key 'k' holds a number, not a string; store a string there"),
        ({"k": False}, "its key 'k' holds a boolean, not a string; store a string there"),
        ({"k": None}, "its key 'k' holds null, not a string; store a string there"),
        ({"k": ["v"]}, "its key 'k' holds an array, not a string; store a string there"),
        ({"k": {"v": "w"}}, "its key 'k' holds an object, not a string; store a string there"),
        ({"k": "v\0w"}, "its key 'k' has a character that an environment variable cannot hold"),
        ({"k": "\ud800"}, "its key 'k' has a character that an environment variable cannot hold"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_with_a_remedy(content, expected, secrets_manager, refer):
    if "1" * 5_000 in str(content) and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python reads integers of any length")
    secret = secrets_manager.store(content)
    refer(API_KEY=secret.reference("k"))

    message = refusal()

    assert message.startswith(f"LAMBDA_TASKS_SECRET_API_KEY refers to {secret.arn} (")
    assert expected in message
    assert values("API_KEY") == [None]


def test_one_bad_secret_among_good_ones_leaves_every_variable_unset(secrets_manager, refer):
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


# When AWS refuses or is out of reach


def test_access_denied_passes_through_naming_the_variables_and_the_permission(secrets_manager, refer):
    secret = secrets_manager.store({"k": "v"})
    refer(API_KEY=secret.reference("k"), SECRET_KEY=secret.reference("k"))
    secrets_manager.refusals.append(("400 Bad Request", "AccessDeniedException"))

    with pytest.raises(ClientError) as caught:
        resolve_secrets_into_env()

    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    message = str(caught.value)
    assert "as the test wants it" in message
    assert "LAMBDA_TASKS_SECRET_API_KEY, LAMBDA_TASKS_SECRET_SECRET_KEY" in message
    assert secret.arn in message
    assert "secretsmanager:GetSecretValue" in message
    assert "no variable was set" in message


def test_an_unknown_secret_passes_through_with_what_to_check(refer):
    refer(API_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    with pytest.raises(ClientError, match="resolve LAMBDA_TASKS_SECRET_API_KEY from") as caught:
        resolve_secrets_into_env()

    assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
    assert "Check name, account and region" in str(caught.value)


def test_a_pinned_id_with_awscurrent_is_refused_by_aws_after_a_rotation(secrets_manager, refer):
    pinned = secrets_manager.store({"k": "before"})
    secrets_manager.rotate(pinned, {"k": "after"})
    refer(API_KEY=pinned.reference("k"))

    with pytest.raises(ClientError, match="when a rotation moves the stage") as caught:
        resolve_secrets_into_env()

    assert caught.value.response["Error"]["Code"] == "InvalidRequestException"


def test_the_short_version_id_of_the_documentation_is_refused_with_the_length_it_needs(secrets_manager, refer):
    refer(DATABASE_URL=f"{ARN}:DATABASE_URL:AWSCURRENT:v1")

    with pytest.raises(ParamValidationError, match="valid min length: 32") as caught:
        resolve_secrets_into_env()

    assert "LAMBDA_TASKS_SECRET_DATABASE_URL" in str(caught.value)
    assert "A version id has 32 to 64 characters" in str(caught.value)
    assert secrets_manager.calls == []


def test_one_secret_that_aws_refuses_leaves_every_variable_unset(secrets_manager, refer):
    refer(
        API_KEY=secrets_manager.store({"k": "v"}).reference("k"),
        SECRET_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}",
    )

    with pytest.raises(ClientError):
        resolve_secrets_into_env()

    assert values("API_KEY", "SECRET_KEY") == [None, None]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come without the pauses between them."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def test_a_call_that_aws_throttles_is_made_again(secrets_manager, refer, no_waiting):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    secrets_manager.refusals += [
        ("400 Bad Request", "ThrottlingException"),
        ("500 Internal Server Error", "InternalServiceError"),
    ]

    resolve_secrets_into_env()

    assert values("API_KEY") == ["v"]
    assert len(secrets_manager.calls) == 3


def test_after_three_attempts_the_last_error_passes_through(secrets_manager, refer, no_waiting):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    secrets_manager.refusals += [("500 Internal Server Error", "InternalServiceError")] * 9

    with pytest.raises(ClientError, match="LAMBDA_TASKS_SECRET_API_KEY"):
        resolve_secrets_into_env()

    assert len(secrets_manager.calls) == 3


def test_an_endpoint_out_of_reach_passes_through_naming_the_variables(refer, monkeypatch, no_waiting):
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        port = nobody_listens.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{port}")
        refer(API_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

        with pytest.raises(EndpointConnectionError, match="Could not connect") as caught:
            resolve_secrets_into_env()

    assert "LAMBDA_TASKS_SECRET_API_KEY" in str(caught.value)
    assert "Check that the function reaches Secrets Manager" in str(caught.value)


def test_the_client_waits_seconds_and_not_the_minute_of_botocore():
    config = _client("eu-west-1").meta.config

    assert (config.connect_timeout, config.read_timeout) == (2, 5)
    assert config.retries["mode"] == "standard"


# What nobody gets to see

CANARY, CANARY_NUMBER = "canary-7c1f9e", 9021055177701


def canary_contents(text: str) -> dict[str, object]:
    """Secrets that cannot be used, each with the canary somewhere in it."""
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
    """The secret itself where the reference should be."""
    return {
        "one segment": text,
        "a URL": f"postgres://user:{text}@db:5432/prod",
        "ten segments": ":".join([text] * 10),
        "after an ARN": f"{ARN}:{text}",
        "without a key": f"nra:{text}:secretsmanager:{text}:1:secret:x:::",
    }


def error_of_resolving() -> Exception | None:
    # A frame of its own, so that what the tests hold in theirs is not in the traceback.
    try:
        resolve_secrets_into_env()
    except Exception as error:
        return error
    return None


def everything_told_of(error: Exception) -> str:
    """All that a log, a terminal or an error tracker with local variables would show."""
    with_locals = traceback.TracebackException.from_exception(error, capture_locals=True)
    told = [*traceback.format_exception(error), *with_locals.format(chain=True)]
    seen: BaseException | None = error
    while seen is not None:
        told += [str(seen), repr(seen), repr(seen.args), repr(vars(seen))]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(told)


def assert_nothing_told(text: str) -> None:
    assert CANARY not in text
    assert str(CANARY_NUMBER) not in text


surroundings = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
a_few_examples = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],  # any example of a leak will do; to shrink it takes minutes of HTTP
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("kind", list(canary_contents("")))
@given(before=surroundings, after=surroundings)
@a_few_examples
def test_a_refused_secret_is_nowhere_to_be_seen(kind, before, after, secrets_manager, refer, caplog):
    secret = secrets_manager.store(canary_contents(before + CANARY + after)[kind])
    refer(API_KEY=secret.reference("k"))
    with caplog.at_level(logging.DEBUG):
        caplog.clear()
        error = error_of_resolving()

    assert isinstance(error, ValueError)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert_nothing_told(everything_told_of(error))
    assert_nothing_told(caplog.text)


@pytest.mark.parametrize("kind", list(plain_references("")))
@given(before=surroundings, after=surroundings)
@a_few_examples
def test_a_secret_in_place_of_its_reference_is_nowhere_to_be_seen(kind, before, after, refer, caplog):
    refer(API_KEY=plain_references(before + CANARY + after)[kind])
    with caplog.at_level(logging.DEBUG):
        error = error_of_resolving()

    assert isinstance(error, ValueError)
    assert_nothing_told(everything_told_of(error))
    assert_nothing_told(caplog.text)


def test_secrets_that_were_fetched_are_not_seen_in_the_error_of_another(secrets_manager, refer, caplog):
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
    assert_nothing_told(everything_told_of(error))
    assert_nothing_told(caplog.text)


def test_a_conflict_shows_neither_of_the_two_values(secrets_manager, refer, monkeypatch):
    refer(API_KEY=secrets_manager.store({"k": CANARY}).reference("k"))
    resolve_secrets_into_env()
    monkeypatch.setenv("SECRET_KEY", CANARY)
    refer(SECRET_KEY=f"{ARN}:KEY:AWSCURRENT:{ANY_VERSION_ID}")

    error = error_of_resolving()

    assert isinstance(error, ValueError)
    assert_nothing_told(everything_told_of(error))


def test_success_tells_what_was_fetched_for_whom_but_not_the_secret(secrets_manager, refer, caplog):
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
    assert_nothing_told(caplog.text)


def test_botocore_logs_as_before_once_the_secrets_are_there(secrets_manager, refer, caplog):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    resolve_secrets_into_env()
    with caplog.at_level(logging.DEBUG):
        secrets_manager.store({"k": "v"})

    assert "botocore.parsers" in {record.name for record in caplog.records}


# Forgetting


def test_forgetting_unsets_what_was_set_and_the_next_call_asks_again(secrets_manager, refer):
    refer(API_KEY=secrets_manager.store({"k": "v"}).reference("k"))
    resolve_secrets_into_env()

    forget_secrets()
    assert values("API_KEY") == [None]

    resolve_secrets_into_env()
    assert values("API_KEY") == ["v"]
    assert len(secrets_manager.calls) == 2


def test_forgetting_leaves_alone_what_somebody_changed_or_set(secrets_manager, refer, monkeypatch):
    secret = secrets_manager.store({"k": "v"})
    refer(API_KEY=secret.reference("k"), DATABASE_URL=secret.reference("k"))
    monkeypatch.setenv("SECRET_KEY", "plain")
    resolve_secrets_into_env()
    monkeypatch.setenv("API_KEY", "changed")
    monkeypatch.delenv("DATABASE_URL")

    forget_secrets()

    assert values("API_KEY", "SECRET_KEY", "DATABASE_URL") == ["changed", "plain", None]


def test_forgetting_before_anything_was_resolved_does_nothing():
    before = dict(os.environ)

    forget_secrets()

    assert dict(os.environ) == before
