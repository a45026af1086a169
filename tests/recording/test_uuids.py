"""The text forms of UUIDs are those of `UUID` itself."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_tasks.recording.uuids import hexadecimal, is_canonical

ID = "059f36b4-87a3-44ab-83d2-661975830a7d"


@given(st.uuids())
def test_canonical_text_is_that_of_str(value: UUID) -> None:
    assert is_canonical(str(value))
    assert hexadecimal(str(value)) == hexadecimal(value) == value.hex


@pytest.mark.parametrize(
    "text", [ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}", ID.replace("-", "", 1)]
)
def test_other_text_of_a_uuid_is_not_canonical(text: str) -> None:
    assert not is_canonical(text)
    assert hexadecimal(text) == UUID(ID).hex


@pytest.mark.parametrize("text", ["", f"{ID}\n", f" {ID}", f"{ID}0", ID.replace("0", "g", 1), ID.replace("-", "0")])
def test_other_text_is_not_canonical(text: str) -> None:
    assert not is_canonical(text)


def test_other_text_has_no_digits() -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        hexadecimal("msg-1")
