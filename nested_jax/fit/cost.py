"""Estimate the time of a compiled program on a card: a model, not a measurement.

Every kernel takes max(bytes / bandwidth, FLOPs / peak of its type) and a launch; collectives take
their bytes over the link. Operands are read once inside of a kernel and again by the next one;
nothing overlaps. It ranks what is worth a change. A card decides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from nested_jax.fit.gpus import GPU
from nested_jax.fit.hlo import Computation, Instruction, Module

LAUNCH_S = 2.5e-6
REACHED_BANDWIDTH = 0.9  # share of the data sheet's bandwidth that a large kernel reaches
# Share of the dense bfloat16 peak that products of a type reach: 8,192 x 8,192 in cuBLAS.
REACHED = {"bf16": 0.8, "f16": 0.8, "tf32": 0.4, "f32": 0.055, "f64": 0.06}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective")
NO_KERNEL = {
    "get-tuple-element",
    "tuple",
    "bitcast",
    "parameter",
    "constant",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
}


@dataclass
class Row:
    """Kernels of one source line."""

    seconds: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    kernels: int = 0


@dataclass
class Collective:
    """Collectives of one kind at one depth of loops."""

    bytes: float = 0.0  # per device and step
    count: int = 0


@dataclass
class Estimate:
    """What a step costs on one card."""

    seconds: float = 0.0
    memory_s: float = 0.0  # kernels that wait for memory
    compute_s: float = 0.0  # kernels that wait for products
    launch_s: float = 0.0
    collective_s: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    kernels: int = 0
    rows: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    collectives: dict[str, Collective] = field(default_factory=lambda: defaultdict(Collective))

    @property
    def bound(self) -> str:
        """Return what takes the largest part of the time."""
        parts = {
            "memory": self.memory_s,
            "products": self.compute_s,
            "launches": self.launch_s,
            "collectives": self.collective_s,
        }
        return max(parts, key=lambda name: parts[name])


def estimate(module: Module, gpu: GPU) -> Estimate:
    """Return the estimated cost of one run of a program on one card."""
    total = Estimate()
    _walk(module, module.entry, 1, (), gpu, total)
    return total


def _walk(
    module: Module, name: str, times: int, loops: tuple[int, ...], gpu: GPU, total: Estimate
) -> None:
    """Add the cost of a computation that runs `times` times, inside of loops of these lengths."""
    computation = module.computations[name]
    for instruction in computation.values():
        if instruction.op in NO_KERNEL or instruction.op.endswith("-done"):
            continue
        if instruction.op == "while":
            body, trips = instruction.called("body"), instruction.trips
            if body in module.computations:
                _walk(module, body, times * trips, (*loops, trips), gpu, total)
            continue
        if instruction.op in ("call", "conditional", "async-start"):
            inner = instruction.called(
                "to_apply", "calls", "true_computation", r"branch_computations=\{"
            )
            if inner in module.computations:
                _walk(module, inner, times, loops, gpu, total)
            continue
        _add(module, computation, instruction, times, loops, gpu, total)


def _add(
    module: Module,
    computation: Computation,
    instruction: Instruction,
    times: int,
    loops: tuple[int, ...],
    gpu: GPU,
    total: Estimate,
) -> None:
    size, flops, dtype, moved = 0.0, 0.0, "bf16", 0.0
    if instruction.op.startswith(COLLECTIVES):
        moved = float(instruction.bytes)
        if instruction.op.endswith("-start"):  # its result may hold the operand too
            moved = float(max(shape.bytes for shape in instruction.shapes))
        kind = instruction.op.removesuffix("-start")
        where = "once per step" if not loops else "in loops of " + " x ".join(map(str, loops))
        found = total.collectives[f"{kind}, {where}"]
        found.bytes += times * moved
        found.count += times
    elif instruction.op == "fusion":
        size, flops, dtype = _fusion(module, instruction)
    else:
        size = instruction.bytes + _operand_bytes(computation, instruction)
        if instruction.op == "dot":
            flops, dtype = _dot(computation, instruction)
        elif instruction.op == "custom-call":
            flops, dtype = _custom_call(computation, instruction)
    memory = size / (gpu.bandwidth * REACHED_BANDWIDTH)
    compute = flops / (gpu.peak_bf16 * REACHED[dtype])
    seconds = max(memory, compute) + LAUNCH_S + moved / gpu.link
    total.memory_s += times * (memory if memory >= compute else 0.0)
    total.compute_s += times * (compute if compute > memory else 0.0)
    total.launch_s += times * LAUNCH_S
    total.collective_s += times * moved / gpu.link
    total.seconds += times * seconds
    total.flops += times * flops
    total.bytes += times * size
    total.kernels += times
    row = total.rows[f"{module.source(instruction)} {instruction.op}"]
    row.seconds += times * seconds
    row.bytes += times * size
    row.flops += times * flops
    row.kernels += times


def _operand_bytes(computation: Computation, instruction: Instruction) -> int:
    return sum(computation[name].bytes for name in instruction.operands if name in computation)


def _dot(computation: Computation, instruction: Instruction) -> tuple[float, str]:
    """Return the FLOPs of a product, and the type that it is computed in."""
    left = computation[instruction.operands[0]].shapes[0]
    flops = 2.0
    for size in instruction.shapes[0].sizes:
        flops *= size
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    for axis in contracted.group(1).split(",") if contracted else ():
        flops *= left.sizes[int(axis)] if axis else 1
    dtype = left.dtype if left.dtype in REACHED else "f32"
    if dtype == "f32" and not re.search(r"highest|dot_f32", instruction.attributes):
        dtype = "tf32"
    return flops, dtype


def _custom_call(computation: Computation, instruction: Instruction) -> tuple[float, str]:
    """Return the FLOPs of a library's product or attention, by the shapes of its operands."""
    operands = [computation[n].shapes[0] for n in instruction.operands if n in computation]
    if "gemm" in instruction.attributes or "cublas" in instruction.attributes:
        return _library_product(instruction, operands)
    if "fmha" in instruction.attributes and len(operands) >= 3:
        batch, tokens, heads, width = operands[0].sizes  # [B, T, H, K]
        products = 5 if "backward" in instruction.attributes.lower() else 2
        return 2.0 * products * batch * heads * tokens * tokens * width / 2, "bf16"  # causal
    return 0.0, "bf16"


def _library_product(instruction: Instruction, operands: list) -> tuple[float, str]:
    contracted = re.search(r'lhs_contracting_dimensions":\["(\d+)"', instruction.attributes)
    if contracted is None or not operands:
        return 0.0, "bf16"
    flops = 2.0 * operands[0].sizes[int(contracted.group(1))]
    for size in instruction.shapes[0].sizes:
        flops *= size
    dtype = operands[0].dtype if operands[0].dtype in REACHED else "f32"
    if dtype == "f32" and "HIGHEST" not in instruction.attributes:
        dtype = "tf32"
    return flops, dtype


def _fusion(module: Module, instruction: Instruction) -> tuple[float, float, str]:
    """Return the bytes that a fused kernel moves, its FLOPs and their type."""
    inner = module.computations.get(instruction.called("calls") or "", {})
    flops, dtype, size = 0.0, "bf16", 0.0
    for part in inner.values():
        if part.op == "dot":
            found, dtype = _dot(inner, part)
            flops += found
        elif part.op == "parameter":
            size += _read_bytes(inner, part)
    return size + _written_bytes(inner, instruction), flops, dtype


def _read_bytes(inner: Computation, parameter: Instruction) -> float:
    """Return what a kernel reads of a parameter: only the slices, where it only slices."""
    users = [part for part in inner.values() if parameter.name in part.operands]
    if users and all(u.op in ("dynamic-slice", "gather", "slice") for u in users):
        return min(parameter.bytes, sum(user.bytes for user in users))
    updates = [u for u in users if u.op == "dynamic-update-slice"]
    if users and len(updates) == len(users) and all(u.operands[0] == parameter.name for u in users):
        return 0.0  # written in place
    return parameter.bytes


def _written_bytes(inner: Computation, instruction: Instruction) -> float:
    """Return what a kernel writes: only the slice, where it updates one in place."""
    root = list(inner.values())[-1] if inner else None
    if root is None:
        return instruction.bytes
    results = [inner[n] for n in root.operands if n in inner] if root.op == "tuple" else [root]
    total = 0.0
    for result in results:
        update = result.operands[1] if result.op == "dynamic-update-slice" else ""
        total += inner[update].bytes if update in inner else result.bytes
    return total
