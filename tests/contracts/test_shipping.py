"""Import the contracts like another project, without these settings."""

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


def test_import_needs_no_configured_django() -> None:
    """The contracts do not import heavy modules either."""
    loaded = subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True, text=True, timeout=60)
    assert loaded.stdout.split() == []
