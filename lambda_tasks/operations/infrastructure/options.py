"""The options of a template, as text of the command line, and their validation."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from lambda_tasks.operations.doctor.findings import ADVISED_RECEIVES, LEAST_RECEIVES
from lambda_tasks.settings import MAX_FUNCTION_TIMEOUT, whole_number
from lambda_tasks.wire.visibility import MAX_BATCHING_WINDOW

#: Days for which records are kept by default: much longer than messages, so that no message outlives its record.
CLEANUP_DAYS: Final = 30
LOG_RETENTION_DAYS: Final = 30
#: Megabytes.
MEMORY: Final = 512
#: The number of days that CloudWatch Logs accepts.
LOG_RETENTIONS: Final = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653),
)
ARCHITECTURES: Final = ("x86_64", "arm64")

_FUNCTION_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RUNTIME: Final = re.compile(r"python3\.\d{1,2}")
_KMS_KEY: Final = re.compile(r"arn:[a-z-]+:kms:(?P<region>[a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")
_TOPIC: Final = re.compile(r"arn:[a-z-]+:sns:(?P<region>[a-z0-9-]+):\d{12}:[A-Za-z0-9_-]{1,256}")
_VARIABLE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class PerQueue:
    """A number for all queues, and other numbers for some of them by their names."""

    default: int | None = None
    of_queue: Mapping[str, int] = field(default_factory=dict)

    def of(self, names: Iterable[str]) -> int | None:
        """Return the number for the queue with these names in LAMBDA_TASKS_QUEUES."""
        return next((self.of_queue[name] for name in names if name in self.of_queue), self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The choices that the settings do not contain. Without a number, it is computed.

    `function_timeout` and `batching_window` are seconds, and `memory` is megabytes. `cleanup_days` is 0 if no
    schedule is to delete old records. `secrets` maps variables to references to Secrets Manager.
    """

    queues: tuple[str, ...] = ()
    function: str | None = None
    function_per_queue: bool = False
    function_timeout: PerQueue = PerQueue()
    memory: PerQueue = PerQueue(MEMORY)
    batch_size: PerQueue = PerQueue()
    batching_window: PerQueue = PerQueue(0)
    maximum_concurrency: PerQueue = PerQueue()
    max_receives: int = ADVISED_RECEIVES
    code: str | None = None
    package: str | None = None
    runtime: str = f"python3.{sys.version_info.minor}"
    architecture: str = "x86_64"
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    vpc: bool = False
    create_bucket: bool = False
    kms_key: str | None = None
    alarm_topic: str | None = None
    cleanup_days: int = CLEANUP_DAYS
    log_retention_days: int = LOG_RETENTION_DAYS

    def __post_init__(self) -> None:
        for name, low, high in (
            ("function_timeout", 1, MAX_FUNCTION_TIMEOUT),
            ("memory", 128, 10_240),
            ("batch_size", 1, 10_000),
            ("batching_window", 0, MAX_BATCHING_WINDOW),
            ("maximum_concurrency", 2, 1000),
        ):
            numbers: PerQueue = getattr(self, name)
            for queue, value in {"": numbers.default, **numbers.of_queue}.items():
                if value is not None:
                    whole_number(low, high)(value, f"{_option(name)} {f'of queue {queue!r}' if queue else ''}".strip())
        whole_number(LEAST_RECEIVES, 1000)(self.max_receives, "--max-receives")
        whole_number(0)(self.cleanup_days, "--cleanup-days")
        self._check_texts()
        if self.log_retention_days not in LOG_RETENTIONS:
            raise ValueError(
                f"--log-retention-days must be a number of days that CloudWatch Logs accepts "
                f"({', '.join(map(str, LOG_RETENTIONS))}), not {self.log_retention_days}."
            )

    def _check_texts(self) -> None:
        if self.function is not None and not _FUNCTION_NAME.fullmatch(self.function):
            raise ValueError(
                f"--function must be a name of at most 64 letters, digits, hyphens and underscores, not "
                f"{self.function!r}. Shorten or correct it."
            )
        if not _RUNTIME.fullmatch(self.runtime):
            raise ValueError(f"--runtime must be a Python runtime such as python3.13, not {self.runtime!r}.")
        for variable in self.environment:
            if not _VARIABLE.fullmatch(variable):
                raise ValueError(
                    "--environment must be NAME=VALUE with a name of letters, digits and underscores, not "
                    f"{variable!r}. Correct the name."
                )

    def check_region(self, region: str | None) -> None:
        """Raise ValueError if an ARN is malformed, or names another region than the queues."""
        for option, arn, pattern, example in (
            ("--kms-key", self.kms_key, _KMS_KEY, "arn:aws:kms:REGION:ACCOUNT:key/ID"),
            ("--alarm-topic", self.alarm_topic, _TOPIC, "arn:aws:sns:REGION:ACCOUNT:NAME"),
        ):
            if arn is None:
                continue
            match = pattern.fullmatch(arn)
            if match is None:
                raise ValueError(
                    f"{option} must be an ARN such as {example}, not {arn!r}. Aliases and names do not work."
                )
            if region is not None and match["region"] != region:
                raise ValueError(
                    f"{option} must be in the region of the queues, {region}, not in {match['region']}. Name one there."
                )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def per_queue(option: str, texts: Iterable[str], *, default: int | None = None) -> PerQueue:
    """Read `N` and `QUEUE=N` from the command line. Raise ValueError for anything else."""
    numbers: dict[str, int] = {}
    for text in texts:
        queue, _, number = text.rpartition("=")
        try:
            numbers[queue] = int(number)
        except ValueError:
            raise ValueError(f"{option} must be a number, or QUEUE=NUMBER for one queue, not {text!r}.") from None
    default = numbers.pop("", default)
    return PerQueue(default, numbers)


def assignments(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Read `NAME=VALUE` from the command line. Raise ValueError, without the value, for anything else."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ValueError(
                f"{option} must be NAME=VALUE. Write both parts. (It is not shown in case it is a secret.)"
            )
        pairs[name] = value
    return pairs
