"""The subcommand `template` of `manage.py lambda_tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from django.core.management.base import CommandError

from lambda_tasks.management.subcommands import Subcommand

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

    from lambda_tasks.operations.infrastructure import Format, Options

#: The formats of templates, as `lambda_tasks.operations.infrastructure` names them.
FORMATS: Final = ("cloudformation", "sam", "terraform")
_PER_QUEUE: Final = "[QUEUE=]N"
#: The options that are numbers for each queue, and those that are passed on as they are.
_NUMBERS: Final = ("function_timeout", "memory", "batch_size", "batching_window", "maximum_concurrency")
_PLAIN: Final = (
    *("max_receives", "cleanup_days", "log_retention_days", "function", "function_per_queue", "package", "code"),
    *("runtime", "architecture", "vpc", "create_bucket", "kms_key", "alarm_topic"),
)


class Template(Subcommand):
    """Writes a template of the infrastructure."""

    name = "template"
    formats = FORMATS
    help = (
        "Write a CloudFormation, SAM or Terraform template with the queues, functions, permissions, schedules and "
        "alarms that the settings and tasks of this project need."
    )
    examples = (
        "template --output template.yaml",
        "template --format sam --package image --maximum-concurrency 10",
        "template --format terraform --function-per-queue --memory heavy=4096 --output tasks.tf",
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--output", metavar="FILE", help="the file to write (default: print the template)")
        _add_numbers(parser)
        _add_functions(parser)
        _add_surroundings(parser)

    def run(self, *, format: Format, output: str | None, **options: Any) -> None:
        from lambda_tasks.operations.infrastructure import describe, render

        text = render(describe(_options(options), format=format), format)
        if output is None:
            self.output.line(text.rstrip("\n"))
            return
        try:
            Path(output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CommandError(
                f"--output {output} cannot be written: {error.strerror}. Choose another file."
            ) from error
        self.output.line(f"Wrote {output}.")


def _add_numbers(parser: CommandParser) -> None:
    numbers = parser.add_argument_group("numbers", "for all queues, or as QUEUE=N for one of them; can be repeated")
    for option, text in (
        ("--function-timeout", "seconds after which Lambda ends an invocation (default: computed from the tasks)"),
        ("--memory", "megabytes of a function (default: 512)"),
        ("--batch-size", "messages per invocation, at most (default: computed from the tasks)"),
        ("--batching-window", "seconds to wait for a batch to fill (default: 0)"),
        ("--maximum-concurrency", "functions that run for a queue, at most, from 2 to 1000 (default: no limit)"),
    ):
        numbers.add_argument(option, action="append", default=[], metavar=_PER_QUEUE, help=text)
    for option, text in (
        ("--max-receives", "receives after which a message moves to the dead letter queue (default: 10)"),
        ("--cleanup-days", "age at which a schedule deletes records; 0 for no schedule (default: 30)"),
        ("--log-retention-days", "days for which CloudWatch keeps the logs (default: 30)"),
    ):
        numbers.add_argument(option, type=int, metavar="N", help=text)


def _add_functions(parser: CommandParser) -> None:
    functions = parser.add_argument_group("functions")
    functions.add_argument(
        "--queue",
        action="append",
        metavar="NAME",
        help="a queue in LAMBDA_TASKS_QUEUES; can be repeated (default: all)",
    )
    functions.add_argument(
        "--function", metavar="NAME", help="the function's name (default: that of a queue and -tasks)"
    )
    functions.add_argument("--function-per-queue", action="store_true", help="create a function for each queue")
    functions.add_argument("--package", choices=("zip", "image"), help="what the code is packaged as (default: zip)")
    functions.add_argument(
        "--code",
        metavar="LOCATION",
        help="s3://BUCKET/KEY, an image in ECR, a directory (SAM), or a zip file (Terraform); by default, a parameter "
        "of the template, and the current directory with SAM",
    )
    functions.add_argument("--runtime", metavar="NAME", help="(default: that of this Python, such as python3.13)")
    functions.add_argument("--architecture", choices=("x86_64", "arm64"), help="(default: x86_64)")
    functions.add_argument(
        "--environment", action="append", default=[], metavar="NAME=VALUE", help="a variable that is not secret"
    )
    functions.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=REFERENCE",
        help="a variable from Secrets Manager, with the reference as in LAMBDA_TASKS_SECRET_NAME, whose variables in "
        "the environment of this command count too",
    )
    functions.add_argument("--vpc", action="store_true", help="run in a VPC, with its subnets as parameters")


def _add_surroundings(parser: CommandParser) -> None:
    surroundings = parser.add_argument_group("surroundings")
    surroundings.add_argument(
        "--kms-key", metavar="ARN", help="encrypt the queues with this key (default: that of SQS)"
    )
    surroundings.add_argument(
        "--create-bucket",
        action="store_true",
        help="create the bucket in the option large_arguments, with a lifecycle rule (default: it exists)",
    )
    surroundings.add_argument("--alarm-topic", metavar="ARN", help="the SNS topic that alarms notify (default: none)")


def _options(options: dict[str, Any]) -> Options:
    from lambda_tasks.operations.infrastructure.options import MEMORY, Options, assignments, per_queue

    chosen = {name: options[name] for name in _PLAIN if options[name] is not None}
    for name, default in {**dict.fromkeys(_NUMBERS), "memory": MEMORY, "batching_window": 0}.items():
        chosen[name] = per_queue(f"--{name.replace('_', '-')}", options[name], default=default)
    return Options(
        queues=tuple(options["queue"] or ()),
        environment=assignments("--environment", options["environment"]),
        secrets=assignments("--secret", options["secret"]),
        **chosen,
    )
