"""Checkpoints: any mesh, damage, refusals, a full disk, what is kept."""

from __future__ import annotations

import gc
import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal
from jax.sharding import NamedSharding, PartitionSpec
from tiny import tiny_config

from nested_jax.config import Config, MeshConfig, TrainConfig
from nested_jax.optim import scale_by_adam, skip_non_finite
from nested_jax.sharding import make_mesh
from nested_jax.train.checkpoint import CheckpointError, Checkpoints, DamagedError, damage
from nested_jax.train.fits import check_data, run_meta
from nested_jax.train.state import TrainState, new_state
from nested_jax.train.workdir import saved_steps

# Where a read or a write fails, Orbax leaves tasks behind whose exceptions nobody fetches.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEEP = TrainConfig(keep_latest=3)
CFG = tiny_config(Path("nowhere"))
DATA = {"tokenizer": "hash", "training text": "a1", "held-out text": "b2"}
SPECS = {
    "data": (MeshConfig(), PartitionSpec("data", None)),
    "fsdp": (MeshConfig(data=1, fsdp=-1), PartitionSpec(None, "fsdp")),
    "mixed": (MeshConfig(data=2, fsdp=2, model=2), PartitionSpec("model", "fsdp")),
}


@cache
def maker(layout: str) -> Any:
    """A jitted function from a step to a state with random content, laid out over a mesh."""
    mesh_config, spec = SPECS[layout]
    mesh = make_mesh(mesh_config)

    def make(step: jax.Array) -> TrainState:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), 3)
        params = {"w": jax.random.normal(keys[0], (64, 96)), "b": jax.random.normal(keys[1], (3,))}
        carry = {"h": jax.random.normal(keys[2], (8, 32))}
        state = new_state(params, skip_non_finite(scale_by_adam()), carry)
        return state._replace(step=step)

    shapes = jax.eval_shape(make, jnp.int32(0))
    specs = jax.tree.map(lambda x: spec if x.ndim == 2 else PartitionSpec(), shapes)
    return jax.jit(make, out_shardings=jax.tree.map(lambda s: NamedSharding(mesh, s), specs))


def make_state(layout: str = "data", step: int = 0) -> TrainState:
    return maker(layout)(jnp.int32(step))


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def meta(step: int, cfg: Config = CFG) -> dict[str, Any]:
    return run_meta(cfg, step, DATA)


@pytest.fixture
def said() -> Iterator[list[str]]:
    yield []
    gc.collect()  # Orbax's leftovers go here, not in a test of another module


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with checkpoints of steps 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("three")
    checkpoints = Checkpoints(workdir, KEEP, print)
    for step in (2, 4, 6):
        checkpoints.save(make_state(step=step), {"next_index": step}, meta(step))
    checkpoints.close()
    return workdir


@pytest.fixture
def saved(three: Path, tmp_path: Path, said: list[str]) -> Iterator[Checkpoints]:
    """The checkpoints of a copy of `three`."""
    shutil.copytree(three, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run", KEEP, said.append)
    yield checkpoints
    checkpoints.close()


@pytest.mark.parametrize("layout", ["data", "fsdp", "mixed"])
def test_a_state_comes_back_on_any_mesh(saved: Checkpoints, layout: str) -> None:
    target = abstract(make_state(layout))
    restored = saved.restore(target, CFG, DATA)
    assert restored is not None
    assert_equal(restored.state, make_state(step=6))
    assert jax.tree.map(lambda x: x.sharding, restored.state) == jax.tree.map(
        lambda x: x.sharding, target
    )
    assert restored.data == {"next_index": 6}
    assert restored.meta["step"] == 6


def test_no_checkpoint_is_none(tmp_path: Path, said: list[str]) -> None:
    checkpoints = Checkpoints(tmp_path, KEEP, said.append)
    assert checkpoints.restore(abstract(make_state()), CFG, DATA) is None
    checkpoints.close()


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(folder: Path) -> None:
    """One bit in the middle of an array's data: tensorstore reads it without complaint."""
    file = largest(folder / "params")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def cut_an_array(folder: Path) -> None:
    file = largest(folder / "params")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_the_position(folder: Path) -> None:
    file = folder / "data" / "metadata"
    file.write_text(file.read_text().replace('"next_index": 6', '"next_index": 5'))


def empty_the_metadata(folder: Path) -> None:
    (folder / "meta" / "metadata").write_bytes(b"")


def lose_an_item(folder: Path) -> None:
    shutil.rmtree(folder / "opt")


def lose_everything(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [
    flip_a_bit,
    cut_an_array,
    change_the_position,
    empty_the_metadata,
    lose_an_item,
    lose_everything,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_reported_and_the_one_before_used(
    saved: Checkpoints, said: list[str], damage: Callable[[Path], None]
) -> None:
    damage(saved.folder / "6")
    restored = saved.restore(abstract(make_state("fsdp")), CFG, DATA)
    assert restored is not None
    assert_equal(restored.state, make_state(step=4))
    assert restored.data == {"next_index": 4}
    assert len(said) == 1
    assert said[0].startswith("checkpoint 6 is damaged and not used: ")
    # The run goes on from 4 and saves 6 again.
    saved.save(make_state(step=6), {"next_index": 6}, meta(6))
    saved.wait()
    restored = saved.restore(abstract(make_state()), CFG, DATA)
    assert restored is not None
    assert_equal(restored.state, make_state(step=6))
    assert (saved.folder / "6.damaged").is_dir()


@pytest.mark.parametrize(
    "kind", [ValueError, KeyError, TypeError, OSError, AttributeError, Exception]
)
def test_what_reading_damage_raises_is_damage(kind: type[Exception]) -> None:
    with pytest.raises(DamagedError, match=f"{kind.__name__}: .*no attribute"), damage():
        raise kind("'dict' object has no attribute 'param_name'")


def test_other_errors_are_not_damage() -> None:
    with pytest.raises(ZeroDivisionError), damage():
        raise ZeroDivisionError


def test_random_damage_never_restores_wrong_numbers(saved: Checkpoints) -> None:
    """Whatever byte is hit: either the arrays that were saved come back, or the step before."""
    rng = random.Random(0)
    files = sorted(p for p in (saved.folder / "6").rglob("*") if p.is_file())
    wants = {step: make_state(step=step) for step in (4, 6)}
    for _ in range(12):
        file = rng.choice(files)
        before = file.read_bytes()
        place = rng.randrange(len(before))
        file.write_bytes(before[:place] + bytes([before[place] ^ 16]) + before[place + 1 :])
        restored = saved.restore(abstract(make_state()), CFG, DATA)
        assert restored is not None
        step = int(restored.state.step)
        assert_equal(restored.state, wants[step])
        if step == 4:
            (saved.folder / "6.damaged").rename(saved.folder / "6")
        file.write_bytes(before)
        saved._manager.reload()


def test_nothing_readable_is_an_error_and_stays_where_it_is(saved: Checkpoints) -> None:
    for step in (2, 4, 6):
        empty_the_metadata(saved.folder / str(step))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read, tried \[6, 4, 2\]"):
        saved.restore(abstract(make_state()), CFG, DATA)
    assert saved_steps(saved.folder) == [2, 4, 6]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"model.dim": 20}, "config.model.dim: 16 -> 20"),
        ({"optim.learning_rate": 0.5}, "config.optim.learning_rate: 0.01 -> 0.5"),
        ({"seed": 4}, "config.seed: 3 -> 4"),
        ({"data.seq_len": 64}, "config.data.seq_len: 32 -> 64"),
        ({"train.batch_size": 16}, "config.train.batch_size: 8 -> 16"),
    ],
)
def test_another_experiment_is_refused_with_the_difference(
    saved: Checkpoints, changes: dict[str, Any], shown: str
) -> None:
    cfg = tiny_config(Path("nowhere"), changes)
    with pytest.raises(ValueError, match="checkpoint 6 of another configuration") as raised:
        saved.restore(abstract(make_state()), cfg, DATA)
    assert shown in str(raised.value)
    assert str(raised.value).count("->") == 2  # the difference, and "checkpoint -> this run"


def test_what_is_not_computed_may_change(saved: Checkpoints) -> None:
    changes = {
        "mesh.fsdp": 2,
        "train.steps": 99,
        "train.grad_accum": 2,
        "train.eval_every": 1,
        "train.save_every": 7,
        "train.log_every": 3,
        "data.cache_dir": "elsewhere",
        "model.remat": "full",
    }
    cfg = tiny_config(Path("nowhere"), changes)
    assert saved.restore(abstract(make_state()), cfg, DATA) is not None


@pytest.mark.parametrize("name", DATA)
def test_other_data_are_refused_with_what_differs(saved: Checkpoints, name: str) -> None:
    with pytest.raises(ValueError, match="checkpoint 6 of other data") as raised:
        saved.restore(abstract(make_state()), CFG, {**DATA, name: "other"})
    assert f"{name} ({DATA[name]} -> other)" in str(raised.value)
    assert str(raised.value).count("->") == 2  # what differs, and "checkpoint -> this run"


def test_a_checkpoint_of_an_earlier_version_has_the_tokenizer_alone() -> None:
    meta = {name: value for name, value in run_meta(CFG, 6, DATA).items() if name != "data"}
    check_data(meta, DATA)
    with pytest.raises(ValueError, match=r"tokenizer \(hash -> other\)"):
        check_data(meta, {**DATA, "tokenizer": "other"})


def test_latest_and_every_are_kept(tmp_path: Path, said: list[str]) -> None:
    checkpoints = Checkpoints(tmp_path, TrainConfig(keep_latest=2, keep_every=4), said.append)
    for step in range(1, 8):
        checkpoints.save(make_state(step=step), {}, meta(step))
    checkpoints.close()
    assert saved_steps(checkpoints.folder) == [4, 6, 7]


def test_what_a_mirror_held_goes_at_the_end_of_a_run(tmp_path: Path, said: list[str]) -> None:
    held = {2}
    checkpoints = Checkpoints(tmp_path, TrainConfig(keep_latest=1, keep_every=3), said.append, held)
    for step in range(1, 5):
        checkpoints.save(make_state(step=step), {}, meta(step))
    checkpoints.wait()
    assert saved_steps(checkpoints.folder) == [2, 3, 4]
    checkpoints.trim()
    assert saved_steps(checkpoints.folder) == [3, 4]
    checkpoints.close()


def test_a_deletion_that_is_cut_short_leaves_no_checkpoint(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, TrainConfig(keep_latest=1), said.append)
    removed = []

    def killed(path: Path) -> None:
        (path / "meta" / "metadata").unlink()
        removed.append(saved_steps(path.parent))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        for step in (2, 4):
            checkpoints.save(make_state(step=step), {}, meta(step))
        checkpoints.close()
    assert removed == [[4]]
    assert {path.name for path in checkpoints.folder.iterdir()} == {".2.deleted", "4"}
    again = Checkpoints(tmp_path, KEEP, said.append)
    again.save(make_state(step=2), {}, meta(2))
    again.close()
    assert {path.name for path in again.folder.iterdir()} == {"2", "4"}


@pytest.mark.parametrize("async_save", [True, False])
def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(
    tmp_path: Path, said: list[str], async_save: bool
) -> None:
    checkpoints = Checkpoints(tmp_path, TrainConfig(async_save=async_save), said.append)
    checkpoints.save(make_state(step=2), {"next_index": 2}, meta(2))
    checkpoints.wait()

    def save() -> None:
        checkpoints.save(make_state(step=4), {"next_index": 4}, meta(4))
        checkpoints.wait()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow beyond it
    try:
        with pytest.raises(CheckpointError, match="saving failed, checkpoint 2 is the newest good"):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = Checkpoints(tmp_path, KEEP, said.append)
    restored = again.restore(abstract(make_state()), CFG, DATA)
    assert restored is not None
    assert_equal(restored.state, make_state(step=2))
    assert saved_steps(again.folder) == [2]
    again.close()


def test_arrays_may_be_donated_while_they_are_written(tmp_path: Path, said: list[str]) -> None:
    """The write goes on in the background; the fingerprint of what lands is checked on reading."""
    checkpoints = Checkpoints(tmp_path, KEEP, said.append)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = make_state(step=2)
    checkpoints.save(state, {}, meta(2))
    for _ in range(20):
        state = step(state)
    checkpoints.wait()
    restored = checkpoints.restore(abstract(make_state()), CFG, DATA)
    assert restored is not None
    assert_equal(restored.state, make_state(step=2))
    checkpoints.close()


def test_meta_is_plain_json(saved: Checkpoints) -> None:
    body = json.loads((saved.folder / "6" / "meta" / "metadata").read_text())["body"]
    assert body["config"]["model"]["dim"] == 16
    assert np.shape(body["fingerprints"]["params"]) == (2,)
