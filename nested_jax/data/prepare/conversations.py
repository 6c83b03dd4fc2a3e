"""Conversations of the Hub, of Parquet or JSON lines, as the JSON lines that fine-tuning reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nested_jax.data.cache import Report
from nested_jax.data.chat.templates import messages_of
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.prepare.hf_source import choose_split, load, unbroken
from nested_jax.data.records import json_rows, not_of_source
from nested_jax.data.streams import file_format, find_files
from nested_jax.errors import import_extra, require
from nested_jax.files import whole_file


def write_conversations(spec: SourceSpec, output: Path, report: Report) -> dict[str, int]:
    """Write the first ``limit`` conversations of a source; return the counts.

    A row that is no conversation with an answer is left out and counted; the first one is said.

    Raises:
      ValueError: a source that cannot be read, or without any conversation.
    """
    counts: Counter[str] = Counter(written=0, left_out=0)
    output.parent.mkdir(parents=True, exist_ok=True)
    if not spec.dataset.startswith("hf:"):
        not_of_source(output, find_files(spec.dataset, spec.data_files))
    with whole_file(output) as out:
        for where, row in rows_of(spec, report):
            if spec.limit and counts["written"] >= spec.limit:
                break
            try:
                messages = messages_of(row, where)
            except ValueError as error:
                counts["left_out"] += 1
                if counts["left_out"] == 1:
                    report(f"left out: {error}")
                continue
            line = {"messages": [message._asdict() for message in messages]}
            out.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            counts["written"] += 1
        require(counts["written"] > 0, "dataset", spec.dataset, "has no conversation")
    return dict(counts)


def rows_of(spec: SourceSpec, report: Report) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of every row of a source."""
    if spec.dataset.startswith("hf:"):
        datasets = import_extra("datasets", "hf", f"to read {spec.dataset}")
        splits = load(datasets, spec)
        chosen, _ = choose_split(list(splits), spec, report)
        for number, row in enumerate(unbroken(splits[chosen], spec.dataset, report)):
            yield f"{spec.dataset}:{number}", dict(row)
        return
    for file in find_files(spec.dataset, spec.data_files):
        if file_format(file) == ".parquet":
            parquet = import_extra("pyarrow.parquet", "data", f"to read {file}")
            number = 0
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
        else:
            yield from json_rows(file)
