"""What a memory did at every token: ``python -m eval inspect --checkpoint runs/NAME --text FILE``.

A text is read twice from fresh states: by the model whose memories are never written (CMS levels as
trained, neural memories frozen at their start), and while learning. The result's ``detail`` has

    tokens   text, loss_without and loss in nats, gain (the first minus the second: what the memory
             was worth there), surprise (norm of the token's teach signal), entropy of the
             prediction; a token is scored before the write that it causes
    chunks   tokens from and to, and for each memory its writes, blocked writes, the norm of what
             this chunk wrote into it, and |change| / |start| after it

--text is a word of --segments (docs/evaluation.md, "Your text"). Of the first segment, the first
document of --max-tokens is read, or the longest of its first 64.
"""

from __future__ import annotations

import argparse
import codecs
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.core.cli import Findings, Task, data_root
from eval.core.flags import flag
from eval.core.items import ASKED, item_hash
from eval.core.memorize.options import MemorizeOptions
from eval.core.memorize.paths import level_name, sequence_change
from eval.core.memorize.write import Memorizer, blocked_periods, level_writes
from eval.core.reader import ModelReader, Span
from eval.core.requests import pad
from eval.core.scoring import Scorer
from eval.core.subject import Subject
from eval.core.texts import ALL, READING_FLAGS, SPLITS, Segment, open_segments
from nested_jax.config import TeachConfig
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require
from nested_jax.models.lm import LanguageModel, build_model
from nested_jax.models.state import State
from nested_jax.sharding import to_host
from nested_jax.teach import teach
from nested_jax.types import Array, PyTree

DIGITS = 5  # of the numbers that are kept
READ = 64  # tokens of a chunk of a model that is not taught by chunks
NUMBERS = ("loss_without", "loss", "gain", "surprise", "entropy")


class Trace(NamedTuple):
    """What one chunk left."""

    loss_BT: Array
    entropy_BT: Array
    signal_BT: Array  # 0 where nothing is taught
    blocked_MB: Array
    norm_MB: Array  # of what this chunk wrote into each level
    change_MB: Array
    sequence_B: Array  # relative change of the sequence memory; 0 without one


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    named = argparse.Namespace(**{**vars(flags), "segments": flags.text})
    segment = open_segments(named, data_root(flags), subject.cfg, (flags.split,), "--text")[0]
    name, tokens = a_document(subject, segment, flags.split, flags.max_tokens)
    detail = inspect(subject, tokens)
    columns = {key: np.asarray(detail["tokens"][key]) for key in NUMBERS if key in detail["tokens"]}
    numbers = {key: float(value.mean()) for key, value in columns.items()}
    item = {"id": name, "group": "all", "loss": numbers["loss"], ASKED: item_hash(tokens)}
    about = {"text": f"{segment.name}: {name}", **detail}
    return Findings({"all": {**numbers, "tokens": len(tokens)}}, [item], detail=about)


def a_document(subject: Subject, segment: Segment, split: str, most: int) -> tuple[str, list[int]]:
    """Return the first document of `most` tokens, cut to them, or the longest of the first 64."""
    longest: tuple[str, list[int]] = ("", [])
    for name, text in itertools.islice(segment.read(split), 64):
        tokens = subject.tokenizer.encode(text[: 40 * most])[:most]
        if len(tokens) > len(longest[1]):
            longest = name, tokens
        if len(tokens) == most:
            break
    require(len(longest[1]) > 1, "--text", segment.name, "wants two tokens at least")
    return longest


def inspect(subject: Subject, tokens: Sequence[int]) -> dict[str, Any]:
    """Return the columns of every token and the rows of every chunk; see the top of this file.

    Raises:
      ValueError: a text longer than full attention holds.
    """
    subject.scorer.check(len(tokens))
    memorizer = Memorizer(subject, MemorizeOptions(on=True))
    prefix = subject.tokenizer.eos_id
    without = never_written(subject).rolling([tokens], prefix)[0]
    found: dict[str, Any] = {"text": pieces_of(subject.tokenizer, tokens), "id": list(tokens)}
    found["loss_without"] = rounded(without)
    chunks: list[dict[str, Any]] = []
    loss, entropy, surprise = trace(memorizer, [prefix, *tokens], chunks)
    if not memorizer.available:
        loss = without  # nothing is written: the same call, to the last bit
    found |= {"loss": rounded(loss), "gain": rounded(without - loss), "entropy": rounded(entropy)}
    if memorizer.teaching.mode != "off":
        found["surprise"] = rounded(surprise)
    return {"memories": list(memorizer.available), "tokens": found, "chunks": chunks}


def never_written(subject: Subject) -> Scorer:
    """Return a scorer of the model that reads and writes nothing.

    The matrix of a DeltaNet is not frozen: empty, it would answer nothing, and is no memory then.
    """
    reader = subject.model_reader
    cfg = reader.model.cfg
    frozen = replace(cfg, memory=replace(cfg.memory, frozen=cfg.kind.memory == "titan"))
    same = ModelReader(build_model(frozen), reader.params, reader.mesh, reader.symbols)
    return Scorer(same, subject.scorer.batch_size, subject.scorer.batch_tokens)


def trace(
    memorizer: Memorizer, stream: Sequence[int], chunks: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Learn a stream chunk by chunk; return loss, entropy and signal of each token after the first.

    Args:
      chunks: gets a row for each chunk that can write something.
    """
    reader, teaching = memorizer.reader, memorizer.teaching
    size = teaching.chunk if teaching.mode != "off" else READ
    step = jax.jit(partial(trace_chunk, memorizer.model, teaching, memorizer.sequence))
    state = reader.writable(reader.row_multiple, -(-len(stream) // size) * size)
    columns: list[tuple[np.ndarray, ...]] = []
    for at in range(0, len(stream) - 1, size):
        inputs, lengths_B = pad(
            [stream[at : at + size][: len(stream) - 1 - at]], reader.row_multiple, size
        )
        targets, _ = pad([stream[at + 1 : at + 1 + size]], reader.row_multiple, size)
        before = level_writes(state)
        state, found = reader.run(step, state, Span(*reader.put(inputs, targets, lengths_B)))
        found = to_host(found)
        length = int(lengths_B[0])
        parts = (found.loss_BT, found.entropy_BT, found.signal_BT)
        columns.append(tuple(part[0, :length] for part in parts))
        row = written_row(memorizer, found, level_writes(state) - before)
        if row:
            chunks.append({"from": at, "to": at + length, "memories": row})
    loss, entropy, surprise = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return loss, entropy, surprise


def written_row(memorizer: Memorizer, found: Trace, writes_MB: np.ndarray) -> dict[str, Any]:
    """Return what a chunk wrote, by the name of the memory."""
    row: dict[str, Any] = {}
    for i, level in enumerate(
        zip(writes_MB, found.blocked_MB, found.norm_MB, found.change_MB, strict=True)
    ):
        if level_name(i) in memorizer.paths:
            writes, blocked, norm, change = (float(x_B[0]) for x_B in level)
            row[level_name(i)] = {
                "writes": int(writes) * memorizer.scale,
                "blocked": int(blocked) * memorizer.scale,
                "norm": round(norm, DIGITS),
                "change": round(change, DIGITS),
            }
    if memorizer.sequence:
        change = round(float(found.sequence_B[0]), DIGITS)
        row[memorizer.model.cfg.kind.memory] = {"change": change}
    return row


def trace_chunk(
    model: LanguageModel,
    cfg: TeachConfig,
    sequence: bool,
    params: PyTree,
    state: State,
    span: Span,
) -> tuple[State, Trace]:
    """Read, score and write one chunk; [B, T] of its tokens and [M, B] of the levels."""
    tokens_BT, targets_BT, lengths_B = span
    asked = ("loss", "entropy")
    after, taught = teach(
        model, params, state, tokens_BT, targets_BT, cfg, measures=asked, lengths_B=lengths_B
    )
    norms, changes = [], []
    for old, new in zip(state.fast, after.fast, strict=True):
        wrote = jax.tree.leaves(jax.tree.map(jnp.subtract, new.delta, old.delta))
        norms.append(jnp.sqrt(sum(jnp.sum(x * x, axis=range(1, x.ndim)) for x in wrote)))
    if state.fast:
        changes = [jnp.mean(c_BL, axis=1) for c_BL in model.change(params, after)]
    none_MB = jnp.zeros((0, tokens_BT.shape[0]))
    signal_BT = taught.signal_BT
    return after, Trace(
        taught.loss_BT,
        taught.measures["entropy"],
        jnp.zeros(tokens_BT.shape) if signal_BT is None else signal_BT,
        blocked_periods(model, state.fast, after.fast, lengths_B),
        jnp.stack(norms) if norms else none_MB,
        jnp.stack(changes) if changes else none_MB,
        sequence_change(params, after) if sequence else none_MB.sum(axis=0),
    )


def pieces_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token; a character of several tokens stands at its last one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(tokenizer.bytes_of(token)) for token in tokens]


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), DIGITS) for x in values]


FLAGS = (
    flag("--text", "run", "what is read: a file, or another word of --segments"),
    flag("--split", ALL, "of the text", choices=(*SPLITS, ALL)),
    flag("--max-tokens", 1024, "of the text that are read", least=2),
    *READING_FLAGS,
)
HELP = "token by token: what the memories gained, and what was written"
TASK = Task("inspect", HELP, __doc__, FLAGS, evaluate, memorizes=False)
