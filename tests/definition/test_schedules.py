"""When `Cron` and `Every` run a task, and what they refuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition.schedules import ON_TIME, Cron, Every, Schedule

BERLIN: Final = "Europe/Berlin"
NEW_YORK: Final = "America/New_York"


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    """Return a local time as seconds since 1970; `fold=1` is the second pass of a repeated hour."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp())


def runs(schedule: Schedule, after: int, until: int) -> list[int]:
    """Return the scheduled times, one after the other."""

    def following() -> Iterator[int]:
        moment = schedule.next_after(after)
        while moment is not None and moment <= until:
            yield moment
            moment = schedule.next_after(moment)

    return list(following())


def shown(moments: list[int], zone: str) -> list[str]:
    return [datetime.fromtimestamp(moment, ZoneInfo(zone)).strftime("%d %H:%M %Z") for moment in moments]


def night(expression: str, zone: str, day: str) -> list[str]:
    """Return when a task runs on a night, from midnight to 04:00."""
    schedule = Cron(expression, timezone=zone)
    start, end = at(f"{day} 00:00", zone) - 1, at(f"{day} 04:00", zone)
    one_by_one = runs(schedule, start, end)
    assert one_by_one == schedule.latest(start, end, 1000)
    return shown(one_by_one, zone)


class TestNightsOfTheChange:
    """Fixed times run once, as with Debian's cron, and wildcards follow real time."""

    @pytest.mark.parametrize(("zone", "day", "before", "after"), [(BERLIN, "2026-03-29", "CET", "CEST")])
    def test_skipped_time_runs_once_directly_after_the_gap(self, zone: str, day: str, before: str, after: str) -> None:
        assert night("30 2 * * *", zone, day) == ["29 03:00 CEST"]
        assert night("0,30 2 * * *", zone, day) == ["29 03:00 CEST"]
        assert night("30 1,2,3 * * *", zone, day) == ["29 01:30 CET", "29 03:00 CEST", "29 03:30 CEST"]

    def test_skipped_time_in_new_york(self) -> None:
        assert night("30 2 * * *", NEW_YORK, "2026-03-08") == ["08 03:00 EDT"]
        assert night("0 3 * * *", NEW_YORK, "2026-03-08") == ["08 03:00 EDT"]

    def test_repeated_time_runs_once_in_its_first_pass(self) -> None:
        assert night("30 2 * * *", BERLIN, "2026-10-25") == ["25 02:30 CEST"]
        assert night("0,30 2,3 * * *", BERLIN, "2026-10-25") == [
            "25 02:00 CEST",
            "25 02:30 CEST",
            "25 03:00 CET",
            "25 03:30 CET",
        ]
        assert night("30 1 * * *", NEW_YORK, "2026-11-01") == ["01 01:30 EDT"]

    def test_wildcards_skip_the_missing_hour(self) -> None:
        assert night("0 * * * *", BERLIN, "2026-03-29") == [
            "29 00:00 CET",
            "29 01:00 CET",
            "29 03:00 CEST",
            "29 04:00 CEST",
        ]
        assert night("*/30 2 * * *", BERLIN, "2026-03-29") == []
        assert night("0 * * * *", NEW_YORK, "2026-03-08") == [
            "08 00:00 EST",
            "08 01:00 EST",
            "08 03:00 EDT",
            "08 04:00 EDT",
        ]

    def test_wildcards_run_in_both_passes(self) -> None:
        assert night("*/30 2 * * *", BERLIN, "2026-10-25") == [
            "25 02:00 CEST",
            "25 02:30 CEST",
            "25 02:00 CET",
            "25 02:30 CET",
        ]
        assert night("0 * * * *", NEW_YORK, "2026-11-01") == [
            "01 00:00 EDT",
            "01 01:00 EDT",
            "01 01:00 EST",
            "01 02:00 EST",
            "01 03:00 EST",
            "01 04:00 EST",
        ]

    @pytest.mark.parametrize("minute", ["02:00", "02:10", "02:30", "02:59"])
    @pytest.mark.parametrize("expression", ["30 2 * * *", "0,30 2 * * *"])
    def test_no_time_is_in_the_past(self, expression: str, minute: str) -> None:
        """A search that starts in the second pass of the hour must not find times of the first."""
        start = at(f"2026-10-25 {minute}", BERLIN, fold=1)
        schedule = Cron(expression, timezone=BERLIN)
        upcoming = schedule.next_after(start)
        assert upcoming is not None
        assert shown([upcoming], BERLIN) == [f"26 02:{'30' if expression.startswith('30') else '00'} CET"]
        assert schedule.latest(start, start + 3600, 10) == []

    def test_every_follows_real_time(self) -> None:
        moments = runs(Every(minutes=30), at("2026-03-29 01:00", BERLIN), at("2026-03-29 04:00", BERLIN))
        assert shown(moments, BERLIN) == ["29 01:30 CET", "29 03:00 CEST", "29 03:30 CEST", "29 04:00 CEST"]

    @given(
        st.sampled_from(["30 2 * * *", "0,30 1-3 * * *", "0 * * * *", "*/20 2 * * *", "0 0 * * *", "5 4 * * SUN"]),
        st.sampled_from([(BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), (NEW_YORK, "2026-03-08")]),
        st.integers(-86_400, 86_400),
        st.integers(1, 4 * 86_400),
        st.integers(1, 200),
    )
    def test_search_finds_the_same_from_any_start(
        self, expression: str, change: tuple[str, str], start: int, seconds: int, limit: int
    ) -> None:
        zone, day = change
        schedule = Cron(expression, timezone=zone)
        after = at(f"{day} 02:00", zone) + start
        whole = runs(schedule, at(f"{day} 02:00", zone) - 2 * 86_400, after + seconds)
        expected = [moment for moment in whole if moment > after]
        assert schedule.latest(after, after + seconds, limit) == expected[-limit:]
        assert schedule.next_after(after) == (expected[0] if expected else schedule.next_after(after + seconds))


class TestCron:
    @pytest.mark.parametrize(
        ("expression", "run"),
        [
            ("0 3 * * *", "2026-01-02 03:00"),
            ("*/15 * * * *", "2026-01-01 12:15"),
            ("0 9 * * MON", "2026-01-05 09:00"),
            ("0 0 1 * *", "2026-02-01 00:00"),
            ("0 0 L * *", "2026-01-31 00:00"),
            ("0 0 29 2 *", "2028-02-29 00:00"),
            ("  0   3 * * * ", "2026-01-02 03:00"),
        ],
    )
    def test_next_run(self, expression: str, run: str) -> None:
        assert Cron(expression, timezone="UTC").next_after(at("2026-01-01 12:00")) == at(run)

    def test_default_time_zone_is_that_of_the_settings(self, settings: Any) -> None:
        cron = Cron("0 3 * * *")
        settings.TIME_ZONE = "Asia/Tokyo"
        assert cron.next_after(at("2026-01-01 12:00")) == at("2026-01-02 03:00", "Asia/Tokyo")

    def test_long_outage_finds_only_the_latest(self) -> None:
        now = at("2026-06-01 12:00")
        every_minute = Cron("* * * * *", timezone="UTC")
        assert every_minute.latest(at("2016-01-01"), now, 3) == [now - 120, now - 60, now]
        assert Cron("0 0 1 1 *", timezone="UTC").latest(at("2016-01-01"), now, 2) == [
            at("2025-01-01"),
            at("2026-01-01"),
        ]

    @pytest.mark.parametrize(
        ("expression", "problem"),
        [
            ("0 3 * *", "five fields"),
            ("0 0 3 * * *", "five fields"),
            ("@daily", "five fields"),
            ("", "five fields"),
            ("61 3 * * *", "'61 3 * * *': Bad minute."),
            ("0 3 * * FUN", "Bad day-of-week"),
            ("0 3 30 2 *", "Bad day-of-month"),
            ("* * */20 * 1L", "which never matches."),
        ],
    )
    def test_invalid_expression_is_refused(self, expression: str, problem: str) -> None:
        with pytest.raises(ValueError, match="expression must be a cron expression") as refused:
            Cron(expression)
        assert problem in str(refused.value)

    @pytest.mark.parametrize("zone", ["Europe/Bonn", "", "../etc/passwd", "Europe"])
    def test_unknown_time_zone_is_refused(self, zone: str) -> None:
        with pytest.raises(ValueError, match=r"timezone must be the name of a time zone.*tzdata"):
            Cron("0 3 * * *", timezone=zone)

    @pytest.mark.parametrize("arguments", [{"expression": 5}, {"expression": "0 3 * * *", "timezone": timezone.utc}])
    def test_other_types_are_refused(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match="must be a"):
            Cron(**arguments)

    def test_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cronsim", None)
        with pytest.raises(ImproperlyConfigured, match=r"django-lambda-tasks\[schedules\]"):
            Cron("0 3 * * *")

    def test_every_does_not_need_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cronsim", None)
        assert Every(minutes=5).next_after(0) == 300


class TestEvery:
    def test_times_are_multiples_of_the_interval(self) -> None:
        every = Every(minutes=5)
        assert every.next_after(at("2026-01-01 12:03")) == at("2026-01-01 12:05")
        assert every.next_after(at("2026-01-01 12:05")) == at("2026-01-01 12:10")
        assert Every(days=1).next_after(at("2026-01-01 12:00")) == at("2026-01-02 00:00")
        assert Every(hours=1, minutes=30).interval == 5400

    def test_latest_times(self) -> None:
        now = at("2026-01-01 12:00")
        assert Every(minutes=5).latest(0, now, 2) == [now - 300, now]
        assert Every(minutes=5).latest(now - 300, now, 9) == [now]
        assert Every(minutes=5).latest(now, now + 299, 9) == []

    @pytest.mark.parametrize("given", [{}, {"minutes": 0}, {"days": 367}, {"hours": -1}, {"minutes": -5, "hours": 1}])
    def test_impossible_interval_is_refused(self, given: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="must be"):
            Every(**given)

    @pytest.mark.parametrize("value", [1.5, "5", True, None])
    def test_other_types_are_refused(self, value: Any) -> None:
        with pytest.raises(TypeError, match="minutes must be an integer"):
            Every(minutes=value)


class TestCommonArguments:
    @pytest.mark.parametrize("missed", [0, -1, 1001, "twice"])
    def test_invalid_missed_is_refused(self, missed: Any) -> None:
        with pytest.raises(ValueError, match='missed must be "skip", "once", or a number from 1 to 1000'):
            Every(minutes=5, missed=missed)

    @pytest.mark.parametrize(
        "given",
        [{"missed": True}, {"missed": None}, {"missed": 1.5}, {"kwargs": [1]}, {"queue": 5}, {"name": None}],
        ids=str,
    )
    def test_other_types_are_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match="must be"):
            Every(minutes=5, **given)

    @pytest.mark.parametrize("given", [{"queue": ""}, {"name": " a"}, {"name": "a\n"}], ids=str)
    def test_unusable_strings_are_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must"):
            Every(minutes=5, **given)

    def test_skip_runs_only_what_is_on_time(self) -> None:
        assert Every(minutes=5, missed="skip").to_run([0, 300], ON_TIME + 1) == [300]
        assert Every(minutes=5, missed="once").to_run([0, 300], ON_TIME + 1) == [0, 300]

    def test_schedules_are_values(self) -> None:
        cron = Cron("0 3 * * *", timezone=BERLIN, kwargs={"days": 7})
        assert cron == Cron("0  3 * * *", timezone=BERLIN, kwargs={"days": 7})
        assert len({cron, Cron("0 3 * * *", timezone=BERLIN, kwargs={"days": 7})}) == 1
        with pytest.raises(AttributeError):
            cron.queue = "other"  # type: ignore[misc]

    def test_arguments_are_not_shown(self) -> None:
        assert "secret" not in repr(Every(minutes=5, kwargs={"token": "secret"}))


class TestDecorator:
    def test_single_schedule_and_list(self) -> None:
        def report(*, days: int = 1) -> None: ...

        one, other = Every(minutes=5), Cron("0 3 * * *", kwargs={"days": 7})
        assert LambdaTaskWrapper(report, schedule=one).schedule == (one,)
        assert LambdaTaskWrapper(report, schedule=[one, other]).schedule == (one, other)
        assert LambdaTaskWrapper(report).schedule == ()
        assert LambdaTaskWrapper(report, schedule=[]).schedule == ()

    def test_using_keeps_the_schedule(self) -> None:
        def report() -> None: ...

        task = LambdaTaskWrapper(report, schedule=Every(minutes=5))
        assert task.using(delay=5).schedule == (Every(minutes=5),)

    @pytest.mark.parametrize("value", ["0 3 * * *", 5, None, ["0 3 * * *"], Every], ids=str)
    def test_other_types_are_refused(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"schedule must be Cron\(…\), Every\(…\), or a list"):

            @lambda_task(schedule=value)
            def report() -> None: ...

    def test_missing_and_unknown_arguments_are_refused(self) -> None:
        def report(*, days: int, unit: str = "h") -> None: ...

        with pytest.raises(TypeError, match=r"'every 0:05:00' of .* must pass all required .* kwargs: days\."):
            lambda_task(schedule=Every(minutes=5))(report)
        with pytest.raises(TypeError, match=r"only pass parameters of the task \(days, unit\), not weeks\."):
            lambda_task(schedule=Every(minutes=5, kwargs={"days": 1, "weeks": 2}))(report)

    def test_equal_names_are_refused(self) -> None:
        def report() -> None: ...

        with pytest.raises(TypeError, match=r"'every 0:05:00' occurs twice; pass name="):
            lambda_task(schedule=[Every(minutes=5), Every(seconds=300)])(report)
        with pytest.raises(TypeError, match="'NIGHTLY' occurs twice"):
            lambda_task(schedule=[Every(minutes=5, name="nightly"), Every(minutes=7, name="NIGHTLY")])(report)

    def test_too_long_key_is_refused(self) -> None:
        def report() -> None: ...

        with pytest.raises(ValueError, match="at most 255 characters"):
            lambda_task(schedule=Every(minutes=5, name="n" * 250))(report)
