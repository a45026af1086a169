"""Refuse requests to queues on AWS, which a test should never send.

The pytest plugin switches this on. Requests to an emulator are not refused, and neither are those that moto or
botocore's `Stubber` answer inside the process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

#: Matches the addresses of AWS Batch. Those of SQS are recognized by `server_of()`.
_BATCH_ON_AWS: Final = re.compile(r"https?://(?:[a-z0-9-]+\.)?batch(?:-fips)?\.[a-z0-9.-]+(?:amazonaws|api\.aws)")
#: Whether requests are refused: the innermost block decides. Outside of blocks, they are not.
_blocks: Final[list[bool]] = []


class RealQueueRefused(RuntimeError):
    """A test was about to send a request to a queue on AWS."""


@contextmanager
def refuse_real_queues() -> Iterator[None]:
    """Raise `RealQueueRefused` for requests of the library to SQS on AWS in the block, in all threads.

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
    """Return a boto3 client of SQS, whose requests are checked if this process refuses any."""
    if _blocks:
        # Not for "before-send.sqs": botocore asks the handlers of longer names first, and moto has to be asked before.
        client.meta.events.register_last("before-send", _answer)
    return client


class _Refusal:
    """A response that raises when botocore reads it.

    botocore asks all handlers before it sends a request, and reads the first response. That of moto comes before.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def __getattr__(self, name: str) -> NoReturn:
        raise RealQueueRefused(
            f"A test was about to send a request to {self._url}, a queue on AWS. Collect tasks with the fixture "
            "lambda_tasks_queue or with collect_tasks(), set LAMBDA_TASKS_EAGER or LAMBDA_TASKS_NOOP_EXECUTION, or use "
            "an emulator. To allow the request, mark the test with @pytest.mark.lambda_tasks_real_sqs, or set "
            "lambda_tasks_real_sqs = true in pytest's configuration."
        )


def _answer(request: Any, **_: object) -> _Refusal | None:
    from lambda_tasks.wire.queue_urls import server_of  # tests that send nothing do not need it

    if not (_blocks and _blocks[-1]):
        return None
    is_real = server_of(request.url).is_aws or _BATCH_ON_AWS.match(request.url)
    return _Refusal(request.url) if is_real else None
