"""What the layers around a memory share: projections into heads, gates, and the way back to D.

Each part is a NamedTuple of parameters and a pure function of it, so that it can also run inside a
scan over segments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import MemoryConfig, ModelConfig
from nested_jax.layers.basic import Init, Layer, constant, fan_in, residual_scale, rms_norm
from nested_jax.ops.causal_conv import causal_conv
from nested_jax.ops.chunking import Rows
from nested_jax.ops.linear import linear
from nested_jax.ops.memory.arch import Matrices
from nested_jax.ops.memory.chunked import memory_chunked
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, init_state
from nested_jax.ops.normalize import widen
from nested_jax.types import Array

HEAD_AXES = ("heads", "head_width")


class Projections(NamedTuple):
    """Linear maps of the tokens into heads, each with a short convolution after it."""

    weights: tuple[Array, ...]  # [D, H, K] each
    kernels: tuple[Array, ...]  # [W, H, K] each; empty without convolution


class Gate(NamedTuple):
    """One scalar per token and head: x W + b, before the function that bounds it."""

    weight_DH: Array
    bias_H: Array


class HeadOutput(NamedTuple):
    """A norm per head, a gate made of the layer's input (None: no gate), and the map back to D."""

    norm_V: Array
    gate_DHV: Array | None
    out_HVD: Array


def projections(layer: Layer, cfg: ModelConfig, names: tuple[str, ...]) -> Projections:
    """Declare one projection into heads for each name."""
    width, heads, conv = cfg.memory_width, cfg.memory_heads, cfg.memory.conv
    shape, axes = (cfg.dim, heads, width), ("embed", *HEAD_AXES)
    weights = tuple(layer.weight(n, shape, axes, init=fan_in(cfg.dim)) for n in names)
    kernels = tuple(
        layer.weight(
            f"{n}_conv", (conv, heads, width), ("conv", *HEAD_AXES), kind="conv", init=fan_in(conv)
        )
        for n in names
        if conv
    )
    return Projections(weights, kernels)


def init_tails(cfg: ModelConfig, count: int, batch: int) -> tuple[Array, ...]:
    """Return the convolution tails of `count` projections that have read nothing."""
    memory = cfg.memory
    if not memory.conv:
        return ()
    shape = (batch, memory.conv - 1, cfg.memory_heads, cfg.memory_width)
    return (jnp.zeros(shape, jnp.dtype(cfg.compute_dtype)),) * count


def project(
    p: Projections, tails: tuple[Array, ...], x_BTD: Array, position_BT: Array, rows: Rows
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the next tails and silu(conv(x W)) of every projection, [B, T, H, K] in x's dtype."""
    after, out = [], []
    for i, w_DHK in enumerate(p.weights):
        z_BTHK = linear(x_BTD, w_DHK.astype(x_BTD.dtype))
        if p.kernels:
            tail, z_BTHK = causal_conv(p.kernels[i], tails[i], z_BTHK, position_BT, rows.lengths_B)
            after.append(tail)
        out.append(jax.nn.silu(z_BTHK))
    return tuple(after), tuple(out)


def gate(layer: Layer, cfg: ModelConfig, name: str, bias: Init) -> Gate:
    """Declare a gate that starts at its bias for every token."""
    shape, axes = (cfg.dim, cfg.memory_heads), ("embed", "heads")
    weight_DH = layer.weight(f"{name}_gate", shape, axes, kind="vector", init=constant(0.0))
    return Gate(
        weight_DH, layer.weight(f"{name}_bias", shape[1:], axes[1:], kind="vector", init=bias)
    )


def gate_logits(g: Gate, x_BTD: Array) -> Array:
    """Return x W + b in float32 (float64 for float64), [B, T, H]."""
    return linear(widen(x_BTD), g.weight_DH) + g.bias_H[None, None]


def logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def is_delta(spec: MemorySpec) -> bool:
    """Whether a write erases what it finds at its key, so that rates up to 2 are stable.

    A deep memory is none: its matrices multiply, and `dot` has no least value. (With a ceiling of 1
    the generators of `hope` grew 195 times or vanished over 4096 tokens, see tests/test_long_runs.)
    """
    erases = spec.rule == "dgd" and spec.objective == "dot"
    return spec.arch == "linear" and (spec.chunk == 1 or erases)


class RateRange(NamedTuple):
    """A write rate is ceiling * sigmoid(logit); `bias` is the logit that it starts at."""

    ceiling: float
    bias: float


def rate_range(cfg: MemoryConfig, spec: MemorySpec) -> RateRange:
    """Return the range of a memory's rate.

    A delta write starts at `inner_lr` and may rise to `max_rate`. For all others the ceiling is
    `inner_lr` and the start half of it: their gradients are taken where the chunk began, and C
    tokens of one key overshoot as soon as C times the rate exceeds 2. A deep memory that erases
    starts at a tenth of that: at half of the ceiling 4096 tokens of text erased 0.6 of its norm.
    """
    if is_delta(spec):
        return RateRange(cfg.max_rate, logit(cfg.inner_lr / cfg.max_rate))
    erases = spec.arch == "mlp" and spec.rule == "dgd"
    return RateRange(cfg.inner_lr, logit(0.05 if erases else 0.5))


def head_output(layer: Layer, cfg: ModelConfig, *, gated: bool) -> HeadOutput:
    """Declare the way back from heads to the residual stream."""
    heads, width = cfg.memory_heads, cfg.memory_width
    out = fan_in(heads * width, residual_scale(cfg.layers))
    gate_DHV = None
    if gated:
        gate_DHV = layer.weight(
            "out_gate", (cfg.dim, heads, width), ("embed", *HEAD_AXES), init=fan_in(cfg.dim)
        )
    return HeadOutput(
        layer.weight("out_norm", (width,), ("norm",), kind="vector", init=constant(1.0)),
        gate_DHV,
        layer.weight("out", (heads, width, cfg.dim), (*HEAD_AXES, "embed"), init=out),
    )


def from_heads(p: HeadOutput, y_BTHV: Array, x_BTD: Array, eps: float) -> Array:
    """Return norm(y) * silu(x W_gate), mapped to [B, T, D], in the dtype of `x`.

    Without the norm the scale of a memory's answer grows with what was written (Gated DeltaNet,
    arXiv 2412.06464, finds norm and gate crucial).
    """
    y_BTHV = rms_norm(y_BTHV, p.norm_V, eps).astype(x_BTD.dtype)
    if p.gate_DHV is not None:
        gate_BTHV = linear(x_BTD, p.gate_DHV.astype(x_BTD.dtype))
        y_BTHV = y_BTHV * jax.nn.silu(gate_BTHV)
    return linear(y_BTHV, p.out_HVD.astype(x_BTD.dtype), inputs=2)


def run_memory(
    spec: MemorySpec,
    fast0: Matrices,
    state: MemoryState,
    inputs: MemoryInputs,
    rows: Rows,
    *,
    remat: bool,
) -> tuple[MemoryState, Array]:
    """Write and read the tokens of a call; rows that begin start from `fast0`, leaves [H, I, O]."""
    initial = init_state(spec, fast0, rows.batch)
    after, y_BTHV = memory_chunked(
        spec,
        rows.start_state(initial, state),
        inputs,
        rows,
        None if rows.starts_BT is None else initial,
        remat=remat,
    )
    return rows.keep_idle(after, state), y_BTHV
