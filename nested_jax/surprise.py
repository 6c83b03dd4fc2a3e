"""Surprise objectives: the levels of the last block's CMS predict their own gradient signal.

With s_t = dL_t/dy_t the gradient of the token's loss after a level (L summed, so that s_t does not
depend on the batch), and y_t the residual stream there,

    aux = mean_t |W norm(y_t) - sg(s_t) / rms(s)|^2 / D

W starts at zero, so aux starts at 1; below 1 it is the share of the signal that is not predicted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.layers.basic import rms_norm
from nested_jax.losses import measure
from nested_jax.models.lm import LanguageModel
from nested_jax.ops.linear import linear
from nested_jax.ops.normalize import widen
from nested_jax.types import Array, Batch, PyTree

RMS_EPS = 1e-12  # of the mean squared signal


def surprise_loss(
    model: LanguageModel, params: PyTree, x_BTD: Array, batch: Batch
) -> tuple[Array, dict[str, Array]]:
    """Return the weighted sum of the surprise objectives, and their metrics.

    A level of weight 0 is not computed. The signal costs another pass through the levels and the
    head, none through the mixers.

    Args:
      model: with ``cms.surprise``.
      params: of the model.
      x_BTD: what the CMS of the last block read.
      batch: the tokens' targets and weights.
    """
    block, last = model.block("prefix"), jax.tree.map(lambda p: p[-1], params["prefix"])
    levels: Any = partial(block.apply, method="level_outputs")
    signals = level_signals(model, params, levels, x_BTD, batch)
    outputs = levels({"params": last}, x_BTD)
    total, metrics = jnp.zeros((), signals[0].dtype), {}
    for i, weight in enumerate(model.cfg.cms.surprise):
        if weight > 0:
            head_DD = params["surprise"][f"level_{i}"]
            unit_BTD = rms_norm(widen(outputs[i]), jnp.ones(x_BTD.shape[-1:]), model.cfg.norm_eps)
            missed = _missed(linear(unit_BTD, head_DD), signals[i], batch.weights_BT)
            metrics[f"surprise/level{i}"] = missed
            total = total + weight * missed
    return total, metrics | {"aux_loss": total}


def level_signals(
    model: LanguageModel, params: PyTree, levels: Any, x_BTD: Array, batch: Batch
) -> tuple[Array, ...]:
    """Return the gradient of the summed loss after every level, float32 [B, T, D] each."""
    fixed, x_BTD = jax.lax.stop_gradient((params, x_BTD))
    last = jax.tree.map(lambda p: p[-1], fixed["prefix"])

    def summed(taps: tuple[Array, ...]) -> Array:
        h_BTD = model.final_norm(fixed, levels({"params": last}, x_BTD, taps)[-1])
        found = measure(h_BTD, model.head(fixed), batch.targets_BT, model.cfg.loss_chunk)
        loss_BT = found["loss"]
        return jnp.sum(loss_BT * batch.weights_BT.astype(loss_BT.dtype))

    zeros_BTD = jnp.zeros_like(widen(x_BTD))
    return jax.grad(summed)((zeros_BTD,) * len(model.cfg.cms.periods))


def _missed(predicted_BTD: Array, signal_BTD: Array, weights_BT: Array) -> Array:
    """Return the mean squared error over tokens with a target, of signals scaled to unit RMS."""
    weight_BT1 = weights_BT.astype(signal_BTD.dtype)[..., None]
    count = jnp.maximum(jnp.sum(weight_BT1), 1.0) * signal_BTD.shape[-1]
    mean_square = jnp.sum(weight_BT1 * jnp.square(signal_BTD)) / count
    target_BTD = signal_BTD * jax.lax.rsqrt(mean_square + RMS_EPS)
    return jnp.sum(weight_BT1 * jnp.square(predicted_BTD - target_BTD)) / count
