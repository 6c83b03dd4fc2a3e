"""Runs that keep their checkpoints in buckets: killed, their machine's disk gone, and gone on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import emulators
import fsspec
import pytest
from helpers import assert_equal
from tiny import launch, read_lines, write_config, write_data

import launch as launcher
from nested_jax import status
from nested_jax.data.prepare.engine import copy_store
from nested_jax.data.shards import open_store
from nested_jax.storage import Store, as_path
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.workdir import Deleter, saved_steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of clients and servers, which are not ours
]
STEPS = {"train.steps": 40, "train.save_every": 4, "train.eval_every": 10, "model.layers": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(write_config(folder, data, STEPS), folder / "run")
    return folder / "run"


def finish(config: Path, workdir: Path | str) -> str:
    process = launch(config, workdir)  # type: ignore[arg-type]
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def kill_after(config: Path, workdir: Path | str, store: Store, step: int) -> None:
    """Start the run, and kill -9 when the bucket has a finished checkpoint of the step or later."""
    process = launch(config, workdir)  # type: ignore[arg-type]

    def newest() -> int:
        found = [name.split("/") for name in store.files() if name.startswith("checkpoints/")]
        if isinstance(workdir, Path):  # a mirror: the list of its files is written last
            done = [p[1].removesuffix(".json") for p in found if len(p) == 2]
        else:
            done = [p[1] for p in found if p[2:] == ["commit_success.txt"]]
        return max((int(step) for step in done if step.isdigit()), default=0)

    while newest() < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()


@pytest.fixture
def gcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with emulators.gcs(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("gcs").clear_instance_cache()  # of another test's server
        yield f"gs://{emulators.BUCKET}"


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with emulators.s3(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another test's server
        yield f"s3://{emulators.BUCKET}"


def test_a_workdir_in_gcs(
    gcs: str, data: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of the run is on the machine: a kill is the loss of its disk."""
    config, url = write_config(tmp_path, data, STEPS), f"{gcs}/runs/a b"
    kill_after(config, url, Store(url), 8)
    assert "going on from checkpoint" in finish(config, url)
    run = as_path(url)
    assert_equal(load_checkpoint(url)[0], load_checkpoint(undisturbed)[0])
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    assert read_lines(tmp_path / "copy") == read_lines(undisturbed)
    assert saved_steps(run / "checkpoints") == [36, 40]
    names = {"config.json", "metrics.jsonl", "starts.jsonl", "summary.json", "tokenizer.model"}
    assert names <= set(Store(url).files())
    assert ".lock" not in Store(url).files()
    assert json.loads((run / "summary.json").read_text())["step"] == 40
    assert status.main([url]) == 0
    assert "runs/a b: done\n  step 40/40" in capsys.readouterr().out
    # Held by a process of another machine, it is refused; damage is set aside.
    owner = {"host": "other", "pid": 1, "started": "x", "since": "now", "command": "launch.py"}
    (run / ".lock").write_text(json.dumps({**owner, "job": "", "attempt": 0, "token": "t"}))
    assert launcher.main(["--config", str(config), "--workdir", url]) == 2
    assert "is in use by process 1 on other since now" in capsys.readouterr().err
    (run / ".lock").unlink()
    (run / "checkpoints" / "40" / "meta" / "metadata").write_text("{")
    out = finish(config, url)
    assert "checkpoint 40 is damaged and not used" in out
    assert "from checkpoint 36" in out
    assert_equal(load_checkpoint(url)[0], load_checkpoint(undisturbed)[0])
    # Killed while it deletes a checkpoint, when only the mark of completeness is gone.
    folder, listed = run / "checkpoints", []
    killed = SimpleNamespace(delete=lambda step: listed.append(saved_steps(folder)))
    Deleter(folder, killed).delete(36)
    assert listed == [[40]]
    assert any(name.startswith("checkpoints/36/") for name in Store(url).files())
    finish(config, url)
    assert not any(name.startswith("checkpoints/36/") for name in Store(url).files())


@pytest.mark.parametrize("service", ["s3", "gcs"])
def test_a_machine_that_is_gone(
    service: str,
    data: Path,
    undisturbed: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    url = f"{request.getfixturevalue(service)}/mirrors/a"
    config = write_config(tmp_path, data, {**STEPS, "train.mirror": url})
    kill_after(config, tmp_path / "run", Store(url), 8)
    shutil.rmtree(tmp_path / "run")
    out = finish(config, tmp_path / "run")
    assert f"restored from {url}" in out, out
    assert read_lines(tmp_path / "run") == read_lines(undisturbed)
    assert_equal(load_checkpoint(tmp_path / "run")[0], load_checkpoint(undisturbed)[0])
    assert "checkpoints/40.json" in Store(url).files()


def test_a_bucket_that_is_not_there(gcs: str, data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, data, STEPS)
    process = launch(config, "gs://elsewhere/run")  # type: ignore[arg-type]
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert error.splitlines()[-1].startswith("launch.py: error: workdir='gs://elsewhere/run'")


def test_shards_go_there_and_come_back(s3: str, data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    copy_store(str(data), f"{s3}/data", said.append)
    copy_store(f"{s3}/data", str(tmp_path / "back"), said.append)
    assert open_store(tmp_path / "back").shards == open_store(data).shards
    Store(f"{s3}/data").write("code-train-00000.bin", b"cut")
    with pytest.raises(ValueError, match="source="):
        copy_store(f"{s3}/data", str(tmp_path / "again"), said.append)
