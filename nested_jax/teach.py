"""The inner loop: score a chunk, take the gradient of its loss, write the fast weights, go on.

    scan over the chunks of a sequence, carrying its state:
        loss of the chunk's tokens, each scored before the write that it causes
        gradient of the chunk's summed loss with respect to the fast weights of the CMS levels
        a level whose period is complete takes one step of its inner optimizer       (NL Eq. 71)

The outer loss is differentiated through all of it (`meta_gradient`). Only what fast weights reach
is in the scan, from the CMS of the first taught block on; all before it runs once over the whole
call (TTT-E2E, arXiv 2512.23675, which keeps whole blocks in the scan).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from nested_jax.config import TeachConfig, check_teach
from nested_jax.layers.call import Call
from nested_jax.losses import token_entropy, token_loss
from nested_jax.models.lm import LanguageModel
from nested_jax.models.open_chunk import Chunk, Tokens, held_chunk, lay_out, leave_open
from nested_jax.models.stacks import run_prefix, run_suffix
from nested_jax.models.state import OpenChunk, State, StreamPosition, detach
from nested_jax.models.stream import make_call
from nested_jax.ops.chunking import (
    RowOptions,
    Rows,
    Start,
    from_chunks,
    remat_scan,
    where_rows,
)
from nested_jax.ops.fast_weights import (
    LevelState,
    WriteEvents,
    gather,
    restart,
    write_level,
)
from nested_jax.ops.normalize import widen
from nested_jax.types import Array, PyTree


class Taught(NamedTuple):
    """What `teach` reports beside the state."""

    loss_BT: Array  # float32, nats per token, each scored before the write that it causes
    stats: dict[str, Array]  # float32 scalars; see `teach`


class Carry(NamedTuple):
    boundary: StreamPosition  # the last chunk boundary of every row
    now: StreamPosition | None  # after the row's last token; None: at the boundary
    fast: tuple[LevelState, ...]


class Scored(NamedTuple):
    """What one chunk gives: where the stream stands, and the gradient that it proposes."""

    now: StreamPosition
    loss_BC: Array
    signal_BC: Array  # norm of the teach signal of each token, before scale and clip
    surprise_B: Array
    grads: tuple[PyTree, ...]  # of each level's deltas


@dataclass(frozen=True)
class Teacher:
    """The static part of the loop, with the parameters it closes over."""

    model: LanguageModel
    params: PyTree
    cfg: TeachConfig
    scale: Array | float
    start: Start  # of every chunk

    def step(self, carry: Carry, chunk: Chunk) -> tuple[Carry, tuple[Any, ...]]:
        """Score one chunk and write what is due."""
        fast, call = self.enter(carry, chunk)
        scored = self.score(carry.boundary, fast, chunk.tokens, call)
        weights_BC = chunk.tokens.weights_BT
        size = weights_BC.shape[1]
        complete_B = jnp.ones(weights_BC.shape[:1], bool)
        if chunk.lengths_B is not None:
            complete_B = chunk.lengths_B == size
        fast, events = self.write(fast, scored, weights_BC, complete_B)
        if self.cfg.meta_gradient == "stop":
            fast = detach(fast)
        boundary, now = scored.now, None
        if chunk.lengths_B is not None:
            assert carry.now is not None
            now = where_rows(chunk.lengths_B > 0, scored.now, carry.now)
            boundary = where_rows(complete_B, scored.now, carry.boundary)
        return Carry(boundary, now, fast), (scored.loss_BC, scored.signal_BC, events)

    def enter(self, carry: Carry, chunk: Chunk) -> tuple[tuple[LevelState, ...], Call]:
        """Clear the fast weights of documents that start, and look where the chunk lies."""
        starts_BC, fast = chunk.tokens.starts_BT, carry.fast
        if starts_BC is not None:
            # Documents start on chunk boundaries (the data pipeline aligns them).
            fast = where_rows(starts_BC[:, 0], jax.tree.map(jnp.zeros_like, fast), fast)
        rows = Rows.of(
            chunk.tokens.weights_BT,
            lengths_B=chunk.lengths_B,
            starts_BT=starts_BC,
            start=self.start,
        )
        return fast, make_call(self.model.cfg, carry.boundary.context, rows)

    # --- the gradient of a chunk ---

    def score(
        self, at: StreamPosition, fast: tuple[LevelState, ...], tokens: Tokens, call: Call
    ) -> Scored:
        deltas = tuple(level.delta for level in fast)
        gradient = {"exact": self._exact, "local": self._local}[self.cfg.mode]
        now, loss_BC, h_BCD, signal_BC, grads = gradient(at, deltas, tokens, call)
        if self.cfg.meta_gradient == "stop":
            grads = detach(grads)
        surprise_B = self._surprise(loss_BC, h_BCD, signal_BC, tokens.weights_BT)
        return Scored(now, loss_BC, jax.lax.stop_gradient(signal_BC), surprise_B, grads)

    def _head(self, tokens: Tokens, x_BCD: Array) -> tuple[Array, tuple[Array, Array]]:
        """Return the summed loss of a chunk, and its losses and final hidden states."""
        h_BCD = self.model.final_norm(self.params, x_BCD)
        head_SD, size = self.model.head(self.params), self.model.cfg.loss_chunk
        loss_BC = token_loss(h_BCD, head_SD, tokens.targets_BT, size)
        return jnp.sum(loss_BC * tokens.weights_BT.astype(loss_BC.dtype)), (loss_BC, h_BCD)

    def _exact(
        self, at: StreamPosition, deltas: tuple[PyTree, ...], tokens: Tokens, call: Call
    ) -> tuple[StreamPosition, Array, Array, Array, tuple[PyTree, ...]]:
        """The gradient of the chunk's own next-token loss (TTT-E2E)."""

        def blocks(deltas: tuple[PyTree, ...]) -> tuple[tuple[Array, Array], StreamPosition]:
            now, out = run_suffix(self.model.cfg, self.params, at, tokens.x_BTD, call, deltas)
            return (out.x_BTD, out.recall_B), now

        outputs: tuple[Array, Array]
        outputs, pull, now = jax.vjp(blocks, deltas, has_aux=True)
        x_BCD, recall_B = outputs
        delta_BCD, (loss_BC, h_BCD) = jax.grad(self._head, argnums=1, has_aux=True)(tokens, x_BCD)
        signal_BCD, norm_BC = self.signal(delta_BCD)
        (grads,) = pull((signal_BCD, jnp.ones_like(recall_B)))
        return now, loss_BC, h_BCD, norm_BC, grads

    def _local(
        self, at: StreamPosition, deltas: tuple[PyTree, ...], tokens: Tokens, call: Call
    ) -> tuple[StreamPosition, Array, Array, Array, tuple[PyTree, ...]]:
        """Each block regresses its output toward output - δ, δ = dL/d(its output) held constant.

        The gradient is the exact one, through the Jacobian of the block's later levels; only the
        outer gradient does not see how δ depends on the weights.
        """
        model = self.model
        layers = model.cfg.fast_layers
        taps_LBCD = jnp.zeros((layers, *tokens.x_BTD.shape), tokens.x_BTD.dtype)

        def blocks(taps_LBCD: Array) -> tuple[Array, tuple[Any, ...]]:
            now, out = run_suffix(
                model.cfg, self.params, at, tokens.x_BTD, call, deltas, taps_LBCD, collect=True
            )
            loss, (loss_BC, h_BCD) = self._head(tokens, out.x_BTD)
            return loss, (now, loss_BC, h_BCD, out.cms_in_LBTD)

        delta_LBCD, (now, loss_BC, h_BCD, cms_in_LBCD) = jax.grad(blocks, has_aux=True)(taps_LBCD)
        signal_LBCD, norm_LBC = self.signal(jax.lax.stop_gradient(delta_LBCD))
        block = model.block("suffix")

        def layer(p: PyTree, x_BCD: Array, deltas: tuple[PyTree, ...], signal_BCD: Array) -> PyTree:
            read = lambda d: block.apply({"params": p}, x_BCD, d, method="read_cms")  # noqa: E731
            outputs: Any
            outputs, pull = jax.vjp(read, deltas)
            return pull((signal_BCD, jnp.ones_like(outputs[1])))[0]

        grads = jax.vmap(layer, in_axes=(0, 0, 1, 0), out_axes=1)(
            self.params["suffix"], cms_in_LBCD, deltas, signal_LBCD
        )
        return now, loss_BC, h_BCD, norm_LBC[-1], grads

    def signal(self, delta: Array) -> tuple[Array, Array]:
        """Scale and clip the teach signal; return it and the norm of each token before that.

        The signal is the gradient of the *summed* loss, so neither the norm nor the clip moves with
        the size of batch or chunk.
        """
        precise = widen(delta)
        square = jnp.sum(jnp.square(precise), axis=-1)
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        signal = self.scale * precise
        if self.cfg.clip:
            signal = signal / jnp.maximum(self.scale * norm / self.cfg.clip, 1.0)[..., None]
        return signal.astype(delta.dtype), norm

    # --- the write ---

    def _surprise(self, loss_BC: Array, h_BCD: Array, signal_BC: Array, weights_BC: Array) -> Array:
        """Return the mean surprise of the chunk's supervised tokens, per sequence."""
        if self.cfg.surprise_metric == "entropy":
            head_SD = self.model.head(self.params)
            value_BC = token_entropy(h_BCD, head_SD, self.model.cfg.loss_chunk)
        else:
            value_BC = {"loss": loss_BC, "l2": signal_BC}[self.cfg.surprise_metric]
        supervised_BC = (weights_BC > 0).astype(value_BC.dtype)
        total_B = jnp.sum(supervised_BC * value_BC, axis=1)
        return jax.lax.stop_gradient(total_B / jnp.maximum(jnp.sum(supervised_BC, axis=1), 1.0))

    def write(
        self,
        fast: tuple[LevelState, ...],
        scored: Scored,
        weights_BC: Array,
        complete_B: Array,
        *,
        flush: bool = False,
    ) -> tuple[tuple[LevelState, ...], tuple[WriteEvents, ...]]:
        """Gather the gradients of complete chunks and write the levels whose period ended.

        `flush` writes every level that has tokens in its open period.
        """
        cms = self.model.cfg.cms
        supervised_B = jnp.any(weights_BC > 0, axis=1) & complete_B
        accepted_B = supervised_B
        if self.cfg.surprise_threshold is not None:
            accepted_B = supervised_B & (scored.surprise_B >= self.cfg.surprise_threshold)
        tokens_B = complete_B.astype(jnp.int32) * weights_BC.shape[1]
        rates = self.model.rates(self.params)
        written, events = [], []
        for i, (level, grads) in enumerate(zip(fast, scored.grads, strict=True)):
            if self.cfg.levels is None or i in self.cfg.levels:
                level = gather(level, self._of_layers(grads), tokens_B, supervised_B, accepted_B)
            ended_B = complete_B & (level.tokens_B >= cms.periods[i])
            if flush:
                ended_B = level.tokens_B > 0
            level, event = write_level(cms, i, level, rates[i], ended_B)
            written.append(level)
            events.append(event)
        if cms.chain == "nested":
            _restart_faster(written, events)
        return tuple(written), tuple(events)

    def _of_layers(self, grads: PyTree) -> PyTree:
        """Keep the gradients of the layers that may be written."""
        if self.cfg.layers is None:
            return grads
        keep_L = jnp.asarray(self.taught_layers())

        def mask(g: Array) -> Array:
            return g * keep_L.astype(g.dtype).reshape(1, -1, *[1] * (g.ndim - 2))

        return jax.tree.map(mask, grads)

    def taught_layers(self) -> list[bool]:
        """Whether each block of the suffix may be written; `teach.layers` counts all blocks."""
        first = self.model.cfg.layers - self.model.cfg.fast_layers
        chosen = self.cfg.layers
        indices = range(first, self.model.cfg.layers)
        return [chosen is None or i in chosen for i in indices]


def _restart_faster(levels: list[LevelState], events: list[WriteEvents]) -> None:
    """A level begins each period of the next slower one at that level's weights (NL Eq. 72)."""
    moved_B = jnp.zeros_like(events[-1].wrote_B)
    for i in range(len(levels) - 2, -1, -1):
        moved_B = moved_B | events[i + 1].wrote_B
        levels[i] = restart(levels[i], levels[i + 1].delta, moved_B)


# --- the call -------------------------------------------------------------------------------------


def teach(
    model: LanguageModel,
    params: PyTree,
    state: State,
    tokens_BT: Array,
    targets_BT: Array,
    cfg: TeachConfig,
    *,
    weights_BT: Array | None = None,
    scale: Array | float | None = None,
    **options: Unpack[RowOptions],
) -> tuple[State, Taught]:
    """Read tokens, score their targets, and write the fast weights chunk by chunk.

    A text taught in pieces of any length ends in the state of one call: a chunk is taught when its
    last target is known, and the state carries the open chunk with the boundary where it began.

    Args:
      model: from `build_model`; without CMS levels nothing is written, tokens are scored only.
      params: of the model.
      state: from ``model.init_state`` or a call before.
      tokens_BT: int32 tokens, or embeddings [B, T, D].
      targets_BT: int32, the token that follows each.
      cfg: the inner loop. ``mode="off"`` scores with the fast weights as they are.
      weights_BT: float32, weight of each token's loss in the teach signal; None is 1.
      scale: of the teach signal; None is ``cfg.scale``. The outer schedule multiplies it.
      options: ``starts_BT``, ``lengths_B``, ``start``, as in ``model.apply``. Starts lie on
        boundaries of teach chunks too; the loss of tokens that do not exist is arbitrary.
    Returns:
      The next state, and `loss_BT` with the stats (summed or averaged over rows and layers)
      ``level{i}/writes``, ``level{i}/blocked`` (counts), ``level{i}/change`` (mean |delta| / |slow
      weights| at the end of the call) and ``signal_norm`` (mean |teach signal| per token).
    Raises:
      ValueError: targets of another shape than the tokens, a chunk that does not divide the fastest
        period, a state of another model or batch size.
    """
    _check(model, state, tokens_BT, targets_BT, cfg)
    if weights_BT is None:
        weights_BT = jnp.ones(targets_BT.shape, jnp.float32)
    if cfg.mode == "off" or not isinstance(state.open, OpenChunk):
        state, h_BTD = model.read(params, state, tokens_BT, **options)
        loss_BT = token_loss(h_BTD, model.head(params), targets_BT, model.cfg.loss_chunk)
        return state, Taught(loss_BT, {})
    rows = Rows.of(targets_BT, **options)
    call = make_call(model.cfg, state.now.context, rows)
    state, x_BTD = run_prefix(model.cfg, params, state, model.inputs(params, tokens_BT), call)
    assert isinstance(state.open, OpenChunk)
    teacher = Teacher(model, params, cfg, cfg.scale if scale is None else scale, _inner(model, cfg))
    grid = rows.grid(cfg.chunk, state.open.count_B, whole=True)
    tokens = Tokens(x_BTD, targets_BT, rows.mask(weights_BT), rows.starts_BT)
    chunks = lay_out(grid, state.open, tokens)
    carry = Carry(state.open.boundary, state.now, state.fast)
    if chunks.lengths_B is None:
        carry = Carry(state.now, None, state.fast)
    carry, (loss_NBC, signal_NBC, events) = _scan(teacher, carry, chunks)
    loss_BT = model.nan_where_cache_overflows(from_chunks(grid, loss_NBC), call)
    now = carry.boundary if carry.now is None else carry.now
    open_chunk = leave_open(grid, state.open, chunks, carry.boundary)
    state = state._replace(now=now, fast=carry.fast, open=open_chunk)
    stats = _stats(teacher, state, signal_NBC, chunks.tokens.weights_BT, events)
    return state, Taught(loss_BT, stats)


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
    teacher = Teacher(model, params, cfg, cfg.scale if scale is None else scale, _inner(model, cfg))
    held = state.open
    carry, chunk = Carry(held.boundary, state.now, state.fast), held_chunk(held, cfg.chunk)
    fast, call = teacher.enter(carry, chunk)
    scored = teacher.score(carry.boundary, fast, chunk.tokens, call)
    fast, _ = teacher.write(fast, scored, chunk.tokens.weights_BT, held.count_B > 0, flush=True)
    closed = jax.tree.map(jnp.zeros_like, held)._replace(boundary=state.now)
    return state._replace(fast=fast, open=closed)


def _check(
    model: LanguageModel, state: State, tokens_BT: Array, targets_BT: Array, cfg: TeachConfig
) -> None:
    if targets_BT.shape != tokens_BT.shape[:2]:
        raise ValueError(
            f"targets: shape {targets_BT.shape}, wants one for each token, {tokens_BT.shape[:2]}"
        )
    check_teach(model.cfg, cfg)
    model.check(state, tokens_BT)


def _inner(model: LanguageModel, cfg: TeachConfig) -> Start:
    """Whether every teach chunk begins on the chunk grids of the sequence memories."""
    return "aligned" if cfg.chunk % model.cfg.memory_chunk == 0 else "any"


def _scan(teacher: Teacher, carry: Carry, chunks: Chunk) -> tuple[Carry, tuple[Any, ...]]:
    """Scan over the chunks; with a truncated meta-gradient, in two pieces."""
    cfg, total = teacher.cfg, chunks.tokens.weights_BT.shape[0]
    if not isinstance(cfg.meta_gradient, int) or cfg.meta_gradient >= total:
        return _scan_piece(teacher, carry, chunks)
    first = total - cfg.meta_gradient
    stopped = replace(teacher, cfg=replace(cfg, meta_gradient="stop"))
    carry, head = _scan_piece(stopped, carry, jax.tree.map(lambda x: x[:first], chunks))
    carry, tail = _scan_piece(teacher, carry, jax.tree.map(lambda x: x[first:], chunks))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)


def _scan_piece(teacher: Teacher, carry: Carry, chunks: Chunk) -> tuple[Carry, tuple[Any, ...]]:
    remat = teacher.cfg.remat
    body = teacher.step if remat == "none" else jax.checkpoint(teacher.step, prevent_cse=False)
    return remat_scan(body, carry, chunks, remat=remat == "sqrt")


def _stats(
    teacher: Teacher, state: State, signal_NBC: Array, weights_NBC: Array, events: Any
) -> dict[str, Array]:
    layers = jnp.asarray(sum(teacher.taught_layers()), jnp.float32)
    supervised_NBC = (weights_NBC > 0).astype(signal_NBC.dtype)
    tokens = jnp.maximum(jnp.sum(supervised_NBC), 1.0)
    stats = {"signal_norm": jnp.sum(signal_NBC * supervised_NBC) / tokens}
    changes = detach(teacher.model.change(teacher.params, state))
    for i, (event, change_BL) in enumerate(zip(events, changes, strict=True)):
        stats[f"level{i}/writes"] = layers * jnp.sum(event.wrote_B.astype(jnp.float32))
        stats[f"level{i}/blocked"] = layers * jnp.sum(event.blocked_B.astype(jnp.float32))
        stats[f"level{i}/change"] = jnp.mean(change_BL)
    return stats
