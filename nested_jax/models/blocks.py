"""The block, which every kind of config/blocks.py shares: pre-norm residual parts.

It mixes tokens, then transforms each. A mixer is a layer with `init_state(batch, capacity)` and a
call `(state, x_BTD, call) -> (state, y_BTD)`. Its state is a pytree of arrays with the batch first;
zeros have read nothing.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from nested_jax.config import ModelConfig
from nested_jax.layers.basic import Layer, norm_of
from nested_jax.layers.call import Call
from nested_jax.layers.cms import CMS, no_recall
from nested_jax.layers.mlp import MLP
from nested_jax.types import Array, PyTree


def mixer_class(cfg: ModelConfig) -> Any:
    """Return the class that mixes tokens in a model's blocks."""
    module, _, name = cfg.kind.mixer.partition(".")
    return getattr(importlib.import_module(f"nested_jax.layers.{module}"), name)


class BlockOutput(NamedTuple):
    state: PyTree  # of the mixer
    x_BTD: Array
    recall_B: Array  # see layers/cms.py; 0 without deltas
    cms_in_BTD: Array  # what the CMS of the block read; the local teach mode needs it


class Block(Layer):
    """x + mixer(norm(x)), then an MLP or a CMS chain; `fast` blocks carry deltas for their CMS."""

    cfg: ModelConfig
    fast: bool

    def setup(self) -> None:
        cfg = self.cfg
        self.norm = norm_of(cfg)
        self.mixer = mixer_class(cfg)(cfg)
        if cfg.has_cms:
            self.cms = CMS(cfg, self.fast)
        else:
            self.mlp_norm = norm_of(cfg)
            self.mlp = MLP(cfg)

    def init_state(self, batch: int, capacity: int) -> PyTree:
        return self.mixer.init_state(batch, capacity)

    def __call__(
        self,
        state: PyTree,
        x_BTD: Array,
        call: Call,
        deltas: tuple[PyTree, ...] | None = None,
    ) -> BlockOutput:
        state, mixed_BTD = self.mix(state, x_BTD, call)
        if self.cfg.has_cms:
            x_BTD, recall_B = self.read_cms(mixed_BTD, deltas)
        else:
            x_BTD = mixed_BTD + self.mlp(self.mlp_norm(mixed_BTD))
            recall_B = no_recall(x_BTD)
        return BlockOutput(state, x_BTD, recall_B, mixed_BTD)

    # The parts that the model, the teach loop and the surprise objectives call on their own.

    def mix(self, state: PyTree, x_BTD: Array, call: Call) -> tuple[PyTree, Array]:
        state, y_BTD = self.mixer(state, self.norm(x_BTD), call)
        return state, x_BTD + y_BTD

    def read_cms(self, x_BTD: Array, deltas: tuple[PyTree, ...] | None) -> tuple[Array, Array]:
        return self.cms(x_BTD, deltas)

    def level_outputs(
        self, x_BTD: Array, taps: tuple[Array, ...] | None = None
    ) -> tuple[Array, ...]:
        return self.cms.outputs(x_BTD, taps)

    def init_deltas(self, batch: int) -> tuple[PyTree, ...]:
        return self.cms.init_deltas(batch)

    def rates(self) -> tuple[PyTree, ...]:
        return self.cms.rates()

    def change(self, deltas: tuple[PyTree, ...]) -> tuple[Array, ...]:
        return self.cms.change(deltas)
