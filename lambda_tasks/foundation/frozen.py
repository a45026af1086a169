"""Define classes as `@dataclass(frozen=True)` does, without compiling their methods in every process.

`dataclass` writes the source of each method and compiles it, which takes half a millisecond for each class. Here, all
classes share the methods. The instances behave like those of frozen dataclasses, and `dataclasses.replace()` and
`dataclasses.fields()` accept them.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, field, make_dataclass
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda decorator: decorator


T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make the annotated attributes of a class its fields, which its instances do not change.

    A class of which each task needs an instance may have an `__init__()` of its own, which is faster. It sets the
    fields by `vars(self).update()`.
    """
    shape: Any = cls
    own = {name: _field(cls, name) for name in cls.__annotations__}
    shape._fields = fields = {**getattr(cls, "_fields", {}), **own}
    shape._defaults = {name: each.default for name, each in fields.items() if each.default is not MISSING}
    shape._factories = [
        (name, each.default_factory) for name, each in fields.items() if each.default_factory is not MISSING
    ]
    shape._compared = tuple(name for name, each in fields.items() if each.compare)
    shape._is_checked = hasattr(cls, "__post_init__")
    shape.__dataclass_fields__ = _FieldsOfDataclass()
    for name, member in {**_METHODS, "__match_args__": tuple(fields)}.items():
        if name not in vars(cls):
            setattr(cls, name, member)
    return cls


def _field(cls: type, name: str) -> Field[Any]:
    """Return the field of an attribute, and leave its default value in the class."""
    given = vars(cls).get(name, MISSING)
    if not isinstance(given, Field):
        return field(default=given)  # type: ignore[no-any-return]
    if given.default is MISSING:
        delattr(cls, name)
    else:
        setattr(cls, name, given.default)
    return given


class _FieldsOfDataclass:
    """What `dataclasses` looks for in a class, made when it is needed."""

    def __get__(self, instance: object, owner: Any) -> dict[str, Field[Any]]:
        same: Any = make_dataclass(owner.__name__, [(name, Any, each) for name, each in owner._fields.items()])
        fields: dict[str, Field[Any]] = same.__dataclass_fields__
        owner.__dataclass_fields__ = fields
        return fields


def _init(self: Any, /, *args: Any, **given: Any) -> None:
    cls = type(self)
    if args:
        named = dict(zip(cls._fields, args, strict=False))
        if len(named) < len(args) or named.keys() & given.keys():
            raise TypeError(
                f"{cls.__qualname__} takes each of {', '.join(cls._fields)} once, not {len(args)} by position."
            )
        given.update(named)
    values = {**cls._defaults, **given}
    for name, make in cls._factories:
        if name not in given:
            values[name] = make()
    if values.keys() != cls._fields.keys():
        raise TypeError(_explained(cls, values))
    vars(self).update(values)
    if cls._is_checked:
        self.__post_init__()


def _explained(cls: Any, values: dict[str, Any]) -> str:
    missing = [name for name in cls._fields if name not in values]
    unknown = sorted(values.keys() - cls._fields.keys())
    wrong = f"needs {', '.join(missing)}" if missing else f"has no field {', '.join(unknown)}"
    return f"{cls.__qualname__} {wrong}. Its fields are {', '.join(cls._fields)}."


@recursive_repr()
def _repr(self: Any) -> str:
    shown = [f"{name}={getattr(self, name)!r}" for name, each in type(self)._fields.items() if each.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(value: Any) -> tuple[Any, ...]:
    return tuple([getattr(value, name) for name in type(value)._compared])


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _refuse_to_set(self: Any, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


_METHODS = {
    "__init__": _init,
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _refuse_to_set,
    "__delattr__": _refuse_to_delete,
}
