"""What fails while a run trains: it ends within seconds, with one line and a known exit status."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT, environment, read_lines, tiny_config, write_config, write_data

import launch
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.trainer import train
from nested_jax.train.workdir import saved_steps

AT = 7  # the step at which something happens; checkpoints are of 2, 4, 6, 8 ...
SECONDS = 30.0  # from there to the end of the process; Orbax's own limit is minutes

BREAK = f"""
import pathlib, resource, sys, time
import launch

run, what = pathlib.Path(sys.argv[-1]), sys.argv.pop(1)

def act(model, params, cfg, step):
    if step == {AT}:
        time.sleep(2)  # until the save before it has ended
        print("broken at", time.time(), flush=True)
        exec(what)
    return {{}}

launch.make_evaluators = lambda cfg: [act]
launch.leave(launch.main(sys.argv[1:]))
"""
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, resource.RLIM_INFINITY))"
BROKEN = {
    "a file in place of the checkpoints": (
        "(run / 'checkpoints').rename(run / 'gone'); (run / 'checkpoints').write_text('')",
        "saving failed, none is left",
    ),
    "a full disk": (FULL.format(12_000), "saving failed, checkpoint 6 is the newest good one"),
    "a log that is full": (FULL.format(500), "metrics.jsonl"),
    "a workdir that was removed": ("run.rename(run.parent / 'gone')", "was moved or removed"),
    "a log that was removed": ("(run / 'metrics.jsonl').unlink()", "was moved or removed"),
}
QUICK = ("a file in place of the checkpoints",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BROKEN]
)
def test_a_failure_ends_the_run_at_once_with_one_line(
    name: str, data: Path, tmp_path: Path
) -> None:
    what, want = BROKEN[name]
    every = {"train.eval_every": 1, "train.save_every": 2, "train.keep_latest": 3}
    config = write_config(tmp_path, data, {**every, "train.steps": 40})
    command = [sys.executable, "-c", BREAK, what, "--config", str(config)]
    ended = subprocess.run(
        [*command, "--workdir", str(tmp_path / "run")],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    took = time.time() - float(ended.stdout.split("broken at ")[1].split()[0])
    assert ended.returncode == 2, ended.stderr
    assert took < SECONDS
    assert want in ended.stderr
    assert ended.stderr.startswith("launch.py: error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    if "checkpoint 6" in want:
        assert load_checkpoint(tmp_path / "run")[2] == 6


TAKEN: dict[str, Callable[[Path], Any]] = {
    "checkpoints": lambda path: path.write_text(""),
    "config.json": lambda path: path.mkdir(),
    "metrics.jsonl": lambda path: path.mkdir(),
    "summary.json": lambda path: path.mkdir(),
    "tokenizer.model": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_taken_is_refused_before_anything_starts(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    TAKEN[name](run / name)
    config = write_config(tmp_path, data)
    assert launch.main(["--config", str(config), "--workdir", str(run)]) == 2
    kind = "file" if name == "checkpoints" else "folder"
    assert f"workdir={str(run)!r}: {name} is a {kind}" in capsys.readouterr().err
    assert [p.name for p in run.iterdir()] == [name]


def test_an_interrupt_before_the_first_step_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train", interrupted)
    assert launch.main(["--config", str(write_config(tmp_path, data))]) == 130
    assert "stopped: by SIGINT before the first step" in capsys.readouterr().err


def test_a_tracker_that_cannot_be_opened_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    def init(**_: Any) -> None:
        raise RuntimeError("no account\nsee the manual")

    wandb: Any = types.ModuleType("wandb")
    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    with pytest.raises(ValueError, match=r"^train.wandb='x': cannot be opened: no account$"):
        train(tiny_config(data, {"train.wandb": "x"}), tmp_path / "run")
    assert saved_steps(tmp_path / "run" / "checkpoints") == []
    assert read_lines(tmp_path / "run") == []


def test_a_clock_that_jumps_changes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours back at every look, in a workdir whose name has spaces and letters of all kinds."""
    cfg = tiny_config(data, {"model.layers": 1, "train.steps": 4, "train.save_every": 2})
    train(cfg, tmp_path / "steady")
    real, looks = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() - 3600.0 * next(looks))
    train(cfg, tmp_path / "Läufe – 试 1")
    assert read_lines(tmp_path / "Läufe – 试 1") == read_lines(tmp_path / "steady")
