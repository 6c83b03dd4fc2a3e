"""``python -m nested_jax.fit``: bad input, what is said of a run that does not fit, the plans."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import jax
import pytest
from quick_compile import ROOT

from nested_jax.config import Config, DataConfig, ModelConfig, load_config
from nested_jax.fit import __main__ as command
from nested_jax.fit.cost import Estimate
from nested_jax.fit.gpus import GPUS
from nested_jax.fit.plan import Fit, Need
from nested_jax.fit.reading import compile_reading
from nested_jax.fit.report import as_json, as_text, reading_json, reading_text
from nested_jax.hub.retrofit import retrofit_config
from nested_jax.sharding import make_mesh
from nested_jax.train.layout import lay_out

PILOT = str(ROOT / "configs" / "pilot.py")
HAS_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is not None
REFUSED = {
    "a card": (["--gpu", "h900"], "--gpu='h900': wants one of a100, h100, h200, b200"),
    "no card": (["--gpu", "h200", "--devices", "0"], "--devices=0: wants 1 or more"),
    "hosts": (
        ["--gpu", "h200", "--devices", "8", "--hosts", "3"],
        "wants a divisor of --devices=8",
    ),
    "a field": (["--gpu", "h200", "--config.mesh.fdsp=2"], "did you mean mesh.fsdp?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line_and_exit_status_2(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, want = REFUSED[name]
    assert command.main(["--config", PILOT, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert want in error


@pytest.mark.skipif(HAS_COMPILER, reason="the extra is installed")
def test_without_the_extra_the_error_says_what_to_install(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--config", PILOT, "--gpu", "h200"]) == 2
    assert "pip install 'nested-jax[cuda13]'" in capsys.readouterr().err


def test_more_devices_than_the_mesh_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "absent_devices", lambda gpu, devices, hosts: jax.devices())
    flags = ["--config.mesh.fsdp=2", "--gpu", "h200", "--devices", "8"]
    assert command.main(["--config", PILOT, *flags]) == 2
    assert "mesh.fsdp=2: mesh.data x mesh.fsdp x mesh.model = 2, but there are 8" in (
        capsys.readouterr().err
    )


def planned(peak: int) -> Fit:
    """Return a plan of the pilot on four cards whose step needs `peak` bytes."""
    layout = lay_out(load_config(PILOT), make_mesh(load_config(PILOT).mesh, jax.devices()[:4]))
    need = Need(peak, peak, 0, 1.0, Estimate(seconds=2.0))
    return Fit(
        GPUS["h200"], dict(layout.mesh.shape), need, need, 10, 1e15, layout.cfg, "attention: xla"
    )


def test_a_recipe_that_does_not_fit_says_what_would() -> None:
    text = as_text("pilot.py", planned(10**12))
    assert "does NOT fit" in text
    for advice in ("train.device_rows=1", "cms.fast_layers=1", "mesh.offload=True", "mesh.fsdp=N"):
        assert advice in text
    assert "what would make it fit" not in as_text("pilot.py", planned(10**9))


def test_the_microbatches_of_a_plan_are_those_of_its_mesh() -> None:
    line, train = as_json("pilot.py", planned(10**9)), load_config(PILOT).train
    assert (line["devices"], line["device_rows"]) == (4, train.device_rows)
    assert 4 * line["device_rows"] * line["grad_accum"] == train.batch_size
    assert line["mesh"] == {"data": 1, "fsdp": 4, "model": 1}


# --- reading -------------------------------------------------------------------------------------


def reader(**changes: Any) -> Config:
    model = ModelConfig(
        block="transformer", vocab_size=64, dim=16, layers=2, heads=2, mlp_hidden=24, window=8
    )
    cfg = retrofit_config(Config(model=model, data=DataConfig(seq_len=32)), "8", "1")
    return replace(cfg, model=replace(cfg.model, cms=replace(cfg.model.cms, **changes)))


def test_what_reading_needs() -> None:
    """A reader's memory is the delta of the written block; low ranks need less of it."""
    mesh = make_mesh(Config().mesh, jax.devices()[:1])
    full, low = (compile_reading(reader(fast_rank=n), GPUS["h200"], mesh, 3) for n in (0, 2))
    delta = 4 * 3 * 16 * 24  # float32, of gate, up and down
    assert delta <= full.memory_bytes < full.state_bytes
    assert low.memory_bytes < full.memory_bytes
    assert full.parameter_bytes == 4 * full.parameters
    assert full.writing.estimate.kernels > full.silent.estimate.kernels
    text, data = reading_text("a.json", full), reading_json("a.json", full)
    assert text.startswith("a.json, 3 reader(s) on one NVIDIA H200: fits")
    assert data["estimated_us_per_token"]["writing"] == round(1e6 * full.per_token(full.writing), 4)
    assert data["memory_bytes_per_reader"] == full.memory_bytes


def test_what_cannot_read_is_refused() -> None:
    mesh, gpu = make_mesh(Config().mesh, jax.devices()[:1]), GPUS["h200"]
    with pytest.raises(ValueError, match="--readers=0: wants 1 or more"):
        compile_reading(reader(), gpu, mesh, 0)
    with pytest.raises(ValueError, match="has no CMS levels"):
        compile_reading(Config(), gpu, mesh, 1)
    with pytest.raises(ValueError, match="--devices=2: wants 1"):
        compile_reading(reader(), gpu, make_mesh(Config().mesh, jax.devices()[:2]), 1)
    assert command.main(["--config", PILOT, "--gpu", "h900", "--readers", "1"]) == 2


# --- the committed plans --------------------------------------------------------------------------


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("h200")


def test_the_tables_of_the_page_are_those_of_the_plans(h200: Any) -> None:
    page, lines = h200.PAGE.read_text(), h200.read(h200.PLANS)
    assert h200.with_tables(page, lines) == page
    line = as_json("configs/mid.py", planned(10**9)) | {"overrides": {}}
    changed = h200.with_tables(page, [*lines, line])
    rows, parts = line["device_rows"], line["grad_accum"]
    assert f"| `configs/mid.py`, 4 | {rows} x 2,048, {parts} | 0.9 GiB | 1 % | - |" in changed


def test_memory_that_has_changed_fails_the_check(
    h200: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the devices of this machine and a small run in the place of the cards."""
    monkeypatch.setattr(h200, "absent_devices", lambda gpu, n, hosts: jax.devices()[:n])
    case = ("configs/pilot.py:test", 2, {})
    layout = h200.layout_of(case)
    with jax.set_mesh(layout.mesh):
        peak = h200.peak_bytes(layout.lower_train().compile().memory_analysis())
    line = h200.as_line(case) | {"versions": {"jax": jax.__version__}}
    for change, same in ((1.0, True), (0.95, True), (0.8, False), (1.3, False)):
        known = {h200.key(line): line | {"train": {"peak_bytes": int(change * peak)}}}
        assert h200.same_memory(case, known) == same
    assert "NOT as committed" in capsys.readouterr().out
    assert h200.same_memory(case, {})
    assert h200.same_memory(case, {h200.key(line): line | {"versions": {"jax": "0"}}})


def test_recipes_leave_memory_on_the_machines_that_they_are_for(h200: Any) -> None:
    """At least 15 % of what a program can have, by the compiled plans."""
    plans = {h200.key(x): x for x in h200.read(h200.PLANS) if not h200.before(x)}
    for spec, machines in {"pilot": (1, 2, 8), "mid": (8,), "target": (2, 8)}.items():
        for devices in machines:
            line = plans[h200.key({"config": f"configs/{spec}.py", "devices": devices})]
            assert line["memory_share"] <= 0.85, (spec, devices)
            assert line["seq_len"] * line["rows"] == 2**19
