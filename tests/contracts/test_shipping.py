"""The contracts as somebody else finds them, who has no settings like ours."""

from __future__ import annotations

import subprocess
import sys

ALONE = """
import sys
from lambda_tasks.testing import contracts
from django.conf import settings
assert not settings.configured
print(*sorted(name for name in ("boto3", "redis", "pytest_django", "lambda_tasks.models") if name in sys.modules))
"""


def test_they_can_be_imported_before_django_is_configured_and_take_nothing_heavy_along() -> None:
    loaded = subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True, text=True, timeout=60)
    assert loaded.stdout.split() == []
