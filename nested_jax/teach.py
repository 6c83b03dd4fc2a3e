"""The inner loop: score a chunk, take the gradient of its loss, write the fast weights, go on.

    scan over the chunks of a sequence, carrying its state:
        measures of the chunk's tokens, each taken before the write that it causes
        gradient of the chunk's summed loss with respect to the fast weights of the CMS levels
        a level whose period is complete takes one step of its inner optimizer       (NL Eq. 71)

The outer loss is differentiated through all of it (`meta_gradient`). Only what fast weights reach
is in the scan, from the CMS of the first taught block on; all before it runs once over the whole
call (TTT-E2E, arXiv 2512.23675, which keeps whole blocks in the scan). One step of the scan is in
teach_chunk.py.

`teach` is the one way to read a text and measure its predictions, with writes and without.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from nested_jax.config import TeachConfig, check_teach
from nested_jax.errors import require
from nested_jax.losses import MEASURED, MEASURES, find_measure, measure
from nested_jax.models.lm import LanguageModel
from nested_jax.models.open_chunk import Chunk, Tokens, held_chunk, lay_out, leave_open
from nested_jax.models.stacks import run_prefix
from nested_jax.models.state import OpenChunk, State, detach
from nested_jax.models.stream import make_call
from nested_jax.ops.chunking import RowOptions, Rows, from_chunks, remat_scan
from nested_jax.ops.fast_weights import clear, enter, leave
from nested_jax.teach_chunk import Carry, Measures, Teacher, Written
from nested_jax.types import Array, PyTree


class Taught(NamedTuple):
    """What `teach` reports beside the state."""

    measures: Measures  # of each token, before the write that it causes
    stats: dict[str, Array]  # float32 scalars; see `teach`
    cms_in_BTD: Array | tuple[()] = ()  # what the last CMS read; with surprise objectives only
    signal_BT: Array | None = None  # norm of each token's teach signal, float32; None: no writes

    @property
    def loss_BT(self) -> Array:
        """Nats per token, float32."""
        return self.measures["loss"]


def teach(  # noqa: PLR0913 - the options of one call, all of them named
    model: LanguageModel,
    params: PyTree,
    state: State,
    tokens_BT: Array,
    targets_BT: Array,
    cfg: TeachConfig,
    *,
    measures: tuple[str, ...] = ("loss",),
    weights_BT: Array | None = None,
    scale: Array | float | None = None,
    **options: Unpack[RowOptions],
) -> tuple[State, Taught]:
    """Read tokens, measure the predictions of their targets, and write the fast weights by chunk.

    A text taught in pieces of any length ends in the state of one call: a chunk is taught when its
    last target is known, and the state carries the open chunk with the boundary where it began.

    Args:
      model: from `build_model`; without CMS levels nothing is written, tokens are read only.
      params: of the model.
      state: from ``model.init_state`` or a call before.
      tokens_BT: int32 tokens, or embeddings [B, T, D].
      targets_BT: int32, the token that follows each.
      cfg: the inner loop. ``mode="off"`` reads with the fast weights as they are.
      measures: what is asked of each prediction: names of `losses.MEASURES`. Writes always descend
        the loss.
      weights_BT: float32, weight of each token's loss in the teach signal; None is 1.
      scale: of the teach signal; None is ``cfg.scale``. The outer schedule multiplies it.
      options: ``starts_BT``, ``lengths_B``, ``start``, as in ``model.apply``. Starts lie on
        boundaries of teach chunks too; measures of tokens that do not exist are arbitrary.
    Returns:
      The next state, and the measures with the stats (summed or averaged over rows and layers)
      ``level{i}/writes``, ``level{i}/blocked`` (counts), ``level{i}/change`` (mean |delta| / |slow
      weights| at the end of the call) and ``signal_norm`` (mean |teach signal| per token).
    Raises:
      ValueError: an unknown measure, targets of another shape than the tokens, a chunk that does
        not divide the fastest period, a state of another model or batch size.
    """
    _check(model, state, tokens_BT, targets_BT, cfg, measures)
    rows, x_BTD = Rows.of(targets_BT, **options), model.inputs(params, tokens_BT)
    if not writes(model, cfg):
        state, h_BTD, cms_in = model.read_rows(params, state, x_BTD, rows)
        head_SD, size = model.head(params), model.cfg.loss_chunk
        found = measure(h_BTD, head_SD, targets_BT, size, measures)
        return state, Taught(found, {}, cms_in if isinstance(cms_in, tuple) else cms_in[-1])
    if weights_BT is None:
        weights_BT = jnp.ones(targets_BT.shape, jnp.float32)
    teacher = Teacher(model, params, cfg, cfg.scale if scale is None else scale, measures)
    tokens = Tokens(x_BTD, targets_BT, rows.mask(weights_BT), rows.starts_BT)
    return _read_and_write(teacher, state, tokens, rows)


def writes(model: LanguageModel, cfg: TeachConfig) -> bool:
    return cfg.mode != "off" and model.cfg.fast_layers > 0


def _check(
    model: LanguageModel,
    state: State,
    tokens_BT: Array,
    targets_BT: Array,
    cfg: TeachConfig,
    measures: tuple[str, ...],
) -> None:
    known = all(find_measure(name) for name in measures)
    require(known, "measures", measures, f"known: {', '.join(MEASURES)}")
    if targets_BT.shape != tokens_BT.shape[:2]:
        raise ValueError(
            f"targets: shape {targets_BT.shape}, wants one for each token, {tokens_BT.shape[:2]}"
        )
    check_teach(model.cfg, cfg)
    model.check(state, tokens_BT)
    if writes(model, cfg) and not state.open:
        raise ValueError("state: has no open chunk, wants one of model.init_state to write into")


def _read_and_write(
    teacher: Teacher, state: State, tokens: Tokens, rows: Rows
) -> tuple[State, Taught]:
    """Teach tokens, given by their embeddings."""
    model, params = teacher.model, teacher.params
    call = make_call(model.cfg, state.now.context, rows)
    state, prefix = run_prefix(model.cfg, params, state, tokens.x_BTD, call)
    assert isinstance(state.open, OpenChunk)
    grid = rows.grid(teacher.cfg.chunk, state.open.count_B, whole=True)
    chunks = lay_out(grid, state.open, tokens._replace(x_BTD=prefix.x_BTD))
    # A fresh state has no open period: one of a single chunk is written without being kept.
    one_chunk = [rows.start == "fresh" and p == teacher.cfg.chunk for p in model.cfg.cms.periods]
    fast = tuple(enter(f, pending=not one) for f, one in zip(state.fast, one_chunk, strict=True))
    starts_NBC = chunks.tokens.starts_BT
    if rows.start != "fresh" and starts_NBC is not None:
        # Documents start on chunk boundaries (the data pipeline aligns them).
        fast = tuple(clear(level, starts_NBC[0, :, 0]) for level in fast)
    carry = Carry(state.open.boundary, state.now, fast)
    if chunks.lengths_B is None:
        carry = Carry(state.now, None, fast)
    carry, written = _scan(teacher, carry, chunks)
    found = jax.tree.map(partial(from_chunks, grid), written.measures)
    signal_BT = from_chunks(grid, written.signal_BC)
    found = {n: model.nan_where_cache_overflows(x_BT, call) for n, x_BT in found.items()}
    now = carry.boundary if carry.now is None else carry.now
    open_chunk = leave_open(grid, state.open, chunks, carry.boundary)
    fast = tuple(map(leave, carry.fast, state.fast))
    state = state._replace(now=now, fast=fast, open=open_chunk)
    stats = _stats(teacher, state, written, chunks.tokens.weights_BT)
    return state, Taught(found, stats, signal_BT=signal_BT)


def flush(
    model: LanguageModel,
    params: PyTree,
    state: State,
    cfg: TeachConfig,
    *,
    scale: Array | float | None = None,
) -> State:
    """Write what is pending: the open chunk and every level's open period, at the end of a stream.

    Arguments as `teach`. Rows with nothing pending stay as they are; reading can go on afterwards.
    """
    check_teach(model.cfg, cfg)
    if cfg.mode == "off" or not isinstance(state.open, OpenChunk):
        return state
    teacher = Teacher(model, params, cfg, cfg.scale if scale is None else scale)
    held = state.open
    fast = tuple(clear(enter(level), held.start_B) for level in state.fast)
    carry, chunk = Carry(held.boundary, state.now, fast), held_chunk(held, cfg.chunk)
    scored = teacher.score(carry.boundary, fast, chunk.tokens, teacher.call(carry, chunk))
    fast, _ = teacher.write(fast, scored, chunk.tokens.weights_BT, held.count_B > 0, flush=True)
    closed = jax.tree.map(jnp.zeros_like, held)._replace(boundary=state.now)
    return state._replace(fast=tuple(map(leave, fast, state.fast)), open=closed)


def _scan(teacher: Teacher, carry: Carry, chunks: Chunk) -> tuple[Carry, Written]:
    """Scan over the chunks; with a truncated meta-gradient, in two pieces."""
    cfg, total = teacher.cfg, chunks.tokens.weights_BT.shape[0]
    if not isinstance(cfg.meta_gradient, int) or cfg.meta_gradient >= total:
        return _scan_piece(teacher, carry, chunks)
    first = total - cfg.meta_gradient
    stopped = replace(teacher, cfg=replace(cfg, meta_gradient="stop"))
    carry, head = _scan_piece(stopped, carry, jax.tree.map(lambda x: x[:first], chunks))
    carry, tail = _scan_piece(teacher, carry, jax.tree.map(lambda x: x[first:], chunks))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)


def _scan_piece(teacher: Teacher, carry: Carry, chunks: Chunk) -> tuple[Carry, Written]:
    remat, keep = teacher.cfg.remat, jax.checkpoint_policies.save_only_these_names(MEASURED)
    body = teacher.step
    if remat != "none":
        body = jax.checkpoint(teacher.step, prevent_cse=False, policy=keep)
    carry, written = remat_scan(body, carry, chunks, remat=remat == "sqrt", keep=keep)
    return carry, written


def _stats(
    teacher: Teacher, state: State, written: Written, weights_NBC: Array
) -> dict[str, Array]:
    layers = jnp.asarray(sum(teacher.taught_layers()), jnp.float32)
    supervised_NBC = (weights_NBC > 0).astype(written.signal_BC.dtype)
    tokens = jnp.maximum(jnp.sum(supervised_NBC), 1.0)
    stats = {"signal_norm": jnp.sum(written.signal_BC * supervised_NBC) / tokens}
    changes = detach(teacher.model.change(teacher.params, state))
    for i, (event, change_BL) in enumerate(zip(written.events, changes, strict=True)):
        stats[f"level{i}/writes"] = layers * jnp.sum(event.wrote_B.astype(jnp.float32))
        stats[f"level{i}/blocked"] = layers * jnp.sum(event.blocked_B.astype(jnp.float32))
        stats[f"level{i}/change"] = jnp.mean(change_BL)
    return stats
