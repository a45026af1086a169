"""The output of a process: printed lines, and the records of its log, which stay apart."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lambda_tasks.local.output import Frames, Lines, read_output
from lambda_tasks.local.progress import Output
from lambda_tasks.local.runtime import Function, Runtime

pytestmark = pytest.mark.once

ERROR = 0xA55A0017


def frame(text: str, kind: int = ERROR) -> bytes:
    data = text.encode()
    return struct.pack(">IIQ", kind, len(data), 1_700_000_000_000_000) + data


def parsed(parser: Lines | Frames, chunks: Iterable[bytes]) -> list[bytes]:
    texts = [text for chunk in chunks for text in parser.feed(chunk)]
    return [*texts, rest] if (rest := parser.rest()) else texts


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
class TestParsers:
    def test_lines_end_at_any_line_end(self, size: int) -> None:
        data = b"one\ntwo\r\n\nthree\rfour"
        assert parsed(Lines(), in_pieces(data, size)) == [b"one", b"two", b"", b"three", b"four"]

    def test_frames_are_records(self, size: int) -> None:
        data = frame("a\nTraceback") + frame("") + frame("grüezi\n", 0xA55A0003)
        assert parsed(Frames(), in_pieces(data, size)) == [b"a\nTraceback", b"", "grüezi\n".encode()]

    def test_unfinished_frame_is_kept(self, size: int) -> None:
        assert parsed(Frames(), in_pieces(frame("first") + frame("killed here")[:-3], size)) == [b"first", b"killed h"]

    def test_anything_else_is_read_as_lines(self, size: int) -> None:
        data = frame("first") + b"this is longer than the head of a frame\nlast"
        expected = [b"first", b"this is longer than the head of a frame", b"last"]
        assert parsed(Frames(), in_pieces(data, size)) == expected


def test_output_ends_when_both_descriptors_are_closed() -> None:
    (stdout, print_to), (records, log_to) = os.pipe(), os.pipe()
    os.write(print_to, b"printed\nunfinished \xff")
    os.write(log_to, frame("[ERROR] x failed.\nTraceback:\n\N{NO-BREAK SPACE} ValueError: no") + frame("[INFO] y\n"))
    os.close(print_to)
    os.close(log_to)
    seen: list[str] = []
    read_output(stdout, records, seen.append)
    os.close(stdout)
    os.close(records)
    assert sorted(seen) == [
        "[ERROR] x failed.\nTraceback:\n  ValueError: no",
        "[INFO] y",
        "printed",
        "unfinished \N{REPLACEMENT CHARACTER}",
    ]


def test_lines_of_a_record_are_attributed_to_it() -> None:
    record = Output("default-1", "[ERROR] failed.\nTraceback\n[INFO] forged")
    assert str(record).splitlines() == [
        "default-1 | [ERROR] failed.",
        "default-1 |   Traceback",
        "default-1 |   [INFO] forged",
    ]
    assert str(Output("default-1", "")) == "default-1 | "


HANDLERS = """
import logging

def fails_twice(event, context):
    for number in (1, 2):
        try:
            raise ValueError(f"number {number} is refused")
        except ValueError:
            logging.getLogger("shop").exception("Task %s failed.", number)
"""


@pytest.mark.parametrize("log_format", ["Text", "JSON"])
def test_each_record_of_the_runtime_is_one_output(tmp_path: Path, log_format: str) -> None:
    """Lambda's format for text ends a record with its traceback, without a line feed."""
    (tmp_path / "handlers.py").write_text(HANDLERS)
    environment = {"PYTHONPATH": str(tmp_path), "AWS_LAMBDA_LOG_FORMAT": log_format}
    seen: list[str] = []
    runtime = Runtime(Function("handlers.fails_twice", 10, environment=environment), on_output=seen.append)
    with closing(runtime):
        runtime.start()
        runtime.invoke({})
    records = [text for text in seen if "failed." in text]
    assert len(records) == 2
    for number, text in enumerate(records, 1):
        assert f"Task {number} failed." in text
        assert f"number {number} is refused" in text
        assert f"number {3 - number} is refused" not in text
        if log_format == "JSON":
            assert len(text.splitlines()) == 1


@pytest.fixture(autouse=True)
def no_open_descriptors() -> Iterator[None]:
    """Fail if a test leaves descriptors open."""
    with suppress(FileNotFoundError):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        yield
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
        return
    yield
