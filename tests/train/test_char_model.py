"""The three-level character model as it is run: streams, levels with clocks, restarts, devices."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, assert_equal
from tiny import launch, launch_two, read_lines, synthetic_text, write_fields

from nested_jax import generate
from nested_jax.config import Config, MeshConfig, from_config_dict, load_config
from nested_jax.data.held_out import valid_batches
from nested_jax.data.pipeline import make_train_iterator
from nested_jax.models.lm import build_model
from nested_jax.outer_loss import document_starts
from nested_jax.sharding import batch_sharding, make_mesh, place_batch
from nested_jax.train.checkpoint import Checkpoints, Restored, load_checkpoint
from nested_jax.train.layout import init_state
from nested_jax.train.plan import make_plan
from nested_jax.train.state import create_state, place_state
from nested_jax.train.step import make_program, train_step
from nested_jax.train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
PERIODS = (1, 2, 4)
STEPS = 8


class CrashError(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents, so that streams begin some of them inside and between their rows."""
    folder = tmp_path_factory.mktemp("text")
    for split, numbers in (("train", range(30)), ("valid", range(30, 40))):
        (folder / "data" / split).mkdir(parents=True)
        for number in numbers:
            file = folder / "data" / split / f"{number:02d}.txt"
            file.write_text(synthetic_text(number) + "\n", "utf8")
    return folder / "data"


def config(data: Path, **train_fields: Any) -> Config:
    return from_config_dict(fields(data, **train_fields))


def fields(data: Path, **train_fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": {
            "block": "lstm_cms",
            "vocab_size": 512,
            "dim": 16,
            "layers": 1,
            "heads": 2,
            "lstm_hidden": 20,
            "mlp_hidden": 12,
            "cms": {"periods": (4, 8), "fast_layers": 0, "surprise": (0.05, 0.01)},
        },
        "data": {
            "source": str(data),
            "cache_dir": str(data.parent / "cache"),
            "tokenizer": "char",
            "vocab_size": 512,
            "mode": "stream",
            "seq_len": 24,
            "valid_rows": 20,
        },
        "optim": {
            "periods": PERIODS,
            "schedule": "constant",
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "weight_decay": 0.0,
        },
        "train": {
            "carry": "mixers",
            "steps": STEPS,
            "batch_size": 8,
            "log_every": 1,
            "eval_every": 5,
            "save_every": 3,
        },
    }
    found["train"] |= train_fields
    return found


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config(data), workdir)
    return workdir


def final_state(workdir: Path, cfg: Config) -> Restored:
    plan = make_plan(cfg, workdir, lambda _: None)
    checkpoints = Checkpoints(workdir, cfg.train, lambda _: None)
    try:
        restored = checkpoints.restore(plan.abstract, cfg, {})
    finally:
        checkpoints.close()
    assert restored is not None
    return restored


@pytest.mark.slow
def test_a_killed_run_continues_its_streams_bit_for_bit(
    undisturbed: Path, data: Path, tmp_path: Path
) -> None:
    """Killed at step 5, two steps after its checkpoint: losses, states, the place in the text."""
    cfg, workdir = config(data), tmp_path / "run"

    def crash(model: Any, params: Any, cfg: Any, step: int) -> dict[str, float]:
        raise CrashError

    with pytest.raises(CrashError):
        train(cfg, workdir, [crash])
    train(cfg, workdir)
    assert read_lines(workdir) == read_lines(undisturbed)
    got, want = final_state(workdir, cfg), final_state(undisturbed, cfg)
    assert_equal(got.state, want.state)
    assert got.data == want.data
    assert all(x.any() for x in jax.tree.leaves(want.state.carry.prefix))


def test_a_run_reports_its_objectives_and_characters(undisturbed: Path) -> None:
    lines = read_lines(undisturbed)
    logged = [line for line in lines if "loss" in line]
    assert logged[0]["aux_loss"] == pytest.approx(0.06, rel=1e-3)
    assert {"surprise/level0", "surprise/level1"} <= logged[0].keys()
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.5
    scored = [line for line in lines if "valid_loss" in line]
    for line in scored:
        assert line["valid_ppl"] == pytest.approx(math.exp(line["valid_loss"]))
        # An end of document is a target and no character: bits per character are a bit more.
        bits = line["valid_loss"] / math.log(2)
        assert bits < line["valid_bits_per_char"] < 1.02 * bits
        assert line["valid_bits_per_char"] == line["valid_bits_per_byte"]  # the text is ASCII


def test_held_out_text_is_scored_as_one_stream(undisturbed: Path, data: Path) -> None:
    """The evaluation of the run, against each stream read at once, documents by themselves."""
    params, cfg, step = load_checkpoint(undisturbed)
    scored = [line for line in read_lines(undisturbed) if "valid_loss" in line][-1]
    assert scored["step"] == step
    model = build_model(cfg.model)
    parts = valid_batches(cfg.data, batch_size=8, align=cfg.align)
    rows = {name: jnp.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}
    starts_BT = jnp.concatenate([document_starts(p["segments_BT"]) for p in parts], axis=1)

    @jax.jit
    def nats(params: Any) -> Any:
        state = model.init_state(params, 8, capacity=1)
        _, logits = model.apply(params, state, rows["tokens_BT"], starts_BT=starts_BT)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        picked = jnp.take_along_axis(log_p, rows["targets_BT"][..., None], axis=-1)[..., 0]
        return -jnp.sum(picked * rows["weights_BT"])

    want = float(nats(params)) / float(rows["weights_BT"].sum())
    assert scored["valid_loss"] == pytest.approx(want, rel=1e-5)
    assert int(starts_BT.sum()) > 3


def test_text_is_written_from_a_checkpoint(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--checkpoint", str(undisturbed), "--prompt", "alpha = ", "--max-tokens", "12"]
    assert generate.main(flags) == 0
    first = capsys.readouterr().out
    assert first.startswith("alpha = ")
    assert len(first) > len("alpha = \n")
    assert generate.main(flags) == 0
    assert capsys.readouterr().out == first


class Trained(NamedTuple):
    losses: list[float]
    states: Any  # of the streams, after the last step
    moved: list[dict[int, bool]]  # for each step, whether any or all of a level's arrays changed
    norms: list[float]  # of the gradients
    begins: list[Any]  # what each step began with, on the host


def train_on(devices: int, cfg: Config, begins: Sequence[Any] = ()) -> Trained:
    """Train on the first devices of this process; step i begins with ``begins[i]``, if given."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    model = build_model(cfg.model)
    program = make_program(cfg, model)
    init = partial(init_state, cfg, model, program)
    info = model.param_info()
    placed = place_state(mesh, info, program.optimizer, jax.eval_shape(init), cfg.mesh)
    levels = [leaf.level for leaf in jax.tree.leaves(info)]
    batches = make_train_iterator(cfg.data, batch_size=8, align=1, seed=0)
    trained = Trained([], None, [], [], [])
    with jax.set_mesh(mesh):
        state = create_state(init, placed)
        for leaf in jax.tree.leaves(state.carry.prefix if state.carry else ()):
            assert leaf.sharding.is_equivalent_to(batch_sharding(mesh), leaf.ndim)
        step = jax.jit(partial(train_step, program=program))
        places = jax.tree.map(lambda x: x.sharding, state)
        for number in range(STEPS):
            if begins:
                state = jax.device_put(begins[number], places)
            trained.begins.append(jax.device_get(state))
            before = trained.begins[-1].params
            state, metrics = step(state, place_batch(mesh, next(batches)))
            trained.losses.append(float(metrics["loss"]))
            trained.norms.append(float(metrics["grad_norm"]))
            after = jax.device_get(state.params)
            moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), after, before))
            by_level = {
                n: [m for m, level in zip(moved, levels, strict=True) if level == n]
                for n in range(3)
            }
            assert all(len(set(found)) == 1 for found in by_level.values())
            trained.moved.append({n: found[0] for n, found in by_level.items()})
    for leaf in jax.tree.leaves(state.carry.prefix if state.carry else ()):
        assert leaf.sharding.is_equivalent_to(batch_sharding(mesh), leaf.ndim)
    return trained._replace(states=jax.device_get(state.carry))


@pytest.fixture(scope="module")
def on_one(data: Path) -> Trained:
    return train_on(1, config(data))


def test_a_level_moves_at_its_own_steps_only(on_one: Trained) -> None:
    """All arrays of level l change at the multiples of k_l, and none of them anywhere else."""
    for number, moved in enumerate(on_one.moved, start=1):
        assert moved == {n: number % period == 0 for n, period in enumerate(PERIODS)}


@pytest.mark.slow
def test_one_device_and_eight_train_alike(on_one: Trained, data: Path) -> None:
    """Rows of the batch lie on different devices, and each device keeps the state of its own.

    Every step begins on eight devices with what it began with on one. The devices then differ in
    nothing but the order in which the tokens of a batch are summed, for the loss and the gradients:
    a sum of n float32 numbers has a relative error of n u at most, u = 2^-24, if they have one sign
    (Higham 2002, 4.2). From step to step Adam makes such differences larger, by an unknown factor:
    it divides by the gradient's own size, and entries near 0 have an uncertain sign.
    """
    on_eight = train_on(8, config(data), on_one.begins)
    bound = 8 * 24 * 2.0**-24
    assert on_eight.losses == pytest.approx(on_one.losses, rel=bound)
    assert on_eight.norms == pytest.approx(on_one.norms, rel=bound)
    assert_close(on_eight.states, on_one.states, rtol=1e-5)


@pytest.mark.slow
def test_persistence_shows(on_one: Trained, data: Path) -> None:
    """The second batch is predicted from the states that the first left, or from none."""
    without = train_on(1, config(data, carry="none"))
    assert without.states == ()
    assert without.losses[0] == pytest.approx(on_one.losses[0], rel=1e-6)
    assert abs(without.losses[1] - on_one.losses[1]) > 1e-5


def test_the_config_is_the_model_of_the_name() -> None:
    cfg = load_config(str(ROOT / "configs" / "char_lstm.py"))
    info = jax.tree.leaves(build_model(cfg.model).param_info())
    assert 1.15e6 < sum(math.prod(leaf.shape) for leaf in info) < 1.25e6
    assert cfg.optim.periods == (1, 16, 256)
    assert (cfg.data.seq_len, cfg.train.carry, cfg.optim.learning_rate) == (512, "mixers", 3e-4)
    longer = load_config(str(ROOT / "configs" / "char_lstm.py") + ":seq=2048,batch=4")
    assert longer.data.seq_len == 2048
    assert json.dumps(dataclasses.asdict(longer))


@pytest.mark.slow
def test_levels_can_have_states_of_their_own(data: Path, tmp_path: Path) -> None:
    """Levels 2 and 3 written as they read; their fast weights outlive the batch with carry=all."""
    cfg = config(data, carry="all", steps=3)
    cms = dataclasses.replace(cfg.model.cms, fast_layers=1, surprise=())
    cfg = dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, cms=cms),
        teach=dataclasses.replace(cfg.teach, mode="exact", chunk=4),
    )
    train(cfg, tmp_path)
    state = final_state(tmp_path, cfg).state
    assert all(x.any() for level in state.carry.fast for x in jax.tree.leaves(level.delta))
    last = [line for line in read_lines(tmp_path) if "loss" in line][-1]
    assert last["teach/level1/change"] > 0


@pytest.mark.slow
def test_two_processes_carry_their_streams_and_one_goes_on(data: Path, tmp_path: Path) -> None:
    """Half of the streams in each of two processes, stopped; one process then has all of them."""
    file = write_fields(tmp_path, fields(data))

    def run(workdir: Path, two: bool, *flags: str) -> dict[int, float]:
        start = launch_two if two else lambda *given: [launch(*given)]
        processes = start(file, workdir, *flags)
        outputs = [process.communicate(timeout=300) for process in processes]
        assert all(process.returncode == 0 for process in processes), outputs
        return {line["step"]: line["loss"] for line in read_lines(workdir) if "loss" in line}

    want = run(tmp_path / "alone", False)
    assert list(want) == list(range(1, STEPS + 1))
    run(tmp_path / "run", True, "--config.train.steps=4")
    assert run(tmp_path / "run", False) == pytest.approx(want, rel=1e-5)
