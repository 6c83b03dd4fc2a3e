"""The sharder: one source in, a folder of token shards out.

The stream of documents is cut into blocks, and each block becomes shards of its own, one per split,
tokenized and written by a worker process. Cuts depend on the stream alone, so the output is the
same whatever the number of workers; a block that is done is recorded, so a killed run goes on
where it was; the index comes last, so nothing half-written is ever taken for whole.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec, spec_dict
from nested_jax.data.prepare.inject import Injection, check_symbols, inject, original_bytes
from nested_jax.data.prepare.parallel import blocks, ordered_map
from nested_jax.data.prepare.text_sources import fingerprint, plan_hash, records
from nested_jax.data.records import Limit, Problems, Record, read_object
from nested_jax.data.shards import (
    FORMAT,
    INDEX,
    Shard,
    TokenStore,
    byte_lengths,
    check_record,
    open_store,
    write_index,
    write_shard,
)
from nested_jax.data.splits import HELD_OUT, SPLITS, split_of_content
from nested_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from nested_jax.errors import require
from nested_jax.files import PARTIAL, hold_folder, write_json

PROGRESS = ".progress"  # folder of the records of finished blocks, until the index is there
ENCODE_CHARS = 1 << 20  # of documents that are encoded at a time
PLAN = "plan.json"
SHARD_FILE = re.compile(rf".+-(?:{'|'.join(SPLITS)})-[0-9]{{5}}\.(?:bin|doc)")  # as written here


@dataclass(frozen=True)
class ShardOptions:
    """How a source becomes shards."""

    # Characters per block; a shard holds the part of a block in its split.
    block_chars: int = 32 << 20
    held_out: float = HELD_OUT  # share of each of valid and test, where content decides
    injection: Injection = field(default_factory=Injection)
    workers: int = 1  # processes; they do not change the output

    def __post_init__(self) -> None:
        require(self.block_chars >= 1, "block_chars", self.block_chars, "wants 1 or more")
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


def shard_source(
    spec: SourceSpec,
    tokenizer_path: Path,
    folder: Path,
    options: ShardOptions,
    report: Report,
    *,
    force: bool = False,
) -> TokenStore:
    """Write the shards of a source to `folder`, or go on writing them, or find them there.

    Args:
      force: replace shards that other settings or another source wrote there.
    Raises:
      HeldError: another process writes there.
      ValueError: what `records` and `load_tokenizer` raise; a folder of other shards; no text.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    if options.injection.rewrites:
        check_symbols(tokenizer)
    plan = plan_of(spec, tokenizer, options)
    with hold_folder(folder):
        if is_done(folder, plan, force=force):
            clear_leftovers(folder)
            report(f"[shard] {spec.name}: {folder} is up to date")
            return open_store(folder)
        done = begin_or_resume(folder, plan, report)
        problems = Problems(spec)
        stream = Limit(spec.limit).within(records(spec, problems, report))
        task = Task(0, [], folder, spec.name, tokenizer_path, options)
        finished = write_blocks(stream, done, task, report)
        shards = [shard for block in finished for shard in block.shards]
        if not shards:
            raise ValueError(f"{spec.dataset}: no document{problems.lost()}")
        shards.sort(key=lambda shard: (SPLITS.index(shard.split), shard.file))
        about = describe(spec, plan, problems, options, finished)
        write_index(folder, shards, tokenizer, about)
        clear_leftovers(folder)
    report(
        f"[shard] {spec.name}: {sum(s.documents for s in shards)} documents, "
        f"{sum(s.tokens for s in shards) / 1e6:.2f} M tokens, {len(shards)} shards in {folder}"
    )
    return open_store(folder)


def clear_leftovers(folder: Path) -> None:
    """Remove what only an unfinished run needs; a run killed after its index left it there."""
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    for leftover in folder.glob(f"*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


def is_done(folder: Path, plan: str, *, force: bool) -> bool:
    """Return whether the shards of the plan are there; unlink an index of others if forced."""
    if not (folder / INDEX).is_file():
        return False
    try:
        if open_store(folder).source.get("plan") == plan:
            return True
    except ValueError as error:
        if not force:
            raise ValueError(f"{error}; --force writes the shards again") from error
    require(
        force,
        "output folder",
        str(folder),
        "holds shards of other settings or of another source; name another folder, or replace them "
        "with --force",
    )
    (folder / INDEX).unlink()
    return False


def plan_of(spec: SourceSpec, tokenizer: Tokenizer, options: ShardOptions) -> str:
    """Return a hash of all that decides the output: the same plan gives the same shards."""
    settings = {**asdict(options), "workers": None}
    return plan_hash(FORMAT, fingerprint(spec), tokenizer.hash, settings)


def begin_or_resume(folder: Path, plan: str, report: Report) -> dict[int, Block]:
    """Return the blocks that an earlier run with the same plan finished; clear those of others."""
    progress = folder / PROGRESS
    try:
        if read_object(progress / PLAN, plan=str)["plan"] == plan:
            done = [read_block(file) for file in sorted(progress.glob("block-*.json"))]
            report(f"[shard] going on in {folder}: {len(done)} blocks are done")
            return {block.number: block for block in done}
    except ValueError:  # none, or damaged: from the beginning
        pass
    shutil.rmtree(progress, ignore_errors=True)
    for file in folder.iterdir():
        if SHARD_FILE.fullmatch(file.name):  # a user's own files stay
            file.unlink()
    progress.mkdir()
    write_json(progress / PLAN, {"plan": plan})
    return {}


def read_block(file: Path) -> Block:
    row = read_object(file, number=int, shards=list, injected=dict)
    for shard in row["shards"]:
        check_record(shard, str(file))
    return Block(row["number"], [Shard(**shard) for shard in row["shards"]], row["injected"])


def write_blocks(
    stream: Iterable[Record], done: dict[int, Block], template: Task, report: Report
) -> list[Block]:
    """Write every block that is not done; return all of them in order."""

    def tasks() -> Iterator[Task]:
        for number, block in enumerate(blocks(stream, template.options.block_chars)):
            if number not in done:
                yield template._replace(number=number, records=block)

    finished = dict(done)
    with closing(ordered_map(write_block, tasks(), template.options.workers)) as results:
        for block in results:
            finished[block.number] = block
            tokens = sum(shard.tokens for b in finished.values() for shard in b.shards)
            report(f"[shard] {template.segment}: block {block.number}, {tokens / 1e6:.1f} M tokens")
    return [finished[number] for number in sorted(finished)]


def write_block(task: Task) -> Block:
    """Tokenize and write one block, then record that it is done. Runs in workers and engines."""
    tokenizer = cached_tokenizer(task.tokenizer_path)
    counts: Counter[str] = Counter()
    by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
    for record in task.records:
        split = record.split or split_of_content(record.text, task.options.held_out)
        injected = inject(record.text, task.options.injection)
        counts.update(injected.counts)
        by_split[split].append(injected.text)
    piece_bytes = original_bytes() if task.options.injection.rewrites else {}
    lengths_S = byte_lengths(tokenizer, piece_bytes)
    shards = []
    for split, texts in by_split.items():
        if texts:
            ids = encode_all(texts, tokenizer)
            place = (task.folder, task.segment, split, task.number)
            shards.append(write_shard(*place, ids, tokenizer, lengths_S))
    block = Block(task.number, shards, dict(counts))
    row = {**block._asdict(), "shards": [asdict(shard) for shard in shards]}
    write_json(task.folder / PROGRESS / f"block-{task.number:06d}.json", row)
    return block


@functools.lru_cache(2)
def cached_tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


def encode_all(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the token ids of each text, a bounded number of texts at a time."""
    for group in blocks((Record(text) for text in texts), ENCODE_CHARS):
        yield from tokenizer.encode_batch([record.text for record in group])


def describe(
    spec: SourceSpec,
    plan: str,
    problems: Problems,
    options: ShardOptions,
    finished: Sequence[Block],
) -> dict[str, Any]:
    """Return what the index says of the source."""
    injected = sum((Counter(block.injected) for block in finished), Counter[str]())
    about: dict[str, Any] = {
        "name": spec.name,
        "plan": plan,
        "source": spec_dict(spec),
        "problems": problems.as_dict(),
        "unread": problems.summary(),
        "held_out": options.held_out,
    }
    if options.injection.rewrites:
        about["injection"] = {**asdict(options.injection), **injected}
        about["piece_bytes"] = original_bytes()
    return about


def shard_stats(store: TokenStore, spec: SourceSpec, seq_len: int) -> dict[str, Any]:
    """Return the JSON summary of a sharded source; `sequences` are rows of `seq_len` tokens."""
    tokens = sum(shard.tokens for shard in store.shards)
    return {
        "name": spec.name,
        "dataset": spec.dataset,
        "subset": spec.subset,
        "records": sum(shard.documents for shard in store.shards),
        "sequences": tokens // seq_len,
        "tokens": tokens,
        "bytes": sum(shard.bytes for shard in store.shards),
        "shards": len(store.shards),
        "output_dir": str(store.root),
    }
