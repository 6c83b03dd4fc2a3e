"""What a field of the configuration may hold: its annotation says the type, the range, and whether
a run that goes on may change it.

    steps: Free[Count] = 1000  # an int of 1 or more, which may change on resume
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
import types
import typing
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

LARGEST = 2**31 - 1  # of every number, unless its field says less
T = TypeVar("T")
FREE = "free"
Free = Annotated[T, FREE]  # may change between the runs of one workdir: not what is computed


class Range(NamedTuple):
    """The numbers that a field may hold; never infinite, never NaN."""

    least: float = -LARGEST
    most: float = LARGEST
    above: float = -math.inf
    below: float = math.inf
    also: int | None = None  # one number outside, with a meaning of its own

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, (int, float))
        inside = self.least <= value <= self.most and self.above < value < self.below
        return inside or value == self.also

    def text(self, value: float = 0) -> str:
        """Return the range in words; the largest number of all only where `value` exceeds it."""
        low = f"more than {self.above}" if self.above > -math.inf else f"{self.least} or more"
        if self.below < math.inf:
            low += f", less than {self.below}"
        elif self.most < LARGEST or value > LARGEST:
            low += f", at most {self.most}"
        return low if self.also is None else f"{low}, or {self.also}"


Count = Annotated[int, Range(least=1)]
Size = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
Amount = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, below=1)]
Fraction = Annotated[float, Range(least=0, most=1)]
Factor = Annotated[float, Range(above=0, most=1)]
Small = Annotated[float, Range(above=0, below=1)]


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of fields. Making one converts and checks every field as its annotation says."""

    path: ClassVar[str] = ""  # where the block is in `Config`, "model.memory."

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = convert(f"{self.path}{name}", getattr(self, name), hint)
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raise where fields do not fit together."""

    def require(self, ok: bool, name: str, want: str) -> None:
        """Raise unless `ok`, naming a field below this block by its full path, and its value."""
        if not ok:
            raise ValueError(f"{self.path}{name}={operator.attrgetter(name)(self)!r}: {want}")


def hints(cls: type) -> dict[str, Any]:
    """Return the annotation of every field of a dataclass."""
    return _hints(cls)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    found = typing.get_type_hints(cls, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def is_free(hint: Any) -> bool:
    return FREE in getattr(hint, "__metadata__", ())


def block_of(hint: Any) -> Any:
    """Return the dataclass that the annotation names, or None."""
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return hint if dataclasses.is_dataclass(hint) else None


def place(cls: type[Block], path: str = "") -> None:
    """Tell every block below `cls` its path, for messages."""
    cls.path = path
    for name, hint in hints(cls).items():
        if inner := block_of(hint):
            place(inner, f"{path}{name}.")


class Misfit(ValueError):
    """A value of another type than an annotation wants."""


class OutOfRange(Misfit):
    """A number of the right type, outside the range."""


def convert(where: str, value: Any, hint: Any) -> Any:
    """Return `value` as the annotation says.

    Raises:
      ValueError: the name `where`, the value, and what would be right.
    """
    try:
        return fit(value, hint)
    except Misfit as misfit:
        raise ValueError(f"{where}={value!r}: {misfit}") from None


def fit(value: Any, hint: Any) -> Any:
    """Return `value` as the annotation says, or raise `Misfit`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = fit(value, args[0])
        for mark in args[1:]:
            if isinstance(mark, Range) and value not in mark:
                raise OutOfRange(f"wants {mark.text(value)}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in args:
            with contextlib.suppress(Misfit):
                return fit(value, option)
        raise _wrong(value, hint)
    if origin is tuple:
        return _fit_each(value, hint, args[0])
    if origin is Literal:
        right = value in args
    elif hint in (int, float):
        right = isinstance(value, (int, hint)) and not isinstance(value, bool)
    else:
        right = isinstance(value, hint)
    if not right:
        raise _wrong(value, hint)
    return float(value) if hint is float and abs(value) <= LARGEST else value


def _fit_each(value: Any, hint: Any, each: Any) -> tuple[Any, ...]:
    try:
        return tuple(
            fit(v, each) for v in (value if isinstance(value, (tuple, list)) else (value,))
        )
    except OutOfRange as error:
        raise OutOfRange(f"each {error}") from None
    except Misfit:
        raise _wrong(value, hint) from None


def _wrong(value: Any, hint: Any) -> Misfit:
    return Misfit(f"got {type(value).__name__}, wants {describe(hint)}")


def describe(hint: Any) -> str:
    """Return in words what an annotation admits."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        ranges = [f" ({mark.text()})" for mark in args[1:] if isinstance(mark, Range)]
        return describe(args[0]) + "".join(ranges)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        return f"a list of {describe(args[0])}"
    if block_of(hint):
        return "a block of fields"
    return "None" if hint is type(None) else hint.__name__
