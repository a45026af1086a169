"""The public names for time limits, for tasks and their tests."""

from __future__ import annotations

from lambda_tasks.limits.alarms import HardTimeLimitExceeded, SoftTimeLimitExceeded, TimeoutContext

__all__ = ["HardTimeLimitExceeded", "SoftTimeLimitExceeded", "TimeoutContext"]
