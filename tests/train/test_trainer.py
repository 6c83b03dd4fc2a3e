"""Whole runs: what they leave, and that an interrupted one ends bit for bit like another."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import assert_close, assert_equal
from tiny import HOPE, VOCAB, read_lines, tiny_config, write_data

from nested_jax.config import from_config_dict
from nested_jax.errors import NotWrittenError
from nested_jax.train import stop_rules
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.signals import Stopped
from nested_jax.train.stop_rules import Diverged, check_step, check_window
from nested_jax.train.trainer import train
from nested_jax.train.watch.meter import Meter
from nested_jax.train.watch.record import Summary
from nested_jax.train.workdir import saved_steps

STEPS, EVALS, SAVES = 12, 6, 4  # of the tiny run


class CrashError(Exception):
    """Stands for a kill: nothing after it runs, nothing is saved."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    return workdir, train(tiny_config(data), workdir)


def at(step: int, act: Callable[[], Any]) -> Callable[..., dict[str, float]]:
    """An evaluator that acts once a step is reached."""

    def evaluator(model: Any, params: Any, cfg: Any, now: int) -> dict[str, float]:
        if now == step:
            act()
        return {}

    return evaluator


def crash() -> None:
    raise CrashError


def assert_same_run(got: Path, want: Path) -> None:
    """Bit-identical parameters, and the same lines: none lost, none doubled."""
    assert read_lines(got) == read_lines(want)
    assert_equal(load_checkpoint(got), load_checkpoint(want))
    a, b = (json.loads((run / "summary.json").read_text()) for run in (got, want))
    for name in ("step", "train_loss", "valid_loss", "valid_bits_per_byte", "tokens", "writes"):
        assert a[name] == b[name]


def test_a_run_leaves_what_it_should(undisturbed: tuple[Path, Summary], data: Path) -> None:
    workdir, summary = undisturbed
    names = {"config.json", "metrics.jsonl", "checkpoints", "summary.json", "tokenizer.model"}
    names |= {"starts.jsonl"}
    assert {p.name for p in workdir.iterdir()} == names
    assert from_config_dict(json.loads((workdir / "config.json").read_text())) == tiny_config(data)
    assert json.loads((workdir / "summary.json").read_text()) == summary._asdict()
    assert summary.step == STEPS
    assert saved_steps(workdir / "checkpoints") == [8, 12]
    lines = read_lines(workdir)
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
    assert abs(logged[0]["loss"] - math.log(VOCAB)) < 0.3
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.5
    assert logged[-1]["tokens"] == summary.tokens <= STEPS * 8 * 32
    assert summary.train_loss == logged[-1]["loss"]
    assert summary.epochs == summary.tokens / (summary.unique_tokens or 0)
    scored = [line for line in lines if "valid_loss" in line]
    assert [line["step"] for line in scored] == [6, 12]
    assert scored[1]["valid_bits_per_byte"] == summary.valid_bits_per_byte
    for name in ("valid_text_sha256", "train_order_sha256"):
        assert len(getattr(summary, name)) == 64
        assert {line[name] for line in scored} == {getattr(summary, name)}
    # Bits per byte and nats per token of one set of targets: a few bytes per token.
    bytes_a_token = summary.valid_loss / math.log(2) / summary.valid_bits_per_byte
    assert 1.0 < bytes_a_token < 8.0


def test_summary_has_exactly_the_documented_fields(undisturbed: tuple[Path, Summary]) -> None:
    fields = (
        "step train_loss valid_loss valid_bits_per_byte parameters tokens seconds tokens_per_s "
        "peak_memory_bytes writes versions device git_commit valid_text_sha256 "
        "train_order_sha256 scores unique_tokens epochs trigram_bits_per_byte"
    )
    assert list(json.loads((undisturbed[0] / "summary.json").read_text())) == fields.split()


def test_a_crash_between_checkpoints_leaves_no_trace(
    undisturbed: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    """T18: the crash comes at step 6, two steps and three lines after checkpoint 4."""
    cfg, workdir = tiny_config(data), tmp_path / "run"
    with pytest.raises(CrashError):
        train(cfg, workdir, [at(6, crash)])
    assert saved_steps(workdir / "checkpoints") == [4]
    assert [line["step"] for line in read_lines(workdir)][-1] == 6
    with open(workdir / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 7, "lo')  # what a kill leaves of a line
    train(cfg, workdir)
    assert_same_run(workdir, undisturbed[0])


def test_a_crash_before_the_first_checkpoint_starts_over(
    undisturbed: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    cfg, workdir = tiny_config(data, {"train.eval_every": 2}), tmp_path / "run"
    with pytest.raises(CrashError):
        train(cfg, workdir, [at(2, crash)])
    train(tiny_config(data), workdir)
    assert_same_run(workdir, undisturbed[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(
    undisturbed: tuple[Path, Summary], data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    cfg, workdir = tiny_config(data), tmp_path / "run"
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped) as stopped:
        train(cfg, workdir, [at(6, lambda: os.kill(os.getpid(), number))])
    assert stopped.value.number == number
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    saved = saved_steps(workdir / "checkpoints")
    assert saved == [4, 7]  # it came while step 6 was evaluated
    train(cfg, workdir)
    assert_same_run(workdir, undisturbed[0])


def test_a_finished_run_stays_as_it_is(undisturbed: tuple[Path, Summary], data: Path) -> None:
    workdir, summary = undisturbed
    lines = (workdir / "metrics.jsonl").read_bytes()
    again = train(tiny_config(data), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == lines
    assert again.valid_loss == summary.valid_loss
    assert again.train_loss == summary.train_loss


def test_a_run_can_be_made_longer_but_not_shorter(
    undisturbed: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    with pytest.raises(ValueError, match=r"train.steps=3: the workdir is already at step 12"):
        train(tiny_config(data, {"train.steps": 3}), workdir)
    summary = train(tiny_config(data, {"train.steps": 14}), workdir)
    assert summary.step == 14
    lines = read_lines(workdir)
    assert lines[:14] == read_lines(undisturbed[0])
    assert [line["step"] for line in lines[14:]] == [13, 14, 14]


def stop_at(step: int) -> Callable[..., dict[str, float]]:
    return at(step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def test_a_run_may_end_where_it_was_stopped(data: Path, tmp_path: Path) -> None:
    """Between two log lines: the steps since the last one have theirs, and there is a summary."""
    changes = {"train.log_every": 5, "train.eval_every": 3}
    with pytest.raises(Stopped):
        train(tiny_config(data, changes), tmp_path, [stop_at(3)])
    assert saved_steps(tmp_path / "checkpoints") == [4]
    summary = train(tiny_config(data, {**changes, "train.steps": 4}), tmp_path)
    assert summary.step == 4
    (logged,) = [line for line in read_lines(tmp_path) if "loss" in line]
    assert logged["step"] == 4
    assert logged["tokens"] == summary.tokens
    assert summary.train_loss == logged["loss"]
    assert summary.tokens_per_s > 0
    again = train(tiny_config(data, {**changes, "train.steps": 4}), tmp_path)
    assert again.train_loss == summary.train_loss
    assert json.loads((tmp_path / "summary.json").read_text())["train_loss"] == logged["loss"]


def test_tokens_per_second_are_all_tokens_over_all_time_in_steps(
    data: Path, tmp_path: Path
) -> None:
    """By hand from the log lines, over two stops between lines and a crash."""
    changes = {"train.log_every": 3, "train.eval_every": 1, "train.save_every": 4}
    cfg = tiny_config(data, changes)
    with pytest.raises(Stopped):
        train(cfg, tmp_path, [stop_at(4)])
    with pytest.raises(CrashError):
        train(cfg, tmp_path, [at(7, crash)])
    with pytest.raises(Stopped):
        train(cfg, tmp_path, [stop_at(9)])
    summary = train(cfg, tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    seconds = [3 * line["step_s"] for line in lines]
    counts = [lines[0]["tokens"]] + [
        b["tokens"] - a["tokens"] for a, b in itertools.pairwise(lines)
    ]
    for line, count, time in zip(lines, counts, seconds, strict=True):
        assert line["tokens_per_s"] == pytest.approx(count / time)
    assert summary.tokens_per_s == pytest.approx(sum(counts) / sum(seconds))
    rates = [line["tokens_per_s"] for line in lines]
    assert min(rates) <= summary.tokens_per_s <= max(rates)


# --- profiles ------------------------------------------------------------------------------------


def traces(workdir: Path) -> list[Path]:
    return list((workdir / "profile").rglob("*.xplane.pb"))


def test_a_profile_that_ends_with_the_run_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(data, {"train.profile_steps": 2}), tmp_path)
    assert len(traces(tmp_path)) == 1
    assert f"profile of 2 steps in {tmp_path / 'profile'}" in capsys.readouterr().out


def test_a_profile_that_is_cut_short_is_written_and_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stop comes after step 12 of a profile of steps 11 to 15; few steps are left after it."""
    changes = {"train.profile_steps": 5, "train.steps": 15, "train.eval_every": 1}
    with pytest.raises(Stopped):
        train(tiny_config(data, changes), tmp_path, [stop_at(11)])
    assert len(traces(tmp_path)) == 1
    assert "profile of 2 of 5 steps in " in capsys.readouterr().out
    train(tiny_config(data, changes), tmp_path)
    said = "no profile in this start: train.profile_steps=5 wants 15 steps, 3 are left"
    assert said in capsys.readouterr().out
    assert len(traces(tmp_path)) == 1


def test_a_profile_that_cannot_be_written_is_refused(data: Path, tmp_path: Path) -> None:
    want = r"train.profile_steps=3: begins after 10 steps: wants train.steps of 13 or more, not 12"
    with pytest.raises(ValueError, match=want):
        train(tiny_config(data, {"train.profile_steps": 3}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_log_lines_are_means_over_their_steps(
    undisturbed: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    """Lines of three steps, across a restart in the middle of a window; evaluators add theirs."""
    cfg, workdir = tiny_config(data, {"train.log_every": 3}), tmp_path / "run"

    def evaluator(model: Any, params: Any, cfg: Any, step: int) -> dict[str, float]:
        return {"tables": float(len(jax.tree.leaves(params)) > 0) + step}

    with pytest.raises(CrashError):
        train(cfg, workdir, [at(6, crash)])
    train(cfg, workdir, [evaluator])
    assert [line["tables"] for line in read_lines(workdir) if "tables" in line] == [7.0, 13.0]
    single = [line for line in read_lines(undisturbed[0]) if "loss" in line]
    lines = [line for line in read_lines(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    counts = [single[0]["tokens"]] + [
        b["tokens"] - a["tokens"] for a, b in itertools.pairwise(single)
    ]
    for i, line in enumerate(lines):
        part = slice(3 * i, 3 * i + 3)
        nats = sum(x["loss"] * n for x, n in zip(single[part], counts[part], strict=True))
        assert line["loss"] == pytest.approx(nats / sum(counts[part]), rel=1e-6)
        assert line["learning_rate"] == single[3 * i + 2]["learning_rate"]


def test_a_diverging_run_is_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a margin below zero uniform is not enough: the first step after warm-up ends it."""
    monkeypatch.setattr(stop_rules, "DIVERGENCE_MARGIN", -3.0)
    changes = {"optim.warmup_steps": 4}
    with pytest.raises(Diverged, match=r"step 5: the loss is .*, worse than ln"):
        train(tiny_config(data, changes), tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert saved_steps(tmp_path / "checkpoints") == [4]


def test_what_counts_as_divergence() -> None:
    cfg = tiny_config(Path("nowhere"))
    fine = {"loss": 2.0, "bad_updates_in_a_row": 24.0}
    check_step(1, fine)
    for bad in ({**fine, "loss": math.nan}, {**fine, "loss": math.inf}):
        with pytest.raises(Diverged, match="step 1: the loss is"):
            check_step(1, bad)
    with pytest.raises(Diverged, match="25 updates in a row were not finite"):
        check_step(1, {**fine, "bad_updates_in_a_row": 25.0})
    uniform = math.log(VOCAB)
    check_window(cfg, 9, Meter(train_loss=uniform + 0.49))
    check_window(cfg, cfg.optim.warmup_steps, Meter(train_loss=uniform + 5))
    with pytest.raises(Diverged, match="worse than ln"):
        check_window(cfg, 9, Meter(train_loss=uniform + 0.51))


def test_a_level_that_stayed_unwritten_is_an_error() -> None:
    cfg = tiny_config(Path("nowhere"), HOPE)
    totals = {"teach/level0/writes": 3.0, "teach/level1/writes": 0.0, "teach/level1/blocked": 0.0}
    check_window(cfg, 11, Meter(train_loss=1.0, totals=totals))  # it may still come
    for step in (12, 50):
        with pytest.raises(NotWrittenError, match=r"level 1 \(period 16\) was never written"):
            check_window(cfg, step, Meter(train_loss=1.0, totals=totals))
    blocked = {**totals, "teach/level1/blocked": 1.0}
    check_window(cfg, 50, Meter(train_loss=1.0, totals=blocked))
    for changes in ({"teach.levels": [0]}, {"train.check_writes": False}, {"teach.mode": "off"}):
        other = tiny_config(Path("nowhere"), {**HOPE, **changes})
        check_window(other, 50, Meter(train_loss=1.0, totals=totals))


def test_a_run_begins_with_the_parameters_of_another(
    undisturbed: tuple[Path, Summary], data: Path, tmp_path: Path
) -> None:
    """Its step, optimizer and data are its own; what does not fit is refused before it is made."""
    source = undisturbed[0]
    first: list[Any] = []

    def keep(model: Any, params: Any, cfg: Any, step: int) -> dict[str, float]:
        first.append(jax.device_get(params))
        return {}

    changes = {"train.init_from": str(source), "optim.learning_rate": 1e-9, "train.steps": 4}
    summary = train(tiny_config(data, changes), tmp_path / "next", [keep])
    assert summary.step == 4
    assert_close(first[0], load_checkpoint(source)[0], 1e-6, 1e-7)
    older = str(source / "checkpoints" / "8")
    train(tiny_config(data, {**changes, "train.init_from": older}), tmp_path / "older", [keep])
    assert_close(first[1], load_checkpoint(older)[0], 1e-6, 1e-7)
    for wrong, said in (
        ({"train.init_from": str(tmp_path)}, "wants a workdir with checkpoints"),
        ({**HOPE, "train.init_from": str(source)}, "model.block='hope_attention', got 'transf"),
        ({"model.dim": 32, "train.init_from": str(source)}, "the model wants"),
    ):
        with pytest.raises(ValueError, match=said):
            train(tiny_config(data, wrong), tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
