"""Random configurations: each is made, or refused in one line that names a field."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from quick_compile import ROOT

from benchmarks import fuzz
from benchmarks.faults.runs import write_text
from nested_jax.config import load_config
from nested_jax.config.blocks import BLOCKS


def test_three_hundred_configurations_are_made_or_refused() -> None:
    found = fuzz.drawn(300, 0)
    assert len(found) == 300
    assert {chosen["model.block"] for chosen in found} == set(BLOCKS)
    assert found == fuzz.drawn(300, 0)
    made = 0
    for chosen in found:
        try:
            load_config("configs/pilot.py:test", {**fuzz.BASE, **chosen})
            made += 1
        except ValueError as error:
            assert re.match(r"(?:[a-z]\w*\.)*[a-z]\w*=", str(error)), (str(error), chosen)  # noqa: PT017
    assert 60 < made < 290


@pytest.mark.slow
def test_configurations_train_and_go_on_or_name_a_field(tmp_path: Path) -> None:
    """Ten of the 300 of `python -m benchmarks.fuzz`, which runs them all."""
    base = {"data.source": str(write_text(tmp_path / "text")), "data.cache_dir": f"{tmp_path}/c"}
    for number, chosen in enumerate(fuzz.drawn(300, 0)[:10]):
        (tmp_path / str(number)).mkdir()
        what, said = fuzz.outcome(chosen, tmp_path / str(number), base)
        assert what in ("trained", "refused"), (said, chosen)


def test_the_page_has_the_counts_of_the_committed_outcomes() -> None:
    """All 300 ran; the sentence of docs/scaling.md is of these lines."""
    lines = (ROOT / "benchmarks" / "results" / "fuzz-cpu.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["number"] for row in rows] == list(range(300))
    assert {row["config"]["model.block"] for row in rows} == set(BLOCKS)
    counts = Counter(row["outcome"] for row in rows)
    assert set(counts) == {"trained", "refused", "refused as it goes on"}
    said = " ".join((ROOT / "docs" / "scaling.md").read_text().split())
    assert f"{counts['trained']} trained, {counts['refused']} were refused as they started" in said
    losses = [json.loads(row["said"]) for row in rows if row["outcome"] == "trained"]
    assert all(len(one) == 3 and all(map(math.isfinite, one)) for one in losses)
