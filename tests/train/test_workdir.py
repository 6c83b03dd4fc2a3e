"""A workdir: what it stands for, what a start never replaces, and opening its checkpoints."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import (
    VOCAB,
    read_lines,
    synthetic_text,
    tiny_config,
    write_config,
    write_data,
)

import launch
from nested_jax import generate
from nested_jax.data.shards import Shard, TokenStore, open_store, write_index, write_shard
from nested_jax.data.tokenizers.pieces import train_tokenizer
from nested_jax.hub import export
from nested_jax.train.checkpoint import find_checkpoint
from nested_jax.train.integrity import seal
from nested_jax.train.opened import Opened, open_checkpoint
from nested_jax.train.trainer import train
from nested_jax.train.workdir import locate, saved_steps

STEPS = {"train.steps": 2, "train.save_every": 1, "train.eval_every": 2, "train.keep_latest": 2}
WIDE = 2 * VOCAB  # symbols of a model, half of them without a piece


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of two steps, with checkpoints of both."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_config(data, {**STEPS, "model.vocab_size": WIDE}), workdir)
    return workdir


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# --- what a path stands for ----------------------------------------------------------------------


def test_a_path_is_a_workdir_or_one_of_its_checkpoints(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = run / "checkpoints"
    assert locate(run) == (run, "")
    assert locate(steps) == (run, "")
    assert locate(steps / "1") == (run, "1")
    (run.parent / "newest").symlink_to(steps / "2")
    assert locate(run.parent / "newest") == (run, "2")
    for place, given in ((run, "."), (steps, ".."), (steps, "."), (steps, "1/../..")):
        monkeypatch.chdir(place)
        assert locate(given) == (run, ""), given
    assert locate("1") == (run, "1")
    monkeypatch.chdir(steps / "1")
    assert locate(".") == (run, "1")
    assert locate("../2") == (run, "2")


def test_a_workdir_below_a_folder_of_that_name_is_a_workdir(run: Path, tmp_path: Path) -> None:
    below = tmp_path / "checkpoints" / "7"
    run.rename(below.parent.mkdir() or below)
    assert locate(below) == (below, "")
    assert find_checkpoint(below).step == 2
    assert find_checkpoint(below / "checkpoints" / "1").step == 1


@pytest.mark.parametrize("name", ["checkpoints/3", "checkpoints/best", "nowhere"])
def test_what_is_not_there_is_refused_with_what_is(run: Path, name: str) -> None:
    found = r"\[\]" if name == "nowhere" else r"\[1, 2\]"
    with pytest.raises(ValueError, match=f"wants a workdir with checkpoints, found {found}"):
        find_checkpoint(run / name)


# --- what a start never replaces -----------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"seed": 4}, {"model.dim": 20}], ids=str)
def test_the_record_of_lost_checkpoints_is_set_aside(
    run: Path, data: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the next run is of the same configuration or of another one."""
    shutil.rmtree(run / "checkpoints")
    before = files(run)
    train(tiny_config(data, {**STEPS, "model.vocab_size": WIDE, **changes}), run)
    (aside,) = run.glob("set-aside-20*")
    assert files(aside) == before
    said = capsys.readouterr().out
    moved = "config.json, metrics.jsonl, starts.jsonl, summary.json, tokenizer.model"
    assert f"{moved} moved to {aside}" in said
    assert [line["step"] for line in read_lines(run)] == [1, 2, 2]
    train(tiny_config(data, {**STEPS, "model.vocab_size": WIDE, **changes}), run)
    assert len(list(run.glob("set-aside-20*"))) == 1  # it has checkpoints now


def test_a_summary_alone_is_set_aside_and_a_start_without_a_line_leaves_none(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    train(tiny_config(data, STEPS), tmp_path)
    (aside,) = tmp_path.glob("set-aside-20*")
    assert files(aside) == {"summary.json": b"{}"}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "config.json").write_text("{}")  # of a start that was killed before its first step
    (fresh / "metrics.jsonl").write_bytes(b"")
    train(tiny_config(data, STEPS), fresh)
    assert not list(fresh.glob("set-aside-20*"))


def write_text(folder: Path, **texts: int) -> Path:
    """Write NAME.txt of some lines each, seeded by the value; their characters are as frequent."""
    folder.mkdir(exist_ok=True)
    for name, seed in texts.items():
        rng = random.Random(seed)
        lines = ("".join(rng.choices("abcdef", [32, 16, 8, 4, 2, 1], k=60)) for _ in range(120))
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


CHANGED = {
    "valid.txt": ({"train": 1, "valid": 3}, "held-out text"),
    "train.txt, of the same characters": ({"train": 3, "valid": 2}, "training text"),
    "both": ({"train": 3, "valid": 4}, "held-out text"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_run_does_not_go_on_over_other_text(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Characters: the tokenizer is the same whatever the text."""
    text, run = write_text(tmp_path / "text", train=1, valid=2), tmp_path / "run"
    changes = {**STEPS, "data.tokenizer": "char", "data.cache_dir": str(tmp_path / "cache")}
    config = write_config(tmp_path, text, changes)
    assert launch.main(["--config", str(config), "--workdir", str(run)]) == 0
    before = files(run)
    texts, what = CHANGED[name]
    write_text(text, **texts)
    longer = ["--config", str(config), "--workdir", str(run), "--config.train.steps=4"]
    assert launch.main(longer) == 2
    said = capsys.readouterr().err
    assert "the workdir holds checkpoint 2 of other data" in said
    assert f"{what} (" in said
    assert "tokenizer (" not in said
    assert files(run) == before
    write_text(text, train=1, valid=2)
    assert launch.main(longer) == 0


def test_a_run_does_not_go_on_over_shards_that_were_written_again(
    data: Path, tmp_path: Path
) -> None:
    """By the same tokenizer, with the documents of the train split in another order."""
    moved = Path(shutil.copytree(data, tmp_path / "data"))
    changes = {**STEPS, "model.vocab_size": WIDE, "data.source": str(moved)}
    train(tiny_config(moved, changes), tmp_path / "own")
    store = open_store(data)
    shards = [
        write_shard(moved, shard.segment, shard.split, 0, turned(store, shard), store.tokenizer)
        for shard in store.shards
    ]
    write_index(moved, shards, store.tokenizer, {"name": "test"})
    with pytest.raises(ValueError, match=r"other data .*training text \(.*order of training rows"):
        train(tiny_config(moved, {**changes, "train.steps": 3}), tmp_path / "own")


def turned(store: TokenStore, shard: Shard) -> list[np.ndarray]:
    """Return the documents of a shard, those of the train split from the last to the first."""
    tokens = np.fromfile(store.root / shard.file, store.dtype)
    offsets = np.fromfile(store.root / shard.offsets_file, np.int64)
    texts = [tokens[a : b - 1] for a, b in itertools.pairwise(offsets)]
    return texts[::-1] if shard.split == "train" else texts


# --- opening a checkpoint ------------------------------------------------------------------------


def say(*flags: str) -> int:
    return generate.main([*flags, "--prompt", "alpha = beta(1)", "--max-tokens", "40"])


def test_ids_without_a_piece_are_never_drawn(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the model's symbols have none, and at this temperature all are equally likely."""
    opened = open_checkpoint(finished)
    assert opened.symbols == opened.text_tokenizer.vocab_size == VOCAB
    assert opened.cfg.model.vocab_size == WIDE
    for seed in ("0", "1"):
        assert say("--checkpoint", str(finished), "--temperature", "1000", "--seed", seed) == 0
    assert say("--checkpoint", str(finished), "--temperature", "0") == 0
    assert capsys.readouterr().err == ""


def test_a_command_runs_from_inside_the_checkpoints(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run / "checkpoints")
    assert say("--checkpoint", "2") == 0
    assert say("--checkpoint", ".") == 0
    pytest.importorskip("safetensors")
    flags = ["--checkpoint", "1", "--out", str(tmp_path / "out")]
    assert export.main(flags) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "tokenizer.model").is_file()


COMMANDS = {
    "generate": lambda run, out: say("--checkpoint", str(run)),
    "export": lambda run, out: export.main(["--checkpoint", str(run), "--out", str(out)]),
    "train.init_from": lambda run, out: launch.main(
        [
            f"--config={out.parent / 'configs/tiny.py'}",
            f"--workdir={out}",
            f"--config.train.init_from={run}",
        ]
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("found", ["none", "another"])
def test_a_tokenizer_that_is_missing_or_of_another_run_is_refused(
    command: str, found: str, run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "export":
        pytest.importorskip("safetensors")
    write_config(run.parent, data, {**STEPS, "model.vocab_size": WIDE})
    (run / "tokenizer.model").unlink()
    if found == "another":
        other = train_tokenizer([synthetic_text(number) for number in range(90, 150)], VOCAB)
        (run / "tokenizer.model").write_bytes(other.model)
    assert COMMANDS[command](run, run.parent / "out") == 2
    said = capsys.readouterr().err
    want = "is missing; wants the tokenizer" if found == "none" else "this checkpoint was trained"
    assert want in said
    assert "train one with" not in said
    assert not (run.parent / "out").exists()


def test_a_prompt_that_is_not_text_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt").write_bytes(b"caf\xe9")
    flags = ["--checkpoint", str(finished), "--prompt-file", str(tmp_path / "prompt")]
    assert generate.main(flags) == 2
    assert f"--prompt-file='{tmp_path / 'prompt'}': is not UTF-8" in capsys.readouterr().err


def test_a_model_of_synthetic_tasks_reads_no_text(run: Path) -> None:
    opened = Opened(find_checkpoint(run), {}, None)
    with pytest.raises(ValueError, match="was trained on synthetic tasks and reads no text"):
        _ = opened.text_tokenizer


def test_a_configuration_of_another_version_is_refused_with_why(run: Path) -> None:
    file = run / "checkpoints" / "2" / "meta" / "metadata"
    body = json.loads(file.read_text())["body"]
    body["config"]["model"]["gone"] = 3
    file.write_text(json.dumps(seal(body)))
    with pytest.raises(ValueError, match=r"checkpoint 2 is of nested-jax .* unknown field"):
        find_checkpoint(run)
    assert saved_steps(run / "checkpoints") == [1, 2]
