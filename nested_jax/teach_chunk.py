"""One step of the inner loop: score a chunk, take the gradient of its loss, write what is due."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nested_jax.config import ModelConfig, TeachConfig
from nested_jax.layers.call import Call
from nested_jax.losses import measure, measure_and_pull
from nested_jax.models.lm import LanguageModel
from nested_jax.models.open_chunk import Chunk, Tokens
from nested_jax.models.stacks import run_suffix
from nested_jax.models.state import StreamPosition, detach
from nested_jax.models.stream import make_call
from nested_jax.ops.chunking import Rows, per_row, where_rows
from nested_jax.ops.fast_weights import (
    LevelState,
    WriteEvents,
    clear,
    cut_layers,
    gather,
    join_layers,
    restart,
    undo_losing,
    write_level,
)
from nested_jax.ops.normalize import widen
from nested_jax.types import Array, PyTree

Measures = dict[str, Array]  # [B, T] or [B, C] each, by name; see losses.MEASURES


class Carry(NamedTuple):
    boundary: StreamPosition  # the last chunk boundary of every row
    now: StreamPosition | None  # after the row's last token; None: at the boundary
    fast: tuple[LevelState, ...]  # in pieces of layers, see ops/fast_weights.py


class Scored(NamedTuple):
    """What one chunk gives: where the stream stands, and the gradient that it proposes."""

    now: StreamPosition
    measures: Measures
    signal_BC: Array  # norm of the teach signal of each token, before scale and clip
    grads: tuple[PyTree, ...]  # of each level's deltas


class Written(NamedTuple):
    """What the scan stacks: measures of a chunk before its write, and what was written."""

    measures: Measures
    signal_BC: Array
    events: tuple[WriteEvents, ...]


@dataclass(frozen=True)
class Teacher:
    """The static part of the loop, with the parameters it closes over."""

    model: LanguageModel
    params: PyTree
    cfg: TeachConfig
    scale: Array | float
    measures: tuple[str, ...] = ("loss",)

    def step(self, carry: Carry, chunk: Chunk) -> tuple[Carry, Written]:
        """Score one chunk and write what is due; clear the rows whose document ends with it."""
        call = self.call(carry, chunk)
        scored = self.score(carry.boundary, carry.fast, chunk.tokens, call)
        weights_BC, complete_B = chunk.tokens.weights_BT, None
        if chunk.lengths_B is not None:
            complete_B = chunk.lengths_B == weights_BC.shape[1]
        gain_B = self.gain(carry.boundary, scored, chunk.tokens, call)
        fast, events = self.write(carry.fast, scored, weights_BC, complete_B, gain_B)
        if chunk.last_B is not None:
            # Here, not where the next chunk begins: what writes a fast weight clears it in passing.
            fast = tuple(clear(level, chunk.last_B) for level in fast)
        if self.cfg.meta_gradient == "stop":
            fast = detach(fast)
        boundary, now = scored.now, None
        if chunk.lengths_B is not None:
            assert carry.now is not None
            now = where_rows(chunk.lengths_B > 0, scored.now, carry.now)
            assert complete_B is not None
            boundary = where_rows(complete_B, scored.now, carry.boundary)
        asked = {name: scored.measures[name] for name in self.measures}
        return Carry(boundary, now, fast), Written(asked, scored.signal_BC, events)

    def call(self, carry: Carry, chunk: Chunk) -> Call:
        """Say where the chunk lies."""
        # Whether every teach chunk begins on the chunk grids of the sequence memories.
        aligned = self.cfg.chunk % self.model.cfg.memory_chunk == 0
        rows = Rows.of(
            chunk.tokens.weights_BT,
            lengths_B=chunk.lengths_B,
            starts_BT=chunk.tokens.starts_BT,
            start="aligned" if aligned else "any",
        )
        return make_call(self.model.cfg, carry.boundary.context, rows, twice=True)

    # --- the gradient of a chunk ---

    @property
    def loop_cfg(self) -> ModelConfig:
        """The model, whose blocks are not recomputed once more where whole chunks are."""
        cfg = self.model.cfg
        return cfg if self.cfg.remat == "none" else replace(cfg, remat="none")

    def score(
        self, at: StreamPosition, fast: tuple[LevelState, ...], tokens: Tokens, call: Call
    ) -> Scored:
        deltas = tuple(level.delta for level in fast)
        gradient = {"exact": self._exact, "local": self._local}[self.cfg.mode]
        scored = gradient(at, deltas, tokens, call)
        if self.cfg.meta_gradient == "stop":
            scored = scored._replace(grads=detach(scored.grads))
        return scored._replace(signal_BC=jax.lax.stop_gradient(scored.signal_BC))

    @property
    def _names(self) -> tuple[str, ...]:
        """The measures that a chunk takes."""
        names = dict.fromkeys(("loss", *self.measures))
        if self.cfg.surprise_metric == "entropy" and self.cfg.surprise_threshold is not None:
            names["entropy"] = None
        return tuple(names)

    def _head(self, tokens: Tokens, x_BCD: Array) -> tuple[Array, Measures]:
        """Return the summed loss of a chunk, which is what a write descends, and all measures."""
        h_BCD = self.model.final_norm(self.params, x_BCD)
        head_SD, size = self.model.head(self.params), self.model.cfg.loss_chunk
        found = measure(h_BCD, head_SD, tokens.targets_BT, size, self._names)
        loss_BC = found["loss"]
        return jnp.sum(loss_BC * tokens.weights_BT.astype(loss_BC.dtype)), found

    def _head_gradient(self, tokens: Tokens, x_BCD: Array) -> tuple[Array, Measures]:
        """Return the gradient of `_head` with respect to `x`, in its dtype, and all measures."""
        h_BCD, pull = jax.vjp(partial(self.model.final_norm, self.params), x_BCD)
        head_SD, size = self.model.head(self.params), self.model.cfg.loss_chunk
        found, dh_BCD = measure_and_pull(
            h_BCD, head_SD, tokens.targets_BT, tokens.weights_BT, size, self._names
        )
        return pull(dh_BCD)[0], found

    def _exact(
        self, at: StreamPosition, deltas: tuple[PyTree, ...], tokens: Tokens, call: Call
    ) -> Scored:
        """The gradient of the chunk's own next-token loss (TTT-E2E)."""

        def blocks(deltas: tuple[PyTree, ...]) -> tuple[tuple[Array, Array], StreamPosition]:
            now, out = run_suffix(self.loop_cfg, self.params, at, tokens.x_BTD, call, deltas)
            return (out.x_BTD, out.recall_B), now

        outputs: tuple[Array, Array]
        outputs, pull, now = jax.vjp(blocks, deltas, has_aux=True)
        x_BCD, recall_B = outputs
        delta_BCD, found = self._head_gradient(tokens, x_BCD)
        signal_BCD, norm_BC = self.signal(delta_BCD)
        (grads,) = pull((signal_BCD, jnp.ones_like(recall_B)))
        return Scored(now, found, norm_BC, grads)

    def _local(
        self, at: StreamPosition, deltas: tuple[PyTree, ...], tokens: Tokens, call: Call
    ) -> Scored:
        """Each block regresses its output toward output - δ, δ = dL/d(its output) held constant.

        The gradient is the exact one, through the Jacobian of the block's later levels; only the
        outer gradient does not see how δ depends on the weights.
        """
        model = self.model
        layers = model.cfg.fast_layers
        taps_LBCD = jnp.zeros((layers, *tokens.x_BTD.shape), tokens.x_BTD.dtype)

        def blocks(taps_LBCD: Array) -> tuple[Array, tuple[Any, ...]]:
            now, out = run_suffix(
                self.loop_cfg, self.params, at, tokens.x_BTD, call, deltas, taps_LBCD, collect=True
            )
            loss, found = self._head(tokens, out.x_BTD)
            return loss, (now, found, out.cms_in_LBTD)

        delta_LBCD, (now, found, cms_in_LBCD) = jax.grad(blocks, has_aux=True)(taps_LBCD)
        signal_LBCD, norm_LBC = self.signal(jax.lax.stop_gradient(delta_LBCD))
        block = model.block("suffix")

        def layer(p: PyTree, x_BCD: Array, deltas: tuple[PyTree, ...], signal_BCD: Array) -> PyTree:
            read = lambda d: block.apply({"params": p}, x_BCD, d, method="read_cms")  # noqa: E731
            outputs: Any
            outputs, pull = jax.vjp(read, deltas)
            return pull((signal_BCD, jnp.ones_like(outputs[1])))[0]

        whole = tuple(join_layers(level) for level in deltas)
        grads = jax.vmap(layer)(self.params["suffix"], cms_in_LBCD, whole, signal_LBCD)
        return Scored(now, found, norm_LBC[-1], tuple(cut_layers(level) for level in grads))

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

    def gain(self, at: StreamPosition, scored: Scored, tokens: Tokens, call: Call) -> Array | None:
        """Return the nats that a chunk would cost with the slow weights, less what it cost, [B].

        None where ``cms.trust`` does not ask. Attention sees the keys and values of the tokens
        before as they were read, so the comparison is exact where the last block alone is written.
        """
        if not self.model.cfg.cms.trust:
            return None
        slow = detach((self.params, at, tokens.x_BTD))
        _, out = run_suffix(self.model.cfg, slow[0], slow[1], slow[2], call, None)
        _, found = replace(self, params=slow[0])._head(tokens, out.x_BTD)
        apart_BC = found["loss"] - jax.lax.stop_gradient(scored.measures["loss"])
        return jnp.sum(apart_BC * tokens.weights_BT.astype(apart_BC.dtype), axis=1)

    def surprise(self, scored: Scored, weights_BC: Array) -> Array:
        """Return the mean surprise of the chunk's supervised tokens, per sequence."""
        metric = self.cfg.surprise_metric
        value_BC = scored.signal_BC if metric == "l2" else scored.measures[metric]
        supervised_BC = (weights_BC > 0).astype(value_BC.dtype)
        total_B = jnp.sum(supervised_BC * value_BC, axis=1)
        return jax.lax.stop_gradient(total_B / jnp.maximum(jnp.sum(supervised_BC, axis=1), 1.0))

    def write(
        self,
        fast: tuple[LevelState, ...],
        scored: Scored,
        weights_BC: Array,
        complete_B: Array | None,
        gain_B: Array | None = None,
        *,
        flush: bool = False,
    ) -> tuple[tuple[LevelState, ...], tuple[WriteEvents, ...]]:
        """Gather the gradients of complete chunks and write the levels whose period ended.

        Args:
          complete_B: None where every chunk is complete.
          gain_B: of `gain`; where writes have lost too much, they are undone.
          flush: write every level that has tokens in its open period.
        """
        cms, all_complete = self.model.cfg.cms, complete_B is None
        if complete_B is None:
            complete_B = jnp.ones(weights_BC.shape[:1], bool)
        supervised_B = jnp.any(weights_BC > 0, axis=1) & complete_B
        accepted_B = supervised_B
        if self.cfg.surprise_threshold is not None:
            surprise_B = self.surprise(scored, weights_BC)
            accepted_B = supervised_B & (surprise_B >= self.cfg.surprise_threshold)
        tokens_B = complete_B.astype(jnp.int32) * weights_BC.shape[1]
        rates, never_B = self.model.rates(self.params), jnp.zeros_like(complete_B)
        written, events = [], []
        for i, (level, grads) in enumerate(zip(fast, scored.grads, strict=True)):
            if self.cfg.levels is not None and i not in self.cfg.levels:
                written.append(level)
                events.append(WriteEvents(never_B, never_B))
                continue
            one_chunk = not level.pending
            level = gather(level, self._of_layers(grads), tokens_B, supervised_B, accepted_B)
            ended_B = complete_B & (level.tokens_B >= cms.periods[i])
            if flush:
                ended_B = level.tokens_B > 0
            level, event = write_level(
                cms,
                i,
                level,
                cut_layers(rates[i]),
                ended_B,
                one_chunk=one_chunk,
                certain=one_chunk and all_complete and self.cfg.surprise_threshold is None,
            )
            if gain_B is not None:
                level = undo_losing(cms, level, jnp.where(complete_B, gain_B, 0.0))
            written.append(level)
            events.append(event)
        if cms.chain == "nested":
            _restart_faster(written, events)
        return tuple(written), tuple(events)

    def _of_layers(self, grads: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """Keep the gradients of the layers that may be written."""
        if self.cfg.layers is None:
            return grads
        keep = cut_layers(jnp.asarray(self.taught_layers()))

        def mask(keep_L: Array, piece: PyTree) -> PyTree:
            return jax.tree.map(lambda g: g * per_row(keep_L.astype(g.dtype), g), piece)

        return tuple(map(mask, keep, grads))

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
