"""The health of a worker: the steps of its threads, the server and the file."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lambda_tasks.local.health import SLACK, SQS_PATIENCE, Pulse, refresh, shown


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(port: int | None, path: str = "/health") -> tuple[int, dict[str, Any]]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


class TestPulse:
    def test_step_that_takes_too_long_is_a_problem(self) -> None:
        clock = Clock()
        pulse = Pulse("default-1", clock=clock)
        pulse.step("polling its queue", 20)
        clock.now += 20 + SLACK
        assert pulse.problem() is None
        clock.now += 1
        assert pulse.problem() == "default-1 has been polling its queue for 81 s."
        pulse.step("running a batch", 900)
        assert pulse.problem() is None

    def test_waiting_for_another_thread_is_no_problem(self) -> None:
        clock = Clock()
        pulse = Pulse("default-2", clock=clock)
        pulse.step("waiting for its turn to poll", None)
        clock.now += 10_000
        assert pulse.problem() is None

    def test_sqs_that_fails_for_minutes_is_a_problem(self) -> None:
        clock = Clock()
        pulse = Pulse("default-1", clock=clock)
        pulse.sqs_failed()
        clock.now += SQS_PATIENCE
        pulse.sqs_failed()
        assert pulse.problem() is None
        clock.now += 1
        assert pulse.problem() == "default-1: SQS has failed for 301 s."
        pulse.sqs_answered()
        assert pulse.problem() is None


def test_server_answers_with_the_problems() -> None:
    problems: list[str] = []
    with shown(lambda: problems, port=0) as port:
        assert ask(port) == (200, {"status": "ok", "problems": []})
        problems.append("default-1 has been polling its queue for 81 s.")
        assert ask(port) == (503, {"status": "unavailable", "problems": problems})
    with pytest.raises(urllib.error.URLError):
        ask(port)


def test_only_ready_asks_for_the_database() -> None:
    with shown(list, port=0, is_ready=lambda: False) as port:
        assert ask(port, "/")[0] == 200
        assert ask(port, "/ready?by=alb")[0] == 503
    with shown(list, port=0) as port:
        assert ask(port, "/ready")[0] == 200


def test_file_is_fresh_only_while_healthy(tmp_path: Path) -> None:
    file = tmp_path / "healthy"
    with shown(list, file=file):
        assert file.exists()
        os.utime(file, (0, 0))
        refresh(file, list)
        assert file.stat().st_mtime > 1_000_000
        refresh(file, lambda: ["stuck"])
        assert not file.exists()
        refresh(file, list)
        assert file.exists()
    assert not file.exists()


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-folder"), shown(list, file=tmp_path / "no-folder" / "healthy"):
        raise AssertionError
