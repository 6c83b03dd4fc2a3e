"""The MLPs: SwiGLU without biases, and GPT-2's GELU with them. A level of a CMS is one of these.

What a level writes are the matrices. Biases stand beside them, and stay as they were trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.basic import Layer, add_bias, constant, matrix_init, residual_scale
from nested_jax.ops.linear import linear
from nested_jax.types import Array


class SwiGLUWeights(NamedTuple):
    """The matrices of a SwiGLU MLP: shared, [D, F] and [F, D], or one per sequence, B first."""

    gate: Array
    up: Array
    down: Array


class GELUWeights(NamedTuple):
    """The matrices of a GELU MLP, in the same form."""

    up: Array
    down: Array


class MLPBiases(NamedTuple):
    """The biases of a GELU MLP."""

    up_F: Array
    down_D: Array


MLPWeights = SwiGLUWeights | GELUWeights


def like(weights: MLPWeights, values: Iterable[Any]) -> Any:
    """Return the tuple of the kind of `weights` with other values, in the order of its fields."""
    return type(weights)(*values)


def contract(x_BTD: Array, weight: Array) -> Array:
    """Multiply tokens by a matrix that is shared ([D, F]) or one per sequence ([B, D, F])."""
    if weight.ndim == 2:
        return linear(x_BTD, weight)
    return jnp.einsum("btd,bdf->btf", x_BTD, weight)


def mlp_hidden(weights: MLPWeights, x_BTD: Array, biases: MLPBiases | None = None) -> Array:
    """Return what the last matrix reads, [B, T, F] in the dtype of `x`.

    silu(x W_gate) * x W_up (Shazeer 2020), or gelu(x W_up + b) with the tanh approximation.
    """
    into = [w.astype(x_BTD.dtype) for w in weights[:-1]]
    if isinstance(weights, SwiGLUWeights):
        gate, up = into
        return jax.nn.silu(contract(x_BTD, gate)) * contract(x_BTD, up)
    up_BTF = add_bias(contract(x_BTD, into[0]), biases and biases.up_F)
    return jax.nn.gelu(up_BTF, approximate=True)


def mlp_output(weights: MLPWeights, z_BTF: Array, biases: MLPBiases | None = None) -> Array:
    """Return z W_down, and the bias where there is one."""
    y_BTD = contract(z_BTF, weights.down.astype(z_BTF.dtype))
    return add_bias(y_BTD, biases and biases.down_D)


def mlp_weights(
    layer: Layer, cfg: ModelConfig, prefix: str, hidden: int, scale: float, level: int = 0
) -> MLPWeights:
    """Declare the matrices of an MLP of the model's kind, ``model.kind``.

    Args:
      prefix: of their names.
      hidden: F.
      scale: factor on the start of the last one.
      level: the outer level that they belong to; 0 is no CMS level.
    """
    up, down = ("embed", "mlp"), ("mlp", "embed")
    first = matrix_init(cfg, cfg.dim)
    make = {
        name: layer.weight(f"{prefix}{name}", (cfg.dim, hidden), up, init=first, level=level)
        for name in (("up",) if cfg.kind.gpt2 else ("gate", "up"))
    }
    last = matrix_init(cfg, hidden, scale)
    make["down"] = layer.weight(f"{prefix}down", (hidden, cfg.dim), down, init=last, level=level)
    return GELUWeights(**make) if cfg.kind.gpt2 else SwiGLUWeights(**make)


def mlp_biases(
    layer: Layer, cfg: ModelConfig, prefix: str, hidden: int, level: int = 0
) -> MLPBiases | None:
    """Declare the biases of an MLP of the model's kind, which may have none."""
    if not cfg.kind.gpt2:
        return None

    def zeros(name: str, width: int, axis: str) -> Array:
        start = constant(0.0)
        return layer.weight(
            f"{prefix}{name}", (width,), (axis,), kind="vector", init=start, level=level
        )

    return MLPBiases(zeros("up_bias", hidden, "mlp"), zeros("down_bias", cfg.dim, "norm"))


class MLP(Layer):
    """The MLP of a block without a CMS."""

    cfg: ModelConfig

    def setup(self) -> None:
        cfg = self.cfg
        self.weights = mlp_weights(self, cfg, "", cfg.mlp_width, residual_scale(cfg.layers))
        self.biases = mlp_biases(self, cfg, "", cfg.mlp_width)

    def __call__(self, x_BTD: Array) -> Array:
        z_BTF = mlp_hidden(self.weights, x_BTD, self.biases)
        return mlp_output(self.weights, z_BTF, self.biases)
