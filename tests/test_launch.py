"""The command line: exit statuses, refusals that leave nothing, kills, several processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import assert_equal
from tiny import (
    HOPE,
    ROOT,
    TIMINGS,
    environment,
    launch,
    launch_two,
    read_lines,
    tiny_config,
    write_config,
    write_data,
)

import launch as launcher
from nested_jax.errors import NotWrittenError
from nested_jax.files import hold_folder
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.train.signals import Stopped
from nested_jax.train.stop_rules import Diverged
from nested_jax.train.workdir import saved_steps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def config(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), data)


# --- refusals ------------------------------------------------------------------------------------

TEACH = ["model.block=hope_attention", "teach.mode=exact"]
REFUSED = {
    "unknown field": (["model.dimm=3"], "model.dimm=3: unknown field; did you mean model.dim?"),
    "wrong type": (["model.dim=wide"], "model.dim='wide': got str, wants int"),
    "heads": (["model.heads=3"], "model.heads=3: must divide model.dim=16"),
    "chunk": (
        [*TEACH, "teach.chunk=64", "data.seq_len=96"],
        "data.align=32: must be a multiple of teach.chunk=64",
    ),
    "mesh": (["mesh.data=3"], "mesh.data=3: mesh.data x mesh.fsdp x mesh.model = 3, but there"),
    "mesh and batch": (["train.batch_size=12"], "rows must divide over mesh data x fsdp = 8"),
    "mesh and heads": (
        ["mesh.data=2", "mesh.model=4"],
        "of size 2 does not divide over mesh axes 'model' = 4",
    ),
    "microbatch": (["train.grad_accum=2"], "=4: rows must divide over mesh data x fsdp = 8"),
    "evaluation batch": (["train.eval_batch_size=9"], "train.eval_batch_size=9: rows must divide"),
    "vocabulary": (
        ["model.vocab_size=256"],
        "model.vocab_size=256: wants at least the 320 symbols",
    ),
    "no shards": (["data.source=nowhere"], "data.source='nowhere': neither 'stdlib'"),
    "segment": (["data.segments=['poems']"], "has no segment 'poems'"),
    "evaluator": (["train.eval_tasks=['nosuch']"], "train.eval_tasks=('nosuch',)"),
    "period": (
        [*TEACH, "teach.chunk=8", "data.seq_len=16", "model.cms.periods=(8,32)"],
        "level 1 is never written in rows of data.seq_len=16 tokens",
    ),
}


def refused(arguments: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of an error, after checking that the run left nothing behind."""
    assert launcher.main([*arguments, "--workdir", str(workdir)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("launch.py: error: ")
    assert error.count("\n") == 1
    assert not workdir.exists()
    return error


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_refused_before_anything_is_written(
    name: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields, want = REFUSED[name]
    flags = [f"--config.{field}" for field in fields]
    assert want in refused(["--config", str(config), *flags], tmp_path / "run", capsys)


def test_a_missing_package_is_refused(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    arguments = ["--config", str(config), "--config.train.tensorboard=True"]
    assert "wants tensorboardX" in refused(arguments, tmp_path / "run", capsys)


def test_foreign_and_damaged_shards_are_refused(
    data: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    index = json.loads((copy / "index.json").read_text())
    arguments = ["--config", str(config), f"--config.data.source={copy}"]

    shard = copy / index["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-2])
    assert str(shard.name) in refused(arguments, tmp_path / "run", capsys)

    shutil.copy(data / shard.name, shard)
    index["tokenizer"]["sha256"] = "0" * 64
    (copy / "index.json").write_text(json.dumps(index))
    assert "tokenizer" in refused(arguments, tmp_path / "run", capsys)


def test_a_workdir_that_cannot_be_made_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--config", str(config), "--workdir", str(tmp_path / "file" / "run")]
    assert launcher.main(arguments) == 2
    assert "is a file, wants a folder" in capsys.readouterr().err
    assert launcher.main([*arguments[:-1], "/proc/run"]) == 2
    assert "workdir='/proc/run': has 0 B free" in capsys.readouterr().err


def test_flags_are_checked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher.main(["--config", "nowhere.py"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert launcher.main(["--config", str(config), "--confg.seed=1"]) == 2
    assert "wants --config.FIELD=VALUE" in capsys.readouterr().err
    assert launcher.main(["--config", str(config), "--num-processes", "2"]) == 2
    assert "want all three" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        launcher.main([])
    assert left.value.code == 2
    assert launcher.default_workdir("configs/pilot.py:smoke") == Path("runs/pilot-smoke")
    assert launcher.default_workdir("a/mid.py") == Path("runs/mid")
    assert launcher.default_workdir("pilot.py:size=mid,seq=4096") == Path(
        "runs/pilot-size=mid_seq=4096"
    )


def test_a_workdir_in_use_is_refused_and_its_run_goes_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second start ends at once, names the first, and touches nothing of it."""
    run = tmp_path / "run"
    first = launch(config, run)
    while not (run / "metrics.jsonl").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    assert launcher.main(["--config", str(config), "--workdir", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{run} is in use by process {first.pid} on {socket.gethostname()} since 20" in said
    assert said.count("\n") == 1
    assert first.wait(timeout=300) == 0
    assert [line["step"] for line in read_lines(run) if "loss" in line] == list(range(1, 13))
    assert not (run / ".lock").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Diverged("x"), 3),
        (NotWrittenError("x"), 1),
        (Stopped(15, 7), 143),
        (Stopped(2, 7), 130),
        (OSError(28, "No space left on device"), 2),
    ],
)
def test_exit_statuses(
    error: Exception,
    status: int,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(*_: Any) -> None:
        raise error

    monkeypatch.setattr(launcher, "train", train)
    assert launcher.main(["--config", str(config)]) == status
    assert str(error) in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError that a library raised is no message for the user."""
    monkeypatch.setattr(launcher, "train", lambda *_: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        launcher.main(["--config", str(config)])


# --- interruptions -------------------------------------------------------------------------------

STEPS = {"train.steps": 60, "train.save_every": 3, "train.eval_every": 20}


def finish(config: Path, workdir: Path) -> None:
    process = launch(config, workdir)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


def kill_at(config: Path, workdir: Path, lines: int, delay: float) -> bool:
    """Start the run; kill -9 `delay` seconds after metrics.jsonl has `lines` more lines.

    Returns whether the kill came before the end.
    """
    file = workdir / "metrics.jsonl"
    process = launch(config, workdir)
    ready = lambda: file.exists() and file.read_bytes().count(b"\n") >= lines  # noqa: E731
    while process.poll() is None and not ready():
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return process.returncode == -9


def assert_same(got: Path, want: Path) -> None:
    assert read_lines(got) == read_lines(want)
    assert_equal(load_checkpoint(got), load_checkpoint(want))
    a, b = (json.loads((run / "summary.json").read_text()) for run in (got, want))
    for name in ("train_loss", "valid_loss", "valid_bits_per_byte", "tokens"):
        assert a[name] == b[name]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config of steps of a few milliseconds with a save at every third, and a whole run of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder, data, STEPS)
    finish(config, folder / "run")
    return config, folder / "run"


def kills(undisturbed: tuple[Path, Path], workdir: Path, moments: list[tuple[int, float]]) -> None:
    config, want = undisturbed
    killed = [kill_at(config, workdir, *moment) for moment in moments]
    assert sum(killed) > len(moments) / 2
    finish(config, workdir)
    assert_same(workdir, want)


def test_a_killed_run_ends_like_an_undisturbed_one(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    """Two kills at moments when some save is under way."""
    kills(undisturbed, tmp_path / "run", [(5, 0.0), (25, 0.005)])


FILL_THE_DISK = """
import resource, sys
import launch

def fill(model, params, cfg, step):
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))
    return {}

launch.make_evaluators = lambda cfg: [fill]
sys.exit(launch.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_last_checkpoint_is_good(
    config: Path, tmp_path: Path
) -> None:
    """In a process of its own: a save that fails leaves tasks of Orbax that nobody awaits."""
    command = [sys.executable, "-c", FILL_THE_DISK, "--config", str(config)]
    command += ["--workdir", str(tmp_path / "run")]
    ended = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "saving failed, checkpoint 4 is the newest good one" in ended.stderr
    assert load_checkpoint(tmp_path / "run")[2] == 4


# --- several processes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    """A signal to one of two processes; then another process count and another mesh go on."""
    config, run = undisturbed[0], tmp_path / "run"
    both = launch_two(config, run, "--config.mesh.fsdp=2")
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_bytes()) < 900:
        assert all(process.poll() is None for process in both), both[0].communicate()
        time.sleep(0.01)
    both[1].terminate()
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [143, 143], outputs
    assert saved_steps(run / "checkpoints")[-1] < STEPS["train.steps"]
    finish(config, run)
    got, want = read_lines(run), read_lines(undisturbed[1])
    assert [line["step"] for line in got] == [line["step"] for line in want]
    for a, b in zip(got, want, strict=True):
        for name in a:
            if isinstance(a[name], str):  # hashes of the data
                assert a[name] == b[name], (a["step"], name)
            elif name not in TIMINGS:
                assert a[name] == pytest.approx(b[name], rel=2e-4), (a["step"], name)


@pytest.mark.slow
def test_a_second_run_of_two_processes_is_refused_in_both(config: Path, tmp_path: Path) -> None:
    """Process 0 holds the workdir for its run, and finds it held for the other."""
    run = tmp_path / "run"
    with hold_folder(run):
        both = launch_two(config, run)
        outputs = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], outputs
    assert f"{run} is in use by process {os.getpid()} on " in outputs[0]
    assert "process 0 of this run could not take it" in outputs[1]
    both = launch_two(config, run, "--config.train.steps=2")
    outputs = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs


@pytest.mark.slow
def test_evaluators_of_two_processes_say_what_one_says(tmp_path: Path, data: Path) -> None:
    """With parameters and rows spread over both: passages read again, texts that are written,
    answers that are decoded."""
    tasks = [
        "repeat:40",
        "perplexity --segments run --split valid --max-tokens 128 --memorize",
        "passkey --context-lengths 160 --samples-per-length 2",
    ]
    fields = {**HOPE, "train.eval_tasks": tasks, "train.steps": 2, "train.eval_every": 1}
    config = write_config(tmp_path, data, fields)
    finish(config, tmp_path / "one")
    both = launch_two(config, tmp_path / "two", "--config.mesh.fsdp=2", "--config.mesh.data=2")
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "repeat: a held-out passage that it read 40 tokens ago" in outputs[0][0]
    (*_, want), (*_, got) = (read_lines(tmp_path / name) for name in ("one", "two"))
    scores = [name for name in want if name.split("/")[0] in ("repeat", "perplexity", "passkey")]
    assert {name.split("/")[0] for name in scores} == {"repeat", "perplexity", "passkey"}
    for name in scores:
        assert got[name] == pytest.approx(want[name], rel=2e-4, abs=2e-4), name


# --- meshes --------------------------------------------------------------------------------------

MESHES = {
    "data": {"mesh.data": 8},
    "fsdp": {"mesh.data": 1, "mesh.fsdp": 8},
    "mixed": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.model": 2},
}


def losses(data: Path, changes: dict[str, Any], devices: int, steps: int) -> list[float]:
    """Take steps on a mesh over some of the devices, without the host side of a run."""
    from nested_jax.data.pipeline import make_train_iterator
    from nested_jax.models.lm import build_model
    from nested_jax.sharding import make_mesh, place_batch
    from nested_jax.train.layout import init_state
    from nested_jax.train.state import create_state, place_state
    from nested_jax.train.step import make_program, train_step

    cfg = tiny_config(data, changes)
    mesh = make_mesh(cfg.mesh, jax.devices()[:devices])
    model = build_model(cfg.model)
    program = make_program(cfg, model)
    init = partial(init_state, cfg, model, program)
    batches = make_train_iterator(
        cfg.data, batch_size=cfg.train.batch_size, align=cfg.align, seed=cfg.seed
    )
    with jax.set_mesh(mesh):
        shardings = place_state(
            mesh, model.param_info(), program.optimizer, jax.eval_shape(init), cfg.mesh
        )
        state = create_state(init, shardings)
        batch = place_batch(mesh, next(batches))
        jitted = jax.jit(partial(train_step, program=program), donate_argnums=0)
        quick = {"xla_backend_optimization_level": 0}
        step = jitted.lower(state, batch).compile(compiler_options=quick)
        found = []
        for _ in range(steps):
            state, metrics = step(state, batch)
            batch = place_batch(mesh, next(batches))
            found.append(float(metrics["loss"]))
    return found


def compare(data: Path, block: dict[str, Any], meshes: list[str], steps: int) -> None:
    changes = {**block, "optim.learning_rate": 3e-3}
    want = losses(data, {**changes, "mesh.data": 1}, 1, steps)
    for mesh in meshes:
        got = losses(data, {**changes, **MESHES[mesh]}, 8, steps)
        assert got == pytest.approx(want, rel=2e-4), mesh


def test_a_mesh_changes_no_loss(data: Path) -> None:
    """The meta-gradient goes through the writes; fast weights are laid out over all axes."""
    compare(data, {**HOPE, "model.layers": 1}, ["mixed"], steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("block", [{}, HOPE], ids=["transformer", "hope_attention"])
def test_no_mesh_changes_a_loss(data: Path, block: dict[str, Any]) -> None:
    """T17, over 12 steps."""
    compare(data, block, list(MESHES), steps=12)
