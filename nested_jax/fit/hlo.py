"""Read the text of a compiled program: computations, instructions, shapes, source lines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
}
SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\]")
TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


@dataclass(frozen=True)
class Shape:
    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype] * math.prod(self.sizes)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


def shapes_in(text: str) -> list[Shape]:
    """Return the array shapes that a type names, those of a tuple in its order."""
    return [
        Shape(dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in SHAPE.findall(text)
        if dtype in BYTES
    ]


@dataclass(frozen=True)
class Instruction:
    name: str
    shapes: tuple[Shape, ...]  # of the result
    op: str
    operands: tuple[str, ...]  # names of instructions of the same computation
    attributes: str

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def called(self, *names: str) -> str | None:
        """Return the computation that one of these attributes names."""
        found = re.search(rf"\b(?:{'|'.join(names)})=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    @property
    def trips(self) -> int:
        """Return how often a loop runs; 1 where the compiler does not know."""
        found = re.search(r'known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found.group(1)) if found else 1


Computation = dict[str, Instruction]  # in the order of the program


@dataclass
class Module:
    """One compiled program."""

    computations: dict[str, Computation] = field(default_factory=dict)
    entry: str = ""
    tables: dict[str, dict[int, str]] = field(default_factory=dict)

    def source(self, instruction: Instruction) -> str:
        """Return ``file:line`` of the innermost line of this package that made it, or the op."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        frame = int(found.group(1)) if found else 0
        innermost = ""
        for place in self._frames(frame):
            innermost = innermost or place
            if "nested_jax/" in place:
                return place[place.index("nested_jax/") :]
        return innermost or instruction.op

    def _frames(self, frame: int) -> Iterator[str]:
        """Yield the places of a frame and of those around it, innermost first."""
        seen: set[int] = set()
        while frame in self.tables.get("StackFrames", {}) and frame not in seen:
            seen.add(frame)
            row = self.tables["StackFrames"][frame]
            location = self.tables["FileLocations"][_number(row, "file_location_id")]
            file = self.tables["FileNames"][_number(location, "file_name_id")].strip('"')
            yield f"{file}:{_number(location, 'line')}"
            frame = _number(row, "parent_frame_id")


def _number(row: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", row)
    return int(found.group(1)) if found else 0


def parse(text: str) -> Module:
    """Return the program whose text `Compiled.as_text` gave."""
    module, table = Module(), ""
    current: Computation | None = None
    for line in text.splitlines():
        if line.strip() in TABLES:
            table = line.strip()
            module.tables[table] = {}
        elif table and (row := re.match(r"(\d+) (.*)", line)):
            module.tables[table][int(row.group(1))] = row.group(2)
        elif line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) ", line)):
            table, current = "", {}
            module.computations[head.group(2)] = current
            module.entry = head.group(2) if head.group(1) else module.entry
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    return module


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
    if head is None:
        return None
    name, rest = head.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    op = re.match(r"([\w\-]+)\(", rest)
    if op is None:
        return None
    end = _closing(rest, op.end() - 1)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[op.end() : end]))
    return Instruction(name, tuple(shapes_in(type_)), op.group(1), operands, rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Return where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)
