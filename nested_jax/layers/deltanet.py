"""DeltaNet and Gated DeltaNet: an online linear memory without learned initial value."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.basic import Layer, constant
from nested_jax.layers.call import Call
from nested_jax.layers.heads import (
    from_heads,
    gate,
    gate_logits,
    head_output,
    init_tails,
    project,
    projections,
    run_memory,
)
from nested_jax.ops.memory.arch import Matrices
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, init_state
from nested_jax.ops.normalize import l2_normalize, state_dtype, widen
from nested_jax.types import Array

STEPS = (1e-3, 1e-1)  # range of softplus(dt) at initialisation (Mamba, arXiv 2312.00752)
DECAYS = (1.0, 16.0)  # range of A at initialisation


class DeltaNetState(NamedTuple):
    memory: MemoryState
    tails: tuple[Array, ...]  # of the convolutions of q, k and v

    @property
    def matrices(self) -> Matrices:
        """The memory's matrices, float32."""
        return self.memory.fast

    def memory_into(self, other: DeltaNetState) -> DeltaNetState:
        """Return `other` with the memory of this state, and nothing else of it."""
        return other._replace(memory=self.memory)


class DeltaNet(Layer):
    """S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T (arXiv 2406.06484), y_t = S_t q_t.

    q, k and v pass a short convolution and SiLU, q and k are unit vectors, and the rate is
    beta = max_rate * sigmoid(x W). With ``memory.max_rate=2`` the transition has negative
    eigenvalues, which state tracking needs (arXiv 2411.12537).
    """

    cfg: ModelConfig
    spec = MemorySpec(arch="linear", objective="l2", rule="gd", chunk=1)
    gated = False

    def setup(self) -> None:
        self.in_heads = projections(self, self.cfg, ("q", "k", "v"))
        self.rate = gate(self, self.cfg, "rate", constant(0.0))
        self.out = head_output(self, self.cfg, gated=self.gated)

    def init_state(self, batch: int, capacity: int) -> DeltaNetState:
        del capacity
        return DeltaNetState(
            init_state(self.spec, self._zero_memory(), batch), init_tails(self.cfg, 3, batch)
        )

    def _zero_memory(self) -> tuple[Array, ...]:
        shape = (self.cfg.memory_heads, self.cfg.memory_width, self.cfg.memory_width)
        return (jnp.zeros(shape, state_dtype(self.cfg.compute_dtype)),)

    def keep(self, x_BTD: Array) -> Array | None:
        """Return the retention of each token and head; None forgets nothing."""
        del x_BTD
        return None

    def __call__(
        self, state: DeltaNetState, x_BTD: Array, call: Call
    ) -> tuple[DeltaNetState, Array]:
        tails, (q_BTHK, k_BTHK, v_BTHK) = project(
            self.in_heads, state.tails, x_BTD, call.position_BT, call.rows
        )
        inputs = MemoryInputs(
            l2_normalize(widen(q_BTHK)),
            l2_normalize(widen(k_BTHK)),
            widen(v_BTHK),
            self.cfg.memory.max_rate * jax.nn.sigmoid(gate_logits(self.rate, x_BTD)),
            self.keep(x_BTD),
        )
        remat = self.cfg.remat == "nested"
        memory, y_BTHV = run_memory(
            self.spec, self._zero_memory(), state.memory, inputs, call.rows, remat=remat
        )
        y_BTD = from_heads(self.out, y_BTHV, x_BTD, self.cfg.norm_eps)
        return DeltaNetState(memory, tails), y_BTD


class GatedDeltaNet(DeltaNet):
    """S_t = a_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T (arXiv 2412.06464, Eq. 10).

    a_t = exp(-A softplus(x W + b)) with one learned A > 0 per head; silu(x W) gates the output.
    """

    spec = MemorySpec(arch="linear", objective="l2", rule="titans", gradient_at="decayed", chunk=1)
    gated = True

    def setup(self) -> None:
        super().setup()
        self.step = gate(self, self.cfg, "step", _step_bias)
        self.log_decay_H = self.weight(
            "log_decay", (self.cfg.memory_heads,), ("heads",), kind="vector", init=_log_decay
        )

    def keep(self, x_BTD: Array) -> Array | None:
        step_BTH = jax.nn.softplus(gate_logits(self.step, x_BTD))
        return jnp.exp(-jnp.exp(self.log_decay_H)[None, None] * step_BTH)


def _step_bias(key: Array, shape: tuple[int, ...]) -> Array:
    """softplus^-1 of steps that are uniform in the logarithm."""
    low, high = (math.log(s) for s in STEPS)
    step = jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high))
    return step + jnp.log(-jnp.expm1(-step))


def _log_decay(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, *DECAYS))
