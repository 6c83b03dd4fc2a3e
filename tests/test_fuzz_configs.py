"""Random configurations: each is made, or refused in one line that names a field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
