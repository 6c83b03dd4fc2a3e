"""What the benchmarks promise of what they time: equal results and parameters, right counts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nested_jax.ops.memory.chunked import memory_chunked
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.types import ParamInfo

SPEC = MemorySpec(arch="linear", rule="titans", momentum=True, chunk=3)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a script of benchmarks/ by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if "benchmarks" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.mark.slow
def test_a_memory_that_differs_from_the_reference_is_not_timed(benchmark: Any) -> None:
    ops = benchmark("memory_ops")
    ops.check(SPEC, memory_chunked)

    def wrong(*args: Any) -> Any:
        state, y_BTHV = memory_chunked(*args)
        return state, 1.001 * y_BTHV

    with pytest.raises(SystemExit, match="differs from the reference"):
        ops.check(SPEC, wrong)


@pytest.mark.slow
def test_models_are_brought_to_equal_parameters(benchmark: Any) -> None:
    blocks = benchmark("blocks")
    wanted = blocks.count(blocks.make_config({"block": "transformer"}, 64))
    for name in ("titans_lmm", "hope"):
        cfg = blocks.equal_config({"block": name} | blocks.BLOCKS[name], 64, wanted)
        assert abs(blocks.count(cfg) / wanted - 1) < 0.02
        assert cfg.model.mlp_hidden != blocks.SIZE["mlp_hidden"]
    with pytest.raises(SystemExit, match="are not within 2 %"):
        blocks.equal_config({"block": "transformer", "layers": 40}, 64, wanted)


def test_the_page_has_the_tables_of_the_records(benchmark: Any) -> None:
    root = Path(__file__).resolve().parent.parent
    retrofit = benchmark("retrofit")
    records = [json.loads(line) for line in retrofit.RECORDS.read_text().splitlines()]
    page = (root / "docs" / "proof" / "retrofit.md").read_text()
    assert len(records) > 4
    assert retrofit.tables(records).strip() in page


def test_every_model_runs_once_a_round_and_the_first_round_is_not_counted(benchmark: Any) -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    seconds = benchmark("blocks").interleave(steps, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_operations_of_newton_schulz(benchmark: Any) -> None:
    """A step on [s, l] is X X^T and its use on X, 2 s s l each, and one square, 2 s^3."""
    info = {
        "up": ParamInfo((3, 4, 10), ("layers", "embed", "mlp"), "matrix"),
        "norm": ParamInfo((3, 4), ("layers", "norm"), "vector"),
    }
    flop = benchmark("optimizers").newton_schulz_flop(info, steps=5)
    assert flop == 3 * 5 * (2 * 2 * 4 * 4 * 10 + 2 * 4**3)
