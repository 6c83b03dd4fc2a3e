"""Looks back at prepared data: are the shards whole, what is in them, and do sources share text.

Shared text is found by content. Each set of shards is reduced to the least hashes of its token
n-grams (a bottom-k sketch, Broder 1997), from which the similarity of two sets is estimated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nested_jax.data.packing import map_tokens
from nested_jax.data.prepare.filters import mix, ngram_hashes
from nested_jax.data.shards import Shard, TokenStore, check_shard
from nested_jax.data.splits import SPLITS
from nested_jax.files import file_sha256

NGRAM = 24  # tokens; long enough that chance and set phrases do not count
SKETCH = 1 << 18  # hashes of a sketch: the estimates' standard error is below 0.002
CHUNK = 1 << 20  # tokens that are held at a time
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def stats(store: TokenStore) -> dict[str, Any]:
    """Return counts by segment and split, and the lengths of documents in tokens."""
    rows = []
    for segment, split in itertools.product(store.segments, SPLITS):
        shards = store.select(split, (segment,))
        if not shards:
            continue
        lengths = np.concatenate([document_lengths(store, shard) for shard in shards])
        tokens, size = int(lengths.sum()), sum(shard.bytes for shard in shards)
        rows.append(
            {
                "segment": segment,
                "split": split,
                "documents": len(lengths),
                "tokens": tokens,
                "bytes": size,
                "bytes_per_token": round(size / max(1, tokens - len(lengths)), 4),
                "document_tokens": [int(q) for q in np.quantile(lengths, QUANTILES)],
                "shards": len(shards),
                "weight": store.weights.get(segment),
            }
        )
    return {
        "root": str(store.root),
        "dtype": store.dtype,
        "tokenizer": {"path": str(store.tokenizer_path), "sha256": store.tokenizer.hash},
        "vocab_size": store.tokenizer.vocab_size,
        "tokens": sum(shard.tokens for shard in store.shards),
        "documents": sum(shard.documents for shard in store.shards),
        "bytes": sum(shard.bytes for shard in store.shards),
        "rows": rows,
    }


def document_lengths(store: TokenStore, shard: Shard) -> np.ndarray:
    """Return int64 [documents]: tokens of each document, with its EOS."""
    return np.diff(np.fromfile(store.root / shard.offsets_file, np.int64))


def validate(store: TokenStore, overlap_threshold: float) -> dict[str, Any]:
    """Check every shard in full and measure what sources and splits share.

    Returns:
      A report: the sources with their files and bytes, and an entry for every pair of sources, and
      for train against the held-out splits of each, with a warning beyond the threshold.
    Raises:
      ValueError: a shard that is missing, damaged or foreign, or whose documents do not end in EOS.
    """
    for shard in store.shards:
        check_shard(store, shard, contents=True)
        check_documents(store, shard)
    sources = []
    for segment in store.segments:
        shards = [shard for shard in store.shards if shard.segment == segment]
        files = [store.root / name for s in shards for name in (s.file, s.offsets_file)]
        sources.append(
            {
                "name": segment,
                "exists": True,
                "files": len(files),
                "bytes": sum(file.stat().st_size for file in files),
                "tokens": sum(shard.tokens for shard in shards),
                "documents": sum(shard.documents for shard in shards),
                "weight": store.weights.get(segment),
            }
        )
    return {
        "root": str(store.root),
        "tokenizer_sha256": file_sha256(store.tokenizer_path),
        "sources": sources,
        "content_overlap": content_overlap(store, overlap_threshold),
    }


def check_documents(store: TokenStore, shard: Shard) -> None:
    """Raise unless every document is in the vocabulary and has its one EOS at its end."""
    path = store.root / shard.file
    offsets = np.fromfile(store.root / shard.offsets_file, np.int64)
    eos = 0
    for piece in token_chunks(path, store.dtype):
        if len(piece) and int(piece.max()) >= store.tokenizer.vocab_size:
            raise ValueError(
                f"{path}: token {int(piece.max())} is beyond the tokenizer's "
                f"{store.tokenizer.vocab_size} symbols"
            )
        eos += int((piece == store.tokenizer.eos_id).sum())
    ends = map_tokens(path, store.dtype)[offsets[1:] - 1]
    if not (ends == store.tokenizer.eos_id).all() or eos != shard.documents:
        raise ValueError(f"{path}: documents do not end where {shard.offsets_file} says")


def token_chunks(path: Path, dtype: str, overlap: int = 0) -> Iterator[np.ndarray]:
    """Yield the tokens of a shard in pieces; each repeats the last `overlap` of the one before."""
    tokens = map_tokens(path, dtype)
    for start in range(0, max(1, len(tokens) - overlap), CHUNK):
        yield np.asarray(tokens[start : start + CHUNK + overlap])


def content_overlap(store: TokenStore, threshold: float) -> list[dict[str, Any]]:
    """Return the shared n-grams of every pair of segments, and of train with valid and test."""
    split_sketches = {
        (segment, split): sketch(store, store.select(split, (segment,)))
        for segment, split in itertools.product(store.segments, SPLITS)
    }
    whole = {
        segment: np.unique(np.concatenate([split_sketches[segment, split] for split in SPLITS]))
        for segment in store.segments
    }
    pairs = [
        ((a, b), whole[a][:SKETCH], whole[b][:SKETCH])
        for a, b in itertools.combinations(store.segments, 2)
    ]
    for segment in store.segments:
        train, *held_out = (split_sketches[segment, split] for split in SPLITS)
        for split, hashes in zip(SPLITS[1:], held_out, strict=True):
            if len(hashes):
                pairs.append(((f"{segment}/train", f"{segment}/{split}"), train, hashes))
    return [overlap_entry(names, a, b, threshold) for names, a, b in pairs]


def sketch(store: TokenStore, shards: Sequence[Shard]) -> np.ndarray:
    """Return uint64, sorted: the SKETCH least hashes of the n-grams of tokens."""
    least = np.empty(0, np.uint64)
    for shard in shards:
        for piece in token_chunks(store.root / shard.file, store.dtype, overlap=NGRAM - 1):
            grams = ngram_hashes(mix(piece.astype(np.uint64)), NGRAM)
            if len(least) == SKETCH:
                grams = grams[grams < least[-1]]
            least = np.unique(np.concatenate([least, grams]))[:SKETCH]
    return least


def overlap_entry(
    names: tuple[str, str], a: np.ndarray, b: np.ndarray, threshold: float
) -> dict[str, Any]:
    """Return the estimated Jaccard similarity of two sketches, and the share of the smaller set."""
    ends = [s[-1] for s in (a, b) if len(s) == SKETCH]
    if ends:  # below the lower end both sketches are complete
        a, b = (s[s <= min(ends)] for s in (a, b))
    shared = len(np.intersect1d(a, b, assume_unique=True))
    jaccard = shared / max(1, len(a) + len(b) - shared)
    contained = shared / max(1, min(len(a), len(b)))
    entry: dict[str, Any] = {
        "pair": list(names),
        "jaccard": round(jaccard, 5),
        "contained": round(contained, 5),
    }
    if max(jaccard, contained) > threshold:
        entry["warning"] = f"shares more than {threshold:g} of its text"
    return entry
