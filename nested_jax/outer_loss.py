"""What the outer loop differentiates: the loss of packed rows or of streams, and its additions.

A surprise objective has the levels of the last block's CMS predict their own gradient signal: with
s_t = dL_t/dy_t the gradient of the token's loss behind a level (L summed, so that s_t does not
depend on the batch), and y_t the residual stream there,

    aux = mean_t |W norm(y_t) - sg(s_t) / rms(s)|^2 / D

W starts at zero, so aux starts at 1; below 1 it is the share of the signal that is not predicted.

With label smoothing a target gives a share of its mass to all symbols alike. A loss remains where
the answer is right by any margin, and with it the gradient that makes it the same each time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.config import Config
from nested_jax.layers.basic import rms_norm
from nested_jax.losses import token_loss, token_margin
from nested_jax.models.lm import LanguageModel
from nested_jax.models.stacks import run_stack, run_suffix
from nested_jax.models.state import State
from nested_jax.models.stream import make_call
from nested_jax.ops.chunking import Rows, Start
from nested_jax.ops.linear import linear
from nested_jax.ops.normalize import widen
from nested_jax.optim.schedules import teach_scale
from nested_jax.teach import teach
from nested_jax.types import Array, Batch, PyTree

Metrics = dict[str, Array]
RMS_EPS = 1e-12  # of the mean squared signal


def loss_fn(
    model: LanguageModel,
    params: PyTree,
    batch: Batch,
    cfg: Config,
    step: Array | int | None = None,
) -> tuple[Array, Metrics]:
    """Return the token-weighted mean loss of packed rows, each read from a fresh state, and
    metrics.

    Args:
      model: from `build_model`.
      params: of the model.
      batch: rows of ``cfg.data.seq_len`` tokens; documents aligned to ``cfg.align``.
      cfg: the experiment.
      step: outer step, for the schedule of the teach scale; None is the full scale.
    Returns:
      The loss in nats, float32, and a flat dict of float32 scalars: ``loss`` (without auxiliary
      terms and smoothing), ``tokens`` (sum of the weights), prefixed ``teach/`` the stats of
      `teach`, with surprise objectives ``aux_loss`` (what they add to the loss) and
      ``surprise/level{i}``, and with label smoothing ``margin`` (`token_margin`, mean).
    """
    rows, tokens = batch.tokens_BT.shape
    state = model.init_state(params, rows, capacity=tokens)
    loss, (_, metrics) = _read_batch(model, params, state, batch, cfg, step, "fresh")
    return loss, metrics


def stream_loss_fn(
    model: LanguageModel,
    params: PyTree,
    state: State,
    batch: Batch,
    cfg: Config,
    step: Array | int | None = None,
) -> tuple[Array, tuple[State, Metrics]]:
    """Return `loss_fn` of rows that go on where those of the batch before ended, and their state.

    No gradient passes from one batch to the one before: the states are arguments.

    Args:
      model: from `build_model`.
      params: of the model.
      state: of the streams, from ``model.init_state`` or a call before. What of it is read is
        ``cfg.train.carry``: ``mixers`` starts every batch with empty fast weights.
      batch: as the pipeline yields it with ``data.mode="stream"``.
      cfg: the experiment.
      step: outer step, for the schedule of the teach scale; None is the full scale.
    """
    if cfg.train.carry == "mixers":
        state = state._replace(fast=jax.tree.map(jnp.zeros_like, state.fast))
    return _read_batch(model, params, state, batch, cfg, step, "aligned")


def _read_batch(
    model: LanguageModel,
    params: PyTree,
    state: State,
    batch: Batch,
    cfg: Config,
    step: Array | int | None,
    start: Start,
) -> tuple[Array, tuple[State, Metrics]]:
    starts_BT = document_starts(batch.segments_BT)
    if model.cfg.cms.surprise:
        return _with_surprise(model, params, state, batch, starts_BT, start)
    if cfg.train.label_smoothing:
        state, h_BTD = model.read(params, state, batch.tokens_BT, starts_BT=starts_BT, start=start)
        loss, metrics = _smoothed(model, params, h_BTD, batch, cfg.train.label_smoothing)
        return loss, (state, metrics)
    state, taught = teach(
        model,
        params,
        state,
        batch.tokens_BT,
        batch.targets_BT,
        cfg.teach,
        weights_BT=batch.weights_BT,
        starts_BT=starts_BT,
        scale=cfg.teach.scale if step is None else teach_scale(cfg.teach, step),
        start=start,
    )
    loss, metrics = _mean(taught.loss_BT, batch)
    stats = {f"teach/{name}": value for name, value in taught.stats.items()}
    return loss, (state, metrics | stats)


def document_starts(segments_BT: Array) -> Array:
    """Return which tokens begin a document, bool [B, T].

    Padding goes on in the state of the document before it, which ends there. The first token begins
    one where its number is above 1: document 1 is fresh in packed rows, and goes on in streams.
    """
    changed_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    return jnp.concatenate([segments_BT[:, :1] > 1, changed_BT & (segments_BT[:, 1:] > 0)], axis=1)


def _mean(loss_BT: Array, batch: Batch) -> tuple[Array, Metrics]:
    tokens = jnp.sum(batch.weights_BT)
    weighted_BT = loss_BT * batch.weights_BT.astype(loss_BT.dtype)
    loss = jnp.sum(weighted_BT) / jnp.maximum(tokens, 1.0).astype(weighted_BT.dtype)
    return loss, {"loss": loss, "tokens": tokens}


def _smoothed(
    model: LanguageModel, params: PyTree, h_BTD: Array, batch: Batch, share: float
) -> tuple[Array, Metrics]:
    """Return the loss of smoothed targets, and the metrics of those that are scored."""
    scored = (h_BTD, model.head(params), batch.targets_BT, model.cfg.loss_chunk)
    loss, metrics = _mean(token_loss(*scored), batch)
    margin, _ = _mean(token_margin(*scored), batch)
    return loss + share * margin, metrics | {"margin": margin}


# --- surprise objectives --------------------------------------------------------------------------


def _with_surprise(
    model: LanguageModel,
    params: PyTree,
    state: State,
    batch: Batch,
    starts_BT: Array,
    start: Start,
) -> tuple[Array, tuple[State, Metrics]]:
    """Read and score a batch with a model whose levels are not written, and add the objectives."""
    x_BTD = model.inputs(params, batch.tokens_BT)
    rows = Rows.of(batch.tokens_BT, starts_BT=starts_BT, start=start)
    call = make_call(model.cfg, state.now.context, rows)
    out = run_stack(
        model.block("prefix"), params["prefix"], state.prefix, x_BTD, call, collect=True
    )
    now, _ = run_suffix(model.cfg, params, state.now, out.x_BTD, call, None)
    state = state._replace(prefix=out.states, now=now)
    h_BTD = model.nan_where_cache_overflows(model.final_norm(params, out.x_BTD), call)
    loss_BT = token_loss(h_BTD, model.head(params), batch.targets_BT, model.cfg.loss_chunk)
    loss, metrics = _mean(loss_BT, batch)
    assert not isinstance(out.cms_in_LBTD, tuple)
    aux, surprise = surprise_loss(model, params, out.cms_in_LBTD[-1], batch)
    return loss + aux.astype(loss.dtype), (state, metrics | surprise)


def surprise_loss(
    model: LanguageModel, params: PyTree, x_BTD: Array, batch: Batch
) -> tuple[Array, Metrics]:
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
    """Return the gradient of the summed loss behind every level, float32 [B, T, D] each."""
    fixed, x_BTD = jax.lax.stop_gradient((params, x_BTD))
    last = jax.tree.map(lambda p: p[-1], fixed["prefix"])

    def summed(taps: tuple[Array, ...]) -> Array:
        h_BTD = model.final_norm(fixed, levels({"params": last}, x_BTD, taps)[-1])
        loss_BT = token_loss(h_BTD, model.head(fixed), batch.targets_BT, model.cfg.loss_chunk)
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
