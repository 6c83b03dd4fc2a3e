"""Attention and a Titans memory in one mixer: beside each other, or one after the other."""

from __future__ import annotations

from typing import NamedTuple

import jax

from nested_jax.config import ModelConfig
from nested_jax.layers.attention import Attention, AttentionState
from nested_jax.layers.basic import Layer, RMSNorm, constant, residual_scale, rms_norm
from nested_jax.layers.call import Call
from nested_jax.layers.titans import NeuralMemory, NeuralMemoryState
from nested_jax.ops.memory.arch import Matrices
from nested_jax.types import Array


class OutputGate(NamedTuple):
    """The learned vectors of the product of attention's output and the memory's answer."""

    attended_D: Array
    recalled_D: Array


def output_gate(layer: Layer, cfg: ModelConfig) -> OutputGate:
    """Declare the gate; its product starts at the size of what a block adds."""
    add, one = constant(residual_scale(cfg.layers)), constant(1.0)
    return OutputGate(
        layer.weight("attended", (cfg.dim,), ("norm",), kind="vector", init=add),
        layer.weight("recalled", (cfg.dim,), ("norm",), kind="vector", init=one),
    )


def gated(gate: OutputGate, attended_BTD: Array, recalled_BTD: Array, eps: float) -> Array:
    """Return norm(attended) * silu(norm(recalled)), norms with learned vectors (Titans: y ⊗ M)."""
    opening_BTD = jax.nn.silu(rms_norm(recalled_BTD, gate.recalled_D, eps))
    return rms_norm(attended_BTD, gate.attended_D, eps) * opening_BTD


class HybridState(NamedTuple):
    attention: AttentionState
    memory: NeuralMemoryState

    @property
    def matrices(self) -> Matrices:
        """The memory's matrices, float32."""
        return self.memory.matrices

    def memory_into(self, other: HybridState) -> HybridState:
        """Return `other` with the memory of this state, and nothing else of it."""
        return other._replace(memory=self.memory.memory_into(other.memory))


class Hybrid(Layer):
    """What the mixers of this file share: attention and a memory, each with its state."""

    cfg: ModelConfig

    def setup(self) -> None:
        self.attention = Attention(self.cfg)
        self.memory = NeuralMemory(self.cfg)

    def init_state(self, batch: int, capacity: int) -> HybridState:
        return HybridState(
            self.attention.init_state(batch, capacity), self.memory.init_state(batch, capacity)
        )


class MemoryAsGate(Hybrid):
    """`titans_mag`: attention in a window and the memory read the same tokens; their product."""

    def setup(self) -> None:
        super().setup()
        self.gate = output_gate(self, self.cfg)

    def __call__(self, state: HybridState, x_BTD: Array, call: Call) -> tuple[HybridState, Array]:
        attention, attended_BTD = self.attention(state.attention, x_BTD, call)
        memory, recalled_BTD = self.memory(state.memory, x_BTD, call)
        y_BTD = gated(self.gate, attended_BTD, recalled_BTD, self.cfg.norm_eps)
        return HybridState(attention, memory), y_BTD


class MemoryAsLayer(Hybrid):
    """`titans_mal`: attention reads x + memory(x). Both parts are residual; returns their sum."""

    def setup(self) -> None:
        super().setup()
        self.norm = RMSNorm(self.cfg.dim, self.cfg.norm_eps)

    def __call__(self, state: HybridState, x_BTD: Array, call: Call) -> tuple[HybridState, Array]:
        memory, recalled_BTD = self.memory(state.memory, x_BTD, call)
        attention, attended_BTD = self.attention(
            state.attention, self.norm(x_BTD + recalled_BTD), call
        )
        return HybridState(attention, memory), recalled_BTD + attended_BTD


class AttentionThenMemory(Hybrid):
    """`hope_hybrid`: the memory reads x + attention(x). Both are residual; returns their sum."""

    def setup(self) -> None:
        super().setup()
        self.norm = RMSNorm(self.cfg.dim, self.cfg.norm_eps)

    def __call__(self, state: HybridState, x_BTD: Array, call: Call) -> tuple[HybridState, Array]:
        attention, attended_BTD = self.attention(state.attention, x_BTD, call)
        memory, recalled_BTD = self.memory(state.memory, self.norm(x_BTD + attended_BTD), call)
        return HybridState(attention, memory), attended_BTD + recalled_BTD
