"""Mixtures: several folders of shards under one JSON file that says what each one is and weighs.

A source of the mixture is a segment of the data: ``data.source=mixture.json`` trains on all of them
by weight, ``data.segments`` picks some.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nested_jax.data.manifest import Manifest, SourceSpec
from nested_jax.data.records import checked_row
from nested_jax.data.shards import (
    FORMAT,
    INDEX,
    TokenStore,
    check_tokenizer,
    open_store,
    read_json,
)
from nested_jax.data.splits import SPLITS
from nested_jax.errors import require
from nested_jax.files import file_sha256, git_commit, write_json

COUNTS = ("tokens", "documents", "bytes")
SOURCE_KEYS = {"name": str, "key": str, "shards_dir": str, "weight": float, "index_sha256": str}


def shard_folder(spec: SourceSpec, root: Path) -> Path:
    """Return where the shards of a source are: NL_SHARD_DIR_KEY, or its folder below `root`."""
    return Path(os.environ.get(f"NL_SHARD_DIR_{spec.env_key}") or root / spec.name)


def write_mixture(manifest: Manifest, folders: Mapping[str, Path], output: Path) -> dict[str, Any]:
    """Write the JSON of a mixture from the shards of its sources, and return it.

    Paths are relative to the file where they can be, so that a folder of data can be moved whole.

    Raises:
      ValueError: shards that are missing or damaged, or that different tokenizers wrote.
    """
    stores = {spec.name: open_store(folders[spec.name]) for spec in manifest.sources}
    first = next(iter(stores.values()))
    for store in stores.values():
        check_tokenizer(store.tokenizer, store.tokenizer_path, first.tokenizer.hash, first.root)
    mixture = {
        "format": FORMAT,
        "name": manifest.name,
        "git_commit": git_commit(),  # of the code that prepared the data
        "tokenizer": {
            "sha256": first.tokenizer.hash,
            "vocab_size": first.tokenizer.vocab_size,
        },
        "sources": [describe(spec, stores[spec.name], output) for spec in manifest.sources],
    }
    write_json(output, mixture)
    return mixture


def relative(path: Path, output: Path) -> str:
    """Return `path` as seen from the folder of `output`; absolute if that is on another drive."""
    try:
        return Path(os.path.relpath(path.resolve(), output.parent.resolve())).as_posix()
    except ValueError:
        return str(path.resolve())


def describe(spec: SourceSpec, store: TokenStore, output: Path) -> dict[str, Any]:
    """Return the entry of one source."""
    counts = {
        name: {
            split: sum(getattr(shard, name) for shard in store.select(split)) for split in SPLITS
        }
        for name in COUNTS
    }
    return {
        "name": spec.name,
        "key": spec.env_key,
        "shards_dir": relative(store.root, output),
        "weight": spec.weight,
        "license": spec.license,
        "url": spec.url,
        "dataset": spec.dataset,
        **counts,
        "shards": len(store.shards),
        "index_sha256": file_sha256(store.root / INDEX),
    }


def open_mixture(path: Path) -> TokenStore:
    """Open all sources of a mixture as one dataset, checked as `open_store` checks each.

    Raises:
      ValueError: no such file, not a mixture, shards that are not the ones it was made of.
    """
    mixture = read_json(path, "a mixture", name=str, tokenizer=dict, sources=list)
    checked_row(mixture["tokenizer"], f"{path}: tokenizer", sha256=str)
    stores, shards, weights, piece_bytes = {}, [], {}, {}
    for number, entry in enumerate(mixture["sources"]):
        where = f"{path}: sources[{number}]"
        name = checked_row(entry, where, **SOURCE_KEYS)["name"]
        require(name not in stores, f"{where}: name", name, "is there already")
        require(entry["weight"] > 0, f"{where}: weight", entry["weight"], "wants one above 0")
        store = stores[name] = open_source(path, entry)
        check_tokenizer(store.tokenizer, store.tokenizer_path, mixture["tokenizer"]["sha256"], path)
        folder = store.root.resolve()
        shards += [replace(s, segment=name, file=str(folder / s.file)) for s in store.shards]
        weights[name] = float(entry["weight"])
        piece_bytes.update(store.source.get("piece_bytes", {}))
    if not stores:
        raise ValueError(f"{path}: has no sources")
    first = next(iter(stores.values()))
    about = {name: store.source for name, store in stores.items()}
    return TokenStore(
        root=path.parent,
        dtype=first.dtype,
        tokenizer=first.tokenizer,
        tokenizer_path=first.tokenizer_path,
        shards=tuple(shards),
        weights=weights,
        source={"name": mixture["name"], "sources": about, "piece_bytes": piece_bytes},
    )


def open_source(path: Path, entry: Mapping[str, Any]) -> TokenStore:
    """Open the shards of one entry; they must be the ones that the mixture was made of."""
    moved = os.environ.get(f"NL_SHARD_DIR_{entry['key']}")
    folder = Path(moved or path.parent / entry["shards_dir"])
    store = open_store(folder)
    if file_sha256(folder / INDEX) != entry["index_sha256"]:
        raise ValueError(
            f"{folder / INDEX}: not the one that {path} was made of; make the mixture again with "
            "`python -m nested_jax.data mixture`"
        )
    return store
