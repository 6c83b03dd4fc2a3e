"""Ray Data: its local runner gives the same documents as the local programs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_data import synthetic_source

from nested_jax.data.manifest import SourceSpec
from nested_jax.data.prepare.engine import EngineOptions, copy_store, run_engine
from nested_jax.data.prepare.filtering import FilterOptions, filter_source
from nested_jax.data.prepare.shard_block import ShardOptions
from nested_jax.data.prepare.shard_corpus import shard_source
from nested_jax.data.shards import TokenStore, open_store
from nested_jax.data.tokenizers.tokenizer import Tokenizer


def quiet(_: str) -> None:
    pass


def documents(store: TokenStore) -> Counter[tuple[str, bytes]]:
    found: Counter[tuple[str, bytes]] = Counter()
    for shard in store.shards:
        ids = np.fromfile(store.root / shard.file, store.dtype)
        offsets = np.fromfile(store.root / shard.offsets_file, np.int64)
        for part in np.split(ids, offsets[1:-1]):
            found[shard.split, part.tobytes()] += 1
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(3):
        texts = [synthetic_source(i) for i in range(number * 30, number * 30 + 40)]  # 10 copies
        texts += ["", "x"]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"part-{number}.jsonl").write_text(lines)
    return folder


def test_without_ray(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    options = EngineOptions(str(tmp_path / "out"), tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match=r"ray is not installed .*pip install"):
        run_engine(SourceSpec(dataset=str(corpus)), options, quiet)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_equals_the_local_programs(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    model = tmp_path / "tokenizer.model"
    model.write_bytes(tokenizer.model)
    spec = SourceSpec(name="c", dataset=str(corpus), rules="none", min_chars=5)
    filtering = FilterOptions(similarity=0.0)
    sharding = ShardOptions(block_chars=5000)
    url = f"file://{tmp_path / 'remote'}"
    try:
        counts = run_engine(spec, EngineOptions(url, model, "", filtering, sharding), quiet)
    finally:
        ray.shutdown()
    copy_store(url, str(tmp_path / "fetched"), quiet)

    filter_source(spec, tmp_path / "kept.jsonl", filtering, quiet)
    local = SourceSpec(name="c", dataset=str(tmp_path / "kept.jsonl"))
    store = shard_source(local, model, tmp_path / "local", sharding, quiet)
    assert documents(open_store(tmp_path / "fetched")) == documents(store)
    assert counts["records"] == 100
    assert counts["dropped"] == {"too_short": 3, "duplicates": 20}
