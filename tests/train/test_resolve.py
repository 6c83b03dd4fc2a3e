"""Fine-tuning with the ordinary trainer: its model, its steps, and what of a text is learned."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_equal
from tiny import ROOT, VOCAB, tiny_config, write_data

from nested_jax.config import Config, load_config
from nested_jax.data.pipeline import open_rows
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.resolve import resolve
from nested_jax.train.trainer import train

SFT = str(ROOT / "configs/sft.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a few steps, and questions with answers."""
    folder = tmp_path_factory.mktemp("base")
    train(tiny_config(write_data(folder / "data"), {"train.steps": 2}), folder / "run")
    rows = [
        {"question": f"value = {i}", "answer": f"tensor({i % 10})" + " alpha" * (i % 7)}
        for i in range(120)
    ]
    (folder / "chat").mkdir()
    for name, part in (("train", rows[20:]), ("valid", rows[:20])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"chat/{name}.jsonl").write_text(lines)
    return folder


def sft(base: Path, argument: str = "", **overrides: Any) -> Config:
    spec = f"{SFT}:test,init={base / 'run'},source={base / 'chat'},batch=8{argument}"
    return load_config(spec, {"data.cache_dir": str(base / "cache"), **overrides})


def test_model_steps_and_warm_up(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    cfg = sft(base, ",epochs=3", **{"optim.warmup_share": 0.25})
    found = resolve(cfg, tmp_path, said.append)
    assert found.model == load_checkpoint(base / "run")[1].model
    rows = len(open_rows(cfg.data, 1)[0][0])
    assert found.train.steps == math.ceil(3 * rows / 8)
    assert said == [f"train.epochs=3: {found.train.steps} steps over {rows} rows"]
    assert found.optim.warmup_steps == round(0.25 * found.train.steps)
    assert resolve(found, tmp_path, said.append) == found


def test_a_run_fine_tunes(base: Path, tmp_path: Path) -> None:
    found = train(sft(base, ",epochs=1"), tmp_path / "run")
    assert found.valid_loss < math.log(VOCAB)
    assert found.epochs is not None
    assert 0.2 < found.epochs < 1, "answers are a part of the tokens"


@pytest.mark.slow
def test_a_fine_tuning_goes_on(base: Path, tmp_path: Path) -> None:
    """Stopped after three steps and started again, it ends in the same bits."""
    fields = {"train.epochs": 0.0, "optim.schedule": "constant", "optim.warmup_steps": 0}
    first, more = (sft(base, "", **fields, **{"train.steps": steps}) for steps in (3, 6))
    train(first, tmp_path / "part")
    train(more, tmp_path / "part")
    train(more, tmp_path / "once")
    assert_equal(*(load_checkpoint(tmp_path / name)[0] for name in ("part", "once")))


def test_questions_are_not_learned(base: Path, tmp_path: Path) -> None:
    """With ``loss=all`` every token counts, with ``assistant`` those of answers and their EOS."""
    sums = {}
    for loss in ("all", "assistant"):
        cfg = sft(base, f",loss={loss}").data
        (source,), _ = open_rows(cfg, 1)
        sums[loss] = sum(int(np.sum(source[i]["weights_BT"])) for i in range(len(source)))  # type: ignore[index]
    assert 0.2 * sums["all"] < sums["assistant"] < 0.7 * sums["all"]


@pytest.mark.parametrize(
    ("argument", "overrides", "message"),
    [
        ("", {"model.dim": 32}, r"train\.init_model='same': takes the model of train\.init_from"),
        ("", {"train.init_from": "nowhere"}, r"train\.init_from='nowhere': wants the folder"),
        ("", {"train.init_from": ""}, r"init_model='same': wants train\.init_from"),
        (",template=poem", {}, r"data\.chat\.template='poem': got str, wants one of 'turns'"),
    ],
)
def test_bad_input(
    base: Path, tmp_path: Path, argument: str, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(sft(base, argument, **overrides), tmp_path / "new", print)
