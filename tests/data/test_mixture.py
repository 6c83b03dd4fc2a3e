"""Mixtures: one JSON over several folders of shards, pinned by hashes, sampled by weight."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from small_data import make_store, synthetic_source

from nested_jax.config import DataConfig
from nested_jax.data.manifest import Manifest, SourceSpec
from nested_jax.data.mixture import open_mixture, write_mixture
from nested_jax.data.packing import PackedSource
from nested_jax.data.pipeline import make_train_iterator, prepare
from nested_jax.data.prepare.audit import validate
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

RANGES = {"web": (0, 60), "code": (60, 90)}


def make_shards(folder: Path, tokenizer: Tokenizer, first: int, last: int) -> Path:
    encoded = tokenizer.encode_batch([synthetic_source(i) for i in range(first, last)])
    parts = {"x/train": [encoded[:-8]], "x/valid": [encoded[-8:-4]], "x/test": [encoded[-4:]]}
    make_store(folder, tokenizer, parts)
    return folder


@pytest.fixture
def mixture(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    folders = {
        name: make_shards(tmp_path / "data/shards" / name, tokenizer, *span)
        for name, span in RANGES.items()
    }
    manifest = Manifest(
        "two",
        (
            SourceSpec(name="web", key="RW", weight=3.0, license="CC0"),
            SourceSpec(name="code", weight=1.0),
        ),
    )
    write_mixture(manifest, folders, tmp_path / "data/mixture.json")
    return tmp_path / "data/mixture.json"


def test_what_the_file_says(mixture: Path) -> None:
    data = json.loads(mixture.read_text())
    web, code = data["sources"]
    assert (web["name"], web["weight"], web["license"]) == ("web", 3.0, "CC0")
    assert web["shards_dir"] == "shards/web"
    assert web["documents"] == {"train": 52, "valid": 4, "test": 4}
    texts = [synthetic_source(i).encode() for i in range(60, 90)]
    assert sum(code["bytes"].values()) == sum(map(len, texts))
    store = open_mixture(mixture)
    assert store.segments == ("web", "code")
    tokens = sum(s.tokens for s in store.select("train", ("code",)))
    assert code["tokens"]["train"] == tokens


def test_training_follows_the_weights(mixture: Path) -> None:
    cfg = DataConfig(source=str(mixture), seq_len=16)
    info = prepare(cfg)
    assert set(info.tokens) == {"web", "code"}
    store = open_mixture(mixture)
    source = PackedSource(store, store.select("train", ("web",)), seq_len=16, align=1)
    web = {source[i]["tokens_BT"].tobytes() for i in range(len(source))}
    batches = itertools.islice(make_train_iterator(cfg, batch_size=8, align=1, seed=0), 50)
    rows = [row.tobytes() for batch in batches for row in batch["tokens_BT"]]
    assert sum(row in web for row in rows) / len(rows) == pytest.approx(0.75, abs=0.01)
    only = DataConfig(source=str(mixture), seq_len=16, segments=("code",))
    batch = next(make_train_iterator(only, batch_size=8, align=1, seed=0))
    assert not any(row.tobytes() in web for row in batch["tokens_BT"])


def test_moved_whole_or_in_part(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = mixture.parent.rename(tmp_path / "moved") / mixture.name
    assert open_mixture(moved).segments == ("web", "code")
    (moved.parent / "shards/web").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"web.*no index\.json there"):
        open_mixture(moved)
    monkeypatch.setenv("NL_SHARD_DIR_RW", str(tmp_path / "elsewhere"))
    assert open_mixture(moved).segments == ("web", "code")


def test_other_shards_are_refused(mixture: Path, tokenizer: Tokenizer) -> None:
    make_shards(mixture.parent / "shards/web", tokenizer, 5, 40)
    with pytest.raises(ValueError, match=r"not the one that .*mixture\.json was made of"):
        open_mixture(mixture)


def test_one_tokenizer_for_all(mixture: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = train_tokenizer([synthetic_source(i) for i in range(30)], 390)
    folders = {
        "web": make_shards(tmp_path / "a", tokenizer, 0, 20),
        "code": make_shards(tmp_path / "b", other, 0, 20),
    }
    manifest = Manifest("m", (SourceSpec(name="web"), SourceSpec(name="code")))
    with pytest.raises(ValueError, match="were written with the tokenizer"):
        write_mixture(manifest, folders, tmp_path / "m.json")


def test_not_a_mixture(tmp_path: Path, mixture: Path) -> None:
    with pytest.raises(ValueError, match="is not JSON"):
        prepare(DataConfig(source=str(Path(__file__))))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"x.json: lacks format, name, tokenizer, sources.*wants a mixture"
    ):
        prepare(DataConfig(source=str(tmp_path / "x.json")))
    data = json.loads(mixture.read_text())
    del data["sources"][0]["weight"]
    mixture.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"sources\[0\]: lacks weight"):
        open_mixture(mixture)


def test_validation_finds_shared_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [synthetic_source(i) for i in range(100)]
    encoded = tokenizer.encode_batch(texts)
    store = make_store(
        tmp_path / "s",
        tokenizer,
        {
            "a/train": [encoded[:40]],
            "a/valid": [encoded[40:50]],
            "b/train": [encoded[50:80] + encoded[30:40]],
            "b/valid": [encoded[50:55]],
            "c/train": [encoded[80:100]],
        },
    )
    report = validate(store, 0.05)
    found = {tuple(entry["pair"]): entry for entry in report["content_overlap"]}
    # 10 of the 40 documents of b are in a, whose documents are 50.
    sizes = [len(ids) - 23 + 1 for ids in encoded]
    shared = sum(sizes[30:40]) / sum(sizes[50:80] + sizes[30:40])
    assert found["a", "b"]["contained"] == pytest.approx(shared, abs=0.05)
    assert "warning" in found["a", "b"]
    assert found["b/train", "b/valid"]["contained"] > 0.9
    assert found["a", "c"]["contained"] < 0.02
    assert "warning" not in found["a/train", "a/valid"]


def test_validation_finds_wrong_documents(store: object) -> None:
    shard = store.shards[0]
    path = store.root / shard.file
    ids = np.fromfile(path, store.dtype)
    ids[ids == store.tokenizer.eos_id] = 7
    ids.tofile(path)
    with pytest.raises(ValueError, match="damaged or foreign"):
        validate(store, 0.05)
