"""Scans in groups, and the grids on which tokens lie: nothing is lost, doubled or moved."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal

from nested_jax.ops.chunking import (
    ChunkGrid,
    Rows,
    from_chunks,
    group_size,
    remat_scan,
    segment_grid,
    split_slots,
    to_chunks,
)
from nested_jax.types import Array

B, D = 3, 4


def body(carry: Array, x: Array) -> tuple[Array, Array]:
    carry = jnp.sin(carry) + jnp.tanh(x)
    return carry, carry * x


@pytest.mark.parametrize("prepare", [None, jnp.exp], ids=["plain", "prepared"])
@pytest.mark.parametrize("steps", [1, 4, 7, 12, 13])
def test_groups_change_neither_values_nor_gradients(
    steps: int, prepare: Any, float64: None
) -> None:
    """13 and 7 are primes: groups, and a rest."""
    rng = np.random.default_rng(steps)
    start, xs = jnp.asarray(rng.normal(size=D)), jnp.asarray(rng.normal(size=(steps, D)))

    def loss(run: Any, start: Array, xs: Array) -> Any:
        end, ys = run(start, xs)
        return jnp.sum(jnp.cos(end)) + jnp.sum(ys * ys), (end, ys)

    def plain(start: Array, xs: Array) -> Any:
        return jax.lax.scan(body, start, prepare(xs) if prepare else xs)

    grad = lambda run: jax.jit(  # noqa: E731
        jax.value_and_grad(partial(loss, run), argnums=(0, 1), has_aux=True)
    )(start, xs)
    want = grad(plain)
    for remat in (True, False):
        got = grad(lambda c, x, r=remat: remat_scan(body, c, x, remat=r, prepare=prepare))
        assert_close(got, want, 1e-12)


def test_backward_keeps_about_two_roots_of_the_carries() -> None:
    """64 steps of a carry of 1000 numbers: 8 between groups and 8 within one, not 64."""
    start, xs = jnp.zeros(1000), jnp.ones((64, 1))

    def kept(remat: bool) -> int:
        run = lambda s: remat_scan(  # noqa: E731
            lambda c, x: (jnp.sin(c) + x, ()), s, xs, remat=remat
        )[0].sum()
        stacked = re.findall(r"f32\[([\d,]+),1000\]", str(jax.make_jaxpr(jax.grad(run))(start)))
        return max(math.prod(int(n) for n in shape.split(",")) for shape in stacked)

    assert kept(remat=True) == 8
    assert kept(remat=False) == 64


def test_group_size_divides_where_a_divisor_is_near() -> None:
    for steps in range(1, 200):
        size = group_size(steps)
        near = [d for d in range(1, steps + 1) if steps % d == 0]
        near = [d for d in near if math.sqrt(steps) / 2 <= d <= 2 * math.sqrt(steps)]
        assert (size in near) == bool(near), steps
        assert 1 <= size <= steps


GRIDS = {
    "phased": lambda rows, c, p: rows.grid(c, p),
    "whole chunks": lambda rows, c, p: rows.grid(c, p, whole=True),
    "segments": segment_grid,
}


@pytest.mark.parametrize("layout", GRIDS)
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 9, 14])
def test_every_token_has_one_slot_of_its_own_chunk(layout: str, tokens: int) -> None:
    """Rows in three phases and of three lengths, one of them empty."""
    chunk, phase, lengths = 4, [0, 3, 2], [tokens, max(tokens - 1, 1), 0]
    phase_B, lengths_B = jnp.asarray(phase, jnp.int32), jnp.asarray(lengths, jnp.int32)
    grid: ChunkGrid = GRIDS[layout](Rows(B, tokens, lengths_B), chunk, phase_B)
    token_BT = 1 + jnp.arange(B * tokens, dtype=jnp.int32).reshape(B, tokens)
    laid = to_chunks(grid, token_BT)
    assert grid.exists_BS is not None
    exists = np.asarray(split_slots(grid, grid.exists_BS))
    for b in range(B):
        seen = []
        for n in range(grid.chunks):
            here = np.asarray(laid)[n, b][exists[n, b]]
            seen += here.tolist()
            first = int(phase[b] + here[0] - 1 - b * tokens) // chunk if len(here) else n
            assert first == n, "a token lies in the chunk of its place in the stream"
            if layout == "segments":
                assert exists[n, b].tolist() == sorted(exists[n, b], reverse=True)
        assert seen == np.asarray(token_BT)[b, : lengths[b]].tolist()
    back = np.asarray(from_chunks(grid, laid))
    for b in range(B):
        assert back[b, : lengths[b]].tolist() == np.asarray(token_BT)[b, : lengths[b]].tolist()


def test_whole_aligned_rows_are_only_reshaped() -> None:
    x_BTD = jnp.arange(B * 12 * D, dtype=jnp.float32).reshape(B, 12, D)
    phase_B = jnp.zeros((B,), jnp.int32)
    rows = Rows(B, 12, start="aligned")
    for grid in (rows.grid(4, phase_B), segment_grid(rows, 4, phase_B)):
        assert grid.token_BS is None
        assert grid.exists_BS is None
        assert_equal(to_chunks(grid, x_BTD)[1, 2], x_BTD[2, 4:8])
        assert_equal(from_chunks(grid, to_chunks(grid, x_BTD)), x_BTD)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": "frsh"}, r"start='frsh': known: any, aligned, fresh"),
        (
            {"lengths_B": jnp.zeros((4,), jnp.int32)},
            r"lengths_B: got int32\[4\], wants integer\[3\]",
        ),
        ({"lengths_B": jnp.zeros((3,))}, r"lengths_B: got float32\[3\], wants integer\[3\]"),
        ({"lengths_B": [1, 2, 3]}, r"lengths_B: got list, wants integer\[3\]"),
        (
            {"starts_BT": jnp.zeros((3, 5), bool)},
            r"starts_BT: got bool\[3, 5\], wants bool\[3, 9\]",
        ),
        ({"starts_BT": jnp.zeros((3, 9))}, r"starts_BT: got float32\[3, 9\], wants bool\[3, 9\]"),
    ],
)
def test_rows_name_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rows(B, 9, **fields)


def test_a_row_without_tokens_is_left_where_it_is() -> None:
    """Its phase, its mask and its state, also where a document is said to start."""
    starts_BT = jnp.zeros((B, 5), bool).at[:, 0].set(True)
    rows = Rows(B, 5, jnp.asarray([5, 0, 2], jnp.int32), starts_BT)
    assert rows.phase(jnp.asarray([3, 3, 3], jnp.int32)).tolist() == [0, 3, 0]
    assert rows.mask(jnp.ones((B, 5))).sum(axis=1).tolist() == [5, 0, 2]
    assert rows.keep_idle(jnp.ones(B), jnp.zeros(B)).tolist() == [1, 0, 1]
    assert rows.grid(4, jnp.asarray([0, 3, 0], jnp.int32)).end_B.tolist() == [5, 3, 2]


def test_fresh_rows_start_from_the_initial_state() -> None:
    initial, state = jnp.ones(B), jnp.zeros(B)
    some = Rows(B, 5, fresh_B=jnp.asarray([True, False, True]))
    assert some.start_state(initial, state).tolist() == [1, 0, 1]
    assert Rows(B, 5, start="fresh").start_state(initial, state).tolist() == [1, 1, 1]
    assert Rows(B, 5).start_state(initial, state).tolist() == [0, 0, 0]
