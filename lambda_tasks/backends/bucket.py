"""Store arguments that are too large for a message as objects in a bucket of Amazon S3."""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from lambda_tasks.backends.places import RENEWED_AFTER, Place
from lambda_tasks.exceptions import ArgumentsMissing, InvalidArguments
from lambda_tasks.foundation.forks import ForkSafeLock
from lambda_tasks.jobs import Job
from lambda_tasks.real_aws import guarded
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.stored import Stored

logger = get_logger("lambda_tasks.backends.bucket")

#: Matches places in S3: a bucket, and a prefix of characters that need no escape in a URL.
_PLACE: Final = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[\w!.*'()/-]{0,900}))?", re.ASCII
)
#: The longest delay of a message whose arguments are in S3, in seconds. A lifecycle rule counts from the call.
MAX_DELAY: Final = 14 * 86_400
#: Seconds to connect, and to wait for data.
_TIMEOUTS: Final = {"connect_timeout": 2, "read_timeout": 10}
_MISSING: Final = ("NoSuchKey", "404")


#: The age in days at which a lifecycle rule should delete objects: a delay of at most 14 days, and 28 days on queues.
ADVISED_DAYS: Final = 45


class Bucket(Place):
    """A bucket, and the prefix of the keys in it. Raise ValueError for a malformed `place`.

    A lifecycle rule of the bucket deletes the objects, also those of transactions that were rolled back.
    """

    def __init__(self, place: str) -> None:
        match = _PLACE.fullmatch(place)
        if match is None:
            raise ValueError("is not s3:// with a valid name of a bucket and, after a slash, an optional prefix")
        self.bucket = match["bucket"]
        self.prefix = (match["prefix"] or "").strip("/")
        self.name = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._clients: dict[int, Any] = {}
        self._making_client = ForkSafeLock()

    def refuse(self, job: Job) -> None:
        if job.delay > MAX_DELAY:
            raise InvalidArguments(
                f"{job.task_name} must have a delay of at most {MAX_DELAY} seconds, not {job.delay}, since its "
                f"arguments are too large for a message, and {self.name} deletes them by a lifecycle rule. Shorten the "
                "delay, or store large arguments in the database."
            )

    def store(self, text: str, job: Job) -> Stored:
        stored = Stored.of(text, place=self.name, key=new_message_id())
        self._client().put_object(Body=text.encode(), ContentType="application/json", **self._object(stored))
        return stored

    def fetch(self, stored: Stored) -> str:
        from botocore.exceptions import ClientError

        try:
            answer = self._client().get_object(**self._object(stored))
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _MISSING:
                raise
            raise ArgumentsMissing(
                f"The arguments are missing: {stored} does not exist. A lifecycle rule has deleted it, or the prefix "
                "has changed."
            ) from error
        text: str = answer["Body"].read().decode("utf-8", "replace")
        self._renew_if_old(stored, answer["LastModified"])
        return text

    def _renew_if_old(self, stored: Stored, modified: datetime) -> None:
        """Copy an old object to itself, so that the lifecycle rule counts from now."""
        if datetime.now(timezone.utc) - modified < timedelta(seconds=RENEWED_AFTER):
            return
        where = self._object(stored)
        try:
            self._client().copy_object(
                CopySource=dict(where), MetadataDirective="REPLACE", ContentType="application/json", **where
            )
        except Exception:
            logger.warning(
                "%s could not be copied to itself, so its lifecycle rule counts from the call. The role of the worker "
                "needs s3:PutObject.",
                stored,
                exc_info=True,
            )

    def _object(self, stored: Stored) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{stored.key}.json".lstrip("/")}

    def _client(self) -> Any:
        with self._making_client:
            # A forked process must not share a client's open connections.
            if os.getpid() not in self._clients:
                import boto3
                from botocore.config import Config

                config = Config(retries={"mode": "standard", "total_max_attempts": 3}, **_TIMEOUTS)
                self._clients[os.getpid()] = guarded(boto3.client("s3", config=config))
            return self._clients[os.getpid()]
