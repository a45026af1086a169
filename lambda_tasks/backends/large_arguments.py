"""Move arguments that are too large for a message to the database or to Amazon S3, and read them in the worker.

They are stored before the message is sent: in the caller's transaction, or in a bucket before its COMMIT. Nothing but
the cleanup, or a lifecycle rule of the bucket, deletes them, and only long after the last message with their key. So
every delivery finds them, whichever process dies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from lambda_tasks import failpoints
from lambda_tasks.backends.bucket import Bucket
from lambda_tasks.backends.places import DatabasePlace, Place
from lambda_tasks.exceptions import ArgumentsMissing, MessageTooLarge
from lambda_tasks.jobs import Job
from lambda_tasks.recording.described import described
from lambda_tasks.wire.stored import S3, Stored

#: The value of the option for the database of the caller's transaction.
IN_DATABASE: Final = "database"


class LargeArguments:
    """Stores arguments in the first of `places`, and reads them from all of them, and from the database.

    Raise TypeError unless `places` is `"database"`, `"s3://bucket/prefix"`, or a list of such strings.
    """

    def __init__(self, places: Any = IN_DATABASE, *, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._database = DatabasePlace()
        self._places: dict[str, Place] = {}
        for place in [places] if isinstance(places, str) else _listed(places):
            self._add(place)

    def _add(self, place: Any) -> None:
        if place == IN_DATABASE:
            self._places[IN_DATABASE] = self._database
            return
        if not isinstance(place, str) or not place.startswith(S3):
            raise TypeError(f'large_arguments must be "database" or "s3://bucket/prefix", not {described(place)}')
        try:
            bucket = Bucket(place)
        except ValueError as error:
            raise TypeError(f"large_arguments contains an address that {error}") from None
        self._places[bucket.name] = bucket

    @property
    def places(self) -> list[Place]:
        """The places, of which the first one stores new arguments."""
        return list(self._places.values())

    @property
    def _first(self) -> Place:
        return next(iter(self._places.values()))

    def refuse(self, job: Job, size: int) -> None:
        """Raise an error if the message of `job`, with `size` bytes, is too large for the place, too."""
        if size > self.max_bytes:
            raise MessageTooLarge(
                f"The message of {job.task_name} must have at most {self.max_bytes:,} bytes with its attributes, not "
                f"{size:,}. Store the data elsewhere and send its key, or raise the option max_large_bytes of "
                "SQSBackend."
            )
        self._first.refuse(job)

    def stow(self, job: Job) -> Job:
        """Store the arguments of `job`, and return it with a reference to them in place of the arguments."""
        stored = self._first.store(job.sent_message.kwargs_text(), job)
        failpoints.reached("arguments:stored")
        return replace(job, message=replace(job.message, stored=stored))

    def renew(self, stored: Stored, *, delay: int) -> None:
        """Mark arguments as used by a message that is sent again and delivered in `delay` seconds."""
        if (place := self._place_of(stored)) is not None:
            place.renew(stored, delay=delay)

    def fetch(self, stored: Stored) -> str:
        """Return stored arguments, or raise `ArgumentsMissing`. A message can only name places of the settings."""
        place = self._place_of(stored)
        if place is None:
            raise ArgumentsMissing(
                f"The arguments are stored in {stored.place}, which is not in the option large_arguments of "
                f"SQSBackend ({', '.join(self._places)}). Append it to the list, of which only the first place stores "
                "new arguments."
            )
        text = place.fetch(stored)
        if not stored.belongs_to(text):
            raise ArgumentsMissing(f"The arguments in {stored.place}, key {stored.key}, were changed after the call.")
        return text

    def _place_of(self, stored: Stored) -> Place | None:
        return self._database if stored.is_in_database else self._places.get(stored.place)


def _listed(places: Any) -> list[Any]:
    if not isinstance(places, list | tuple) or not places:
        raise TypeError(
            f'large_arguments must be "database", "s3://bucket/prefix", or a list of them, not {described(places)}'
        )
    return list(places)
