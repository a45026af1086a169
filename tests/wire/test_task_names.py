"""Which strings may be the names of tasks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_tasks.wire import invocation
from lambda_tasks.wire.invocation import is_task_name


@pytest.mark.parametrize("name", ["shop.tasks.send", "a.b", "ä.ö", "a.1", "shop.tasks.Class.send", "shop.<lambda>"])
def test_dotted_path_is_a_name(name: str) -> None:
    assert is_task_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "send", ".a.b", "a.b.", "a..b", "a. b", "a.b\n", "a.\x00", "a.\x9f", "a.\ud800"]
)
def test_other_strings_are_refused(name: str) -> None:
    assert not is_task_name(name)


@given(st.text(st.sampled_from("ab1._ ä<\n\x9f\ud800"), max_size=8))
def test_quick_check_agrees_with_the_pattern(text: str) -> None:
    assert is_task_name(text) == (re.fullmatch(invocation._TASK_NAME, text) is not None)
