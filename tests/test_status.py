"""`python -m nested_jax.status`: done, running, stopped, killed; and who is silent."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config, write_data

from nested_jax import status as command
from nested_jax.files import LOCK, hold_folder, own
from nested_jax.train.trainer import train
from nested_jax.train.watch import heartbeat
from nested_jax.train.watch.heartbeat import Heartbeat, blame, read_beats


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status")
    fields = {"train.steps": 4, "train.save_every": 2, "model.layers": 1}
    train(tiny_config(write_data(folder / "data"), fields), folder / "run")
    return folder / "run"


def test_a_run_from_start_to_end(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(run)]) == 0
    said = capsys.readouterr().out
    assert f"{run}: done\n  step 4/4  loss " in said
    assert "checkpoints [2, 4], the newest 0:0" in said
    assert "start 1, from step 0 at 20" in said
    assert ", mesh data 8, fsdp 1, model 1, 1 proc" in said
    assert command.main(["--json", str(run)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["start"]["needs"]["step_bytes"] > found["start"]["needs"]["state_bytes"] > 0
    assert sum(found["start"]["optimizer"].values()) == found["start"]["parameters"]
    assert found["start"]["versions"]["jax"]
    assert not (run / "heartbeat" / "0.json").exists()


def test_who_holds_the_workdir(run: Path) -> None:
    with hold_folder(run):
        assert command.status(run)["state"] == "running"
        (run / "heartbeat").mkdir(exist_ok=True)
        sign = {"process": 1, "host": "b", "pid": 7, "step": 3, "phase": "step", "since": 1.0}
        (run / "heartbeat" / "1.json").write_text(json.dumps(sign))
        old = time.time() - 100
        os.utime(run / "heartbeat" / "1.json", (old, old))
        assert command.status(run)["state"] == "no sign of process 1"
        (run / "heartbeat" / "1.json").unlink()
    dead = {**own("t")._asdict(), "started": "before"}
    (run / LOCK).write_text(json.dumps(dead))
    assert command.status(run)["state"] == "killed"
    (run / LOCK).unlink()
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 5, "lo')
    assert command.status(run)["step"] == 4


def test_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path)]) == 2
    assert "has no config.json; wants a workdir of launch.py" in capsys.readouterr().err
    assert command.main(["s3://b/run"]) == 2


# --- stalls --------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "LEAST_SECONDS", 0.1)


def beats(heart: Heartbeat, seconds: float) -> None:
    for step in range(4):
        heart.at(step, "data")
        heart.at(step, "step")
        time.sleep(0.005)
    heart.at(4, "data")
    time.sleep(seconds)


def test_a_stall_is_said_once(quick: None, tmp_path: Path) -> None:
    said: list[str] = []
    with Heartbeat(tmp_path, 5.0, said.append) as heart:
        beats(heart, 0.5)
        assert len(said) == 1
        assert said[0].startswith("stalled: data of step 4 has taken 0 s, usual")
        heart.at(4, "step")
        time.sleep(0.5)
    assert len(said) == 2
    assert "stalled: step of step 4" in said[1]
    with Heartbeat(tmp_path, 0.0, said.append) as heart:
        beats(heart, 0.3)
    with Heartbeat(tmp_path, 5.0, said.append) as heart:
        heart.at(0, "step")  # the first of its kind: nothing to compare with
        time.sleep(0.3)
    assert len(said) == 2


def test_the_process_that_the_others_wait_for_is_named(tmp_path: Path) -> None:
    def sign(process: int, step: int, phase: str, age: float = 0.0) -> None:
        row: dict[str, Any] = {"process": process, "host": f"host{process}", "pid": 40 + process}
        file = tmp_path / "heartbeat" / f"{process}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**row, "step": step, "phase": phase, "since": 1.0}))
        os.utime(file, (time.time() - age, time.time() - age))

    sign(0, 7, "step")
    assert blame(read_beats(tmp_path)) == ""
    sign(10, 7, "step")
    assert "all processes are in the same phase" in blame(read_beats(tmp_path))
    sign(2, 7, "data")
    assert [beat.process for beat in read_beats(tmp_path)] == [0, 2, 10]
    said = blame(read_beats(tmp_path))
    assert said == "; process 2 (pid 42 on host2) is in data of step 7"
    sign(10, 6, "step", age=99)
    said = blame(read_beats(tmp_path))
    assert said == "; process 10 (pid 50 on host10) has given no sign for 99 s"
    (tmp_path / "heartbeat" / "10.json").write_text("{")
    assert len(read_beats(tmp_path)) == 2
