"""Masking finds each line of a sensitive argument in bounded time; names in messages cannot forge log lines."""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from lambda_tasks.backends import batches
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.recording import masking
from lambda_tasks.recording.masking import MASK, MAX_SIZE, WITHHELD, scrubbed, without_pieces
from lambda_tasks.recording.storable import shown
from lambda_tasks.recording.tracebacks import traceback_text
from lambda_tasks.wire.invocation import Invocation

KEY = "hunter2-abc\nsecond-line\r\n    third-one\n"
LINES = ("hunter2-abc", "second-line", "third-one")
FORGED = "x\nCRITICAL [root] payment 7 approved"


@lambda_task(sensitive=("notes",))
def archive(*, notes: list[str]) -> None:
    raise RuntimeError(str(notes)[:200])


@lambda_task
def pay(*, order: int) -> None: ...


def deliver(task_name: str, kwargs: Any, **attributes: str) -> list[Any]:
    body = json.dumps({"task_name": task_name, "kwargs": kwargs})
    texts = {name: {"stringValue": value, "dataType": "String"} for name, value in attributes.items()}
    record = {"messageId": str(uuid4()), "body": body, "attributes": {}, "messageAttributes": texts}
    answer = handler({"Records": [record]}, None)
    return list(answer["batchItemFailures"])


class TestLines:
    @pytest.mark.parametrize(
        "text",
        [
            KEY,
            repr(KEY),
            json.dumps(KEY),
            KEY.replace("\n", "\n    "),
            KEY.replace("\n", "\n  | "),
            repr(KEY.splitlines()),
            "; ".join(KEY.splitlines()),
            repr("    third-one"),
            quote(KEY),
            repr(repr(KEY)),
            "second-line alone",
        ],
        ids=range(11),
    )
    @pytest.mark.parametrize("value", [KEY, [KEY], {"pem": KEY}, KEY.encode(), KEY.replace("\n", "\\n")], ids=range(5))
    def test_each_line_is_hidden_everywhere(self, text: str, value: Any) -> None:
        hidden = scrubbed(text, [value])
        assert not [line for line in LINES if line in hidden], hidden

    def test_lines_are_hidden_in_groups_and_causes(self) -> None:
        def failing() -> None:
            try:
                raise ValueError(KEY)
            except ValueError as error:
                raise RuntimeError(KEY.replace("\n", "\n\t")) from error

        with pytest.raises(RuntimeError) as caught:
            failing()
        text = traceback_text(caught.value, hiding=[KEY])
        assert MASK in text
        assert not [line for line in LINES if line in text]

    def test_short_lines_are_unchanged(self) -> None:
        assert scrubbed("if x: pass", ["if\nx:\nlong enough"]) == "if x: pass"


class TestCost:
    @pytest.mark.parametrize(
        "values",
        [["é'\"\\ " * (MAX_SIZE // 4)], ["ab1%"] * (MAX_SIZE // 3), [[f"value {n}" for n in range(9_000)]]],
        ids=["long", "many equal", "many"],
    )
    def test_values_too_large_withhold_the_text(self, values: Any) -> None:
        assert scrubbed("some text", values) == WITHHELD
        assert without_pieces("some text", values) == WITHHELD

    def test_search_ends_at_its_time_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        moments = iter(range(1_000))
        monkeypatch.setattr(masking, "_clock", lambda: next(moments) * masking.SECONDS)
        assert scrubbed("some text", ["secret", "another"]) == WITHHELD

    def test_search_checks_its_time_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        needles = masking.Needles([f"secret {n}" for n in range(9)])
        monkeypatch.setattr(masking, "_clock", lambda: float("inf"))
        with pytest.raises(masking.TooMuch):
            needles.scrubbed("text")
        with pytest.raises(masking.TooMuch):
            needles.without_pieces("text")

    def test_outbox_keeps_the_type_of_withheld_error(self) -> None:
        assert batches.error_text(OSError("a secret"), ["x" * (MAX_SIZE + 1)]) == f"OSError: {WITHHELD}"
        assert batches.error_text(OSError("a secret"), ["secret"]) == f"OSError: a {MASK}"

    def test_long_text_is_shortened_before_the_search(self) -> None:
        text = "a" * masking.MAX_SEARCHED + "secret" + "b" * masking.MAX_SEARCHED
        hidden = scrubbed(f"secret{text}secret", ["secret"])
        assert hidden.startswith(f"{MASK}a")
        assert hidden.endswith(f"b{MASK}")
        assert len(hidden) < masking.MAX_SEARCHED + 100

    @pytest.mark.django_db
    def test_large_arguments_leave_location_and_type(self, caplog: pytest.LogCaptureFixture) -> None:
        secrets = [f"{n}'\"\\é%" * 2_000 for n in range(28)]
        assert not deliver(archive.name, {"notes": secrets})
        text = TaskRecord.objects.get().traceback
        assert text is not None
        assert f"RuntimeError: {WITHHELD}" in text
        assert "in archive" in text
        assert secrets[0][:50] not in text + caplog.text

    @pytest.mark.django_db
    def test_record_and_log_share_one_search(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        hidden = Run._hidden_values
        monkeypatch.setattr(Run, "_hidden_values", lambda run: made.append(run) or hidden(run))
        deliver(archive.name, {"notes": ["a secret"]})
        assert len(made) == 1


class TestForgedLines:
    @pytest.mark.django_db
    @pytest.mark.parametrize(
        ("task_name", "kwargs"),
        [
            (pay.name, {"order": 1, FORGED: 2}),
            (pay.name, {"order": 1, "x\u2028CRITICAL \x1b[2J\x85 \u202e": 2}),
            (pay.name, {"order": {FORGED: 1}}),
            (f"{pay.name}\n{FORGED}", {}),
            (f"{pay.name}\x1e\x1b[2J", {}),
            (f"nosuch.module.\u202e{pay.name}", {}),
            (FORGED, {}),
        ],
        ids=range(7),
    )
    def test_names_of_a_message_stay_in_their_line(
        self, caplog: pytest.LogCaptureFixture, task_name: str, kwargs: Any
    ) -> None:
        with caplog.at_level(logging.DEBUG, "lambda_tasks"):
            assert deliver(task_name, kwargs)
        lines = caplog.text.splitlines()
        assert not [line for line in lines if line.startswith(("CRITICAL [root]", "CRITICAL \x1b", " \u202e"))]
        assert not [line for line in lines if "\x1b" in line or "\u202e" in line]

    @pytest.mark.django_db
    def test_attribute_and_queue_names_stay_in_line(self, caplog: pytest.LogCaptureFixture) -> None:
        deliver(pay.name, {}, **{"lambda_tasks.queue": FORGED, "lambda_tasks.message_id": FORGED, FORGED: FORGED})
        assert not [line for line in caplog.text.splitlines() if line.startswith("CRITICAL [root]")]

    @pytest.mark.parametrize(
        ("part", "escaped"),
        [
            ("a\nb", r"a\nb"),
            ("a\x1bb", r"a\x1bb"),
            ("a\u2028b\u202e", r"a\u2028b\u202e"),
            ("a\x00\ud800", r"a\x00\ud800"),
            ("schön", "schön"),
            (7, "7"),
        ],
    )
    def test_control_characters_are_escaped(self, part: object, escaped: str) -> None:
        assert shown(part) == escaped

    def test_long_name_is_shortened_to_one_line(self) -> None:
        assert len(shown("\n" * 10_000).splitlines()) == 1
        assert len(shown("x" * 10_000)) < 100

    @pytest.mark.parametrize("name", ["a.b\x1b", "a.\x07b", "a.b\x1e", "a.b\x7f", "a.b\x9b"])
    def test_task_name_has_no_control_characters(self, name: str) -> None:
        with pytest.raises(ValueError, match="task_name"):
            SQSLambdaTaskMessage(task_name=name)

    @pytest.mark.parametrize("name", ["a.b\ud800", "a\udfff.b"])
    def test_task_name_has_no_lone_surrogates(self, name: str) -> None:
        with pytest.raises(InvalidMessage, match="task_name: must be the dotted path of a task"):
            Invocation.of_body(json.dumps({"task_name": name}))
