"""Names that do not exist, although the modules have a `__getattr__`."""

from __future__ import annotations

import lambda_tasks
from lambda_tasks import lambda_tsk  # error: attr-defined
from lambda_tasks.models import SQSLambdaMessage  # error: attr-defined

used = (lambda_tsk, SQSLambdaMessage)
unknown = lambda_tasks.task  # error: attr-defined
