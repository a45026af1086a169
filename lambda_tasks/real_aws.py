"""Refuse requests to AWS, which a test should never send.

The pytest plugin switches this on. Requests to an emulator are not refused, and neither are those that moto or
botocore's `Stubber` answer inside the process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

#: Matches the addresses of the APIs of AWS in all partitions, but not those of servers that the user runs on AWS.
_ON_AWS: Final = (
    r"https?://(?![^/]*\.(?:compute|compute-1|elb)\.amazonaws\.)[^/]*\b"
    r"(?:amazonaws\.(?:com|eu)|amazonwebservices\.(?:com|eu)|api\.aws|ic\.gov|sgov\.gov|aws\.scloud|adc-e\.uk)\b"
)
#: What the services are, by their names in the events of botocore, and what a test does instead.
_NAMES: Final = {
    "sqs": "a queue on AWS",
    "batch": "a job queue of AWS Batch",
    "s3": "the bucket of large arguments in Amazon S3",
    "secrets-manager": "AWS Secrets Manager",
}
_COLLECT: Final = (
    "Collect tasks with the fixture lambda_tasks_queue or with collect_tasks(), set LAMBDA_TASKS_EAGER or "
    "LAMBDA_TASKS_NOOP_EXECUTION, or use an emulator."
)
_STORE_ELSEWHERE: Final = (
    'Set the option large_arguments="database" of the backend in the settings of the tests, use mock_aws() of moto, or '
    "set AWS_ENDPOINT_URL_S3 to the address of an emulator."
)
_SET_VARIABLES: Final = (
    "Set the variables themselves in the environment of the tests instead of their references (LAMBDA_TASKS_SECRET_…), "
    "use mock_aws() of moto, or set AWS_ENDPOINT_URL_SECRETS_MANAGER to the address of an emulator."
)
_REMEDIES: Final = {"sqs": _COLLECT, "batch": _COLLECT, "s3": _STORE_ELSEWHERE, "secrets-manager": _SET_VARIABLES}
_REMEDY: Final = "Use mock_aws() of moto, or set AWS_ENDPOINT_URL to the address of an emulator."

#: Whether requests are refused: the innermost block decides. Outside of blocks, they are not.
_blocks: Final[list[bool]] = []


class RealQueueRefused(RuntimeError):
    """A test was about to send a request to AWS, such as to a queue."""


@contextmanager
def refuse_real_queues() -> Iterator[None]:
    """Raise `RealQueueRefused` for requests of the library to AWS in the block, in all threads.

    Clients that were created outside of such a block are not affected.
    """
    with _block(True):
        yield


@contextmanager
def allow_real_queues() -> Iterator[None]:
    """Allow such requests again in the block."""
    with _block(False):
        yield


@contextmanager
def _block(refused: bool) -> Iterator[None]:
    _blocks.append(refused)
    try:
        yield
    finally:
        _blocks.pop()


def guarded(client: Any) -> Any:
    """Return a client of boto3, whose requests are checked if this process refuses any."""
    if _blocks:
        # Not for "before-send.sqs": botocore asks the handlers of longer names first, and moto has to be asked before.
        client.meta.events.register_last("before-send", _answer)
    return client


class _Refusal:
    """A response that raises when botocore reads it.

    botocore asks all handlers before it sends a request, and reads the first response. That of moto comes before.
    """

    def __init__(self, url: str, service: str) -> None:
        self._url = url
        self._service = service

    def __getattr__(self, name: str) -> NoReturn:
        what = _NAMES.get(self._service, f"the service {self._service} of AWS")
        remedy = _REMEDIES.get(self._service, _REMEDY)
        raise RealQueueRefused(
            f"A test was about to send a request to {self._url.partition('?')[0]}, {what}. {remedy} To allow the "
            "request, mark the test with @pytest.mark.lambda_tasks_real_sqs, or set lambda_tasks_real_sqs = true in "
            "pytest's configuration."
        )


def _is_on_aws(url: str) -> bool:
    return re.match(_ON_AWS, url, re.IGNORECASE) is not None


def _answer(request: Any, event_name: str = "", **_: object) -> _Refusal | None:
    if not (_blocks and _blocks[-1]) or not _is_on_aws(request.url):
        return None
    return _Refusal(request.url, event_name.removeprefix("before-send.").partition(".")[0])
