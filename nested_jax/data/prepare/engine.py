"""Beyond one machine: the same filter and shard functions as tasks of Ray Data.

    files -> blocks that passed the rules, with signatures   (one task per file, in the cluster)
          -> duplicates over all signatures                  (here; 520 bytes per document)
          -> shards of what is left, to any fsspec path      (one task per block)
          -> the index, last

docs/data.md argues the choice of Ray Data. Blocks end at the ends of files, so shards hold other
runs of documents than the local sharder's; the documents are the same.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.prepare.dedupe import ENTRY, find_duplicates
from nested_jax.data.prepare.filtering import FilterOptions, Judged, judge, rules_of
from nested_jax.data.prepare.overlap import eval_ngrams
from nested_jax.data.prepare.parallel import blocks
from nested_jax.data.prepare.shard_block import PROGRESS, ShardOptions, Task, write_block
from nested_jax.data.prepare.shard_corpus import describe
from nested_jax.data.prepare.text_sources import fingerprint, order_by_split, plan_hash, records
from nested_jax.data.records import Problems
from nested_jax.data.shards import INDEX, TOKENIZER, Shard, open_store, write_index
from nested_jax.data.splits import SPLITS
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.errors import import_extra
from nested_jax.files import hold_folder
from nested_jax.storage import Store

SUFFIXES = (".bin", ".doc", ".sym", ".mask", ".model", ".json")  # of a folder of shards


@dataclass(frozen=True)
class EngineOptions:
    """Where the engine runs and writes."""

    output_url: str  # folder or fsspec path
    tokenizer_path: Path  # readable by every task
    address: str = ""  # of a Ray cluster; "" starts one on this machine
    filtering: FilterOptions = field(default_factory=FilterOptions)
    sharding: ShardOptions = field(default_factory=ShardOptions)


def run_engine(spec: SourceSpec, options: EngineOptions, report: Report) -> dict[str, Any]:
    """Filter and shard the local or shared files of a source on Ray; return the counts.

    Raises:
      ValueError: ray is not installed; a source that is not files; what the stages raise.
    """
    ray = import_extra("ray", "ray", "for the engine")
    ray_data = import_extra("ray.data", "ray", "for the engine")
    tokenizer = load_tokenizer(options.tokenizer_path)
    files = order_by_split(spec)
    ngrams = eval_ngrams(options.filtering.eval_files).hashes
    ray.init(address=options.address or None, ignore_reinit_error=True, log_to_driver=False)
    report(f"[engine] {spec.name}: {len(files)} files on {ray.cluster_resources().get('CPU')} CPUs")
    items = [
        {"file": number, "path": str(path), "split": split or ""}
        for number, (path, split) in enumerate(files)
    ]
    judged = (
        ray_data.from_items(items, override_num_blocks=len(items))
        .flat_map(JudgeFile(spec, options.sharding.block_chars, ngrams))
        .materialize()
    )
    heads = sorted(judged.drop_columns(["texts"]).take_all(), key=place_of)
    drop = duplicates_of(heads, options.filtering)
    rows = judged.map(WriteBlock(spec, options, drop)).take_all()
    rows.sort(key=place_of)
    shards = [Shard(**shard) for row in rows for shard in pickle.loads(row["shards"])]
    shards.sort(key=lambda shard: (SPLITS.index(shard.split), shard.file))
    problems = Problems(spec)
    dropped: Counter[str] = Counter()
    for head in heads:
        problems.merge(pickle.loads(head["problems"]))
        dropped.update(pickle.loads(head["dropped"]))
    if not shards:
        raise ValueError(f"{spec.dataset}: nothing is kept: {dict(dropped)}; {problems.summary()}")
    about = describe(spec, engine_plan(spec, options), problems, options.sharding, [])
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), shards, tokenizer, about)
        put(Path(folder), options.output_url, [TOKENIZER, INDEX])
    return {
        "name": spec.name,
        "records": sum(shard.documents for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "shards": len(shards),
        "dropped": {**dropped, "duplicates": int(sum(len(d) for d in drop.values()))},
        "output_url": options.output_url,
        "unread": problems.summary(),
    }


def place_of(row: Mapping[str, Any]) -> tuple[int, int]:
    return int(row["file"]), int(row["block"])


def engine_plan(spec: SourceSpec, options: EngineOptions) -> str:
    settings = {**asdict(options), "tokenizer_path": None, "address": None}
    return plan_hash("engine", fingerprint(spec), settings)


@dataclass(frozen=True)
class JudgeFile:
    """Task: one file -> its blocks, after the rules of single documents."""

    spec: SourceSpec
    block_chars: int
    ngrams: np.ndarray

    def __call__(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        problems = Problems(self.spec)
        files = [(Path(item["path"]), item["split"] or None)]
        source = records(self.spec, problems, lambda _: None, files)
        number = 0
        for block in blocks(source, self.block_chars):
            yield self.row(item, number, judge(block, rules_of(self.spec), self.ngrams))
            number += 1
        yield self.row(item, number, judge([], rules_of(self.spec), self.ngrams), problems)

    def row(
        self, item: dict[str, Any], number: int, judged: Judged, problems: Problems | None = None
    ) -> dict[str, Any]:
        """Return a block as a row; the last one of a file is empty and holds its problems."""
        return {
            "file": item["file"],
            "block": number,
            "texts": pickle.dumps(judged.kept),
            "signatures": judged.signatures.tobytes(),
            "dropped": pickle.dumps(judged.dropped),
            "problems": pickle.dumps(problems or Problems(self.spec)),
        }


def duplicates_of(
    heads: list[dict[str, Any]], options: FilterOptions
) -> dict[tuple[int, int], np.ndarray]:
    """Return, for every block, the places of its documents that repeat an earlier one."""
    parts = [np.frombuffer(head["signatures"], ENTRY) for head in heads]
    entries = np.concatenate(parts) if parts else np.empty(0, ENTRY)
    found = find_duplicates(entries, options.similarity, options.dedup_window)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    pieces = np.split(found.exact | found.near, ends)
    return {
        place_of(head): np.flatnonzero(piece) for head, piece in zip(heads, pieces, strict=True)
    }


@dataclass(frozen=True)
class WriteBlock:
    """Task: one block, without its duplicates -> shards at the output path."""

    spec: SourceSpec
    options: EngineOptions
    drop: dict[tuple[int, int], np.ndarray]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        place = place_of(row)
        drop = set(self.drop[place].tolist())
        kept = [r for i, r in enumerate(pickle.loads(row["texts"])) if i not in drop]
        number = sorted(self.drop).index(place)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / PROGRESS).mkdir()
            task = Task(
                number,
                kept,
                folder,
                self.spec.name,
                self.options.tokenizer_path,
                self.options.sharding,
            )
            shards = write_block(task).shards
            files = [name for shard in shards for name in shard.files]
            put(folder, self.options.output_url, files)
        body = pickle.dumps([asdict(shard) for shard in shards])
        return {"file": row["file"], "block": row["block"], "shards": body}


def put(folder: Path, url: str, files: list[str]) -> None:
    """Copy files of a folder to an fsspec path, in the order given; each is read back."""
    store = Store(url, "output")
    for name in files:
        store.put(folder / name, name)


def copy_store(source: str, target: str, report: Report) -> None:
    """Copy a folder of shards from one fsspec path to another, the index last; verify the copy.

    Raises:
      HeldError: another process writes there.
      ValueError: no shards at the source, others at the target, or a copy that is not whole.
    """
    store_there, store_here = Store(source, "source"), Store(target, "target")
    if store_there.read(INDEX) is None:
        raise ValueError(f"source={source!r}: no {INDEX} there")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in store_there.files():
            if "/" not in file and Path(file).suffix in SUFFIXES:
                store_there.get(file, folder / file)
        try:
            store = open_store(folder)
        except ValueError as error:
            raise ValueError(f"source={source!r}: {error}") from error
        files = [name for shard in store.shards for name in shard.files]
        if store_here.read(INDEX) not in (None, (folder / INDEX).read_bytes()):
            raise ValueError(f"target={target!r}: holds other shards; name another folder")
        with nullcontext() if "://" in target else hold_folder(Path(target)):
            put(folder, target, [*files, TOKENIZER, INDEX])
        if "://" not in target:
            open_store(target)
    report(f"[copy] {len(store.shards)} shards, {source} -> {target}")
