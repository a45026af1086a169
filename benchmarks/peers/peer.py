"""What the comparison knows of a peer; the modules beside this one each describe one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclass(frozen=True, slots=True)
class Rows:
    """Results are rows: a query that counts them."""

    query: str


@dataclass(frozen=True, slots=True)
class Keys:
    """Results are in Redis: a command that counts them."""

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
    #: Django settings of its own.
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: What Python is started with for a worker; "{tasks}" stands for the number of tasks that wait.
    worker: tuple[str, ...]
    #: Where the results are.
    done: Rows | Keys
    #: Ways to enqueue: a function of its module for each, and in words what it does.
    ways: Mapping[str, str]
    #: The way that fills the queue before a worker is measured.
    fill: str = "one_by_one"
    #: What there is of a task when it has ended, and where.
    stores: str
    #: When a message is given up, and so what becomes of it if the worker dies.
    crash: str
    #: Whether what a task writes to the database and its result stand and fall together.
    atomic: str
    #: Where its time goes when it executes, as a log of PostgreSQL's statements and a profile have shown it.
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
