"""Plain nested data to typed dataclasses and back: nothing is guessed, nothing is dropped."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

ConfigT = TypeVar("ConfigT")


def from_dict(data: Mapping[str, Any], cls: type[ConfigT], path: str = "") -> ConfigT:
    """Convert plain nested data into the dataclass `cls`.

    Raises:
      ValueError: an unknown field (with its nearest known name) or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    unknown_fields(path, data, hints)
    values: dict[str, Any] = {}
    for name, value in data.items():
        hint, where = hints[name], f"{path}{name}"
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{where}={value!r}: wants a block of fields, got {type(value).__name__}"
                )
            values[name] = from_dict(value, typing.cast(type, hint), f"{where}.")
        else:
            values[name] = convert(where, value, hint)
    return cls(**values)


def unknown_fields(path: str, data: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = (
                f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            )
            raise ValueError(f"{path}{name}={data[name]!r}: unknown field; {hint}")


def convert(where: str, value: Any, hint: Any) -> Any:
    """Return `value` as the annotated type `hint`, or raise saying what came and what is wanted."""
    matched, result = _match(value, hint)
    if not matched:
        raise ValueError(f"{where}={value!r}: got {type(value).__name__}, wants {_describe(hint)}")
    return result


def _match(value: Any, hint: Any) -> tuple[bool, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            matched, result = _match(value, option)
            if matched:
                return True, result
        return False, None
    if origin is Literal:
        return value in _literals(args), value
    if origin is tuple:
        items = value if isinstance(value, (tuple, list)) else (value,)
        results = [_match(item, args[0]) for item in items]
        return all(ok for ok, _ in results), tuple(item for _, item in results)
    if hint is type(None):
        return value is None, None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool), _number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, hint), value


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, (int, float)) else value


def _literals(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x for a in args for x in (a if isinstance(a, tuple) else (a,)))


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in _literals(args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is tuple:
        return f"a list of {_describe(args[0])}"
    return "None" if hint is type(None) else hint.__name__


def to_dict(config: Any) -> dict[str, Any]:
    """Return the dataclass as JSON-ready nested data (tuples become lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


def difference(old: Any, new: Any) -> list[str]:
    """Return one line for each field whose value differs: ``name: old -> new``."""

    def flat(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {
            k: v for name, sub in value.items() for k, v in flat(f"{prefix}.{name}", sub).items()
        }

    a, b = flat("config", to_dict(old)), flat("config", to_dict(new))
    return [f"{name}: {a.get(name)!r} -> {b[name]!r}" for name in b if a.get(name) != b[name]]
