"""Plain nested data to blocks of fields and back: nothing is guessed, nothing is dropped."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from nested_jax.config.fields import Block, block_of, convert, hints, is_free
from nested_jax.config.legacy import advice

T = TypeVar("T")


def from_dict(data: Mapping[str, Any], cls: type[T], path: str = "") -> T:
    """Convert plain nested data into the dataclass `cls`.

    Raises:
      ValueError: an unknown field (with its nearest known name), a wrong type, or a value or a
        combination that cannot work.
    """
    known = hints(cls)
    unknown_fields(path, data, known)
    values = dict(data)
    for name, value in data.items():
        inner, where = block_of(known[name]), f"{path}{name}"
        if inner and isinstance(value, Mapping):
            values[name] = from_dict(value, inner, f"{where}.")
        else:
            values[name] = convert(where, value, known[name])
    return cls(**values)


def unknown_fields(path: str, data: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = (
                f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            )
            hint = advice(f"{path}{name}") or f"unknown field; {hint}"
            raise ValueError(f"{path}{name}={data[name]!r}: {hint}")


def to_dict(config: Block) -> dict[str, Any]:
    """Return the block as JSON-ready nested data (tuples become lists)."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    values = {name: getattr(config, name) for name in hints(type(config))}
    return {k: to_dict(v) if isinstance(v, Block) else plain(v) for k, v in values.items()}


def leaves(config: Block, free: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of every field; not of those that may change, if not `free`."""
    for name, hint in hints(type(config)).items():
        value = getattr(config, name)
        if free or not is_free(hint):
            if isinstance(value, Block):
                yield from leaves(value, free)
            else:
                yield f"{config.path}{name}", value


def difference(old: Block, new: Block, free: bool = True) -> list[str]:
    """Return one line for each field whose value differs: ``config.seed: 0 -> 1``.

    Args:
      free: list the fields that may change on resume too.
    """
    before = dict(leaves(old))
    changed = [(name, v) for name, v in leaves(new, free) if before[name] != v]
    return [f"config.{name}: {before[name]!r} -> {v!r}" for name, v in changed]
