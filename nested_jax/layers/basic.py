"""How a parameter is declared, and what all layers share: starting values, norms, RoPE."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from nested_jax.config import ModelConfig
from nested_jax.ops.normalize import widen
from nested_jax.types import Array, ParamInfo, PyTree

Init = Callable[[Array, tuple[int, ...]], Array]
GPT2_STD = 0.02  # of every matrix and table of GPT-2 at the start


class Declared(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
    """A parameter with what it is; `unbox` gives the bare array."""

    value: Any
    axes: tuple[str | None, ...] = struct.field(pytree_node=False)
    kind: str = struct.field(pytree_node=False)
    level: int = struct.field(pytree_node=False, default=0)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Declared:
        return self.replace(value=val)

    @classmethod
    def from_nnx_metadata(cls, metadata: dict[str, Any]) -> Declared:
        """Return the record that ``flax.nnx.bridge`` has kept as a variable and its metadata."""
        return cls(**{name: metadata[name] for name in ("value", "axes", "kind", "level")})

    def add_axis(self, index: int, params: dict[Any, Any]) -> Declared:
        axes = list(self.axes)
        axes.insert(index, params.get(nn.PARTITION_NAME))
        return self.replace(axes=tuple(axes))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Declared:
        del params
        return self.replace(axes=self.axes[:index] + self.axes[index + 1 :])


def is_declared(x: Any) -> bool:
    return isinstance(x, Declared)


def unbox(declared: PyTree) -> PyTree:
    return jax.tree.map(lambda d: d.value, declared, is_leaf=is_declared)


def param_info(declared: PyTree) -> PyTree:
    """Return the tree of ParamInfo of a tree of declared (possibly abstract) parameters."""

    def info(d: Declared) -> ParamInfo:
        assert len(d.axes) == d.value.ndim, f"axes {d.axes} of shape {d.value.shape}"
        return ParamInfo(tuple(d.value.shape), d.axes, d.kind, d.level)

    return jax.tree.map(info, declared, is_leaf=is_declared)


class Layer(nn.Module):
    """A module whose parameters are declared once: shape, logical axes, kind, initialisation."""

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        kind: str = "matrix",
        init: Init,
        level: int = 0,
    ) -> Array:
        """Declare a float32 parameter and return its value."""

        def make(key: Array) -> Declared:
            return Declared(init(key, shape).astype(jnp.float32), axes, kind, level)

        value: Any = self.param(name, make)  # flax hands back what the record holds
        return value

    def declare(self) -> None:
        """Declare the parameters of this layer and of all layers in it; nothing is computed."""
        fields = {field.name for field in dataclasses.fields(self)}
        # A call sets the layer up. What its `setup` made stands beside its fields.
        made = [value for name, value in vars(self).items() if name not in fields]
        for layer in jax.tree.leaves(made, is_leaf=lambda x: isinstance(x, nn.Module)):
            if isinstance(layer, Layer):
                layer.declare()


def normal(std: float) -> Init:
    return lambda key, shape: std * jax.random.truncated_normal(key, -3.0, 3.0, shape, jnp.float32)


def fan_in(width: int, scale: float = 1.0) -> Init:
    """Normal with variance scale² / width, `width` the number of inputs that are summed."""
    return normal(scale / math.sqrt(width))


def matrix_init(cfg: ModelConfig, width: int, scale: float = 1.0) -> Init:
    """Return how a model's matrix of `width` inputs starts; `scale` is a factor on its size."""
    if not cfg.kind.gpt2:
        return fan_in(width, scale)
    std = GPT2_STD * scale
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


def constant(value: float) -> Init:
    return lambda _, shape: jnp.full(shape, value, jnp.float32)


def in_turn(values: Sequence[float]) -> Init:
    """The values along the axis, over and over."""
    return lambda _, shape: jnp.resize(jnp.asarray(values, jnp.float32), shape)


def residual_scale(layers: int) -> float:
    """Factor on what a block adds, so that the residual stream's variance does not grow with L."""
    return 1.0 / math.sqrt(2 * layers)


def rms_norm(x_BTD: Array, scale_D: Array, eps: float) -> Array:
    """Divide by the root mean square over the last axis, in float32; returns the caller's dtype."""
    x = widen(x_BTD)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    scale = scale_D.reshape((1,) * (x.ndim - scale_D.ndim) + scale_D.shape)
    return (x * inverse * scale).astype(x_BTD.dtype)


class RMSNorm(Layer):
    """Root-mean-square normalisation with a learned scale (Zhang & Sennrich 2019)."""

    width: int
    eps: float

    def setup(self) -> None:
        self.scale_D = self.weight(
            "scale", (self.width,), (None,), kind="vector", init=constant(1.0)
        )

    def __call__(self, x_BTD: Array) -> Array:
        return rms_norm(x_BTD, self.scale_D, self.eps)


def layer_norm(x_BTD: Array, scale_D: Array, bias_D: Array, eps: float) -> Array:
    """Subtract the mean, divide by the standard deviation over the last axis, scale, add a bias.

    In float32, with the variance of N and not N - 1; returns the caller's dtype.
    """
    x = widen(x_BTD)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return add_bias(rms_norm(x, scale_D, eps), bias_D).astype(x_BTD.dtype)


def add_bias(x: Array, bias: Array | None) -> Array:
    """Add a bias of the last axes, in the dtype of `x`; None adds nothing."""
    if bias is None:
        return x
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


class LayerNorm(RMSNorm):
    """Layer normalisation with a learned scale and bias (Ba et al. 2016)."""

    def setup(self) -> None:
        super().setup()
        self.bias_D = self.weight("bias", (self.width,), (None,), kind="vector", init=constant(0.0))

    def __call__(self, x_BTD: Array) -> Array:
        return layer_norm(x_BTD, self.scale_D, self.bias_D, self.eps)


def norm_of(cfg: ModelConfig, name: str | None = None) -> RMSNorm:
    """Return the norm of the residual stream that a model has."""
    return (LayerNorm if cfg.kind.gpt2 else RMSNorm)(cfg.dim, cfg.norm_eps, name=name)


def rotary_frequencies(cfg: ModelConfig, half: int, dtype: Any) -> Array:
    """Return the radians per token of each pair, [half].

    Scaled as in Llama 3.1 (Grattafiori et al. 2024): those that turn fewer than `low` times in the
    rows of the first training are divided by the factor, those that turn more than `high` times
    stay, and between them the two are mixed linearly.
    """
    frequency_K = cfg.rope_theta ** (-jnp.arange(half, dtype=dtype) / half)
    if not cfg.rope_scaling:
        return frequency_K
    factor, low, high, tokens = cfg.rope_scaling
    turns_K = frequency_K * (tokens / (2 * math.pi))
    kept_K = jnp.clip((turns_K - low) / (high - low), 0.0, 1.0)
    return frequency_K * (kept_K + (1.0 - kept_K) / factor)


def rotary(x_BTHK: Array, position_BT: Array, cfg: ModelConfig) -> Array:
    """Rotate pairs (i, i + K/2) by position · theta^(-2i/K) (Su et al. 2021), in float32."""
    x = widen(x_BTHK)
    frequency_K = rotary_frequencies(cfg, x.shape[-1] // 2, x.dtype)
    angle_BTK = position_BT.astype(x.dtype)[..., None] * frequency_K[None, None, :]
    cos, sin = jnp.cos(angle_BTK)[:, :, None, :], jnp.sin(angle_BTK)[:, :, None, :]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BTHK.dtype)
