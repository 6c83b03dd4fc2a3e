"""A run that cannot fit is refused before anything is allocated, with what would make it fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import HOPE, tiny_config, write_config, write_data

import launch
from nested_jax.config import Config, load_config, parse_overrides
from nested_jax.sharding import make_mesh
from nested_jax.train import memory
from nested_jax.train.layout import lay_out

ROOT = Path(__file__).resolve().parents[2]


def config(**changes: Any) -> Config:
    return tiny_config(Path("none"), {**HOPE, **changes})


def on_one_device(cfg: Config) -> Any:
    return lay_out(cfg, make_mesh(cfg.mesh, jax.devices()[:1]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"teach.remat": "none"},
        {"teach.remat": "sqrt"},
        {"teach.meta_gradient": "stop"},
        {"train.grad_accum": 4},
        {"teach.mode": "off"},
    ],
)
def test_the_lower_bound_is_below_what_the_compiler_needs(changes: dict[str, Any]) -> None:
    layout = on_one_device(config(**changes))
    needs = layout.lower_train().compile().memory_analysis()
    assert 0 < memory.lower_bound(layout) <= memory.peak_bytes(needs)


def test_the_lower_bound_counts_rows_and_kept_writes() -> None:
    whole, half = on_one_device(config()), on_one_device(config(**{"train.grad_accum": 2}))
    row = memory.fast_bytes(whole)
    copies = 2 + 4  # in use, gradient, and one kept for each of 32 / 8 chunks
    assert memory.lower_bound(whole) - memory.lower_bound(half) == 4 * row * copies
    off = on_one_device(config(**{"teach.mode": "off"}))
    assert memory.fast_bytes(off) == 0


def test_a_run_that_cannot_fit_names_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: (1000, "of a tiny card"))
    with pytest.raises(ValueError, match="of a tiny card") as found:
        memory.check_lower_bound(on_one_device(config()))
    for field in (
        "train.device_rows=1 (now train.grad_accum=1",
        "teach.remat=sqrt",
        "model.remat=full",
        "mesh.fsdp",
    ):
        assert field in str(found.value)


def test_the_pilot_is_refused_on_a_laptop_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No data are prepared, nothing is compiled and nothing is written."""
    monkeypatch.setattr(memory, "available", lambda: (1 << 30, "of this machine's memory"))
    workdir = tmp_path / "run"
    assert launch.main(["--config", str(ROOT / "configs/pilot.py"), "--workdir", str(workdir)]) == 2
    assert "--config.train.device_rows" in capsys.readouterr().err
    assert not workdir.exists()


def test_a_compiled_step_that_does_not_fit_leaves_no_workdir(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data")
    cfg = tiny_config(data, HOPE)
    # Enough for the shapes, not for the program.
    have = memory.lower_bound(lay_out(cfg, make_mesh(cfg.mesh)))
    monkeypatch.setattr(memory, "available", lambda: (have, "of a small card"))
    config = write_config(tmp_path, data, HOPE)
    workdir = tmp_path / "run"
    assert launch.main(["--config", str(config), "--workdir", str(workdir)]) == 2
    said = capsys.readouterr().err
    assert "of a small card" in said
    assert "at least" not in said
    assert not workdir.exists()


def test_advice_names_fields_that_exist() -> None:
    """Every piece of advice that sets a field loads as an override."""
    cfg = load_config(str(ROOT / "configs/pilot.py"))
    for advice in memory.advice(cfg):
        words = advice.split()[0]
        if words.startswith("--config.") and not words.endswith("=N"):
            load_config(str(ROOT / "configs/pilot.py"), parse_overrides([words]))
