"""Learning-rate and teach-scale schedules against their formulas, step by step."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.config import OptimConfig, TeachConfig
from nested_jax.optim import make_schedule, teach_scale


def rate(cfg: OptimConfig, steps: int, step: int) -> float:
    n = step + 1
    if n < cfg.warmup_steps:
        return cfg.learning_rate * n / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.learning_rate
    done = min((n - cfg.warmup_steps) / (steps - cfg.warmup_steps), 1.0)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if cfg.schedule == "cosine" else 1 - done
    return cfg.learning_rate * (cfg.final_fraction + (1 - cfg.final_fraction) * shape)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_rate_of_every_step(name, warmup):
    cfg = OptimConfig(schedule=name, warmup_steps=warmup, learning_rate=0.3, final_fraction=0.2)
    schedule = jax.jit(make_schedule(cfg, 20))
    got = [float(schedule(jnp.int32(step))) for step in range(25)]
    np.testing.assert_allclose(got, [rate(cfg, 20, step) for step in range(25)], rtol=2e-6)
    assert schedule(3).dtype == jnp.float32


def test_the_peak_and_the_end_are_where_the_config_says():
    schedule = make_schedule(OptimConfig(warmup_steps=5, learning_rate=0.3, final_fraction=0.1), 50)
    assert float(schedule(0)) == pytest.approx(0.3 / 5)
    assert float(schedule(4)) == pytest.approx(0.3)
    assert float(schedule(49)) == pytest.approx(0.03)


def test_a_run_that_ends_in_its_warm_up():
    assert float(make_schedule(OptimConfig(warmup_steps=8), 8)(7)) == pytest.approx(1e-3)
    assert float(make_schedule(OptimConfig(warmup_steps=80), 8)(7)) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("warmup", "start", "length"), [(0, 0, 0), (5, 0, 0), (0, 6, 4), (5, 9, 7)]
)
def test_teach_scale(warmup, start, length):
    cfg = TeachConfig(scale=0.3, warmup_steps=warmup, decay=(start, length) if length else ())
    scale = jax.jit(lambda step: teach_scale(cfg, step))
    for step in range(20):
        want = 0.3
        if warmup:
            want *= min(1, (step + 1) / warmup)
        if length and step + 1 > start:
            want *= max(0, 1 - min(1, (step + 1 - start) / length))
        assert float(scale(step)) == pytest.approx(want, abs=1e-7), step
    assert scale(3).dtype == jnp.float32
