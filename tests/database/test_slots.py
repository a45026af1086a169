"""Placeholders become parameters that the database understands as it does those of the ORM."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connections
from django.db.models import DurationField, Value

from lambda_tasks.database.clock import DatabaseNow, FromNow, LeaseNow
from lambda_tasks.database.slots import Slot, places
from lambda_tasks.models import TaskRecord, TaskStatus

NAME = TaskRecord._meta.get_field("task_name")


class TestConstants:
    def test_constants_are_written_into_the_sql(self) -> None:
        slot = Slot("name", NAME)
        sql, params = places(
            "a = %s, b = %s, c = %s, d LIKE '%%x'", [TaskStatus.RUNNING, slot, 7], connections["default"]
        )
        assert sql == "a = 'RUNNING', b = %s, c = 7, d LIKE '%%x'"
        assert [param.name for param in params] == ["name"]

    @pytest.mark.parametrize("value", ["it's", "50 %", "a", "\\", None, True, 1.5, b"X"])
    def test_other_value_stays_a_parameter(self, value: object) -> None:
        assert places("a = %s", [value], connections["default"]) == ("a = %s", (value,))

    @pytest.mark.parametrize("params", [[], [1, 2]])
    def test_missing_placeholder_is_an_error(self, params: list[object]) -> None:
        with pytest.raises(ValueError, match=r"zip\(\)"):
            places("a = %s", params, connections["default"])


@pytest.mark.databases
@pytest.mark.parametrize("seconds", [0.0, 309.25, -1.5, 86_400.0 * 400, 0.001, -0.001])
@pytest.mark.parametrize("clock", [DatabaseNow, LeaseNow])
def test_time_from_now_is_that_of_the_orm(database: str, seconds: float, clock: type[DatabaseNow]) -> None:
    TaskRecord.objects.using(database).create(id="0" * 32, task_name="a.b")
    duration = timedelta(seconds=seconds)
    ours = FromNow(Value(duration, output_field=DurationField()), clock)
    # All in one row, so that the time of the statement is the same.
    row = TaskRecord.objects.using(database).annotate(ours=ours, orms=clock() + duration, now=clock())
    ((ours_read, orms_read, now),) = row.values_list("ours", "orms", "now")
    assert abs(ours_read - orms_read) <= timedelta(milliseconds=1)
    assert abs(ours_read - now - duration) <= timedelta(milliseconds=1)
