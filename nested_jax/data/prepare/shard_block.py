"""One block of documents becomes shards: what a worker does, and the cut at a target of tokens."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nested_jax.data.prepare.drills import with_drills
from nested_jax.data.prepare.inject import Injected, Injection, inject, original_bytes
from nested_jax.data.prepare.parallel import blocks
from nested_jax.data.records import Record
from nested_jax.data.shards import (
    NO_EXTRA,
    Document,
    Shard,
    byte_lengths,
    token_dtype,
    write_shard,
)
from nested_jax.data.splits import HELD_OUT, SPLITS, split_of_content
from nested_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from nested_jax.errors import require
from nested_jax.files import write_json

SHARD_FILE = re.compile(
    rf".+-(?:{'|'.join(SPLITS)})-([0-9]{{5}})\.(?:bin|doc|sym)"
)  # by `write_block`
PROGRESS = ".progress"  # folder of the records of finished blocks, until the index is there
ENCODE_CHARS = 1 << 20  # of documents that are encoded at a time


@dataclass(frozen=True)
class ShardOptions:
    """How a source becomes shards."""

    # Characters per block; a shard holds the part of a block in its split.
    block_chars: int = 32 << 20
    held_out: float = HELD_OUT  # share of each of valid and test, where content decides
    injection: Injection = field(default_factory=Injection)
    workers: int = 1  # processes; they do not change the output
    target_tokens: int = 0  # training tokens: reading stops there, and less is an error; 0 is all
    shard_size: int = 0  # tokens of a shard, about; 0 leaves it to block_chars
    drills: float = 0.0  # share of the training text that is synthetic drills
    drill_seed: int = 42

    def __post_init__(self) -> None:
        require(self.block_chars >= 1, "block_chars", self.block_chars, "wants 1 or more")
        for name in ("target_tokens", "shard_size"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "wants 0 or more")
        require(0 <= self.drills <= 0.5, "drills", self.drills, "wants a share in [0, 0.5]")
        require(0 <= self.held_out < 0.5, "held_out", self.held_out, "wants a share below 0.5")
        require(self.workers >= 1, "workers", self.workers, "wants 1 process or more")


class Task(NamedTuple):
    """One block on its way to a worker."""

    number: int
    records: list[Record]
    folder: Path
    segment: str
    tokenizer_path: Path
    options: ShardOptions


class Block(NamedTuple):
    """One finished block."""

    number: int
    shards: list[Shard]
    injected: dict[str, int]  # counts of the injection


def write_block(task: Task) -> Block:
    """Tokenize and write one block, then record that it is done. Runs in workers and engines."""
    tokenizer = cached_tokenizer(task.tokenizer_path)
    options, counts = task.options, Counter[str]()
    by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for record in task.records:
        split = record.split or split_of_content(record.text, options.held_out)
        by_split[split].append(record.text)
    if options.drills:
        train = by_split["train"]
        by_split["train"] = with_drills(train, options.drills, options.drill_seed, task.number)
    lengths_S = byte_lengths(tokenizer, original_bytes(options.injection))
    facts = [tokenizer.id_of(s) for s in options.injection.symbols if options.injection.lossy]
    shards = []
    for split, texts in by_split.items():
        if texts:
            injected = [inject(text, options.injection) for text in texts]
            for found in injected:
                counts.update(found.counts)
            ids = encode_all([found.text for found in injected], tokenizer)
            documents = map(document_of, ids, injected, itertools.repeat((facts, lengths_S)))
            place = (task.folder, task.segment, split, task.number)
            shards.append(write_shard(*place, documents, tokenizer, lengths_S))
    block = Block(task.number, shards, dict(counts))
    row = {**block._asdict(), "shards": [asdict(shard) for shard in shards]}
    write_json(task.folder / PROGRESS / f"block-{task.number:06d}.json", row)
    return block


def document_of(
    ids: Sequence[int], injected: Injected, known: tuple[list[int], np.ndarray]
) -> Document:
    """Return a document with the bytes that its facts stand for; `known`: their ids, lengths_S."""
    if not injected.lengths:
        return Document(ids)
    facts, lengths_S = known
    ids_T = np.asarray(ids)
    places = np.flatnonzero(np.isin(ids_T, facts))
    assert len(places) == len(injected.lengths), "every fact of a text is one token"
    extra = np.asarray(injected.lengths) - lengths_S[ids_T[places]]
    return Document(ids_T, np.stack([places, extra], axis=1).astype(np.int64))


@functools.lru_cache(2)
def cached_tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


def encode_all(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the token ids of each text, a bounded number of texts at a time."""
    for group in blocks((Record(text) for text in texts), ENCODE_CHARS):
        yield from tokenizer.encode_batch([record.text for record in group])


def train_tokens(finished: Iterable[Block]) -> int:
    return sum(s.tokens for block in finished for s in block.shards if s.split == "train")


def up_to_target(finished: Mapping[int, Block], target: int) -> list[Block]:
    """Return the first blocks without a gap, as many as hold `target` training tokens."""
    kept: list[Block] = []
    while len(kept) in finished and train_tokens(kept) < target:
        kept.append(finished[len(kept)])
    return kept


def is_enough(finished: Mapping[int, Block], target: int) -> bool:
    return target > 0 and train_tokens(up_to_target(finished, target)) >= target


def cut_at_target(finished: Mapping[int, Block], task: Task) -> list[Block]:
    """Return the blocks that hold ``target_tokens`` training tokens, the last one cut to fit.

    The files of later blocks are removed. No worker writes any more.
    """
    target = task.options.target_tokens
    *before, last = up_to_target(finished, target)
    room = target - train_tokens(before)
    shards = [
        cut_shard(task, shard, last.number, room) if shard.split == "train" else shard
        for shard in last.shards
    ]
    for file in task.folder.iterdir():
        found = SHARD_FILE.fullmatch(file.name)
        if found and int(found[1]) > last.number:
            file.unlink()
    return [*before, last._replace(shards=shards)]


def cut_shard(task: Task, shard: Shard, number: int, tokens: int) -> Shard:
    """Write a shard again, up to the end of the document in which it reaches `tokens`."""
    dtype = token_dtype((tokenizer := cached_tokenizer(task.tokenizer_path)).vocab_size)
    ids = np.fromfile(task.folder / shard.file, dtype)
    offsets = np.fromfile(task.folder / shard.offsets_file, np.int64)
    extra = NO_EXTRA
    if shard.symbols:
        extra = np.fromfile(task.folder / shard.named(".sym"), np.int64).reshape(-1, 2)
    last = int(np.searchsorted(offsets, tokens))
    documents = []
    for start, stop in itertools.pairwise(offsets[: last + 1].tolist()):
        own = extra[slice(*np.searchsorted(extra[:, 0], (start, stop)))] - [start, 0]
        documents.append(Document(ids[start : stop - 1], own))
    lengths_S = byte_lengths(tokenizer, original_bytes(task.options.injection))
    place = (task.folder, task.segment, "train", number)
    return write_shard(*place, documents, tokenizer, lengths_S)
