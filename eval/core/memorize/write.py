"""Test-time memorization: write a text into the memories of a checkpoint, then score with them.

A text is written as in training (`nested_jax.teach`, and whatever reading it writes), the open
periods of the levels are flushed, and everything but the chosen memories is cleared: an item that
is scored afterwards knows the text from the memories or not at all.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.core.memorize.options import MemorizeOptions, memorize_options
from eval.core.memorize.paths import (
    SEQUENCE,
    choose_layers,
    choose_paths,
    level_name,
    model_paths,
    sequence_change,
)
from eval.core.reader import ModelReader, Span
from eval.core.requests import PIECE, bucket, pad, pieces
from eval.core.scoring import Scorer
from eval.core.subject import Subject
from nested_jax.config import TeachConfig
from nested_jax.errors import NotWrittenError
from nested_jax.models.lm import LanguageModel
from nested_jax.models.memories import keep_memories, memories_into
from nested_jax.models.state import State
from nested_jax.sharding import to_host
from nested_jax.teach import flush, teach
from nested_jax.types import Array, PyTree


class Written(NamedTuple):
    """What writing did to each row of a batch."""

    writes_MB: Array  # int32, writes of each CMS level
    blocked_MB: Array  # int32, periods that the surprise gate blocked
    change_MB: Array  # float32, mean over layers of |delta| / |slow weights|
    sequence_B: Array  # float32, relative change of the sequence memory; 0 without one


@dataclass
class Tally:
    """Writes and changes so far, by the name of the memory."""

    texts: int = 0
    tokens: int = 0
    writes: Counter[str] = field(default_factory=Counter)
    blocked: Counter[str] = field(default_factory=Counter)
    change: dict[str, float] = field(default_factory=dict)  # summed over texts

    def add_change(self, name: str, change_B: Array, used: int) -> None:
        total = float(to_host(change_B)[:used].sum())
        self.change[name] = self.change.get(name, 0.0) + total


class Memorizer:
    """Writes texts into the memories of a subject, and counts what it wrote.

    Raises:
      ValueError: unknown paths or layers.
    """

    def __init__(self, subject: Subject, options: MemorizeOptions) -> None:
        self.options = options
        self.reader: ModelReader = subject.model_reader
        self.model, self.cfg = self.reader.model, subject.cfg
        self.available = model_paths(self.model.cfg)
        self.paths = choose_paths(options.paths, self.model.cfg)
        self.sequence = any(name in SEQUENCE for name in self.paths)
        layers = choose_layers(options.layers, self.model.cfg)
        self.teaching = self.teach_config(subject.cfg.teach, layers)
        self.tally = Tally()
        self.scale = len(self.fast_layers(layers))
        step = partial(write_tokens, self.model, self.teaching)
        self._write = jax.jit(step)
        self._finish = jax.jit(partial(finish, self.model, self.teaching, self.sequence))
        self._learn = jax.jit(partial(learn_tokens, self.model, self.teaching, self.sequence))

    def teach_config(self, trained: TeachConfig, layers: tuple[int, ...] | None) -> TeachConfig:
        """Return the inner loop of training, limited to what may be written."""
        count = len(self.model.cfg.cms.periods)
        levels = tuple(i for i in range(count) if level_name(i) in self.paths)
        mode = trained.mode if trained.mode != "off" else "exact"
        threshold = self.options.surprise_threshold
        fast = self.fast_layers(layers)
        return replace(
            trained,
            mode=mode if levels and fast else "off",
            levels=levels or None,
            layers=fast or None,
            surprise_threshold=trained.surprise_threshold if threshold is None else threshold,
            meta_gradient="stop",
        )

    def fast_layers(self, layers: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the chosen layers that have fast weights."""
        cfg = self.model.cfg
        suffix = range(cfg.layers - cfg.fast_layers, cfg.layers)
        return tuple(i for i in suffix if layers is None or i in layers)

    # --- writing ---

    def batches(
        self, texts: Sequence[Sequence[int]], scorer: Scorer
    ) -> Iterator[tuple[list[int], Memories | None]]:
        """Write the texts; yield which of them are in which memories, row by row.

        With a reset, batches of texts of similar length, each in memories of its own. Without, one
        text after the other into the same memories, in the order given. A model without memories
        is given back all texts and None: what follows is the baseline, to the last bit.
        """
        if not self.available:
            yield list(range(len(texts))), None
            return
        if not self.options.reset:
            state = None
            for i, text in enumerate(texts):
                state = self.memorize([text], 1, state)
                yield [i], Memories(self, state)
            return
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        at = 0
        while at < len(order):
            count = scorer.rows(bucket(len(texts[order[at]])))
            part = order[at : at + count]
            yield part, Memories(self, self.memorize([texts[i] for i in part], count))
            at += count

    def memorize(
        self, texts: Sequence[Sequence[int]], count: int, state: State | None = None
    ) -> State:
        """Write text i into row i of `count`, and return the memories; `state` has earlier ones."""
        count = -(-count // self.reader.row_multiple) * self.reader.row_multiple
        longest = bucket(max(1, *map(len, texts)))
        with jax.set_mesh(self.reader.mesh):
            if state is None:
                state = self.reader.writable(count, longest)
            for _ in range(self.options.steps):
                before = level_writes(state)
                state = self.fit(state, count, longest)
                blocked: Any = 0
                for tokens_BT, lengths_B, at in pieces(texts, count):
                    targets_BT, targets_B = pad(
                        [t[at + 1 : at + 1 + PIECE] for t in texts], *tokens_BT.shape
                    )
                    arrays = self.reader.put(tokens_BT, targets_BT, lengths_B, targets_B)
                    state, more = self._write(self.reader.params, state, *arrays)
                    blocked = more + blocked
                state, written = self._finish(self.reader.params, state)
                self.count(texts, written, before, to_host(blocked))
        return state

    def fit(self, state: State, count: int, longest: int) -> State:
        """Give memories that are carried a cache that holds the next text."""
        if self.reader.limit is None:
            return state
        fresh = self.reader.writable(count, longest + 1)
        if self.sequence:
            return memories_into(state, fresh)
        return fresh._replace(fast=state.fast)

    def count(
        self,
        texts: Sequence[Sequence[int]],
        written: Written,
        before: np.ndarray,
        blocked_MB: np.ndarray,
    ) -> None:
        """Add the writes of one pass to the tally."""
        used, tally = len(texts), self.tally
        tally.texts += used
        tally.tokens += sum(map(len, texts))
        written = to_host(written)
        writes_MB = written.writes_MB - before
        levels = zip(writes_MB, written.blocked_MB + blocked_MB, written.change_MB, strict=True)
        for i, (writes_B, blocked_B, change_B) in enumerate(levels):
            name = level_name(i)
            if name in self.paths:
                tally.writes[name] += int(writes_B[:used].sum()) * self.scale
                tally.blocked[name] += int(blocked_B[:used].sum()) * self.scale
                tally.add_change(name, change_B, used)
        if self.sequence:
            cfg = self.model.cfg
            name = cfg.kind.memory
            chunk = cfg.memory.chunk if name == "titan" else 1
            tally.writes[name] += sum(-(-len(t) // chunk) for t in texts) * cfg.layers
            tally.add_change(name, written.sequence_B, used)

    # --- learning while reading ---

    def rolling(
        self, texts: Sequence[Sequence[int]], prefix: int, scorer: Scorer
    ) -> list[np.ndarray]:
        """Return the nats of every token of each text, as `Scorer.rolling`, while learning it."""
        if not self.available:
            return scorer.rolling(texts, prefix)
        return scorer.rolling(texts, prefix, self.learn, Blank(self.reader))

    def learn(
        self, state: State, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[State, np.ndarray, np.ndarray]:
        """Score tokens, each before the write that it causes; a step for `Scorer.rolling`.

        With several steps a piece is read again from where it began, with what it has written; its
        scores are those of the first reading.
        """
        with jax.set_mesh(self.reader.mesh):
            before = level_writes(state)
            span = Span(*self.reader.put(tokens_BT, targets_BT, lengths_B))
            after, nats_BT, written = self._learn(self.reader.params, state, span)
            for _ in range(self.options.steps - 1):
                again = state._replace(fast=after.fast)
                after, _, written = self._learn(self.reader.params, again, span)
        texts = [range(n) for n in lengths_B if n]
        self.count(texts, written, before, np.zeros_like(before))
        return after, to_host(nats_BT), np.zeros(nats_BT.shape, bool)

    # --- what it did ---

    def report(self) -> dict[str, Any]:
        """Return options, writes and changes, for the result.

        Raises:
          NotWrittenError: the model has memories, and none was written.
        """
        options, tally = self.options, self.tally
        if self.available and not sum(tally.writes.values()):
            blocked = dict(tally.blocked)
            raise NotWrittenError(
                f"--memorize: nothing was written into {', '.join(self.available)} by paths "
                f"{options.paths!r}, layers {options.layers!r}, surprise threshold "
                f"{self.teaching.surprise_threshold} (blocked: {blocked})"
            )
        absent = [p for p in options.paths.split(",") if p != "all" and p not in self.available]
        report: dict[str, Any] = {
            "steps": options.steps,
            "reset": options.reset,
            "paths": list(self.paths),
            "absent_paths": absent,
            "layers": options.layers,
            "surprise_threshold": self.teaching.surprise_threshold,
            "use_correct_answer": options.use_correct_answer,
            "leakage": options.use_correct_answer,
            "texts": tally.texts,
            "tokens": tally.tokens,
            "writes": dict(tally.writes),
            "blocked": dict(tally.blocked),
            "change": {name: x / max(tally.texts, 1) for name, x in tally.change.items()},
        }
        if not self.available:
            report["note"] = "nothing to write: this model has no memory that outlives a text"
        return report


def memorizer_of(subject: Subject, flags: argparse.Namespace) -> Memorizer | None:
    """Return what writes for the flags; None without --memorize."""
    options = memorize_options(flags)
    return Memorizer(subject, options) if options.on else None


@dataclass(frozen=True)
class Memories:
    """A `Start` from memories: rows that know what was written and have read nothing."""

    memorizer: Memorizer
    state: State
    held: int = 0

    def __call__(self, rows: np.ndarray, capacity: int) -> State:
        reader = self.memorizer.reader
        fresh = reader.fresh(len(rows), capacity + 1)  # see `memories_into`
        if not self.memorizer.sequence:
            return fresh._replace(fast=reader.take(self.state.fast, rows))
        return memories_into(reader.take(self.state._replace(open=()), rows), fresh)


@dataclass(frozen=True)
class Blank:
    """A `Start` of rows that know nothing, and can be written."""

    reader: ModelReader
    held: int = 0

    def __call__(self, rows: np.ndarray, capacity: int) -> State:
        return self.reader.writable(len(rows), capacity)


# --- the compiled steps --------------------------------------------------------------------------


def level_writes(state: State) -> np.ndarray:
    """Return the writes of each level since the reset, int32 [M, B]."""
    batch = state.now.context.slots_B.shape[0]
    counts = to_host([level.writes_B for level in state.fast])
    return np.stack(counts) if counts else np.zeros((0, batch), np.int32)


def write_tokens(
    model: LanguageModel,
    cfg: TeachConfig,
    params: PyTree,
    state: State,
    tokens_BT: Array,
    targets_BT: Array,
    lengths_B: Array,
    targets_B: Array,
) -> tuple[State, Array]:
    """Read tokens and write the levels; only the first `targets_B` tokens have a target."""
    at_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None, :]
    weights_BT = (at_BT < targets_B[:, None]).astype(jnp.float32)
    before = state.fast
    state, _ = teach(
        model,
        params,
        state,
        tokens_BT,
        targets_BT,
        cfg,
        weights_BT=weights_BT,
        lengths_B=lengths_B,
    )
    return state, blocked_periods(model, before, state.fast, lengths_B)


def blocked_periods(
    model: LanguageModel, before: tuple[Any, ...], after: tuple[Any, ...], lengths_B: Array
) -> Array:
    """Return the periods that ended in a call without a write, int32 [M, B]."""
    rows = []
    for period, old, new in zip(model.cfg.cms.periods, before, after, strict=False):
        ended_B = (old.tokens_B + lengths_B - new.tokens_B) // period
        rows.append(jnp.maximum(ended_B - (new.writes_B - old.writes_B), 0))
    return jnp.stack(rows) if rows else jnp.zeros((0, lengths_B.shape[0]), jnp.int32)


def finish(
    model: LanguageModel, cfg: TeachConfig, sequence: bool, params: PyTree, state: State
) -> tuple[State, Written]:
    """Write what is pending, and keep the memories alone."""
    flushed = flush(model, params, state, cfg)
    written = measure(model, params, flushed, sequence)
    pending = [
        ((new.writes_B == old.writes_B) & (old.supervised_B > 0)).astype(jnp.int32)
        for old, new in zip(state.fast, flushed.fast, strict=True)
    ]
    if pending:
        written = written._replace(blocked_MB=jnp.stack(pending))
    return keep_memories(flushed, sequence), written


def measure(model: LanguageModel, params: PyTree, state: State, sequence: bool) -> Written:
    batch = state.now.context.slots_B.shape[0]
    none_MB = jnp.zeros((len(state.fast), batch), jnp.int32)
    writes_MB, change_MB = none_MB, none_MB.astype(jnp.float32)
    if state.fast:
        writes_MB = jnp.stack([level.writes_B for level in state.fast])
        change_MB = jnp.stack([jnp.mean(c_BL, axis=1) for c_BL in model.change(params, state)])
    sequence_B = jnp.zeros((batch,), jnp.float32)
    if sequence:
        sequence_B = sequence_change(params, state)
    return Written(writes_MB, none_MB, change_MB, sequence_B)


def learn_tokens(
    model: LanguageModel,
    cfg: TeachConfig,
    sequence: bool,
    params: PyTree,
    state: State,
    span: Span,
) -> tuple[State, Array, Written]:
    """Score tokens in the inner loop; return nats [B, T] and what was written so far."""
    tokens_BT, targets_BT, lengths_B = span
    after, taught = teach(model, params, state, tokens_BT, targets_BT, cfg, lengths_B=lengths_B)
    written = measure(model, params, after, sequence)
    blocked_MB = blocked_periods(model, state.fast, after.fast, lengths_B)
    return after, taught.loss_BT, written._replace(blocked_MB=blocked_MB)
