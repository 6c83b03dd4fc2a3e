"""Speed and memory of the data programs, as JSON lines.

    python benchmarks/data.py                       # the embedded text
    python benchmarks/data.py --corpus FILE_OR_FOLDER

`shard`: MB/s of text tokenized and written by one process, by wall clock and by CPU time, and the
peak memory of 1 and of 4 copies of the corpus. `load`: M tokens/s of the training iterator. Other
work on the machine shows in the wall clock, hardly in CPU time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nested_jax.config import DataConfig
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.pipeline import make_train_iterator, open_data
from nested_jax.data.prepare.shard_block import ShardOptions
from nested_jax.data.prepare.shard_corpus import shard_source
from nested_jax.data.prepare.text_sources import records
from nested_jax.data.records import Problems

BATCHES = {512: (8, 32), 2048: (8, 32)}  # tokens per row -> rows per batch


def quiet(_: str) -> None:
    """Report nothing."""


def emit(row: dict[str, Any]) -> None:
    print(json.dumps({**row, "python": platform.python_version(), "cpu": platform.machine()}))


def write_copies(dataset: str, folder: Path, copies: int) -> None:
    """Write a corpus as JSON lines, `copies` times over."""
    with open(folder / "corpus.jsonl", "w", encoding="utf8") as file:
        for _ in range(copies):
            spec = SourceSpec(dataset=dataset)
            for record in records(spec, Problems(spec), quiet):
                file.write(json.dumps({"text": record.text}) + "\n")


def shard_once(dataset: str, tokenizer: str) -> None:
    """Shard a corpus in this process, which is run alone, so that its peak is its own."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        spec = SourceSpec(name="bench", dataset=dataset)
        store = shard_source(spec, Path(tokenizer), Path(folder), ShardOptions(), quiet)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = sum(shard.bytes for shard in store.shards) / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        emit(
            {
                "benchmark": "shard",
                "megabytes": round(size, 1),
                "megabytes_per_s": round(size / wall, 2),
                "megabytes_per_cpu_s": round(size / cpu, 2),
                "peak_mib": round(peak),
            }
        )


def load(cfg: DataConfig, align: int, tokens: float = 4e6) -> None:
    for seq_len, sizes in BATCHES.items():
        for batch_size in sizes:
            iterator = make_train_iterator(
                dataclasses.replace(cfg, seq_len=seq_len),
                batch_size=batch_size,
                align=align,
                seed=0,
            )
            next(iterator)
            count = int(tokens / seq_len / batch_size)
            start = time.perf_counter()
            for _ in range(count):
                next(iterator)
            rate = count * seq_len * batch_size / (time.perf_counter() - start) / 1e6
            emit(
                {
                    "benchmark": "load",
                    "seq_len": seq_len,
                    "batch_size": batch_size,
                    "align": align,
                    "million_tokens_per_s": round(rate, 2),
                }
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="stdlib", help="file, folder or glob")
    parser.add_argument("--one", nargs=2, metavar=("DATASET", "TOKENIZER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        shard_once(*args.one)
        return
    cfg = DataConfig()
    store = open_data(cfg, print)
    for copies in (1, 4):
        with tempfile.TemporaryDirectory() as folder:
            write_copies(args.corpus, Path(folder), copies)
            command = [sys.executable, __file__, "--one", folder, str(store.tokenizer_path)]
            subprocess.run(command, check=True)
    for align in (1, 64):
        load(cfg, align)


if __name__ == "__main__":
    main()
