"""Compared models are scored on the same text, and the hashes that say so."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nested_jax.config import BLOCKS, Config, DataConfig, TaskConfig, from_config_dict
from nested_jax.data.held_out import valid_batches
from nested_jax.data.identity import train_order_sha256, valid_tasks_sha256, valid_text_sha256
from nested_jax.data.packing import Row
from nested_jax.data.pipeline import make_train_iterator, prepare
from nested_jax.data.shards import TokenStore, open_store
from nested_jax.data.synthetic.rows import task_of
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from tests.data.conftest import make_store, synthetic_shards

WRITTEN = {"mode": "exact", "chunk": 8}
VARIANTS = {
    f"{block}, {teach['mode']}, chunks of {chunk}": (block, teach, chunk)
    for block in BLOCKS
    for teach in ({"mode": "off"}, WRITTEN)
    for chunk in (4, 16)
}


def model(block: str, teach: Mapping[str, Any], chunk: int, store: TokenStore) -> Config:
    memory = {"chunk": chunk, "generator_chunk": chunk}
    shape = {"dim": 16, "layers": 1, "heads": 2, "memory": memory, "cms": {"periods": (16,)}}
    data = {"source": str(store.root), "seq_len": 32, "valid_rows": 7}
    return from_config_dict({"model": {"block": block, **shape}, "teach": teach, "data": data})


def rows_of(cfg: Config) -> tuple[list[Row], list[Row]]:
    held_out = valid_batches(cfg.data, batch_size=4, align=cfg.align)
    batches = make_train_iterator(cfg.data, batch_size=4, align=cfg.align, seed=cfg.seed)
    return held_out, list(itertools.islice(batches, 3))


def hashes(cfg: DataConfig, rows: int = 4, *, align: int = 8, seed: int = 0) -> tuple[str, str]:
    """Return the hashes of the held-out text, in batches of `rows`, and of the training order."""
    lengths = prepare(cfg).piece_byte_lengths
    held_out = valid_batches(cfg, batch_size=rows, align=align)
    order = train_order_sha256(cfg, batch_size=4, align=align, seed=seed)
    return valid_text_sha256(held_out, cfg.mode, lengths), order


def config(store: TokenStore, **fields: Any) -> DataConfig:
    return replace(DataConfig(source=str(store.root), seq_len=32, valid_rows=7), **fields)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_model_is_scored_and_trained_on_the_same_rows(name: str, store: TokenStore) -> None:
    """Every pair of them: each is compared with the first."""
    first = rows_of(model(*next(iter(VARIANTS.values())), store))
    for got, want in zip(rows_of(model(*VARIANTS[name], store)), first, strict=True):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert a.keys() == b.keys()
            for field in a:
                np.testing.assert_array_equal(a[field], b[field])


@pytest.mark.parametrize("mode", ["rows", "stream"])
def test_the_hashes_do_not_depend_on_eval_batches_or_on_the_folder(
    mode: Any, store: TokenStore, tmp_path: Path
) -> None:
    cfg = config(store, mode=mode)
    want = hashes(cfg)
    assert [hashes(cfg, rows) for rows in (1, 2, 3, 5, 7, 8)] == [want] * 6
    moved = tmp_path / "moved"
    shutil.copytree(store.root, moved)
    assert hashes(replace(cfg, source=str(moved))) == want
    assert open_store(moved).root != store.root


@pytest.mark.parametrize("mode", ["rows", "stream"])
def test_what_changes_the_text_changes_the_hashes(
    mode: Any, store: TokenStore, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    cfg = config(store, mode=mode, valid_rows=500)  # all rows of the text
    text, order = hashes(cfg)
    assert hashes(replace(cfg, valid_rows=7))[0] != text
    shards = synthetic_shards(tokenizer)
    shards["code/valid"][0][0] = [shards["code/valid"][0][0][1], *shards["code/valid"][0][0][1:]]
    other = config(make_store(tmp_path / "valid", tokenizer, shards), mode=mode, valid_rows=500)
    assert hashes(other)[0] != text
    assert hashes(other)[1] == order  # the training text is the same
    shards["code/train"][1][-1] = shards["code/train"][1][-1][:-1]
    other = config(make_store(tmp_path / "train", tokenizer, shards), mode=mode, valid_rows=500)
    assert hashes(other)[1] != order
    for changed in (
        hashes(replace(cfg, seq_len=64)),
        hashes(cfg, align=4),
        hashes(replace(cfg, segments=("notes",))),
    ):
        assert changed[0] != text
        assert changed[1] != order


def test_seed_rows_of_a_step_and_weights_are_of_the_order_alone(store: TokenStore) -> None:
    cfg = config(store)
    text, order = hashes(cfg)
    assert hashes(cfg, seed=1)[0] == text
    more = train_order_sha256(cfg, batch_size=8, align=8, seed=0)
    weighted = replace(cfg, segments=("code", "notes"), weights=(0.5, 0.5))
    found = {order, hashes(cfg, seed=1)[1], more, hashes(weighted)[1]}
    assert len(found) == 4


def test_what_a_token_stands_for_is_of_the_text(store: TokenStore) -> None:
    cfg = config(store)
    batches, lengths = valid_batches(cfg, batch_size=4, align=8), prepare(cfg).piece_byte_lengths
    assert valid_text_sha256(batches, "rows", lengths + 1) != hashes(cfg)[0]
    batches[0]["weights_BT"][0, 3] = 0.5
    assert valid_text_sha256(batches, "rows", lengths) != hashes(cfg)[0]


def tasks(**fields: Any) -> DataConfig:
    task = TaskConfig(**{"train": ("mqar,tokens=32,pairs=2,vocab=64",), "rows": 50, **fields})
    return DataConfig(source="synthetic", task=task, seq_len=32, valid_rows=5)


def test_padding_of_a_task_is_no_text() -> None:
    def order(cfg: DataConfig, seed: int = 0) -> str:
        return train_order_sha256(cfg, batch_size=4, align=cfg.row_align, seed=seed)

    want = order(tasks())
    assert order(replace(tasks(), seq_len=48)) == want  # what a model with chunks of 48 wants
    others = [
        order(tasks(), seed=1),
        order(tasks(seed=1)),
        order(tasks(rows=51)),
        order(tasks(train=("mqar,tokens=32,pairs=3,vocab=64",))),
    ]
    assert len({want, *others}) == 5


def test_the_rows_of_a_test_are_its_identity() -> None:
    def scored(spec: str, seed: int, rows: int) -> str:
        task = task_of(spec)
        return valid_tasks_sha256([(task, [task.example(seed, i, "test") for i in range(rows)])])

    spec = "mqar,tokens=32,pairs=2,vocab=64"
    found = {scored(spec, 0, 5), scored(spec, 1, 5), scored(spec, 0, 6)}
    found.add(scored("mqar,tokens=32,pairs=3,vocab=64", 0, 5))
    assert len(found) == 4
    assert scored(spec, 0, 5) == scored(spec, 0, 5)
