"""The doctor's findings, and the code that its checks share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from lambda_tasks import registry
from lambda_tasks.execution.pipeline import lease_for
from lambda_tasks.handler import ANSWER_RESERVE
from lambda_tasks.limits.alarms import KILL_GRACE
from lambda_tasks.recording.lines import sentence
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.queue_urls import Server, server_of

Level: TypeAlias = Literal["error", "warning", "skipped"]

#: The level of every finding. An `error` loses work or prevents it from running. A `warning` may lose or repeat work
#: in some situations. `skipped` means that AWS or a database did not answer, so the result is unknown.
LEVELS: Final[Mapping[str, Level]] = {
    "D001": "skipped",
    "D101": "error",
    "D102": "error",
    "D103": "error",
    "D104": "warning",
    "D105": "error",
    "D106": "warning",
    "D107": "warning",
    "D108": "warning",
    "D109": "warning",
    "D110": "error",
    "D111": "warning",
    "D112": "error",
    "D113": "warning",
    "D114": "warning",
    "D115": "warning",
    "D201": "warning",
    "D202": "error",
    "D203": "error",
    "D204": "warning",
    "D205": "error",
    "D206": "error",
    "D207": "warning",
    "D208": "error",
    "D209": "error",
    "D210": "warning",
    "D301": "warning",
    "D302": "warning",
    "D303": "warning",
    "D304": "warning",
    "D305": "warning",
    "D306": "warning",
    "D307": "error",
    "D401": "error",
    "D402": "error",
    "D403": "warning",
    "D404": "error",
    "D405": "warning",
    "D501": "error",
    "D601": "error",
    "D602": "error",
    "D603": "error",
    "D604": "warning",
    "D605": "error",
}

#: The maxReceiveCount below which valid messages end in the dead letter queue, and the recommended one.
LEAST_RECEIVES: Final = 5
ADVISED_RECEIVES: Final = 10
#: Seconds that an invocation needs in addition to the hard timeout of a task.
RESERVE: Final = KILL_GRACE + ANSWER_RESERVE
#: Days for which `cleanup_task_records` keeps records by default.
DEFAULT_CLEANUP_DAYS: Final = 7
#: Seconds after which a due message in the outbox shows that no relay is running: a failed attempt postpones it for
#: at most half as long, and relays normally run every minute.
OVERDUE: Final = 600
DAY: Final = 86_400
#: Seconds for which queues should keep messages, and dead letter queues, which is the maximum of SQS.
ADVISED_RETENTION: Final = 4 * DAY
LONGEST_RETENTION: Final = 14 * DAY


#: Creates a boto3 client from the name of a service, a region, and the server of a queue. None means the region of the
#: environment.
Connect: TypeAlias = Callable[[str, "str | None", Server], Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, or a check that was skipped.

    `id` is documented in `docs/reference/doctor.md`. `subject` names the object that was checked, such as
    "queue 'default'". `text` describes the problem and its consequences, and `remedy` describes the solution.
    """

    id: str
    subject: str
    text: str
    remedy: str

    @property
    def level(self) -> Level:
        """`error`, `warning`, or `skipped`."""
        return LEVELS[self.id]

    def __str__(self) -> str:
        return f"{self.level} {self.id}, {self.subject}: {self.text}\n    {self.remedy}"


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue in LAMBDA_TASKS_QUEUES."""

    name: str
    url: str

    def __str__(self) -> str:
        return f"queue {self.name!r}"

    @property
    def server(self) -> Server:
        """The server of the queue, which determines the address and the region of requests."""
        return server_of(self.url)

    @property
    def hard_timeout(self) -> int:
        """The longest hard timeout, in seconds, of the imported tasks that use this queue."""
        limits = [task.timeouts()[1] for task in registry.registered_tasks() if task.queue == self.name]
        return max(limits, default=app_settings.default_hard_timeout)

    @property
    def forgets(self) -> bool:
        """Whether successes of imported tasks that use this queue are forgotten."""
        tasks = [task for task in registry.registered_tasks() if task.queue == self.name]
        return any((task.record or app_settings.record) == "failures" for task in tasks)

    @property
    def lease(self) -> float:
        """Seconds for which the longest of these tasks holds its claim."""
        return lease_for(self.hard_timeout)


class Doctor:
    """Make requests to AWS, and collect findings."""

    def __init__(self, connect: Connect, function: str | None, note: Callable[[str], None]) -> None:
        self.findings: list[Finding] = []
        self.note = note
        self.connect = connect
        self.function = function
        self._answers: dict[Hashable, Any] = {}

    def find(self, id: str, subject: object, text: str, remedy: str) -> None:
        self.findings.append(Finding(id, str(subject), text, remedy))

    def ask(self, subject: object, permission: str, call: Callable[[], Any]) -> Any:
        """Return the response of `call`, or add a finding and return None if it fails."""
        from botocore.exceptions import BotoCoreError, ClientError

        from lambda_tasks.operations.doctor.asking import remedy_for

        try:
            return call()
        except (BotoCoreError, ClientError) as error:
            self.find("D001", subject, f"this check was skipped: {sentence(error)}", remedy_for(error, permission))
            return None

    def ask_once(self, subject: object, permission: str, call: Callable[[], Any]) -> tuple[Any, bool]:
        """Like `ask()`, but ask once for each subject and permission. Also return whether this is the first time."""
        key = (str(subject), permission)
        is_first = key not in self._answers
        if is_first:
            self._answers[key] = self.ask(subject, permission, call)
        return self._answers[key], is_first


def max_message_bytes() -> int | None:
    """Return the size of the largest message that the backend, or the transport behind it, sends, if it has one."""
    backend = get_backend()
    size: int | None = getattr(getattr(backend, "transport", backend), "max_message_bytes", None)
    return size


def lease_sentence(lease: float) -> str:
    return (
        f"A worker that dies leaves a lease of up to {lease:g} s. A message that becomes visible before the lease ends "
        "uses up one more receive for each death, and may reach the dead letter queue while its record is still "
        "RUNNING."
    )
