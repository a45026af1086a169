"""The subcommand `batch-job`."""

from __future__ import annotations

import os
from typing import Any, Final

from django.core.management.base import CommandError

from lambda_tasks.management.subcommands import Subcommand

#: The exit status for a job that no attempt can run.
_UNUSABLE: Final = 2


class BatchJob(Subcommand):
    """Runs the task of a job on AWS Batch."""

    name = "batch-job"
    help = "Run the task of a job on AWS Batch: the command of the container in the job definition."
    examples = ("batch-job",)
    statuses = (
        "exit status:\n"
        "  0  the task has ended, and its record has its outcome; or another job has run it\n"
        "  1  it was not run, because of an outage: another attempt of the job may run it\n"
        "  2  this container can never run it: the message is malformed, or the task is unknown"
    )
    needs_checks = False  # the container of each job would wait for them

    def run(self, **_: Any) -> None:
        from lambda_tasks.exceptions import InvalidMessage, UnknownTask
        from lambda_tasks.operations.batch_jobs import JobFailed, run_job

        try:
            outcome = run_job(os.environ)
        except JobFailed as error:
            raise CommandError(str(error)) from error
        except (InvalidMessage, UnknownTask) as error:
            raise CommandError(str(error), returncode=_UNUSABLE) from error
        self.output.result({"outcome": outcome}, f"The task of the job has ended: {outcome}.")
