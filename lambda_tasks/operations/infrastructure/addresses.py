"""The queues of LAMBDA_TASKS_QUEUES as resources: their names, accounts and regions, from their URLs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from lambda_tasks.recording.described import names
from lambda_tasks.wire.queue_urls import problem_of, region_in

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
DEAD_LETTER_SUFFIX: Final = "-dead"


@dataclass(frozen=True, slots=True)
class Address:
    """A queue: its name, its names in LAMBDA_TASKS_QUEUES, and the account and region in its URL."""

    name: str
    aliases: tuple[str, ...]
    account: str | None
    region: str | None

    @property
    def key(self) -> str:
        """The first name in the settings, in the form of an identifier."""
        return re.sub(r"[^a-z0-9]+", "_", self.aliases[0].lower()).strip("_")


def read_addresses(urls: Mapping[str, str], chosen: Iterable[str]) -> list[Address]:
    """Return the queues in the order of the settings; each one once, even if it has several names.

    `chosen` are the names of the queues that the template creates; all if it is empty. Raise ValueError for an
    unknown name, and ImproperlyConfigured if one template cannot create these queues.
    """
    if not urls:
        raise ImproperlyConfigured(
            "LAMBDA_TASKS_QUEUES must have a queue of SQS for a template, not only queues of AWS Batch."
        )
    chosen = list(chosen)
    if unknown := [name for name in chosen if name not in urls]:
        raise ValueError(
            f"--queue must be a queue in LAMBDA_TASKS_QUEUES {names(urls)}, not {unknown[0]!r}. Correct --queue, or "
            "add the URL of the queue to the setting."
        )
    aliases: dict[tuple[str, str | None, str | None], list[str]] = {}
    for name in chosen or urls:
        aliases.setdefault(_location(name, urls[name]), []).append(name)
    addresses = [
        Address(queue, tuple(aliases), account, region) for (queue, account, region), aliases in aliases.items()
    ]
    _check_places(addresses)
    _check_keys(addresses)
    return addresses


def _location(name: str, url: str) -> tuple[str, str | None, str | None]:
    if problem := problem_of(url):
        raise ImproperlyConfigured(f"LAMBDA_TASKS_QUEUES[{name!r}] {problem}")
    *_, account, queue = ["", *urlsplit(url).path.rstrip("/").split("/")]
    if not _NAME.fullmatch(queue):
        raise ImproperlyConfigured(
            f"LAMBDA_TASKS_QUEUES[{name!r}] must end with the name of a queue (letters, digits, hyphens and "
            f"underscores), not {queue!r}. Correct the setting."
        )
    if len(queue) + len(DEAD_LETTER_SUFFIX) > 80:
        raise ImproperlyConfigured(
            f"LAMBDA_TASKS_QUEUES[{name!r}] must have a name of at most {80 - len(DEAD_LETTER_SUFFIX)} characters, not "
            f"{queue!r}: its dead letter queue adds {DEAD_LETTER_SUFFIX!r}, and SQS allows 80. Shorten the name."
        )
    return queue, account if account.isdigit() else None, region_in(url)


def _check_places(addresses: list[Address]) -> None:
    for attribute in ("account", "region"):
        places = {address.aliases[0]: getattr(address, attribute) for address in addresses}
        if len(set(places.values())) > 1:
            listed = ", ".join(f"{name}: {place or 'unknown'}" for name, place in places.items())
            raise ImproperlyConfigured(
                f"All queues of a template must have the same {attribute}, not {listed}. Write a template for each "
                f"{attribute}, with the names of its queues in --queue."
            )


def _check_keys(addresses: list[Address]) -> None:
    """Refuse queues whose resources would have the same identifiers, or whose dead letter queue is another queue."""
    taken: dict[str, str] = {}
    for address in addresses:
        alias = address.aliases[0]
        if not address.key:
            raise ImproperlyConfigured(
                f"The name {alias!r} in LAMBDA_TASKS_QUEUES must contain a letter or a digit of ASCII for a template. "
                "Rename it in the setting."
            )
        compact = address.key.replace("_", "")
        for name in (address.name, f"{address.name}{DEAD_LETTER_SUFFIX}", compact, f"{compact}deadletter"):
            other = taken.setdefault(name, alias)
            if other != alias:
                raise ImproperlyConfigured(
                    f"The queues {other!r} and {alias!r} in LAMBDA_TASKS_QUEUES, or their dead letter queues, must not "
                    f"both be called {name!r} in a template. Rename one of them, or write a template for each, with "
                    "--queue."
                )
