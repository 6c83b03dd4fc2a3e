"""The sharder: one source in, a folder of token shards out.

The stream of documents is cut into blocks, and each block becomes shards of its own, one per split,
tokenized and written by a worker process. Cuts depend on the stream alone, so the output is the
same whatever the number of workers; a block that is done is recorded, so a killed run goes on
where it was; the index comes last, so nothing half-written is ever taken for whole.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec, spec_dict
from nested_jax.data.prepare.inject import check_symbols, original_bytes
from nested_jax.data.prepare.parallel import blocks, ordered_map
from nested_jax.data.prepare.shard_block import (
    PROGRESS,
    SHARD_FILE,
    Block,
    ShardOptions,
    Task,
    cut_at_target,
    encode_all,
    is_enough,
    train_tokens,
    write_block,
)
from nested_jax.data.prepare.text_sources import fingerprint, plan_hash, records
from nested_jax.data.records import Limit, Problems, Record, read_object
from nested_jax.data.shards import (
    FORMAT,
    INDEX,
    Shard,
    TokenStore,
    check_record,
    open_store,
    write_index,
)
from nested_jax.data.splits import SPLITS
from nested_jax.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from nested_jax.errors import require
from nested_jax.files import PARTIAL, hold_folder, write_json

MEASURE_CHARS = 2 << 20  # of text on which characters per token are measured
PLAN = "plan.json"


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
        check_symbols(tokenizer, options.injection)
    plan = plan_of(spec, tokenizer, options)
    with hold_folder(folder):
        if is_done(folder, plan, force=force):
            clear_leftovers(folder)
            report(f"[shard] {spec.name}: {folder} is up to date")
            return open_store(folder)
        done = begin_or_resume(folder, plan, report)
        problems = Problems(spec)
        stream = Limit(spec.limit).within(records(spec, problems, report))
        stream, options = sized(stream, tokenizer, options)
        task = Task(0, [], folder, spec.name, tokenizer_path, options)
        finished = write_blocks(stream, done, task, report)
        check_target(spec, finished, options.target_tokens, problems)
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


def sized(
    stream: Iterator[Record], tokenizer: Tokenizer, options: ShardOptions
) -> tuple[Iterator[Record], ShardOptions]:
    """Return the stream, and the options with a block's characters for ``shard_size`` tokens.

    They are measured on the beginning of the stream, so they depend on it alone.
    """
    if not options.shard_size:
        return stream, options
    first = next(blocks(stream, MEASURE_CHARS), [])
    texts = [record.text for record in first]
    tokens = sum(len(ids) + 1 for ids in encode_all(texts, tokenizer))
    chars = sum(map(len, texts)) * options.shard_size // max(tokens, 1)
    return itertools.chain(first, stream), replace(options, block_chars=max(1, chars))


def check_target(
    spec: SourceSpec, finished: Sequence[Block], target: int, problems: Problems
) -> None:
    """Raise where a source ended before ``target_tokens`` training tokens."""
    found = train_tokens(finished)
    require(
        found >= target,
        "target_tokens",
        target,
        f"{spec.dataset} ended after {found:,} training tokens{problems.lost()}; give more text "
        f"or a target of at most {found}",
    )


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
    """Write every block that is not done, up to the target; return all of them in order."""
    target = template.options.target_tokens
    if is_enough(done, target):
        return cut_at_target(done, template)

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
            if is_enough(finished, target):
                break
    if is_enough(finished, target):
        return cut_at_target(finished, template)
    return [finished[number] for number in sorted(finished)]


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
        "target_tokens": options.target_tokens,
        "drills": options.drills,
        "unique_tokens": train_tokens(finished),
    }
    if options.injection.rewrites:
        about["injection"] = {**asdict(options.injection), **injected}
        about["piece_bytes"] = original_bytes(options.injection)
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
        "unique_tokens": sum(s.tokens for s in store.shards if s.split == "train"),
        "domain_tokens": sum(s.symbols for s in store.shards if s.split == "train"),
        "bytes": sum(shard.bytes for shard in store.shards),
        "shards": len(store.shards),
        "output_dir": str(store.root),
    }
