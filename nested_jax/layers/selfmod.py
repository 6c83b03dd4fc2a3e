"""`hope`: self-modifying Titans (NL Sec. 8.1), a memory whose projections are memories."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import MemoryConfig, ModelConfig
from nested_jax.errors import require
from nested_jax.layers.basic import Layer, constant, fan_in, in_turn
from nested_jax.layers.call import Call
from nested_jax.layers.heads import (
    from_heads,
    gate,
    gate_logits,
    head_output,
    init_tails,
    logit,
    project,
    projections,
    rate_range,
)
from nested_jax.layers.titans import fast0_scale, memory_spec
from nested_jax.ops.memory.arch import Matrices, matrix_shapes
from nested_jax.ops.memory.self_modifying import (
    GateReadout,
    SelfModInputs,
    SelfModSpec,
    SelfModState,
    init_self_modifying,
)
from nested_jax.ops.memory.self_modifying_chunked import self_modifying_chunked
from nested_jax.ops.normalize import l2_normalize, widen
from nested_jax.types import Array


class SelfModifyingState(NamedTuple):
    memories: SelfModState
    tails: tuple[Array, ...]  # of the convolutions of the slow projections

    @property
    def matrices(self) -> Matrices:
        """The memory's matrices, float32."""
        return self.memories.memory.fast

    def memory_into(self, other: SelfModifyingState) -> SelfModifyingState:
        """Return `other` with the memory of this state, and nothing else of it."""
        return other._replace(memories=self.memories)


def self_modifying_spec(cfg: MemoryConfig) -> SelfModSpec:
    """Return which projections are memories; rate is one always, keep where the rule retains."""
    memory = memory_spec(cfg)
    chosen = {
        "k": cfg.adaptive_k,
        "v": cfg.adaptive_v,
        "q": cfg.adaptive_q,
        "rate": True,
        "keep": cfg.retention and memory.has_keep,
    }
    return SelfModSpec(
        memory,
        replace(memory, chunk=cfg.generator_chunk, read="chunk"),
        tuple(name for name, yes in chosen.items() if yes),
        max_rate=rate_range(cfg, memory).ceiling,
        erase_stretch=cfg.erase_stretch,
        targets=cfg.targets,
        frozen=cfg.frozen,
    )


def erase_biases(cfg: MemoryConfig) -> tuple[float, ...]:
    """Return the logits at which the erase gate starts, one per head.

    Raises:
      ValueError: it is to start where it cannot get to.
    """
    ceiling, bias = rate_range(cfg, memory_spec(cfg))
    for rate in cfg.erase_init:
        want = f"wants rates below {ceiling}, the ceiling of what this memory erases with"
        require(rate < ceiling, "model.memory.erase_init", cfg.erase_init, want)
    starts = cfg.erase_init or (ceiling / (1.0 + math.exp(-bias)),)
    stretch = cfg.erase_stretch
    return tuple(logit((rate / ceiling + stretch) / (1.0 + 2.0 * stretch)) for rate in starts)


class SelfModifying(Layer):
    """Self-modifying Titans in heads (ops/memory/self_modifying.py).

    The generators read x_t = unit(silu(conv(x W))), one slow projection ("shared"), or those of
    keys and values have one of their own ("own"): in heads, a generator sees K of the D numbers of
    a token, and keys that ask for the token before share them badly with values of this one.
    Queries, and keys and values that are not adaptive, have slow projections of their own. With
    ``memory.beside`` an answer is that of the learned start, which stays as it is, and that of the
    memory, which starts empty.
    """

    cfg: ModelConfig

    def setup(self) -> None:
        cfg = self.cfg
        spec = self_modifying_spec(cfg.memory)
        self.spec = replace(spec, remat=cfg.remat == "nested")
        self.slow = tuple(n for n in ("q", "k", "v") if n not in self.spec.generators)
        owners = [n for n in ("k", "v", "q") if n in self.spec.generators]
        self.own = tuple(f"x_{n}" for n in owners) if cfg.memory.generator_inputs == "own" else ()
        self.in_heads = projections(self, cfg, self.inputs_named)
        self.readout = self._readout()
        if self.spec.memory.momentum:
            self.momentum = gate(self, cfg, "momentum", constant(0.0))
        each = [self._fast0(name) for name in self.spec.generators]
        self.generators0 = tuple(jnp.stack(w, axis=1) for w in zip(*each, strict=True))
        self.memory0 = self._fast0("memory")
        self.out = head_output(self, cfg, gated=True)

    @property
    def inputs_named(self) -> tuple[str, ...]:
        """The slow projections of the tokens."""
        return ("x", *self.own, *self.slow)

    def _fast0(self, name: str) -> Matrices:
        """Declare the learned initial value of one memory, [H, I, O] a matrix."""
        cfg, width = self.cfg, self.cfg.memory_width
        shapes = matrix_shapes(self.spec.memory, width, width, cfg.memory_hidden)
        scale = fast0_scale(cfg.memory)
        return tuple(
            self.weight(
                f"{name}0_{i}",
                (cfg.memory_heads, *shape),
                ("heads", None, None),
                kind="fast0",
                init=fan_in(shape[0], scale),
            )
            for i, shape in enumerate(shapes)
        )

    def _readout(self) -> GateReadout:
        memory, heads, width = self.cfg.memory, self.cfg.memory_heads, self.cfg.memory_width

        def vector(name: str) -> Array:
            axes = ("heads", "head_width")
            return self.weight(name, (heads, width), axes, kind="vector", init=fan_in(width))

        def bias(name: str, *values: float) -> Array:
            return self.weight(name, (heads,), ("heads",), kind="vector", init=in_turn(values))

        start = rate_range(memory, self.spec.memory).bias
        rate = vector("rate_readout"), bias("rate_bias", start)
        keep: tuple[Array | None, Array | None] = None, None
        if "keep" in self.spec.generators:
            keep = vector("keep_readout"), bias("keep_bias", *map(logit, memory.keep_init))
        pace_HG = None
        if memory.generator_pace < 1:
            shape, axes = (heads, len(self.spec.generators)), ("heads", None)
            pace = constant(logit(memory.generator_pace))
            pace_HG = jax.nn.sigmoid(self.weight("pace", shape, axes, kind="vector", init=pace))
        erase: tuple[Array | None, Array | None] = None, None
        if memory.erase_gate:
            erase = vector("erase_readout"), bias("erase_bias", *erase_biases(memory))
        return GateReadout(*rate, *keep, pace_HG, *erase)

    def _fresh(self, batch: int) -> SelfModState:
        memory0 = self.memory0
        if self.cfg.memory.beside:
            memory0 = tuple(jnp.zeros_like(w) for w in memory0)
        return init_self_modifying(self.spec, self.generators0, memory0, batch)

    def init_state(self, batch: int, capacity: int) -> SelfModifyingState:
        del capacity
        zeros = jax.tree.map(jnp.zeros_like, self._fresh(batch))
        return SelfModifyingState(zeros, init_tails(self.cfg, len(self.inputs_named), batch))

    def __call__(
        self, state: SelfModifyingState, x_BTD: Array, call: Call
    ) -> tuple[SelfModifyingState, Array]:
        cfg, rows = self.cfg, call.rows
        tails, heads = project(self.in_heads, state.tails, x_BTD, call.position_BT, rows)
        inputs = self._inputs(dict(zip(self.inputs_named, heads, strict=True)), x_BTD)
        fresh = self._fresh(x_BTD.shape[0])
        memories, y_BTHV = self_modifying_chunked(
            self.spec,
            self.readout,
            rows.start_state(fresh, state.memories),
            inputs,
            rows,
            None if rows.starts_BT is None else fresh,
        )
        if cfg.memory.beside:
            assert inputs.q is not None  # adaptive_q is off
            y_BTHV = y_BTHV + jnp.einsum("bthk,hkv->bthv", l2_normalize(inputs.q), *self.memory0)
        state = SelfModifyingState(rows.keep_idle(memories, state.memories), tails)
        return state, from_heads(self.out, y_BTHV, x_BTD, cfg.norm_eps)

    def _inputs(self, heads: dict[str, Array], x_BTD: Array) -> SelfModInputs:
        wide = {name: widen(z) for name, z in heads.items()}
        v_BTHV = wide["v"] / math.sqrt(self.cfg.memory_width) if "v" in wide else None
        momentum_BTH = None
        if self.spec.memory.momentum:
            momentum_BTH = jax.nn.sigmoid(gate_logits(self.momentum, x_BTD))
        x = l2_normalize(wide["x"])
        if self.own:
            each = (wide.get(f"x_{name}", wide["x"]) for name in self.spec.generators)
            x = l2_normalize(jnp.stack(tuple(each), axis=-2))
        return SelfModInputs(x, wide.get("q"), wide.get("k"), v_BTHV, momentum_BTH)
