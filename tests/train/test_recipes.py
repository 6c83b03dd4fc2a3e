"""What a recipe says of a run: its budget in tokens, rows at once, how often a text is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import read_lines, tiny_config, write_data

from nested_jax.config import Config
from nested_jax.data.pipeline import prepare
from nested_jax.sharding import make_mesh
from nested_jax.train.layout import lay_out
from nested_jax.train.plan import say_repeats
from nested_jax.train.trainer import train

PER_STEP = 8 * 32  # tokens of a tiny step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


def budget(data: Path, tokens: int) -> Config:
    return tiny_config(data, {"train.steps": 0, "train.tokens": tokens, "train.eval_every": 0})


def test_a_budget_can_be_raised_and_not_lowered_below_what_was_read(
    data: Path, tmp_path: Path
) -> None:
    assert train(budget(data, 3 * PER_STEP), tmp_path).step == 3
    with pytest.raises(ValueError, match=r"train\.tokens=512: the workdir is already at step 3 of"):
        train(budget(data, 2 * PER_STEP), tmp_path)
    assert train(budget(data, 4 * PER_STEP), tmp_path).step == 4
    assert [line["step"] for line in read_lines(tmp_path) if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("devices", "device_rows", "microbatches"),
    [(1, 16, 1), (1, 8, 1), (1, 3, 4), (1, 1, 8), (2, 3, 2), (4, 2, 1), (8, 5, 1)],
)
def test_rows_at_once_are_of_a_device(devices: int, device_rows: int, microbatches: int) -> None:
    """The most rows up to that number that divide what a device has of the batch."""
    cfg = tiny_config(Path("none"), {"train.device_rows": device_rows})
    layout = lay_out(cfg, make_mesh(cfg.mesh, jax.devices()[:devices]))
    assert layout.cfg.train.grad_accum == layout.program.grad_accum == microbatches
    assert layout.eval_rows == 8 // microbatches


def test_a_batch_that_the_mesh_does_not_divide_is_named() -> None:
    cfg = tiny_config(Path("none"), {"train.device_rows": 2, "train.batch_size": 12})
    with pytest.raises(ValueError, match=r"train\.batch_size=12: rows must divide"):
        lay_out(cfg, make_mesh(cfg.mesh))


@pytest.mark.parametrize(("times", "warned"), [(3.9, False), (5.0, True)])
def test_a_text_that_is_read_too_often_is_a_warning(data: Path, times: float, warned: bool) -> None:
    cfg = tiny_config(data)
    info = prepare(cfg.data)
    tokens = info.tokens["code"]["train"]
    said: list[str] = []
    say_repeats(budget(data, int(times * tokens)), info, said.append)
    assert len(said) == warned
    if warned:
        assert f"are about 5 passes over the {tokens:,} training tokens of 'code'" in said[0]


def test_passes_go_by_the_weights_of_a_mixture(data: Path) -> None:
    """The rare source is read most often where it weighs as much as the large one."""
    cfg = tiny_config(data)
    splits: Any = {"large": {"train": 900_000}, "rare": {"train": 100}}
    info = prepare(cfg.data)._replace(tokens=splits, weights={"large": 1.0, "rare": 1.0})
    said: list[str] = []
    say_repeats(budget(data, 2000), info, said.append)
    assert "about 10 passes over the 100 training tokens of 'rare'" in said[0]
