"""What the doctor finds."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

DOCTOR: Final = "tests/test_doctor.py"

MUTATIONS: Final = (
    Mutation(
        "the doctor accepts one receive", "doctor.py", "LEAST_RECEIVES: Final = 5", "LEAST_RECEIVES: Final = 1", DOCTOR
    ),
    Mutation(
        "the doctor overlooks partial responses",
        "doctor.py",
        'if "ReportBatchItemFailures" not in (mapping.get("FunctionResponseTypes") or ()):',
        "if False:",
        DOCTOR,
    ),
    Mutation(
        "the doctor forgets the grace",
        "doctor.py",
        "needed = queue.hard_timeout + RESERVE",
        "needed = queue.hard_timeout",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks what outlives its record",
        "doctor.py",
        "if kept > DEFAULT_CLEANUP_DAYS * _DAY:",
        "if False:",
        DOCTOR,
    ),
)
