"""``train.mirror``: what is copied, in which order, and what a start on an empty machine does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_equal
from tiny import read_lines, tiny_config, write_data

from nested_jax.storage import Store
from nested_jax.train import mirror as mirrors
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.mirror import Mirror, check_mirror
from nested_jax.train.trainer import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of eight steps, and its mirror."""
    folder = tmp_path_factory.mktemp("finished")
    train(config(data, folder / "mirror"), folder / "run")
    return folder


def config(data: Path, mirror: Path, **changes: Any) -> Any:
    fields = {"train.steps": 8, "train.eval_every": 4, "train.save_every": 2}
    fields |= {"train.mirror": str(mirror), "model.layers": 1}
    return tiny_config(data, {**fields, **changes})


def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "mirror", tmp_path / "mirror"))


def test_a_mirror_is_the_workdir(finished: Path) -> None:
    run, mirror = finished / "run", finished / "mirror"
    names = [p.relative_to(run) for p in run.rglob("*") if p.is_file()]
    assert names
    assert all((mirror / n).read_bytes() == (run / n).read_bytes() for n in names)
    extra = {p.relative_to(mirror).as_posix() for p in mirror.rglob("*") if p.is_file()}
    assert extra - {n.as_posix() for n in names} == {"checkpoints/6.json", "checkpoints/8.json"}
    assert_equal(load_checkpoint(mirror)[0], load_checkpoint(run)[0])


def test_an_empty_machine_goes_on_from_the_mirror(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    """Steps 1 to 4 on one machine, 5 to 8 on another: the same bits as without a move."""
    mirror = tmp_path / "mirror"
    train(config(data, mirror, **{"train.steps": 8, "train.save_every": 4}), tmp_path / "a")
    for name in ("8", "8.json"):  # as if it had been killed before
        path = mirror / "checkpoints" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(config(data, mirror), tmp_path / "b")
    assert read_lines(tmp_path / "b") == read_lines(finished / "run")
    assert_equal(load_checkpoint(tmp_path / "b")[0], load_checkpoint(finished / "run")[0])
    starts = [json.loads(s) for s in (tmp_path / "b" / "starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 4]
    assert len({start["run"] for start in starts}) == 1


def test_a_damaged_copy_is_named_and_the_one_before_is_used(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = copied(finished, tmp_path)
    file = next(p for p in (mirror / "checkpoints/8/params").rglob("*") if p.stat().st_size > 200)
    bits = bytearray(file.read_bytes())
    bits[100] ^= 1
    file.write_bytes(bits)
    train(config(data, mirror), tmp_path / "run")
    said = capsys.readouterr().out
    assert "checkpoint 8 of " in said
    assert "is damaged and not used: " in said
    assert "checkpoint 6 restored from" in said
    assert_equal(load_checkpoint(tmp_path / "run")[0], load_checkpoint(finished / "run")[0])
    assert_equal(load_checkpoint(mirror)[0], load_checkpoint(finished / "run")[0])  # written again


def test_the_mirror_of_another_run_is_refused(finished: Path, data: Path, tmp_path: Path) -> None:
    mirror = copied(finished, tmp_path)
    with pytest.raises(ValueError, match=r"train.mirror=.*of another configuration.*learning_rate"):
        train(config(data, mirror, **{"optim.learning_rate": 1.0}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    manifest = mirror / "checkpoints" / "8.json"
    manifest.write_text(manifest.read_text().replace('"run": "', '"run": "x'))
    shutil.copytree(finished / "run", tmp_path / "copy")
    with pytest.raises(ValueError, match="holds checkpoint 8 of another run; name an empty place"):
        train(config(data, mirror), tmp_path / "copy")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"files": 3}', '{"files": {"../../x": [1, "a"]}}', '{"files": {"/x": 1}}'],
)
def test_a_list_of_files_that_is_none_is_named(
    text: str, finished: Path, data: Path, tmp_path: Path
) -> None:
    mirror = copied(finished, tmp_path)
    for step in (6, 8):
        (mirror / "checkpoints" / f"{step}.json").write_text(text)
    with pytest.raises(OSError, match="no checkpoint can be read"):
        Mirror(tmp_path / "run", str(mirror), lambda _: None).restore(config(data, mirror))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "x").exists()


def test_a_service_that_fails_is_tried_again_and_the_end_says_what_is_missing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "POLL_SECONDS", 0.01)
    said: list[str] = []
    put, fails = Store.put, [3]

    def flaky(self: Store, file: Path, name: str) -> str:
        if fails[0]:
            fails[0] -= 1
            raise OSError("503 slow down")
        return put(self, file, name)

    monkeypatch.setattr(Store, "put", flaky)
    run = json.loads((finished / "mirror/checkpoints/8.json").read_text())["run"]
    mirror = Mirror(finished / "run", str(tmp_path / "m"), said.append)
    mirror.begin(run)
    mirror.close()
    assert mirror.done == {6, 8}
    monkeypatch.setattr(mirrors, "LAST_TRIES", 1)
    fails[0] = 10**6
    mirror = Mirror(finished / "run", str(tmp_path / "m2"), said.append)
    mirror.begin(run)
    with pytest.raises(
        OSError, match=r"lacks checkpoints \[6, 8\], and .* has them: 503 slow down"
    ):
        mirror.close()


def test_a_checkpoint_that_is_deleted_while_it_is_copied_leaves_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    mirror, put = Mirror(run, str(tmp_path / "mirror"), print), Store.put

    def put_and_delete(store: Store, file: Path, name: str) -> Any:
        found = put(store, file, name)
        if name.startswith("checkpoints/6/"):
            shutil.rmtree(run / "checkpoints" / "6", ignore_errors=True)
        return found

    monkeypatch.setattr(Store, "put", put_and_delete)
    mirror.copy()
    assert {path.name for path in (tmp_path / "mirror/checkpoints").iterdir()} == {"8", "8.json"}


def test_folders_without_a_file_go_when_a_run_starts(finished: Path, tmp_path: Path) -> None:
    """A kill between the last file of a checkpoint and its folders leaves them."""
    there = copied(finished, tmp_path)
    kept = sorted(there.rglob("*"))
    (there / "checkpoints" / "2" / "params" / "d").mkdir(parents=True)
    mirror = Mirror(finished / "run", str(there), print)
    mirror.begin(json.loads((there / "checkpoints" / "8.json").read_text())["run"])
    mirror.close()
    assert sorted(there.rglob("*")) == kept


def test_a_half_copied_file_goes_when_a_run_starts(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    """Another process wrote it, and was killed: beside whole files it would be read as one."""
    shutil.copytree(finished / "run", tmp_path / "run")
    mirror = copied(finished, tmp_path)
    (mirror / "checkpoints/8.json").unlink()
    half = mirror / "checkpoints/8/params/array_metadatas/process_0.1.partial"
    assert half.parent.is_dir()
    half.write_text("{")
    train(config(data, mirror), tmp_path / "run")
    assert not half.exists()
    assert_equal(load_checkpoint(mirror)[0], load_checkpoint(finished / "run")[0])


def test_a_mirror_inside_the_workdir_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.mirror=.*wants a place outside of"):
        check_mirror(config(data, tmp_path / "run" / "mirror"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"train\.mirror='ftp://x/y'"):
        check_mirror(tiny_config(data, {"train.mirror": "ftp://x/y"}), tmp_path / "run")
