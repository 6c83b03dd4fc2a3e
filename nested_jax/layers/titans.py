"""The neural long-term memory of Titans (arXiv 2501.00663), and the blocks around it."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import MemoryConfig, ModelConfig
from nested_jax.layers.basic import Layer, constant, fan_in, in_turn
from nested_jax.layers.call import Call
from nested_jax.layers.heads import (
    Gate,
    HeadOutput,
    Projections,
    from_heads,
    gate,
    gate_logits,
    head_output,
    init_tails,
    logit,
    project,
    projections,
    rate_range,
    run_memory,
)
from nested_jax.ops.chunking import Rows
from nested_jax.ops.memory.arch import Matrices, matrix_shapes, memory_read
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, init_state
from nested_jax.ops.normalize import l2_normalize, widen
from nested_jax.types import Array


class MemoryWeights(NamedTuple):
    """The parameters of one neural memory."""

    heads: Projections  # q, k, v
    rate: Gate
    keep: Gate | None
    momentum: Gate | None
    fast0: Matrices  # [H, I, O] each
    out: HeadOutput


class NeuralMemoryState(NamedTuple):
    memory: MemoryState
    tails: tuple[Array, ...]  # of the convolutions of q, k and v

    @property
    def matrices(self) -> Matrices:
        """The memory's matrices, float32."""
        return self.memory.fast

    def memory_into(self, other: NeuralMemoryState) -> NeuralMemoryState:
        """Return `other` with the memory of this state, and nothing else of it."""
        return other._replace(memory=self.memory)


def memory_spec(cfg: MemoryConfig) -> MemorySpec:
    """Return what the configured memory is; `gd` has neither momentum nor retention."""
    return MemorySpec(
        arch=cfg.arch,
        depth=cfg.depth,
        activation=cfg.activation,
        objective=cfg.objective,
        rule=cfg.rule,
        momentum=cfg.momentum and cfg.rule != "gd",
        read=cfg.read,
        order=cfg.order,
        chunk=cfg.chunk,
    )


def fast0_scale(cfg: MemoryConfig) -> float:
    """Return the size of initial matrices relative to fan-in.

    A linear memory tends to the size of what it is written with, a deep one keeps its own: over
    4096 tokens of text neither loses half of its norm or grows tenfold (tests/test_long_runs.py).
    """
    return 0.25 if cfg.arch == "linear" else 1.0


def fast0_weights(layer: Layer, cfg: ModelConfig, name: str) -> Matrices:
    """Declare the learned initial value of a memory, one [H, I, O] a matrix."""
    width = cfg.memory_width
    shapes = matrix_shapes(memory_spec(cfg.memory), width, width, cfg.memory_hidden)
    return tuple(
        layer.weight(
            f"{name}_{i}",
            (cfg.memory_heads, *shape),
            ("heads", None, None),
            kind="fast0",
            init=fan_in(shape[0], fast0_scale(cfg.memory)),
        )
        for i, shape in enumerate(shapes)
    )


def memory_weights(layer: Layer, cfg: ModelConfig) -> MemoryWeights:
    """Declare a neural memory with the gates that its rule has."""
    memory, spec = cfg.memory, memory_spec(cfg.memory)
    keep = momentum = None
    if spec.has_keep and memory.retention:
        keep = gate(layer, cfg, "keep", in_turn(tuple(map(logit, memory.keep_init))))
    if spec.momentum:
        momentum = gate(layer, cfg, "momentum", constant(0.0))
    return MemoryWeights(
        projections(layer, cfg, ("q", "k", "v")),
        gate(layer, cfg, "rate", constant(rate_range(memory, spec).bias)),
        keep,
        momentum,
        fast0_weights(layer, cfg, "fast0"),
        head_output(layer, cfg, gated=True),
    )


def memory_inputs(
    cfg: MemoryConfig, weights: MemoryWeights, qkv: tuple[Array, ...], x_BTD: Array
) -> MemoryInputs:
    """Return unit queries and keys, values and gates, at the precision of the memory.

    With momentum mu the rate is the gate times 1 - mu: the whole impulse of a token, which momentum
    spreads over those after it, does not depend on mu. Values are divided by sqrt(K), so that they
    are of the order of the unit keys: the inner gradient of a deep memory grows with their square.
    """
    q_BTHK, k_BTHK, v_BTHV = (widen(z) for z in qkv)
    spec = memory_spec(cfg)
    rate_BTH = rate_range(cfg, spec).ceiling * jax.nn.sigmoid(gate_logits(weights.rate, x_BTD))
    keep_BTH = momentum_BTH = None
    if spec.has_keep:
        keep_BTH = jnp.ones_like(rate_BTH)
    if weights.keep is not None:
        keep_BTH = jax.nn.sigmoid(gate_logits(weights.keep, x_BTD))
    if weights.momentum is not None:
        momentum_BTH = jax.nn.sigmoid(gate_logits(weights.momentum, x_BTD))
        rate_BTH = rate_BTH * (1.0 - momentum_BTH)
    return MemoryInputs(
        l2_normalize(q_BTHK),
        l2_normalize(k_BTHK),
        v_BTHV / math.sqrt(v_BTHV.shape[-1]),
        rate_BTH,
        keep_BTH,
        momentum_BTH,
    )


def init_memory(cfg: ModelConfig, weights: MemoryWeights, batch: int) -> NeuralMemoryState:
    """Return the state of sequences that have read nothing: all zeros."""
    memory = init_state(memory_spec(cfg.memory), weights.fast0, batch)
    zeros = jax.tree.map(jnp.zeros_like, memory)
    return NeuralMemoryState(zeros, init_tails(cfg, 3, batch))


def neural_memory(
    cfg: ModelConfig,
    weights: MemoryWeights,
    state: NeuralMemoryState,
    x_BTD: Array,
    position_BT: Array,
    rows: Rows,
) -> tuple[NeuralMemoryState, Array]:
    """Write the tokens of a call and read their queries; return [B, T, D] in the dtype of `x`."""
    spec = memory_spec(cfg.memory)
    tails, qkv = project(weights.heads, state.tails, x_BTD, position_BT, rows)
    inputs = memory_inputs(cfg.memory, weights, qkv, x_BTD)
    if cfg.memory.frozen:
        initial = init_state(spec, weights.fast0, x_BTD.shape[0])
        memory, y_BTHV = state.memory, memory_read(spec, initial.fast, inputs.q_BTHK)
    else:
        memory, y_BTHV = run_memory(
            spec, weights.fast0, state.memory, inputs, rows, remat=cfg.remat == "nested"
        )
    y_BTD = from_heads(weights.out, y_BTHV, x_BTD, cfg.norm_eps)
    return NeuralMemoryState(memory, tails), y_BTD


class NeuralMemory(Layer):
    """`titans_lmm`: the long-term memory alone, in the place of attention (Titans Sec. 4.3)."""

    cfg: ModelConfig

    def setup(self) -> None:
        self.weights = memory_weights(self, self.cfg)

    def init_state(self, batch: int, capacity: int) -> NeuralMemoryState:
        del capacity
        return init_memory(self.cfg, self.weights, batch)

    def __call__(
        self, state: NeuralMemoryState, x_BTD: Array, call: Call
    ) -> tuple[NeuralMemoryState, Array]:
        return neural_memory(self.cfg, self.weights, state, x_BTD, call.position_BT, call.rows)
