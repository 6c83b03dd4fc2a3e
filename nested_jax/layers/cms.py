"""The continuum memory system (NL Eq. 70-74): a chain of MLPs, each written at its own period.

The slow weights of a level are ordinary parameters. What a sequence writes is a delta on them,
carried in its state: with zero deltas the chain is an MLP stack, and one level is a Transformer's
MLP.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig
from nested_jax.layers.basic import Layer, constant, fan_in, norm_of, residual_scale
from nested_jax.layers.mlp import (
    MLPWeights,
    contract,
    like,
    mlp_biases,
    mlp_hidden,
    mlp_output,
    mlp_weights,
)
from nested_jax.ops.normalize import state_dtype, widen
from nested_jax.types import Array, PyTree


class LowRank(NamedTuple):
    """A delta u (basis + v) of rank R; the basis is a slow weight and u starts at zero."""

    u_BDR: Array
    v_BRF: Array


class CMS(Layer):
    """The levels of one block. `fast` blocks have deltas and learned rates; the others are MLPs.

    Arrangements: `sequential` y = MLP_M(... MLP_1(x)); `independent` y = x + sum_l c_l MLP_l(x)
    with learned c; `nested` is sequential in the forward pass, all levels share one set of slow
    weights and a level starts each period of the next slower level at that level's weights.
    """

    cfg: ModelConfig
    fast: bool

    def setup(self) -> None:
        cfg, hidden = self.cfg, self.cfg.level_width
        levels = len(cfg.cms.periods) if self.fast or cfg.cms.slow_levels == "all" else 1
        scale = residual_scale(cfg.layers) / math.sqrt(levels)
        self.norms = [norm_of(cfg, f"norm_{i}") for i in range(levels)]
        nested = cfg.cms.chain == "nested"
        names = [("", levels)] if nested else [(f"level_{i}_", i + 1) for i in range(levels)]
        mlps = [
            (
                mlp_weights(self, cfg, name, hidden, scale, level=level),
                mlp_biases(self, cfg, name, hidden, level=level),
            )
            for name, level in names
        ] * (levels if nested else 1)
        self.weights, self.biases = [w for w, _ in mlps], [b for _, b in mlps]
        if cfg.cms.chain == "independent":
            self.combine_M = self.weight(
                "combine", (levels,), (None,), kind="vector", init=constant(1.0)
            )
        if self.fast and cfg.cms.learned_rate:
            self.log_rate = [
                self.weight(
                    f"log_rate_{i}",
                    (cfg.matrices,),
                    (None,),
                    kind="vector",
                    init=constant(0.0),
                    level=i + 1,
                )
                for i in range(levels)
            ]
        if self.fast and cfg.cms.fast_rank:
            self.basis = [self._basis(i) for i in range(levels)]

    def _basis(self, level: int) -> MLPWeights:
        rank, dim, hidden = self.cfg.cms.fast_rank, self.cfg.dim, self.cfg.level_width

        def declare(name: str, width: int, axis: str) -> Array:
            return self.weight(
                f"basis_{level}_{name}",
                (rank, width),
                (None, axis),
                kind="fast0",
                init=fan_in(rank),
                level=level + 1,
            )

        weights = self.weights[level]
        return weights._replace(
            **{
                name: declare(name, dim, "embed")
                if name == "down"
                else declare(name, hidden, "mlp")
                for name in weights._fields
            }
        )

    def init_deltas(self, batch: int) -> tuple[PyTree, ...]:
        """Return zero deltas, one tree per level with leaves [B, ...]."""

        def zero(base: Array) -> PyTree:
            rank, dtype = self.cfg.cms.fast_rank, state_dtype(self.cfg.compute_dtype)
            if not rank:
                return jnp.zeros((batch, *base.shape), dtype)
            rows, columns = base.shape
            return LowRank(
                jnp.zeros((batch, rows, rank), dtype),
                jnp.zeros((batch, rank, columns), dtype),
            )

        return tuple(like(weights, map(zero, weights)) for weights in self.weights)

    def rates(self) -> tuple[PyTree, ...]:
        """Return the inner rate of every matrix, per token of summed loss, in trees as deltas."""
        rates: list[PyTree] = []
        dtype = state_dtype(self.cfg.compute_dtype)
        for i, weights in enumerate(self.weights):
            lr = jnp.broadcast_to(jnp.asarray(self.cfg.cms.level_lr(i), dtype), (len(weights),))
            if self.cfg.cms.learned_rate:
                lr = lr * jnp.exp(self.log_rate[i])
            bases = self.basis[i] if self.cfg.cms.fast_rank else (None,) * len(weights)
            parts = zip(lr, weights, bases, strict=True)
            rates.append(like(weights, (self._rate_of(i, *part) for part in parts)))
        return tuple(rates)

    def _rate_of(self, level: int, rate: Array, weight: Array, basis: Array | None) -> PyTree:
        """Return the rate of a matrix. That of `unit` is a share of its norm.

        Both factors of a low-rank delta move at the rate of their matrix; with `unit` at the share
        of the norm that the product or the basis has.
        """
        if self.cfg.cms.level_optimizer(level) != "unit":
            return rate if basis is None else LowRank(rate, rate)
        # A matrix of zeros, which a level that adds nothing has, moves as one at its start would.
        square = jnp.sum(jnp.square(weight))
        start = weight.shape[1] / (2 * self.cfg.layers)
        norm = jnp.sqrt(jnp.where(square > 0, square, start)).astype(rate.dtype)
        if basis is None:
            return rate * norm
        size = jnp.linalg.norm(basis).astype(rate.dtype)
        return LowRank(rate * norm * math.sqrt(basis.shape[0]) / size, rate * size)

    def written(self, level: int, delta: PyTree) -> MLPWeights:
        """Return what the delta of a level adds to its slow weights, [B, D, F] in float32."""
        if not self.cfg.cms.fast_rank:
            return delta
        basis = self.basis[level]
        products = (
            jnp.einsum("bdr,brf->bdf", d.u_BDR, d.v_BRF + b[None])
            for d, b in zip(delta, basis, strict=True)
        )
        return like(basis, products)

    def change(self, deltas: tuple[PyTree, ...]) -> tuple[Array, ...]:
        """Return |delta| / |slow weights| of every level and sequence, [B] each."""
        changes = []
        for level, delta in enumerate(deltas):
            added = self.written(level, delta)
            axes = tuple(range(1, 3))
            numerator = sum(jnp.sum(jnp.square(a), axis=axes) for a in added)
            denominator = sum(jnp.sum(jnp.square(w)) for w in self.weights[level])
            changes.append(jnp.sqrt(numerator / denominator))
        return tuple(changes)

    def __call__(
        self, x_BTD: Array, deltas: tuple[PyTree, ...] | None = None
    ) -> tuple[Array, Array]:
        """Return the chain's output, residuals included, and the recall of the deltas.

        The recall, ½ Σ_t |delta x̂_t|² over matrices and tokens, is what delta gradient descent
        descends beside the loss: its gradient is delta x̂ x̂ᵀ, the erasing term of NL Eq. 57. It is
        0 for the other inner optimizers.
        """
        y_BTD, recall_B = x_BTD, no_recall(x_BTD)
        for level in range(len(self.weights)):
            added = None if deltas is None else self.written(level, deltas[level])
            y_BTD, recalled_B = self._add(level, x_BTD, y_BTD, added)
            recall_B = recall_B + recalled_B
        return y_BTD, recall_B

    def outputs(self, x_BTD: Array, taps: tuple[Array, ...] | None = None) -> tuple[Array, ...]:
        """Return the residual stream after every level without deltas, the fastest first.

        Args:
          taps: [B, T, D] each, added after the levels: their gradient is the levels' signal.
        """
        y_BTD, outputs = x_BTD, []
        for level in range(len(self.weights)):
            y_BTD, _ = self._add(level, x_BTD, y_BTD, None)
            if taps is not None:
                y_BTD = y_BTD + taps[level].astype(y_BTD.dtype)
            outputs.append(y_BTD)
        return tuple(outputs)

    def _add(
        self, level: int, x_BTD: Array, y_BTD: Array, added: MLPWeights | None
    ) -> tuple[Array, Array]:
        """Return y with what a level adds to it, and the level's recall; x is the chain's input."""
        source = x_BTD if self.cfg.cms.chain == "independent" else y_BTD
        out_BTD, recall_B = self._level(level, self.norms[level](source), added)
        if self.cfg.cms.chain == "independent":
            out_BTD = out_BTD * self.combine_M[level].astype(out_BTD.dtype)
        return y_BTD + out_BTD, recall_B

    def _level(self, level: int, x_BTD: Array, added: MLPWeights | None) -> tuple[Array, Array]:
        base = weights = self.weights[level]
        if added is not None:
            weights = like(base, (w[None] + a for w, a in zip(base, added, strict=True)))
        z_BTF = mlp_hidden(weights, x_BTD, self.biases[level])
        recall_B = no_recall(x_BTD)
        if added is not None and self.cfg.cms.level_optimizer(level) == "dgd":
            read = (*(x_BTD,) * (len(added) - 1), z_BTF)
            recall_B = sum((_recall(x, a) for x, a in zip(read, added, strict=True)), recall_B)
        return mlp_output(weights, z_BTF, self.biases[level]), recall_B


def no_recall(x_BTD: Array) -> Array:
    """The recall of a chain without deltas: 0 per sequence."""
    return jnp.zeros(x_BTD.shape[:1], state_dtype(x_BTD.dtype.name))


def _recall(x_BTD: Array, added_BDF: Array) -> Array:
    """½ Σ_t |x̂_t delta|² with x̂ the unit input, which is held constant."""
    x = jax.lax.stop_gradient(widen(x_BTD))
    unit = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return 0.5 * jnp.sum(jnp.square(contract(unit, added_BDF)), axis=(1, 2))
