"""Texts by name or by place: the one reader of every task that is given text.

``--segments`` takes these, separated by commas; NAME=PLACE gives a place another name:

    all                  the corpora of the data root, `CORPORA`; or some of them by name
    run, run:web, web    all segments of the data that the checkpoint was trained on, or one; the
                         short form where no corpus has the name
    stdlib, stdlib:prose the embedded text, or a segment of it
    FILE, FOLDER         plain text, JSON lines (--text-key), Parquet, compressed or not
    FOLDER of shards     what ``python -m nested_jax.data shard`` wrote
    mixture.json[:NAME]  all sources of a mixture, or one
    list.yaml, list.json ``segments: [{name: a, path: texts/a, text_key: body}, ...]``, or a mapping
                         of names to places; places are relative to the list

Files, folders and rows that are named after a split belong to it. One plain text file alone is cut
as training cuts it; of all other texts the hash of the content decides, with --held-out as the
share of each held-out split. The split ``all`` is everything.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from eval.core.datasets import DataRoot, opening
from eval.core.flags import flag
from nested_jax.config import Config, DataConfig
from nested_jax.data.manifest import SourceSpec
from nested_jax.data.mixture import open_mixture
from nested_jax.data.pipeline import open_data
from nested_jax.data.prepare.text_sources import order_by_split, raw_records, source_root
from nested_jax.data.records import Problems, checked_row, json_rows, row_split
from nested_jax.data.shards import INDEX, TokenStore, open_store
from nested_jax.data.splits import HELD_OUT, SPLITS, split_of_content
from nested_jax.data.streams import file_format, find_files
from nested_jax.data.text.plain_text import cut, read_text
from nested_jax.data.text.wikitext import articles
from nested_jax.errors import require

Documents = Iterator[tuple[str, str]]  # id, text
ALL = "all"  # splits
JSON_LINES = (".jsonl", ".ndjson", ".json")
WIKITEXT = {
    "wikitext2": "lm/wikitext2/{split}.txt.gz",
    "wikitext103": "lm/wikitext103/{split}.txt.gz",
}
CORPORA = (
    "wikitext2",
    "encyclopedic_wikipedia",
    "literary_novels",
    "code",
    "web_gov_techdocs",
    "dialogue_sgd",
    "medical_medquad",
)
MORE = ("pg19", "wikitext103")  # of `python -m eval fetch`: large, and so no part of ``all``
NAMED = (*CORPORA, *MORE)
UNITS = ("line", "paragraph", "file")
LIST_KEYS = ("name", "path", "shards_dir", "text_key", "unit")
WANTS = (
    f"wants all, or some of {', '.join(NAMED)}; run, or segments of the checkpoint's data; stdlib; "
    "or a file, a folder, shards, a mixture.json, or a list in YAML or JSON"
)


class Segment(NamedTuple):
    """Texts under one name."""

    name: str
    read: Callable[[str], Documents]  # of a split, or of ``all``


@dataclass(frozen=True)
class Reading:
    """How plain texts and rows are read."""

    text_key: str = "text"
    unit: str = "file"  # of plain text: line, paragraph, file
    held_out: float = HELD_OUT
    flag: str = "--segments"  # that names the places, in messages


def documents(root: DataRoot, segment: str, split: str) -> Documents:
    """Yield (id, text) of a corpus of the data root; WikiText is one document an article."""
    if split == ALL:
        there = [s for s in SPLITS if root.has(corpus_file(segment, s))] or SPLITS[-1:]
        yield from ((f"{s}/{i}", t) for s in there for i, t in documents(root, segment, s))
    elif segment in WIKITEXT:
        lines = root.lines(corpus_file(segment, split))
        yield from ((f"{segment}-{i}", text) for i, text in enumerate(articles(lines)))
    else:
        rows = enumerate(root.rows(corpus_file(segment, split), text=str))
        yield from ((str(row.get("id", i)), row["text"]) for i, (_, row) in rows)


def corpus_file(segment: str, split: str) -> str:
    return WIKITEXT.get(segment, f"lm/{segment}/{{split}}.jsonl.gz").format(split=split)


def open_segments(
    flags: argparse.Namespace,
    root: DataRoot,
    cfg: Config | None,
    splits: Iterable[str],
    flag: str = "--segments",
) -> list[Segment]:
    """Return the segments of --segments, in their order, each once.

    Args:
      cfg: of the checkpoint, for the segments of its data; None has none.
      splits: that are read; one that a place of the user's lacks is said here, before any work.
      flag: what messages call it.
    Raises:
      ValueError: a name that stands for nothing, a place without text, two segments of one name.
    """
    require(flags.held_out < 0.5, "--held-out", flags.held_out, "wants a share below 0.5")
    reading = Reading(flags.text_key, flags.unit, flags.held_out, flag)
    found: list[Segment] = []
    for word in [part.strip() for part in flags.segments.split(",") if part.strip()] or [""]:
        more = opened(word, root, cfg, reading)
        places = word not in (ALL, *NAMED)
        for segment, split in itertools.product(more, splits if places else ()):
            next(segment.read(split))
        found += [segment for segment in more if places or segment.name not in names(found)]
    twice = [name for name in names(found) if names(found).count(name) > 1]
    want = f"two are called {twice[:1]}; wants NAME=PLACE"
    require(not twice, flag, flags.segments, want)
    return found


def names(segments: Iterable[Segment]) -> list[str]:
    return [segment.name for segment in segments]


def opened(word: str, root: DataRoot, cfg: Config | None, reading: Reading) -> list[Segment]:
    """Return the segments that one word of --segments stands for."""
    chosen = CORPORA if word == ALL else (word,) if word in NAMED else ()
    if chosen:
        return [Segment(name, partial(documents, root, name)) for name in chosen]
    name, equals, place = word.rpartition("=")
    found = at_place(place, reading)
    if not found and not equals:
        found = of_run(word, cfg)
    require(bool(found), reading.flag, word, WANTS)
    if equals:
        require(len(found) == 1, reading.flag, word, f"holds {len(found)} segments; wants PLACE")
        found = [found[0]._replace(name=name)]
    return found


def at_place(place: str, reading: Reading) -> list[Segment]:
    """Return the segments of a place; none where nothing is there."""
    if not place:
        return []
    head, _, part = place.partition(":")
    path = Path(place).expanduser()
    if head == "stdlib":
        store = open_data(DataConfig(source="stdlib"))
        return of_store(store, [part] if part else store.segments, place)
    if not path.exists() and Path(head).expanduser().exists() and part:
        path = Path(head).expanduser()
        return [one for one in at_place(str(path), reading) if one.name == part]
    if (path / INDEX).is_file():
        store = open_store(path)
        found = of_store(store, store.segments, place)
        return [found[0]._replace(name=path.resolve().name)] if len(found) == 1 else found
    if path.is_file() and path.suffix in (".json", ".yaml", ".yml"):
        listed = read_list(path)
        if listed is not None and "sources" in listed:
            store = open_mixture(path)
            return of_store(store, store.segments, place)
        if listed is not None:
            return [of_entry(*entry, path, reading) for entry in entries(listed, path)]
    if path.exists() or any(sign in place for sign in "*?["):
        return [of_text(path, reading)]
    return []


def of_run(word: str, cfg: Config | None) -> list[Segment]:
    """Return the segments of the data that a checkpoint was trained on: all of them, or one."""
    head, colon, part = word.partition(":")
    asked = head == "run" and (bool(part) or not colon)
    if cfg is None or cfg.data.is_synthetic:
        return []
    source = cfg.data.source
    if source != "stdlib" and not Path(source).expanduser().exists():
        require(not asked, "--segments", word, f"the data of the run, {source}, is not there")
        return []
    store = open_data(cfg.data)
    name = part if asked else word
    return of_store(store, [s for s in store.segments if name in ("", s)], source)


def of_store(store: TokenStore, chosen: Iterable[str], place: str) -> list[Segment]:
    """Return segments of shards; their text is what the tokens decode to, to the last byte."""

    def read(name: str, split: str) -> Documents:
        found = False
        for each in SPLITS if split == ALL else (split,):
            for shard in store.select(each, (name,)):
                opening((store.root / shard.file).parent / INDEX)
                tokens = np.memmap(store.root / shard.file, store.dtype, "r")
                offsets = np.fromfile(store.root / shard.offsets_file, np.int64)
                for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
                    found = True
                    yield f"{shard.file}:{i}", store.tokenizer.decode(tokens[start : stop - 1])
        require(found, "--segments", f"{place}:{name}", f"has no document of the split {split}")

    for name in chosen:
        require(name in store.segments, "--segments", place, f"has {', '.join(store.segments)}")
    return [Segment(name, partial(read, name)) for name in chosen]


# --- lists ---------------------------------------------------------------------------------------


def read_list(path: Path) -> dict[str, Any] | None:
    """Return the object of a list or of a mixture; None of a file that holds texts.

    Raises:
      ValueError: YAML that cannot be read.
    """
    opening(path)
    if path.suffix == ".json":
        try:
            data = json.loads(path.read_text("utf-8"))
        except ValueError:
            return None  # JSON lines; what is wrong with them is said where they are read
        listed = isinstance(data, dict) and ("sources" in data or "segments" in data)
        return data if listed else None
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    right = isinstance(data, dict) and bool(data)
    require(right, "--segments", str(path), "wants segments: [{name: NAME, path: PLACE}, ...]")
    return data


def entries(listed: dict[str, Any], path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (where, entry) of a list of segments."""
    rows = listed.get("segments", listed)
    if isinstance(rows, dict):
        rows = [{"name": name, "path": place} for name, place in rows.items()]
    require(isinstance(rows, list) and bool(rows), f"{path}: segments", rows, "wants a list")
    for i, row in enumerate(rows):
        where = f"{path}: segments[{i}]"
        right = isinstance(row, dict) and all(isinstance(v, str) for v in row.values())
        require(right, where, row, f"wants texts under {', '.join(LIST_KEYS)}")
        for key in row:
            require(key in LIST_KEYS, f"{where}.{key}", row[key], f"known: {', '.join(LIST_KEYS)}")
        places = [key for key in ("path", "shards_dir") if key in row]
        require(len(places) == 1, where, row, "wants one of path and shards_dir")
        yield where, row


def of_entry(where: str, row: dict[str, str], path: Path, reading: Reading) -> Segment:
    place = path.parent / Path(row.get("path") or row["shards_dir"]).expanduser()
    unit = row.get("unit", reading.unit)
    require(unit in UNITS, f"{where}.unit", unit, f"wants one of {', '.join(UNITS)}")
    own = replace(reading, text_key=row.get("text_key", reading.text_key), unit=unit)
    found = at_place(str(place), own)
    want = f"no text at {place}" if not found else "holds several segments; name one, as in a:web"
    require(len(found) == 1, where, row, want)
    return found[0]._replace(name=row.get("name", found[0].name))


# --- files ---------------------------------------------------------------------------------------


class Strict(Problems):
    """Refuses what it is told of: an evaluation wants every row."""

    def add(self, kind: str, where: str, why: str) -> None:
        raise ValueError(f"{where}: {why} ({kind})")

    def add_split(self, value: Any, where: str) -> None:
        raise ValueError(f"{where}: split={value!r}: wants a name of {', '.join(SPLITS)}")


def of_text(path: Path, reading: Reading) -> Segment:
    """Return the segment of a file, a folder or a glob."""
    files = find_files(str(path))
    name = path.name.partition(".")[0] or path.resolve().name
    lone = path.is_file() and file_format(path) not in (*JSON_LINES, ".parquet")

    def read(split: str) -> Documents:
        for file in files:
            opening(file)
        if lone and reading.unit == "file":
            texts = [(part.split, part.text) for part in cut(read_text(path))]
            whole = [(ALL, "".join(text for _, text in texts))]
            found = [(path.name, text) for own, text in (whole if split == ALL else texts)
                     if own == split and text.strip()]  # fmt: skip
            yield from found
            held = bool(found)
        else:
            held = False
            for key, text in rows_of(path, split, reading):
                held = True
                yield key, text
        if not held and split != ALL:
            next(read(ALL))  # raises where there is no text at all
        why = f"no text in {len(files)} file(s)" if split == ALL else (
            f"has no document of the split {split}; wants files, folders or rows named after a "
            "split, a larger --held-out, or the split all"
        )  # fmt: skip
        require(held, reading.flag, str(path), why)

    return Segment(name, read)


def rows_of(path: Path, split: str, reading: Reading) -> Documents:
    """Yield the documents of files that belong to a split."""
    wanted = "" if split == ALL else split
    unit: Any = reading.unit
    spec = SourceSpec(dataset=str(path), split=wanted, text_column=reading.text_key, unit=unit)
    root, problems = str(source_root(spec.dataset)), Strict(spec)
    for text, own, where in raw_records(spec, problems, lambda _: None, order_by_split(spec)):
        problems.read += 1
        part = own or split_of_content(text, reading.held_out)
        if text.strip() and wanted in ("", part):
            yield os.path.relpath(where.removesuffix(":file 1"), root), text


def labelled(word: str, reading: Reading, label_key: str, split: str) -> Iterator[tuple[str, str]]:
    """Yield (text, label) of the JSON lines of a place that belong to a split."""
    files = [file for file in find_files(word) if file_format(file) in JSON_LINES]
    require(
        bool(files), "--segments", word, "wants JSON lines, with a text and a label in each row"
    )
    spec = SourceSpec(dataset=word)
    for file, of_file in order_by_split(spec):
        opening(file)
        for where, row in json_rows(file) if file in files else ():
            checked_row(row, where, **{reading.text_key: str, label_key: str})
            text, own = row[reading.text_key], row_split(row.get("split"), where, Strict(spec))
            if split == (own or of_file or split_of_content(text, reading.held_out)):
                yield text, row[label_key]


SEGMENT_FLAG = flag("--segments", ALL, "names and places of text: docs/evaluation.md, Your text")
SPLIT_FLAG = flag("--split", "test", "of the texts", choices=(*SPLITS, ALL))
READING_FLAGS = (
    flag("--text-key", "text", "of JSON lines and Parquet"),
    flag("--unit", "file", "documents of plain text", choices=UNITS),
    flag("--held-out", HELD_OUT, "share of valid and of test, where no name decides", least=0.0),
)
TEXT_FLAGS = (SEGMENT_FLAG, *READING_FLAGS)
