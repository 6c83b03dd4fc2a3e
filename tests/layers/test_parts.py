"""Memories as parts of other models: the examples of docs/layers.md, and their promises."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nested_jax.layers import parts
from nested_jax.layers.parts import CMS, CMSConfig, ModelConfig, reading

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(file.name for file in (ROOT / "examples").glob("*.py"))


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(
        name.removesuffix(".py"), ROOT / "examples" / name
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_writes_are_steps_of_the_inner_optimizer() -> None:
    """Plain SGD by hand: the fast level at every chunk of 2, the slow one at every third."""
    cfg = ModelConfig(
        dim=8,
        heads=2,
        mlp_hidden=10,
        layers=2,
        cms=CMSConfig(periods=(2, 6), inner_lr=(0.1, 0.02)),
    )
    cms = CMS(cfg, fast=True)
    x_BTD = jax.random.normal(jax.random.key(0), (3, 8, 8))
    params = cms.init(jax.random.key(1), x_BTD)
    levels = parts.init_levels(cfg.cms, cms.apply(params, 3, method="init_deltas"))
    rates: Any = cms.apply(params, method="rates")
    by_hand = list(parts.deltas_of(levels))
    pending = [jax.tree.map(jnp.zeros_like, by_hand[1])]

    def loss(deltas: Any, x: Any) -> Any:
        y, recall = cms.apply(params, x, deltas)
        return jnp.square(y).sum() + recall.sum()

    for i in range(4):
        x = x_BTD[:, 2 * i : 2 * i + 2]
        grads = jax.grad(loss)(parts.deltas_of(levels), x)
        want = jax.grad(loss)(tuple(by_hand), x)
        levels = parts.write_levels(cfg.cms, levels, grads, rates, 2)
        by_hand[0] = jax.tree.map(lambda d, g: d - 0.1 * g, by_hand[0], want[0])
        pending[0] = jax.tree.map(jnp.add, pending[0], want[1])
        if i == 2:
            by_hand[1] = jax.tree.map(lambda d, g: d - 0.02 * g, by_hand[1], pending[0])
        for found, wanted in zip(parts.deltas_of(levels), by_hand, strict=True):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)
    assert [int(level.writes_B[0]) for level in levels] == [4, 1]


def test_a_call_knows_what_was_read() -> None:
    x_BTD = jnp.zeros((2, 3, 4))
    call = reading(x_BTD, jnp.array([0, 5]), jnp.array([3, 1]))
    assert call.position_BT.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert call.segment_BT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert call.rows.fresh_B is not None
    assert call.rows.fresh_B.tolist() == [True, False]


@pytest.fixture
def as_users() -> Iterator[None]:
    """Promotion as other people's programs have it; optax's Adam wants it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_a_memory_in_a_linen_model_recalls(as_users: None) -> None:
    shares = example("memory_in_linen.py").main(200)
    assert np.mean(shares[:5]) < 0.2
    assert np.mean(shares[-10:]) > 0.5


@pytest.mark.slow
def test_a_memory_in_an_nnx_model_reads_in_pieces(as_users: None) -> None:
    apart, moved = example("memory_in_nnx.py").main()
    assert apart < 1e-5
    assert moved > 10


@pytest.mark.slow
def test_a_cms_in_a_linen_model_learns_a_text(as_users: None) -> None:
    losses, writes = example("cms_that_learns.py").main()
    assert writes == [32, 8]
    assert losses[-1] < losses[0] / 3


def test_every_example_is_run() -> None:
    text = Path(__file__).read_text()
    assert EXAMPLES
    assert all(f'example("{name}")' in text for name in EXAMPLES)
