"""Shards and their index: exact records, and nothing foreign or damaged is ever opened."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_data import make_store, synthetic_source

from nested_jax.data.shards import INDEX, TokenStore, open_store, token_dtype
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer


def test_records_are_exact(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ["abc é", "", "x\n\ny"]
    store = make_store(tmp_path, tokenizer, {"a/train": [tokenizer.encode_batch(texts)]})
    (shard,) = store.shards
    ids = np.fromfile(tmp_path / shard.file, np.uint16)
    offsets = np.fromfile(tmp_path / shard.offsets_file, np.int64)
    assert (shard.tokens, shard.documents) == (len(ids), 3)
    assert offsets[-1] == len(ids)
    assert (ids[offsets[1:] - 1] == tokenizer.eos_id).all()
    parts = [ids[a : b - 1] for a, b in itertools.pairwise(offsets)]
    assert [tokenizer.decode(p) for p in parts] == texts
    assert shard.bytes == sum(len(t.encode()) for t in texts)
    targets = "".join(tokenizer.decode(p[1:]) for p in parts)
    assert shard.target_bytes == len(targets.encode())


def test_shards_from_before_there_were_symbols_are_read(store: TokenStore) -> None:
    index = json.loads((store.root / INDEX).read_text())
    for row in index["shards"]:
        for name in [name for name in row if name.startswith(("symbols", "mask"))]:
            del row[name]
    (store.root / INDEX).write_text(json.dumps(index))
    assert open_store(store.root).shards == store.shards


def test_dtype() -> None:
    assert [token_dtype(v) for v in (512, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize("suffix", ["bin", "doc"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "missing, and .*index.json names it"),
        (truncate, "truncated or foreign"),
        (flip, "damaged or foreign"),
    ],
)
def test_damaged_shard(store: TokenStore, suffix: str, damage: object, message: str) -> None:
    damage(store.root / f"code-train-00001.{suffix}")
    with pytest.raises(ValueError, match=rf"code-train-00001\.{suffix}: .*{message}"):
        open_store(store.root)


def test_foreign_tokenizer(store: TokenStore) -> None:
    other = train_tokenizer([synthetic_source(i) for i in range(30)], 400)
    (store.root / "tokenizer.model").write_bytes(other.model)
    with pytest.raises(ValueError, match="were written with the tokenizer"):
        open_store(store.root)


def edit(store: TokenStore, **fields: object) -> None:
    path = store.root / INDEX
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_an_index_of_an_earlier_version_opens(store: TokenStore) -> None:
    shards = json.loads((store.root / INDEX).read_text())["shards"]
    edit(store, shards=[{k: v for k, v in row.items() if "symbols" not in k} for row in shards])
    assert open_store(store.root).shards == store.shards


def test_bad_index(store: TokenStore, tmp_path: Path) -> None:
    edit(store, format=99)
    with pytest.raises(ValueError, match="format=99, this version reads format 1"):
        open_store(store.root)
    (store.root / INDEX).write_text('{"format": 1, "sha')
    with pytest.raises(ValueError, match="is not JSON"):
        open_store(store.root)
    (store.root / INDEX).write_text('{"format": 1}')
    with pytest.raises(
        ValueError, match=r"lacks dtype, tokenizer, shards, source; .*wants an index of shards"
    ):
        open_store(store.root)
    shutil.rmtree(store.root)
    with pytest.raises(ValueError, match=r"no index\.json there"):
        open_store(store.root)
