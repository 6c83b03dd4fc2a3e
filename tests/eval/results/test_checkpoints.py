"""Every kept checkpoint of a run: the numbers, going on, checkpoints that go away, the curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_root import write_root
from tiny import tiny_config, write_data

from eval.__main__ import main
from eval.results import checkpoints
from nested_jax.train.trainer import train

FEW = ("--", "--max-samples", "5", "--batch-size", "4")
PASSKEY = ("--context-lengths", "160", "--samples-per-length", "2", "--haystack", "noise")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data root, and a run with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("checkpoints")
    changes = {"train.steps": 6, "train.save_every": 2, "train.keep_latest": 9}
    train(tiny_config(write_data(folder / "data"), changes), folder / "run")
    return write_root(folder / "root"), folder / "run"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The evaluations that were made: task and step."""
    calls: list[tuple[str, int]] = []
    real = checkpoints.evaluate

    def counted(task: Any, subject: Any, flags: Any) -> dict[str, Any]:
        calls.append((task.name, subject.step))
        return real(task, subject, flags)

    monkeypatch.setattr(checkpoints, "evaluate", counted)
    return calls


def score(trained: tuple[Path, Path], out: Path, *words: str) -> int:
    root, run = trained
    command = ["checkpoints", "--run", f"a={run}", "--out-dir", str(out), *words]
    return main([*command, *FEW, "--data-root", str(root)])


@pytest.mark.slow
def test_every_checkpoint_and_nothing_twice(
    trained: tuple[Path, Path], tmp_path: Path, made: list[tuple[str, int]]
) -> None:
    words = ("--tasks", "hellaswag,piqa", "--plot", str(tmp_path / "curve.png"))
    assert score(trained, tmp_path, *words) == 0
    assert made == [("zeroshot", step) for step in (2, 2, 4, 4, 6, 6)]
    found = json.loads((tmp_path / "a/checkpoint_results.json").read_text())["results"]
    assert [row["step"] for row in found] == [2, 4, 6]
    seen = [row["tokens_seen"] for row in found]
    assert 0 < seen[0] < seen[1] < seen[2] <= 6 * 8 * 32
    assert (tmp_path / "curve.png").stat().st_size > 5000

    root, run = trained
    one = tmp_path / "one.json"
    words = ("--tasks", "hellaswag", "--max-samples", "5", "--batch-size", "4")
    alone = ["zeroshot", "--checkpoint", str(run / "checkpoints/4"), "--out", str(one)]
    assert main([*alone, "--data-root", str(root), *words]) == 0
    assert found[1]["tasks"]["hellaswag"] == json.loads(one.read_text())["metrics"]

    made.clear()
    (tmp_path / "a/step_4_eval/piqa_results.json").unlink()
    (tmp_path / "a/step_6_eval/piqa_results.json").write_text("{cut")
    assert score(trained, tmp_path, "--tasks", "hellaswag,piqa") == 0
    assert made == [("zeroshot", 4), ("zeroshot", 6)]
    again = json.loads((tmp_path / "a/checkpoint_results.json").read_text())["results"]
    assert again == found
    made.clear()
    assert score(trained, tmp_path, "--tasks", "hellaswag", "--steps", "last") == 0
    assert made == []
    command = ["checkpoints", "--run", str(run), "--out-dir", str(tmp_path), "--steps", "2"]
    words = ["--tasks", "hellaswag", "--", "--max-samples", "6", "--data-root", str(root)]
    assert main([*command, *words]) == 0
    assert made == [("zeroshot", 2)], "another run's name, and other flags"


def test_any_task(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = trained
    out = tmp_path / "out.json"
    command = ["checkpoints", "--run", str(run), "--out-dir", str(tmp_path), "--out", str(out)]
    assert main([*command, "--tasks", "passkey", "--steps", "2,6", "--", *PASSKEY]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 5000
    rows = json.loads(out.read_text())["runs"]["run"]
    assert [row["tasks"]["passkey"]["passkey@160"]["n"] for row in rows] == [2, 2]


def test_a_checkpoint_that_goes_away(
    trained: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    root, run = trained
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    chosen = checkpoints.chosen_tasks("piqa", [*FEW[1:], "--data-root", str(root)])
    flags = checkpoints.COMMAND.parse(["--run", str(copied), "--tasks", "piqa"])
    found = checkpoints.run_of(str(copied), flags)
    shutil.rmtree(copied / "checkpoints/4")
    rows = checkpoints.score_run(found, chosen)
    assert [row["step"] for row in rows] == [2, 6]
    assert "step 4: deleted by the training meanwhile" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "helaswag"), "--tasks='helaswag': wants some of"),
        (
            ("--tasks", "piqa", "--steps", "2,5"),
            "--steps='2,5': wants all, last, or some of 2, 4, 6",
        ),
        (("--tasks", "piqa", "--", "--word", "x"), "'--word': none of piqa has this flag"),
        (("--tasks", "piqa", "--run", "nowhere"), "--run='nowhere': has no checkpoints"),
        (("--tasks", "piqa", "--run", "RUN"), "wants different names, NAME=RUN"),
    ],
)
def test_bad_input(
    trained: tuple[Path, Path], tmp_path: Path, capsys: Any, words: tuple[str, ...], message: str
) -> None:
    _, run = trained
    words = tuple(str(run) if word == "RUN" else word for word in words)
    assert main(["checkpoints", "--run", str(run), "--out-dir", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_metric_that_nothing_has() -> None:
    rows = [{"step": 1, "tokens_seen": 9, "tasks": {"a": {"a": {"acc": 0.5, "n": 3}}}}]
    with pytest.raises(ValueError, match="--metrics='f1': wants some of acc, n"):
        checkpoints.curves({"run": rows}, "step", "f1")
    found = checkpoints.curves({"run": rows}, "tokens_seen", "auto")
    assert found == {"a: acc": {"run": ([9], [0.5])}}
