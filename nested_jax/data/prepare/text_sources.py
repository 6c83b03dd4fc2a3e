"""Documents of a source, one after the other, in an order that never changes.

Local text, JSON lines and Parquet (also compressed), the embedded text, and Hugging Face data
sets. What cannot be read is counted by its kind; too much of it stops the reading.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec, spec_dict
from nested_jax.data.prepare.hf_source import hf_records
from nested_jax.data.records import (
    MAX_DOCUMENT_BYTES,
    Problems,
    Record,
    json_rows,
    row_record,
)
from nested_jax.data.splits import SPLITS, split_of_name, split_of_path
from nested_jax.data.streams import (
    bounded_lines,
    file_format,
    find_files,
    open_stream,
)
from nested_jax.data.text.stdlib_text import collect, library_sha256, stdlib_root
from nested_jax.errors import import_extra

READING = 2  # raised where the same files come to give other documents or splits
HELD_OUT_FIRST = SPLITS[::-1]  # so that deduplication takes from train

Files = list[tuple[Path, str | None]]  # with the splits that their names tell
Found = Iterator[tuple[str, str | None, str]]  # text, split, where


def records(
    spec: SourceSpec, problems: Problems, report: Report, files: Files | None = None
) -> Generator[Record, None, None]:
    """Yield the documents of a source that can be read; the others are counted.

    Args:
      files: the part of a local source that is read; None is all of it.
    Raises:
      ValueError: nothing there, a wrong column, a damaged file, too many unreadable records, or
        none of ``spec.split``.
    """
    wanted = wanted_split(spec)
    found = False
    for text, split, _ in raw_records(spec, problems, report, files):
        problems.read += 1
        if not text:
            problems.empty += 1
        elif wanted in ("", split):
            found = True
            yield Record(text, split)
    if wanted and not found and files is None:
        raise ValueError(
            f"split={spec.split!r}: no file and no record of {spec.dataset} has that split; leave "
            "it out to read all, and the content of a document decides its split"
        )


def wanted_split(spec: SourceSpec) -> str:
    """Return the split of local text that is read, "" for all; the Hub's have names of their own.

    Raises:
      ValueError: a name that stands for no split.
    """
    if not spec.split or spec.dataset.startswith("hf:"):
        return ""
    split = split_of_name(spec.split)
    if split is None:
        raise ValueError(f"split={spec.split!r}: wants a name of train, valid or test")
    return split


def local_files(spec: SourceSpec) -> list[Path]:
    """Return the files that a source reads; none where it is no local text."""
    local = spec.dataset and spec.dataset.partition(":")[0] not in ("stdlib", "hf")
    return find_files(spec.dataset, spec.data_files) if local else []


def fingerprint(spec: SourceSpec) -> list[Any]:
    """Return what identifies the text of a source, without reading it: files, sizes and times."""
    if spec.dataset.partition(":")[0] == "stdlib":
        inputs: list[Any] = [library_sha256(stdlib_root())]
    elif spec.dataset.startswith("hf:"):
        root = Path(spec.dataset.removeprefix("hf:"))
        inputs = stats_of([path for path in sorted(root.rglob("*")) if path.is_file()], root)
    else:
        files = find_files(spec.dataset, spec.data_files)
        inputs = stats_of(files, source_root(spec.dataset))
    unused = dict.fromkeys(("weight", "license", "url", "sample_limit"))  # they change no text
    return [READING, {**spec_dict(spec), **unused}, inputs]


def stats_of(files: Sequence[Path], root: Path = Path()) -> list[tuple[str, int, int]]:
    """Return the name as seen from `root`, the size and the time of every file."""
    stats = [(os.path.relpath(file, root), file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def plan_hash(*parts: Any) -> str:
    """Return a hash of JSON data that decides an output: equal plans need not be run again."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def raw_records(spec: SourceSpec, problems: Problems, report: Report, files: Files | None) -> Found:
    """Yield (text, split, where) of every record that has a text."""
    if not spec.dataset:
        raise ValueError("dataset='': wants a file, a folder, a glob, 'stdlib' or 'hf:NAME'")
    if spec.dataset.partition(":")[0] == "stdlib":
        yield from embedded_records(spec)
    elif spec.dataset.startswith("hf:"):
        yield from hf_records(spec, problems, report)
    else:
        for path, split in order_by_split(spec) if files is None else files:
            for text, own_split, where in file_records(path, spec, problems):
                yield text, own_split or split, where


def embedded_records(spec: SourceSpec) -> Found:
    segment = spec.dataset.partition(":")[2]
    documents = collect(stdlib_root()).documents
    known = sorted({document.segment for document in documents})
    if segment and segment not in known:
        raise ValueError(
            f"dataset={spec.dataset!r}: the embedded text has no segment {segment!r}; it has "
            f"{', '.join(known)}"
        )
    for document in documents:
        if not segment or document.segment == segment:
            yield document.text, None, document.sha256[:12]


def order_by_split(spec: SourceSpec) -> Files:
    """Return the files of a source with the splits that their names tell, held-out ones first.

    A name is the path below the folder of the source, or below what a glob leaves open. A file that
    names none (None) leaves it to its records.
    """
    files = find_files(spec.dataset, spec.data_files)
    root = source_root(spec.dataset)
    named = [(file, split_of_path(file.relative_to(root))) for file in files]
    wanted = wanted_split(spec)
    if wanted:
        named = [(file, split) for file, split in named if split in (wanted, None)]
    rank = {split: place for place, split in enumerate((*HELD_OUT_FIRST, None))}
    return sorted(named, key=lambda item: rank[item[1]])


def source_root(dataset: str) -> Path:
    """Return the folder below which the names of a source's files count."""
    path = Path(dataset).expanduser()
    if path.is_dir():
        return path
    parts = path.parent.parts
    open_ = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    return Path(*parts[:open_])


def file_records(path: Path, spec: SourceSpec, problems: Problems) -> Found:
    """Yield the records of one local file."""
    kind = file_format(path)
    if kind == ".parquet":
        yield from parquet_records(path, spec, problems)
    elif kind in (".jsonl", ".ndjson", ".json"):
        for where, row in json_rows(path, problems.add):
            yield from row_record(row, where, spec, problems)
    else:
        with open_stream(path) as stream:
            yield from text_records(stream, path, spec, problems)


def parquet_records(path: Path, spec: SourceSpec, problems: Problems) -> Found:
    parquet = import_extra("pyarrow.parquet", "data", f"to read {path}")
    arrow = import_extra("pyarrow", "data", f"to read {path}")
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if spec.text_column not in names:
            raise ValueError(
                f"{path}: text_column={spec.text_column!r} is not there; the columns are "
                f"{', '.join(names)}"
            )
        columns = [name for name in (spec.text_column, "split") if name in names]
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield from row_record(row, f"{path}:{number}", spec, problems)
    except arrow.ArrowException as error:
        raise ValueError(f"{path}: truncated or damaged Parquet file ({error})") from error


def text_records(stream: IO[bytes], path: Path, spec: SourceSpec, problems: Problems) -> Found:
    """Yield the documents of a plain text file: its lines, its paragraphs, or the file itself."""
    if spec.unit == "file":
        documents: Iterable[bytes | None] = [whole_file(stream)]
    elif spec.unit == "line":
        documents = bounded_lines(stream, MAX_DOCUMENT_BYTES)
    else:
        documents = paragraphs(bounded_lines(stream, MAX_DOCUMENT_BYTES))
    for number, document in enumerate(documents, 1):
        where = f"{path}:{spec.unit} {number}"
        if document is None:
            problems.add("giant", where, f"is longer than {MAX_DOCUMENT_BYTES:,} bytes")
            continue
        try:
            text = document.decode()
        except UnicodeDecodeError as error:
            problems.add("undecodable", where, f"is not UTF-8: {error.reason}")
        else:
            yield text, None, where


def whole_file(stream: IO[bytes]) -> bytes | None:
    data = stream.read(MAX_DOCUMENT_BYTES + 1)
    return None if len(data) > MAX_DOCUMENT_BYTES else data


def paragraphs(lines: Iterable[bytes | None]) -> Iterator[bytes | None]:
    """Join the lines between blank ones; None where a paragraph, or a line in it, is too long."""
    block: list[bytes] = []
    size, giant = 0, False
    for line in lines:
        if line is not None and not line.strip():
            if block or giant:
                yield None if giant else b"\n".join(block)
            block, size, giant = [], 0, False
            continue
        size += len(line or b"") + 1
        giant = giant or line is None or size > MAX_DOCUMENT_BYTES
        block = [] if giant else [*block, line or b""]
    if block or giant:
        yield None if giant else b"\n".join(block)
