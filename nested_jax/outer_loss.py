"""What the outer loop differentiates: the loss of packed rows or of streams, and its additions.

With label smoothing a target gives a share of its mass to all symbols alike. A loss remains where
the answer is right by any margin, and with it the gradient that makes it the same each time. That
is of the outer loss alone: the inner loop, and surprise objectives, go by the plain loss.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nested_jax.config import Config
from nested_jax.models.lm import LanguageModel
from nested_jax.models.state import State
from nested_jax.ops.chunking import Start
from nested_jax.optim.schedules import teach_scale
from nested_jax.surprise import surprise_loss
from nested_jax.teach import teach
from nested_jax.types import Array, Batch, PyTree

Metrics = dict[str, Array]


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
      ``surprise/level{i}``, and with label smoothing ``margin`` (`losses.MEASURES`, mean).
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
    smoothing = cfg.train.label_smoothing
    state, taught = teach(
        model,
        params,
        state,
        batch.tokens_BT,
        batch.targets_BT,
        cfg.teach,
        measures=("loss", "margin") if smoothing else ("loss",),
        weights_BT=batch.weights_BT,
        scale=cfg.teach.scale if step is None else teach_scale(cfg.teach, step),
        starts_BT=document_starts(batch.segments_BT),
        start=start,
    )
    loss = total = _mean(taught.loss_BT, batch)
    metrics = {"loss": loss, "tokens": jnp.sum(batch.weights_BT)}
    if smoothing:
        metrics["margin"] = _mean(taught.measures["margin"], batch)
        total = total + smoothing * metrics["margin"]
    if model.cfg.cms.surprise:
        assert not isinstance(taught.cms_in_BTD, tuple)
        aux, surprise = surprise_loss(model, params, taught.cms_in_BTD, batch)
        total, metrics = total + aux.astype(total.dtype), metrics | surprise
    stats = {f"teach/{name}": value for name, value in taught.stats.items()}
    return total, (state, metrics | stats)


def document_starts(segments_BT: Array) -> Array:
    """Return which tokens begin a document, bool [B, T].

    Padding goes on in the state of the document before it, which ends there. The first token begins
    one where its number is above 1: document 1 is fresh in packed rows, and goes on in streams.
    """
    changed_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    return jnp.concatenate([segments_BT[:, :1] > 1, changed_BT & (segments_BT[:, 1:] > 0)], axis=1)


def _mean(x_BT: Array, batch: Batch) -> Array:
    """Return the mean over the tokens of a batch, by their weights."""
    tokens = jnp.sum(batch.weights_BT)
    weighted_BT = x_BT * batch.weights_BT.astype(x_BT.dtype)
    return jnp.sum(weighted_BT) / jnp.maximum(tokens, 1.0).astype(weighted_BT.dtype)
