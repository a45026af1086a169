"""Mutations of the doctor."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

DOCTOR: Final = "tests/operations/test_doctor.py"

MUTATIONS: Final = (
    Mutation(
        "the doctor accepts a maxReceiveCount of 1",
        "operations/doctor/findings.py",
        "LEAST_RECEIVES: Final = 5",
        "LEAST_RECEIVES: Final = 1",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks missing partial batch responses",
        "operations/doctor/functions.py",
        'if "ReportBatchItemFailures" not in (mapping.get("FunctionResponseTypes") or ()):',
        "if False:",
        DOCTOR,
    ),
    Mutation(
        "the doctor ignores the reserve after the hard timeout",
        "operations/doctor/functions.py",
        "needed = queue.hard_timeout + RESERVE",
        "needed = queue.hard_timeout",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks functions that are longer than the setting",
        "operations/doctor/functions.py",
        "    if timeout > longest:\n",
        "    if False:\n",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks messages that return after the loss of their record",
        "operations/doctor/queues.py",
        "if visibility <= (seconds := lost_after()):",
        "if seconds := lost_after():",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks transactions that end before their task",
        "operations/doctor/databases.py",
        "    if 0 < seconds < (needed := longest + RESERVE):\n",
        "    if 0 < seconds < (needed := longest):\n",
        DOCTOR,
    ),
    Mutation(
        "the doctor calls every server an RDS Proxy",
        "operations/doctor/databases.py",
        'if options and _RDS_PROXY.search(settings.get("HOST") or ""):',
        "if options:",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks messages that outlive their records",
        "operations/doctor/queues.py",
        "if kept > DEFAULT_CLEANUP_DAYS * DAY:",
        "if False:",
        DOCTOR,
    ),
    Mutation(
        "the doctor succeeds although it could not ask",
        "management/doctor.py",
        "if skipped and not allow_skipped:",
        "if False:",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks tasks that nothing has imported",
        "operations/doctor/__init__.py",
        "    look_at_tasks(doctor)\n",
        "",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks dead letters",
        "operations/doctor/queues.py",
        'if is_first and (waiting := int(dead.get("ApproximateNumberOfMessages") or 0)):',
        "if waiting := 0:",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks filters that delete messages",
        "operations/doctor/functions.py",
        'if (mapping.get("FilterCriteria") or {}).get("Filters") or mapping.get("FilterCriteriaError"):',
        "if False:",
        DOCTOR,
    ),
    Mutation(
        "the doctor takes a missing function for a missing permission",
        "operations/doctor/functions.py",
        '        if error.response["Error"]["Code"] != "ResourceNotFoundException":\n',
        "        if True:\n",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks another handler",
        "operations/doctor/functions.py",
        "            _check_handler(doctor, function, configuration)\n",
        "            pass\n",
        DOCTOR,
    ),
    Mutation(
        "the doctor overlooks provisioned pollers",
        "operations/doctor/functions.py",
        "    if pollers * INVOCATIONS_PER_POLLER > reserved:",
        "    if False:",
        DOCTOR,
    ),
    Mutation(
        "the doctor compares forgotten successes with the visibility timeout only",
        "operations/doctor/queues.py",
        "if not queue.forgets or window >= kept:",
        "if not queue.forgets or window >= visibility:",
        DOCTOR,
    ),
    Mutation(
        "unsigned messages are accepted without a warning",
        "operations/checks.py",
        "        *_unsigned_messages(),\n",
        "",
        "tests/operations/test_checks.py",
    ),
)
