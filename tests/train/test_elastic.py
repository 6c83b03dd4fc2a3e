"""Going on elsewhere: other devices, mesh or microbatch, a chosen step; what is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny import TIMINGS, read_lines, tiny_config, write_data

from nested_jax.sharding import make_mesh
from nested_jax.train import plan as plans
from nested_jax.train.trainer import train
from nested_jax.train.workdir import saved_steps

SHORT = {"model.layers": 1, "train.eval_every": 4, "train.save_every": 2, "train.steps": 12}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


def close(got: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in got] == [line["step"] for line in want]
    for a, b in zip(got, want, strict=True):
        for name in a:
            if isinstance(a[name], str):
                assert a[name] == b[name], (a["step"], name)
            elif name not in TIMINGS:
                assert a[name] == pytest.approx(b[name], rel=2e-4), (a["step"], name)


@pytest.mark.slow
def test_eight_devices_then_four_then_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mesh and microbatch each time; the losses are those of an undisturbed run."""
    train(tiny_config(data, {**SHORT, "train.batch_size": 16}), tmp_path / "undisturbed")
    stages = [
        (4, 8, {"mesh.data": 2, "mesh.fsdp": 4}),
        (8, 4, {"mesh.data": 2, "mesh.model": 2, "train.grad_accum": 2}),
        (12, 1, {"train.grad_accum": 4}),
    ]
    for steps, devices, changes in stages:
        use = jax.devices()[:devices]
        monkeypatch.setattr(plans, "make_mesh", lambda cfg, use=use: make_mesh(cfg, use))
        cfg = tiny_config(data, {**SHORT, "train.batch_size": 16, **changes})
        stop_after(cfg, tmp_path / "run", steps)
    got = list(read_lines(tmp_path / "run"))
    close(got, read_lines(tmp_path / "undisturbed"))


def stop_after(cfg: Any, workdir: Path, step: int) -> None:
    """Train, and be gone after the checkpoint of a step."""
    if step == cfg.train.steps:
        train(cfg, workdir)
        return

    class Gone(Exception):
        pass

    def leave(model: Any, params: Any, cfg: Any, now: int) -> dict[str, float]:
        if now > step:
            raise Gone
        return {}

    with pytest.raises(Gone):
        train(cfg, workdir, [leave])


def test_a_chosen_step_and_what_is_set_aside(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = tiny_config(data, {**SHORT, "train.steps": 6, "train.keep_latest": 3})
    train(cfg, tmp_path / "run")
    want = read_lines(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"--resume-step=3: wants one of the checkpoints \[2, 4, 6\]"
    ):
        train(cfg, tmp_path / "run", resume_step=3)
    assert saved_steps(tmp_path / "run" / "checkpoints") == [2, 4, 6]
    capsys.readouterr()
    train(cfg, tmp_path / "run", resume_step=2)
    said = capsys.readouterr().out
    assert "going on from checkpoint 2" in said
    assert "checkpoints [6, 4] are set aside as STEP.set-aside" in said
    assert read_lines(tmp_path / "run") == want
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["2", "4", "4.set-aside", "6", "6.set-aside"]
    (aside,) = (tmp_path / "run").glob("set-aside-*")
    assert read_lines(aside) == want


def test_the_best_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    """Losses that rise from an evaluation in the middle: the newest, every sixth, and the best."""
    changes = {"train.keep_latest": 1, "train.keep_best": 1, "train.keep_every": 6}
    cfg = tiny_config(data, {**SHORT, **changes, "train.eval_every": 2, "train.steps": 10})
    scores = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0, 10: 5.0}
    train(cfg, tmp_path / "run", [lambda model, params, cfg, step: {"valid_loss": scores[step]}])
    assert saved_steps(tmp_path / "run" / "checkpoints") == [4, 6, 10]


def test_a_save_after_so_many_seconds(data: Path, tmp_path: Path) -> None:
    changes = {"train.save_every": 0, "train.save_seconds": 1e-6, "train.keep_latest": 9}
    train(tiny_config(data, {**SHORT, **changes, "train.steps": 5}), tmp_path / "run")
    saved = saved_steps(tmp_path / "run" / "checkpoints")
    assert saved[-1] == 5
    assert len(saved) > 2
    train(tiny_config(data, {**SHORT, "train.steps": 5, "train.save_every": 0}), tmp_path / "off")
    assert saved_steps(tmp_path / "off" / "checkpoints") == [5]


READER = """
import json, pathlib, sys
import jax
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.workdir import saved_steps
run, ended = map(pathlib.Path, sys.argv[1:])
seen = []
while not ended.exists():
    if saved_steps(run / "checkpoints"):
        params, _, step = load_checkpoint(run)
        assert jax.tree.leaves(params)
        seen.append(step)
print(json.dumps(seen))
"""


def test_an_evaluation_reads_a_run_that_is_being_written(data: Path, tmp_path: Path) -> None:
    """The run keeps one checkpoint, and replaces it at every step; the reader is another process.

    In a process of its own, because what Orbax leaves of a reading whose files vanished is
    collected later, in another test.
    """
    changes = {"train.save_every": 1, "train.keep_latest": 1, "train.eval_every": 0}
    cfg = tiny_config(data, {**SHORT, **changes, "train.steps": 60})
    words = [sys.executable, "-c", READER, str(tmp_path / "run"), str(tmp_path / "ended")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reader:
        try:
            train(cfg, tmp_path / "run")
        finally:
            (tmp_path / "ended").touch()
        printed, _ = reader.communicate(timeout=120)
    assert reader.returncode == 0
    seen = json.loads(printed)
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_a_disk_without_room_for_a_checkpoint_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "free_bytes", lambda _: 10_000)
    with pytest.raises(
        ValueError, match=r"workdir=.*has 9.766 KiB free, wants .* for one checkpoint"
    ):
        train(tiny_config(data, SHORT), tmp_path / "run")
    assert not (tmp_path / "run").exists()
