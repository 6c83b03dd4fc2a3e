"""What the benchmarks promise of what they time: equal results and parameters, right counts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.retrofit.__main__ import RECORDS
from benchmarks.retrofit.measure import SEGMENTS
from benchmarks.retrofit.models import ROOT, check_same
from benchmarks.retrofit.tables import tables
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


def test_the_page_has_the_tables_of_the_records() -> None:
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    page = (ROOT / "docs" / "proof" / "retrofit.md").read_text()
    assert len(records) > 4
    assert tables(records).strip() in page


def test_retrofitted_models_were_compared_on_equal_text() -> None:
    """Rows that are read, of all seeds; what was trained on and scored, within a seed."""
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    rows: dict[str, set[str]] = {}
    for record in records:
        if "corpus" in record:
            rows.setdefault(record["corpus"], set()).add(record["read"]["rows_sha256"])
        else:
            check_same(record["trained"])
    assert set(rows) == set(SEGMENTS)
    assert all(len(hashes) == 1 for hashes in rows.values())


def test_models_that_read_other_text_are_not_compared() -> None:
    same = {"valid_text_sha256": "a", "train_order_sha256": "b"}
    check_same({"longer": same, "rates": same})
    with pytest.raises(ValueError, match="'rates': trained on other rows"):
        check_same({"longer": same, "rates": {**same, "train_order_sha256": "c"}})


def test_the_page_has_the_tables_of_what_reading_costs(benchmark: Any) -> None:
    reading = benchmark("reading")
    page, lines = reading.PAGE.read_text(), reading.read(reading.RESULTS)
    assert {line["model"] for line in lines} >= set(reading.MODELS)
    assert reading.with_tables(page, lines) == page
    lines[0]["plan"]["estimated_us_per_token"]["writing"] = 77.0
    assert "77.00 us" in reading.with_tables(page, lines)


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
