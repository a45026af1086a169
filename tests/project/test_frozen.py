"""Classes with `@frozen` behave like frozen dataclasses, and every process defines them without compiling anything."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import pickle
from dataclasses import field
from typing import Any

import pytest

from lambda_tasks.foundation.frozen import frozen


@frozen
class Box:
    name: str
    size: int = 1
    #: Not compared, and not shown.
    notes: list[str] = field(default_factory=list, repr=False, compare=False)


@frozen
class Lid(Box):
    """A box with one more field."""

    closed: bool = True


@frozen
class Checked:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")


@frozen
class Quick:
    """A class with a constructor of its own."""

    size: int

    def __init__(self, size: int = 7) -> None:
        vars(self).update(size=size)


def test_fields_are_given_by_position_and_by_name() -> None:
    assert (Box("a", 2).size, Box(name="a", size=2).name, Box("a").size, Box("a").notes) == (2, "a", 1, [])
    assert Quick().size == 7


def test_each_instance_has_its_own_default() -> None:
    assert Box("a").notes is not Box("a").notes


def test_subclass_has_the_fields_of_its_base() -> None:
    assert repr(Lid("a", closed=False)) == "Lid(name='a', size=1, closed=False)"


@pytest.mark.parametrize(
    ("args", "given"),
    [((), {}), (("a", 1, [], 4), {}), (("a",), {"name": "b"}), (("a",), {"colour": "red"}), ((), {"colour": "red"})],
)
def test_wrong_arguments_are_refused(args: tuple[Any, ...], given: dict[str, Any]) -> None:
    make: Any = Box
    with pytest.raises(TypeError, match=r"Box .*name, size, notes"):
        make(*args, **given)


def test_values_are_compared_without_excluded_fields() -> None:
    assert Box("a", notes=["x"]) == Box("a", notes=["y"])
    assert hash(Box("a", notes=["x"])) == hash(Box("a"))
    assert Box("a") != Box("b")
    assert Box("a") != Lid("a")
    assert Box("a") != "a"


def test_fields_are_not_changed() -> None:
    box: Any = Box("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        box.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del box.name
    assert box.name == "a"


def test_instance_is_shown_without_hidden_fields() -> None:
    assert repr(Box("a", 2, ["x"])) == "Box(name='a', size=2)"


def test_instance_is_copied_and_pickled() -> None:
    box = Box("a", 2)
    assert copy.copy(box) == copy.deepcopy(box) == pickle.loads(pickle.dumps(box)) == box


def test_patterns_match_by_position() -> None:
    match Box("a", 2):
        case Box(name, size):
            assert (name, size) == ("a", 2)


def test_check_runs_for_each_instance() -> None:
    with pytest.raises(ValueError, match="negative"):
        Checked(-1)
    with pytest.raises(ValueError, match="negative"):
        dataclasses.replace(Checked(1), size=-1)


def test_dataclasses_functions_accept_instances() -> None:
    box = Box("a", notes=["x"])
    assert dataclasses.is_dataclass(box)
    assert [each.name for each in dataclasses.fields(box)] == ["name", "size", "notes"]
    assert dataclasses.asdict(box) == {"name": "a", "size": 1, "notes": ["x"]}
    assert dataclasses.replace(box, size=3) == Box("a", 3)
    assert dataclasses.replace(Lid("a"), closed=False).closed is False


def test_definition_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("source was compiled")

    class Plain:
        size: int = 1

    with monkeypatch.context() as patch:
        for name in ("exec", "eval", "compile"):
            patch.setattr(builtins, name, refuse)
        made = frozen(Plain)(size=2)
    assert made.size == 2
