"""Compile a run's steps for a mesh, and say what they need of each device."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxlib.mlir import ir

from nested_jax.config import Config
from nested_jax.fit.cost import Estimate, estimate
from nested_jax.fit.gpus import GPU
from nested_jax.fit.hlo import Module, parse
from nested_jax.layers.attention import attention_text
from nested_jax.train.layout import Layout
from nested_jax.train.memory import peak_bytes, state_bytes
from nested_jax.train.state import HOST

IN_PLACE = ("parameter", "tuple", "get-tuple-element", "bitcast", "while")  # no buffer of their own


@dataclass
class Need:
    """What one compiled step needs of one device."""

    peak_bytes: int
    state_bytes: int  # parameters, optimizer state, batch: what stays between steps
    temporary_bytes: int
    compile_s: float  # tracing and compiling
    estimate: Estimate
    buffers: list[dict[str, Any]] = field(default_factory=list)  # largest results, with their line


@dataclass
class Fit:
    """A run on a mesh of one kind of card."""

    gpu: GPU
    mesh: dict[str, int]  # sizes of its axes
    train: Need
    evaluation: Need
    parameters: int
    flops: float  # model FLOPs of a step, over all devices
    cfg: Config  # with the microbatches that the mesh takes
    attention: str  # which kernel computes it

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def parts(self) -> int:
        """Return over how many parts the rows of a batch go."""
        return self.mesh["data"] * self.mesh["fsdp"]

    @property
    def tokens(self) -> int:
        """Return the tokens of a step."""
        return self.cfg.train.batch_size * self.cfg.data.seq_len

    @property
    def share(self) -> float:
        """Return the part of a card's usable memory that the larger of the steps needs."""
        return max(self.train.peak_bytes, self.evaluation.peak_bytes) / self.gpu.usable_bytes

    @property
    def fits(self) -> bool:
        return self.share <= 1.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.train.estimate.seconds

    @property
    def mfu(self) -> float:
        peak = self.gpu.peak_bf16 * self.devices
        return self.flops / peak / self.train.estimate.seconds


def compile_fit(layout: Layout, gpu: GPU) -> Fit:
    """Compile the training and the evaluation step of a layout; nothing runs."""
    with jax.set_mesh(layout.mesh):
        train = need(lambda: keep_moments_on_host(layout.lower_train(), layout), gpu)
        evaluation = need(layout.lower_eval, gpu)
    return Fit(
        gpu,
        dict(layout.mesh.shape),
        train,
        evaluation,
        layout.parameters,
        layout.flops,
        layout.cfg,
        attention_text(layout.model.cfg),
    )


def keep_moments_on_host(lowered: jax.stages.Lowered, layout: Layout) -> jax.stages.Lowered:
    """Say in a lowered training step that the moments come from the host, with ``mesh.offload``.

    A sharding over devices that are not here has no kind of memory, so the argument has to say it.
    """
    if not layout.cfg.mesh.offload or layout.mesh.devices.flat[0].platform == "cpu":
        return lowered
    moments = jax.tree.map(lambda x: x.ndim > 0, layout.abstract.opt_state)
    state = jax.tree.map(lambda _: False, layout.abstract)._replace(opt_state=moments)
    on_host = jax.tree.leaves(state) + [False] * len(layout.batch(1))
    module: Any = lowered.compiler_ir("stablehlo")
    with module.context:
        main = next(op for op in module.body.operations if _name(op) == "main")
        kind = {"mhlo.memory_kind": ir.StringAttr.get(HOST)}
        marked = []
        for argument, host in zip(main.attributes["arg_attrs"], on_host, strict=True):
            found: Any = ir.DictAttr(argument)
            known = {entry.name: entry.attr for entry in found}
            marked.append(ir.DictAttr.get(known | (kind if host else {})))
        main.attributes["arg_attrs"] = ir.ArrayAttr.get(marked)
    return lowered


def _name(operation: Any) -> str:
    names = operation.attributes
    return ir.StringAttr(names["sym_name"]).value if "sym_name" in names else ""


def need(lower: Callable[[], jax.stages.Lowered], gpu: GPU) -> Need:
    """Compile what `lower` returns, and say what it needs of a device."""
    start = time.perf_counter()
    compiled: Any = lower().compile()
    seconds = time.perf_counter() - start
    module = parse(compiled.as_text())
    needs = compiled.memory_analysis()
    return Need(
        peak_bytes(needs),
        state_bytes(needs),
        needs.temp_size_in_bytes,
        seconds,
        estimate(module, gpu),
        largest_buffers(module),
    )


def largest_buffers(module: Module, count: int = 12) -> list[dict[str, Any]]:
    """Return the largest results of a program: one entry per source line and shape."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    used: defaultdict[tuple[str, str], int] = defaultdict(int)
    fused = {i.called("calls") for c in module.computations.values() for i in c.values()}
    for name, computation in module.computations.items():
        if name in fused:
            continue  # values inside of a kernel are not in memory
        for instruction in computation.values():
            if instruction.op in IN_PLACE or instruction.op.endswith("-done"):
                continue
            for shape in instruction.shapes:
                key = module.source(instruction), str(shape)
                used[key] += 1
                found[key] = {"bytes": shape.bytes, "shape": key[1], "source": key[0]}
    largest = sorted(found, key=lambda key: -found[key]["bytes"])[:count]
    return [found[key] | {"places": used[key]} for key in largest]
