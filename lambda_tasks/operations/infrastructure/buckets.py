"""The buckets for arguments that are too large for a message, as the settings name them."""

from __future__ import annotations

from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.backends.bucket import ADVISED_DAYS, Bucket
from lambda_tasks.operations.infrastructure.described import BucketPlan, Number


def buckets_of(backend: BaseBackend, *, create: bool) -> tuple[BucketPlan, ...]:
    """Return the buckets of the backend, or of the transport behind it.

    With `create`, the template creates the one in which new arguments are stored. Raise ValueError if there is none.
    """
    places = getattr(getattr(backend, "transport", backend), "places", [])
    days = Number(ADVISED_DAYS, "Messages are delayed for up to 14 days, and stay up to 28 days on queues.")
    found = []
    for place in places:
        if isinstance(place, Bucket):
            stores = place is places[0]
            prefix = f"{place.prefix}/" if place.prefix else ""
            found.append(BucketPlan(place.bucket, prefix, stores, days if create and stores else None))
    if create and not any(bucket.stores for bucket in found):
        raise ValueError(
            "--create-bucket needs a bucket in which new arguments are stored. Set the option large_arguments of "
            'SQSBackend to "s3://BUCKET/PREFIX", or leave --create-bucket out.'
        )
    return tuple(found)
