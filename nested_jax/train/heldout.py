"""The held-out loss of a run, in nats per token and in bits per byte, on a fixed set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np

from nested_jax.config import DataConfig
from nested_jax.data.held_out import target_bytes, valid_batches
from nested_jax.data.identity import valid_text_sha256
from nested_jax.data.packing import Row
from nested_jax.data.pipeline import open_data
from nested_jax.data.shards import TokenStore
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.data.trigram import trigram_bits_per_byte
from nested_jax.losses import bits_per, perplexity
from nested_jax.sharding import Rows, batch_sharding, place_batch, process_rows, replicated
from nested_jax.train.plan import Plan
from nested_jax.train.state import TrainState
from nested_jax.train.step import eval_step, new_carry
from nested_jax.types import Batch

TRIGRAM_BYTES = 32 << 20  # of text that the baseline reads; it counts about as fast as it reads


class HeldOut:
    """The first ``data.valid_rows`` rows of the valid split's fixed order, and how to score them.

    Bits per byte do not depend on the tokenizer: summed loss / ln 2 / UTF-8 bytes of the targets.
    """

    def __init__(self, plan: Plan) -> None:
        cfg, self.mesh = plan.cfg, plan.mesh
        batches = valid_batches(cfg.data, batch_size=plan.eval_rows, align=cfg.align)
        self.bytes = target_bytes(batches, plan.data.piece_byte_lengths)
        self.sha256 = valid_text_sha256(batches, cfg.data.mode, plan.data.piece_byte_lengths)
        rows = process_rows(plan.mesh, plan.eval_rows)
        self.batches = [own_rows(batch, rows) for batch in batches]
        # The characters of an original are not known where domain tokens stand for it.
        known = not plan.data.rewritten
        self.characters = target_bytes(batches, piece_characters(plan)) if known else 0
        fresh = partial(new_carry, cfg, plan.model, rows=plan.eval_rows)
        self.fresh = jax.jit(fresh, out_shardings=batch_sharding(plan.mesh))
        step = partial(eval_step, program=plan.program)
        placed = batch_sharding(plan.mesh), replicated(plan.mesh)
        self.eval_step = jax.jit(step, out_shardings=placed)

    def score(self, state: TrainState) -> dict[str, float]:
        """Return the loss with the inner loop of training: a chunk is scored, then written.

        Streams are read from an empty state to their end, in order.
        """
        nats = tokens = 0.0
        carry = self.fresh(state.params)
        for batch in self.batches:
            placed = place_batch(self.mesh, batch)
            carry, metrics = self.eval_step(state._replace(carry=carry), placed)
            metrics = jax.device_get(metrics)
            nats += float(metrics["loss"]) * float(metrics["tokens"])
            tokens += float(metrics["tokens"])
        scores = {
            "valid_loss": nats / tokens,
            "valid_ppl": perplexity(nats / tokens),
            "valid_bits_per_byte": bits_per(nats, self.bytes),
        }
        if self.characters:
            scores["valid_bits_per_char"] = bits_per(nats, self.characters)
        return scores


def describe(scores: Mapping[str, float]) -> str:
    """Return the scores of an evaluation as a phrase for the log."""
    parts = [f"valid loss {scores['valid_loss']:.4f}"]
    if "valid_ppl" in scores:
        parts.append(f"ppl {scores['valid_ppl']:.3f}")
    if "valid_bits_per_byte" in scores:
        parts.append(f"{scores['valid_bits_per_byte']:.4f} bits per byte")
    parts += [
        f"{name.removesuffix('/accuracy')} {100 * value:.1f} %"
        for name, value in scores.items()
        if name.endswith("/accuracy")
    ]
    return ", ".join(parts)


def piece_characters(plan: Plan) -> np.ndarray:
    """Return int64 [vocab_size]: the characters that a token stands for."""
    path = plan.data.tokenizer_path
    assert path is not None, "synthetic tasks have no text"
    return load_tokenizer(path).piece_char_lengths


def trigram_baseline(cfg: DataConfig) -> float:
    """Return the bits per byte of the valid split under a byte trigram model of the train split.

    Of a large corpus, the beginning of every shard is read: `TRIGRAM_BYTES` in all.
    """
    store = open_data(cfg)
    train, valid = (split_text(store, split, cfg.segments) for split in ("train", "valid"))
    return trigram_bits_per_byte(train, valid)


def split_text(store: TokenStore, split: str, segments: Sequence[str]) -> bytes:
    """Return the text of a split as UTF-8, `TRIGRAM_BYTES` of it at most.

    Every shard has as much room, and its document that does not fit is cut.
    """
    shards = store.select(split, segments)
    texts: list[bytes] = []
    for shard in shards:
        room = TRIGRAM_BYTES // len(shards)
        tokens = np.fromfile(store.root / shard.file, store.dtype, count=room)
        offsets = np.fromfile(store.root / shard.offsets_file, np.int64)
        for start, stop in itertools.pairwise(offsets):
            if room <= 0 or start >= len(tokens):
                break
            texts.append(store.tokenizer.decode(tokens[start : stop - 1]).encode()[:room])
            room -= len(texts[-1])
    return b"".join(texts)


def own_rows(batch: Row, rows: Rows) -> Row:
    """Return this process's part of a batch that was read whole."""
    size = len(batch["tokens_BT"]) // rows.parts
    own = slice(rows.part * size, (rows.part + 1) * size)
    return {name: batch[name][own] for name in Batch._fields}
