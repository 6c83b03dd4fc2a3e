"""Gates and their ranges: which writes may be large, and what a fresh gate says."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from nested_jax.config import MemoryConfig
from nested_jax.layers.heads import logit, rate_range
from nested_jax.layers.titans import memory_spec

DGD = {"rule": "dgd", "objective": "dot"}


@pytest.mark.parametrize(
    ("fields", "ceiling", "start"),
    [
        ({}, 0.03, 0.015),  # gradients at an anchor: C of one key overshoot above 2 / C
        ({"chunk": 1}, 2.0, 0.03),
        (DGD, 2.0, 0.03),
        ({**DGD, "arch": "mlp"}, 0.03, 0.0015),  # its matrices multiply, and it erases
        ({"arch": "mlp", "chunk": 1}, 0.03, 0.015),
        ({"rule": "dgd"}, 0.03, 0.015),  # l2 erases a second time
    ],
)
def test_only_delta_writes_may_rise_to_the_maximum(
    fields: dict[str, Any], ceiling: float, start: float
) -> None:
    cfg = MemoryConfig(max_rate=2.0, **fields)
    found = rate_range(cfg, memory_spec(cfg))
    assert found.ceiling == ceiling
    assert found.ceiling * float(jax.nn.sigmoid(found.bias)) == pytest.approx(start)


def test_logit_is_the_inverse_of_the_sigmoid() -> None:
    for p in (1e-4, 0.3, 0.9999):
        assert float(jax.nn.sigmoid(logit(p))) == pytest.approx(p, rel=1e-5)
