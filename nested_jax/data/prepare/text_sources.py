"""Documents of a source, one after the other, in an order that never changes.

Local text, JSON lines and Parquet (also .gz and .zst), the embedded text, and Hugging Face data
sets. What cannot be read is counted by its kind; too much of it stops the reading.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from nested_jax.data.cache import Report
from nested_jax.data.manifest import SourceSpec, spec_dict
from nested_jax.data.prepare.readers import (
    bounded_lines,
    file_format,
    find_files,
    import_extra,
    open_stream,
)
from nested_jax.data.text.stdlib_text import collect, library_sha256, stdlib_root

MAX_DOCUMENT_BYTES = 64 << 20  # a longer one is counted as `giant` and left out
BAD_GRACE = 10  # unreadable records that are always tolerated
SPLIT_NAME = re.compile(r"(train|valid|validation|val|dev|test)(?![a-z])")
SPLIT_OF_NAME = {"validation": "valid", "val": "valid", "dev": "valid"}
HELD_OUT_FIRST = ("test", "valid", "train")  # so that deduplication takes from train


class Record(NamedTuple):
    """One document and the split that its source puts it in; None lets its content decide."""

    text: str
    split: str | None = None


class Problems:
    """Counts of unreadable records by kind, and the threshold above which reading stops."""

    KINDS = ("undecodable", "broken_json", "no_text", "giant")

    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec
        self.read = 0  # records, with the unreadable ones
        self.empty = 0  # not an error
        self.counts: Counter[str] = Counter(dict.fromkeys(self.KINDS, 0))
        self.first: dict[str, str] = {}  # kind -> where it was first met

    def add(self, kind: str, where: str) -> None:
        """Count one unreadable record.

        Raises:
          ValueError: more than the share ``max_bad`` of the records so far.
        """
        self.counts[kind] += 1
        self.first.setdefault(kind, where)
        bad = self.counts.total()
        if bad > BAD_GRACE and bad > self.spec.max_bad * self.read:
            raise ValueError(
                f"{self.spec.dataset}: {bad} of the first {self.read} records cannot be read "
                f"({self.summary()}); more than max_bad={self.spec.max_bad:g}, so reading stops"
            )

    def summary(self) -> str:
        return ", ".join(
            f"{count} {kind}, first at {self.first[kind]}"
            for kind, count in self.counts.items()
            if count
        )

    def as_dict(self) -> dict[str, Any]:
        return {"read": self.read, "empty": self.empty, **self.counts, "first": dict(self.first)}


def records(spec: SourceSpec, problems: Problems, report: Report) -> Generator[Record, None, None]:
    """Yield the documents of a source that can be read; the others are counted.

    Raises:
      ValueError: nothing there, a wrong column, a damaged file, too many unreadable records.
    """
    for text, split, where in raw_records(spec, problems, report):
        problems.read += 1
        if not text:
            problems.empty += 1
        elif not encodable(text):
            problems.add("undecodable", where)
        else:
            yield Record(text, split)


def encodable(text: str) -> bool:
    """Return whether the text is UTF-8: JSON can smuggle in lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fingerprint(spec: SourceSpec) -> list[Any]:
    """Return what identifies the text of a source, without reading it: files, sizes and times."""
    if spec.dataset.startswith("hf:"):
        inputs: list[Any] = []
    elif spec.dataset.partition(":")[0] == "stdlib":
        inputs = [library_sha256(stdlib_root())]
    else:
        stats = [(file, file.stat()) for file in find_files(spec.dataset, spec.data_files)]
        inputs = [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    unused = dict.fromkeys(("weight", "license", "url", "sample_limit"))  # they change no text
    return [{**spec_dict(spec), **unused}, inputs]


def plan_hash(*parts: Any) -> str:
    """Return a hash of JSON data that decides an output: equal plans need not be run again."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def raw_records(
    spec: SourceSpec, problems: Problems, report: Report
) -> Iterator[tuple[str, str | None, str]]:
    """Yield (text, split, where) of every record that has a text."""
    if not spec.dataset:
        raise ValueError("dataset='': wants a file, a folder, a glob, 'stdlib' or 'hf:NAME'")
    if spec.dataset.partition(":")[0] == "stdlib":
        yield from embedded_records(spec)
    elif spec.dataset.startswith("hf:"):
        from nested_jax.data.prepare.hf_source import hf_records

        yield from hf_records(spec, problems, report)
    else:
        files = find_files(spec.dataset, spec.data_files)
        for path, split in order_by_split(files, spec.split):
            for text, own_split, where in file_records(path, spec, problems):
                yield text, own_split or split, where


def embedded_records(spec: SourceSpec) -> Iterator[tuple[str, str | None, str]]:
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


def order_by_split(files: list[Path], wanted: str) -> list[tuple[Path, str | None]]:
    """Return the files with the splits that their names tell, held-out ones first.

    Names count only where they tell of training files too: ``train.jsonl.gz`` beside
    ``valid.jsonl.gz``. Other files have no split of their own (None).
    """
    named = [(file, name_split(file)) for file in files]
    if not any(split == "train" for _, split in named):
        named = [(file, None) for file in files]
    elif wanted:
        wanted = SPLIT_OF_NAME.get(wanted, wanted)
        named = [(file, split) for file, split in named if split == wanted]
        if not named:
            raise ValueError(f"split={wanted!r}: no file of that split among {files[0].parent}")
    rank = {split: place for place, split in enumerate((*HELD_OUT_FIRST, None))}
    return sorted(named, key=lambda item: rank[item[1]])


def name_split(file: Path) -> str | None:
    match = SPLIT_NAME.match(file.name.lower())
    return SPLIT_OF_NAME.get(match[1], match[1]) if match else None


def file_records(
    path: Path, spec: SourceSpec, problems: Problems
) -> Iterator[tuple[str, str | None, str]]:
    """Yield the records of one local file."""
    kind = file_format(path)
    if kind == ".parquet":
        yield from parquet_records(path, spec, problems)
        return
    with open_stream(path) as stream:
        if kind in (".jsonl", ".ndjson", ".json"):
            yield from json_records(stream, path, spec, problems)
        else:
            yield from text_records(stream, path, spec, problems)


def json_records(
    stream: IO[bytes], path: Path, spec: SourceSpec, problems: Problems
) -> Iterator[tuple[str, str | None, str]]:
    for number, line in enumerate(bounded_lines(stream, MAX_DOCUMENT_BYTES), 1):
        where = f"{path.name}:{number}"
        if line is None:
            count_bad(problems, "giant", where)
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError:
            count_bad(problems, "undecodable", where)
            continue
        except ValueError:
            count_bad(problems, "broken_json", where)
            continue
        yield from row_record(row, where, spec, problems)


def row_record(
    row: Any, where: str, spec: SourceSpec, problems: Problems
) -> Iterator[tuple[str, str | None, str]]:
    """Yield the record of one table row, or count it; a first row without the column raises."""
    column = spec.text_column
    if isinstance(row, dict) and isinstance(row.get(column), str):
        split = row.get("split")
        yield row[column], split if split in HELD_OUT_FIRST else None, where
    elif problems.read == 0 and not (isinstance(row, dict) and column in row):
        found = f"columns {', '.join(row)}" if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: text_column={column!r} is not there; the record has {found}")
    else:
        count_bad(problems, "no_text", where)


def parquet_records(
    path: Path, spec: SourceSpec, problems: Problems
) -> Iterator[tuple[str, str | None, str]]:
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
                yield from row_record(row, f"{path.name}:{number}", spec, problems)
    except arrow.ArrowException as error:
        raise ValueError(f"{path}: truncated or damaged Parquet file ({error})") from error


def text_records(
    stream: IO[bytes], path: Path, spec: SourceSpec, problems: Problems
) -> Iterator[tuple[str, str | None, str]]:
    """Yield the documents of a plain text file: its lines, its paragraphs, or the file itself."""
    if spec.unit == "file":
        documents: Iterable[bytes | None] = [whole_file(stream)]
    elif spec.unit == "line":
        documents = bounded_lines(stream, MAX_DOCUMENT_BYTES)
    else:
        documents = paragraphs(bounded_lines(stream, MAX_DOCUMENT_BYTES))
    for number, document in enumerate(documents, 1):
        where = f"{path.name}:{spec.unit} {number}"
        if document is None:
            count_bad(problems, "giant", where)
            continue
        try:
            yield document.decode(), None, where
        except UnicodeDecodeError:
            count_bad(problems, "undecodable", where)


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


def count_bad(problems: Problems, kind: str, where: str) -> None:
    problems.read += 1
    problems.add(kind, where)
