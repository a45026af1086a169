"""What subcommands print: tables, colours and bars on a terminal, plain text in a pipe, and JSON for programs."""

from __future__ import annotations

import builtins
import json
import re
from datetime import datetime, timezone
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
from django.core.management.base import BaseCommand

from lambda_tasks.local.progress import Warned
from lambda_tasks.management.output import JSON, Output, seconds, utc

ROWS = [("019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10", "SUCCESS", 1234), ("b", None, "\x1b[31mred")]


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class Printed:
    """An output whose streams are strings."""

    def __init__(self, stream: StringIO | None = None, **options: Any) -> None:
        self.stream = stream or StringIO()
        self.errors = StringIO()
        self.output = Output(BaseCommand(stdout=self.stream, stderr=self.errors), **options)

    @property
    def text(self) -> str:
        return self.stream.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Printed:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Printed(Terminal())


class TestPipe:
    def test_table_is_aligned(self) -> None:
        printed = Printed()
        printed.output.table(("id", "status", "number"), ROWS, title="All:")
        assert printed.text.splitlines() == [
            "All:",
            f"id{' ' * 36}status   number",
            "019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10  SUCCESS  1,234",
            f"b{' ' * 37}-        \\x1b[31mred",
        ]

    def test_facts_without_a_value_are_omitted(self) -> None:
        printed = Printed()
        printed.output.facts({"task": "a.b", "status": "FAILED", "reason": "", "user": None})
        assert printed.text == "task    a.b\nstatus  FAILED\n"

    def test_control_characters_of_tasks_are_escaped(self) -> None:
        printed = Printed()
        printed.output.block("one\ntwo \x1b]0;title\x07\n")
        assert printed.text == "    one\n    two \\x1b]0;title\\x07\n"

    def test_progress_is_a_line_now_and_then(self) -> None:
        printed = Printed()
        times = iter([0.0, 5.0, 11.0, 11.0, 12.0])
        with printed.output.progress("Moving", total=3, clock=lambda: next(times)) as advance:
            for _ in range(3):
                advance(1)
        assert printed.text == "Moving: 2 of 3\n"


class TestTerminal:
    def test_status_is_coloured(self, terminal: Printed) -> None:
        terminal.output.table(("id", "status", "number"), ROWS)
        assert "\x1b[32mSUCCESS\x1b[0m" in terminal.text
        assert "\\x1b[31mred" in terminal.text
        terminal.output.facts({"status": "FAILED"})
        assert "\x1b[31mFAILED\x1b[0m" in terminal.text

    def test_ids_stay_in_one_line(self, terminal: Printed) -> None:
        terminal.output.table(("id", "error"), [(ROWS[0][0], "word " * 30)])
        assert ROWS[0][0] in terminal.text

    def test_narrow_terminal_gets_a_list(self, terminal: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "50")
        terminal.output.table(("id", "status", "number"), ROWS, title="All:")
        lines = re.sub(r"\x1b\[\d*m", "", terminal.text).splitlines()
        assert lines[:5] == ["All:", f"id      {ROWS[0][0]}", "status  SUCCESS", "number  1,234", ""]
        assert lines[5].split() == ["id", "b"]

    def test_progress_is_a_bar(self, terminal: Printed) -> None:
        with terminal.output.progress("Moving", total=3) as advance:
            advance(3)
        assert "3/3" in terminal.text

    @pytest.mark.parametrize("options", [{"colours": False}, {"format": JSON}])
    def test_text_is_plain_on_request(self, options: dict[str, Any]) -> None:
        printed = Printed(Terminal(), **options)
        printed.output.table(("id",), [("a",)])
        printed.output.result(["a"])
        assert "\x1b" not in printed.text

    def test_text_is_plain_without_rich(self, terminal: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
        imported = builtins.__import__

        def without_rich(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("rich"):
                raise ImportError(name)
            return imported(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_rich)
        terminal.output.table(("id", "status"), [("a", "SUCCESS")])
        assert terminal.text == "id  status\na   SUCCESS\n"


class TestJson:
    def test_document_has_only_plain_values(self) -> None:
        printed = Printed(format=JSON)
        moment = datetime(2026, 5, 2, 9, 30, 11, 5, tzinfo=timezone.utc)
        printed.output.result({"at": moment, "id": UUID(int=7)}, "for people")
        assert json.loads(printed.text) == {"at": "2026-05-02T09:30:11Z", "id": str(UUID(int=7))}

    def test_unknown_type_is_an_error(self) -> None:
        with pytest.raises(TypeError, match="object cannot be written as JSON"):
            Printed(format=JSON).output.result(object())

    def test_warnings_go_to_standard_error(self) -> None:
        printed = Printed(format=JSON)
        printed.output.warn("careful")
        assert (printed.text, printed.errors.getvalue()) == ("", "careful\n")

    def test_events_are_lines(self) -> None:
        printed = Printed(format=JSON)
        printed.output.event(Warned("short"))
        printed.output.line("stopped")
        assert list(map(json.loads, printed.text.splitlines())) == [
            {"event": "Warned", "text": "short"},
            {"message": "stopped"},
        ]

    def test_tables_and_progress_are_not_printed(self) -> None:
        printed = Printed(format=JSON)
        printed.output.table(("id",), [("a",)])
        with printed.output.progress("Moving", total=None, clock=iter([0.0, 99.0]).__next__) as advance:
            advance(1)
        assert printed.text == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, None), (0.0123, "0.0123 s"), (12.345, "12.3 s"), (302, "5 min 2 s"), (12_000, "3 h 20 min")],
)
def test_duration_is_readable(number: float | None, text: str | None) -> None:
    assert seconds(number) == text


def test_times_are_in_utc() -> None:
    assert utc(None) is None
    assert utc(0) == "1970-01-01T00:00:00Z"
    assert utc(datetime(2026, 5, 2, tzinfo=timezone.utc)) == "2026-05-02T00:00:00Z"
