"""The description of a peer in the comparison; each of the neighbouring modules contains one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True, slots=True)
class Rows:
    """A query that counts results in database rows."""

    query: str


@dataclass(frozen=True, slots=True)
class Keys:
    """A command that counts results in Redis."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A library in one configuration."""

    name: str
    #: The module in `benchmarks.peers.tasks` with its task and the functions that enqueue.
    tasks: str
    #: The distributions that must be installed.
    packages: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    #: Whether the apps have migrations.
    migrates: bool = True
    #: Additional Django settings.
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: The arguments with which Python starts a worker; "{tasks}" is replaced with the number of waiting tasks.
    worker: tuple[str, ...]
    #: The location of the results.
    done: Rows | Keys
    #: Ways to enqueue: the function of the module for each, and its description.
    ways: Mapping[str, str]
    #: The way that fills the queue before a worker is measured.
    fill: str = "one_by_one"
    #: What is stored about a task that has ended, and where.
    stores: str
    #: When a message is acknowledged, and so what happens to it if the worker dies.
    crash: str
    #: Whether the task's writes and its result are committed together.
    atomic: str
    #: Where it spends its time when it executes, according to PostgreSQL's statement log and a profile.
    why: str = ""

    def missing(self) -> list[str]:
        """Return the distributions that are not installed."""
        return [name for name in self.packages if not _version(name)]

    def versions(self) -> str:
        return ", ".join(f"{name} {_version(name)}" for name in self.packages)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
