"""Report what a code base uses of Celery, from its source text: `report_on(path)`. Nothing of it is imported."""

from __future__ import annotations

from lambda_tasks.operations.from_celery.findings import Report
from lambda_tasks.operations.from_celery.reporting import report_on

__all__ = ["Report", "report_on"]
