"""The record of a run: its file, its counters, its trackers, and what it shows."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tiny import HOPE, tiny_config

from nested_jax import machine
from nested_jax.files import write_json
from nested_jax.models.flops import count_parameters, flops_per_token
from nested_jax.models.lm import build_model
from nested_jax.train.watch.meter import Meter
from nested_jax.train.watch.progress import Clock, Display
from nested_jax.train.watch.record import MetricsFile
from nested_jax.train.watch.trackers import check_trackers, open_trackers
from nested_jax.types import ParamInfo


def test_the_file_is_cut_where_the_checkpoint_says(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0, said.append)
    file.write({"step": 1, "loss": 2.5})
    length = file.sync()
    assert length == path.stat().st_size > 0
    file.write({"step": 2, "loss": math.nan})
    file.close()
    assert [json.loads(x) for x in path.read_text().splitlines()][1] == {"step": 2, "loss": None}
    path.write_bytes(path.read_bytes() + b'{"step": 3')  # a line that a kill left
    file = MetricsFile(path, length, said.append)
    file.write({"step": 2, "loss": 2.0})
    file.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 2]
    assert not said
    MetricsFile(path, 10_000, said.append).close()
    assert "lines are missing" in said[0]
    assert path.read_text().count("\n") == 2


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_counters_weigh_by_tokens_and_survive_json() -> None:
    steps = [
        {"loss": 2.0, "tokens": 30.0, "learning_rate": 0.1, "teach/level0/writes": 3.0},
        {"loss": 5.0, "tokens": 10.0, "learning_rate": 0.2, "teach/level0/writes": 4.0},
    ]
    meter = Meter()
    meter.lap(0.5)
    meter.add(steps[0])
    meter = Meter(**json.loads(json.dumps(meter.state())))
    meter.lap(1.5)
    meter.add(steps[1])
    assert meter.flush() == {
        "loss": 2.75,
        "learning_rate": 0.2,
        "teach/level0/writes": 7.0,
        "tokens_per_s": 20.0,
        "step_s": 1.0,
    }
    assert meter.train_loss == 2.75
    meter.lap(3.0)
    meter.add(steps[1])
    line = meter.flush()
    assert line["loss"] == 5.0
    assert line["tokens_per_s"] == pytest.approx(10 / 3)
    assert meter.tokens_per_s == 50 / 5
    assert math.isnan(Meter().tokens_per_s)
    assert meter.totals == {"tokens": 50.0, "teach/level0/writes": 11.0}
    assert meter.by_level("writes") == {"level0": 11}


@pytest.mark.parametrize(("field", "value"), [("tensorboard", True), ("wandb", "project")])
def test_a_missing_tracker_names_its_extra(
    field: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config(Path("nowhere"), {f"train.{field}": value})
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"train.{field}=.*pip install 'nested-jax\[log\]'"):
        check_trackers(cfg, Path("run"))
    check_trackers(tiny_config(Path("nowhere")), Path("run"))


def test_trackers_get_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against stand-ins for the two packages, which are extras."""
    calls: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            calls.append((folder, purge_step))

        def add_scalar(self, *args: Any) -> None:
            calls.append(args)

        def add_text(self, name: str, text: str, step: int) -> None:
            calls.append((name, json.loads(text), step))

        def close(self) -> None:
            calls.append("closed")

    class Run:
        def log(self, line: dict[str, Any], step: int) -> None:
            calls.append((line, step))

        def finish(self) -> None:
            calls.append("finished")

    def init(**options: Any) -> Run:
        calls.append(options)
        return Run()

    tensorboard: Any = types.ModuleType("tensorboardX")
    tensorboard.SummaryWriter = SummaryWriter
    wandb: Any = types.ModuleType("wandb")
    wandb.init = init
    monkeypatch.setitem(sys.modules, "tensorboardX", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    cfg = tiny_config(tmp_path, {"train.tensorboard": True, "train.wandb": "project"})
    for tracker in open_trackers(cfg, tmp_path / "run", 7, {"run": "abc"}):
        tracker.log({"step": 8, "loss": 1.5}, 8)
        tracker.close()
    assert calls[0] == (str(tmp_path / "run" / "tensorboard"), 8)
    assert calls[1] == ("start", {"run": "abc"}, 7)
    assert (calls[2]["project"], calls[2]["id"], calls[2]["resume"]) == ("project", "abc", "allow")
    assert calls[2]["name"] == "run"
    assert calls[2]["config"]["start"] == {"run": "abc"}
    assert calls[3:6] == [("step", 8, 8), ("loss", 1.5, 8), "closed"]
    assert calls[6:] == [({"step": 8, "loss": 1.5}, 8), "finished"]


# --- what is shown -------------------------------------------------------------------------------

LINE = {"step": 30, "loss": 2.0, "tokens_per_s": 1234.0, "step_s": 0.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_lines() -> None:
    stream = io.StringIO()
    display = Display(stream)
    display.start(0, 100)
    display.advance(1)
    display.update(LINE, 100)
    display.say("x" * 300)
    display.stop()
    first, second = stream.getvalue().splitlines()
    assert first == "step 30/100  loss 2.0000  1,234 tokens/s  500 ms/step  ETA 0:00:35"
    assert second == "x" * 300


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    display = Display(stream)
    display.start(0, 100)
    display.update(LINE, 100)
    display.say("[a] line")
    display.stop()
    assert "step 30/100" in stream.getvalue()
    assert "ETA 0:00:35" in stream.getvalue()
    assert "[a] line" in stream.getvalue()
    assert "\x1b" in stream.getvalue()


def test_other_processes_are_quiet() -> None:
    stream = Terminal()
    display = Display(stream, quiet=True)
    display.start(0, 2)
    display.say("x")
    display.update(LINE, 2)
    display.stop()
    assert stream.getvalue() == ""


def test_a_lap_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 5.0, 9.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock()
    with clock:  # from 2 to 5
        pass
    assert clock.lap() == 6.0
    assert clock.total() == 10.0


# --- machine and arithmetic ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("cpu", None),
    ],
)
def test_peaks_by_name(kind: str, peak: float | None) -> None:
    assert machine.peak_flops(kind) == peak


def test_the_machine_says_what_it_is() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", machine.versions()["jax"])
    assert machine.peak_memory() > 50e6  # this process holds jax
    assert machine.human_bytes(1536) == "1.5 KiB"
    assert machine.human_bytes(3 * 1024**4) == "3 TiB"


def test_flops_count_weights_attention_and_the_inner_loop() -> None:
    def info(rows: int) -> ParamInfo:
        return ParamInfo((rows, 10), ("mlp", "embed"), "matrix")

    tree = {"prefix": {"w": info(3)}, "suffix": {"w": info(2)}, "embed": info(5)}
    tree["norm"] = ParamInfo((10,), (None,), "vector")
    tree["embed"] = ParamInfo((320, 16), ("vocab", "embed"), "embed")
    tiny = tiny_config(Path("nowhere"), {**HOPE, "model.window": 4, "data.seq_len": 32})
    head, suffix, prefix = 320 * 16, 20, 30
    seen = sum(min(t, 4) for t in range(1, 33)) / 32  # mean keys of a window of 4
    forward = 2 * (prefix + suffix + head) + 4 * seen * 16 * 2
    inner = 4 * (suffix + head)
    assert flops_per_token(tiny, tree) == pytest.approx(3 * forward + 3 * inner)
    stop = tiny_config(Path("nowhere"), {**HOPE, "model.window": 4, "teach.meta_gradient": "stop"})
    assert flops_per_token(stop, tree) == pytest.approx(3 * forward + inner)
    assert count_parameters(tree) == 30 + 20 + 10 + head


def test_flops_of_a_transformer_are_near_six_a_weight() -> None:
    cfg = tiny_config(Path("nowhere"), {"model.dim": 64, "model.mlp_hidden": 256})
    info = build_model(cfg.model).param_info()
    assert flops_per_token(cfg, info) / (6 * count_parameters(info)) == pytest.approx(1, abs=0.1)
