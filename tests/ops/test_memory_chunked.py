"""`memory_chunked` equals `memory_reference`: outputs, end state, and every gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, assert_equal
from jax.test_util import check_grads
from memory_cases import (
    CHUNK,
    B,
    H,
    K,
    T,
    assert_same,
    every_spec,
    expected,
    first,
    fresh_state,
    make_inputs,
    make_state,
    name,
    reference,
    value_and_grads,
)

from nested_jax.ops.chunking import Rows
from nested_jax.ops.memory.chunked import memory_chunked
from nested_jax.ops.memory.reference import memory_reference
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryState, init_state

LINEAR = MemorySpec(arch="linear", rule="titans", momentum=True, chunk=CHUNK)
MLP = MemorySpec(arch="mlp", depth=2, rule="dgd", momentum=True, chunk=CHUNK)

# One of each rule, objective, read, order and depth with each architecture; the rest is slow.
QUICK = {
    "linear-l2-gd-token-write_read",
    "linear-dot-titans-token-read_write",
    "linear-l2-titans+m-chunk",
    "linear-l2-dgd-token-read_write",
    "mlp2-dot-gd-chunk",
    "mlp2-l2-titans+m-token-read_write",
    "mlp2-l2-dgd-token-read_write",
    "mlp3-l2-dgd+m-token-write_read",
    "mlp2-l2-titans+m-token-write_read",
}


def cases(quick: set[str]) -> list[Any]:
    """Return every spec, those outside of `quick` marked slow."""
    specs = {name(s): s for s in every_spec()}
    if not quick <= set(specs):
        raise ValueError(f"unknown cases {sorted(quick - set(specs))}; known: {', '.join(specs)}")
    return [
        pytest.param(s, id=i, marks=() if i in quick else pytest.mark.slow)
        for i, s in specs.items()
    ]


def compiled(spec: MemorySpec, **rows: Any) -> Any:
    run = value_and_grads(spec, partial(memory_chunked, remat=False))
    return jax.jit(partial(run, **rows))


def compare(spec: MemorySpec, dtype: Any, rtol: float, grad_rtol: float) -> None:
    """Compare both forms over 3C + 5 tokens: all rows whole, and rows that end early."""
    inputs, fast = make_inputs(spec, T, dtype), compiled(spec)
    for phase, lengths in (((1, 2), (T, T)), ((0, 2), (T - 4, CHUNK))):
        state, lengths_B = make_state(spec, dtype, phase=phase), jnp.asarray(lengths, jnp.int32)
        results = (f(state, inputs, lengths_B=lengths_B) for f in (fast, reference(spec)))
        assert_same(*results, rtol, grad_rtol)


@pytest.mark.parametrize("spec", cases(QUICK))
def test_equals_reference(spec: MemorySpec, float64: None) -> None:
    compare(spec, jnp.float64, 1e-10, 1e-8)


@pytest.mark.parametrize(
    "spec", cases({"linear-l2-titans+m-token-write_read", "mlp2-l2-dgd-token-write_read"})
)
def test_equals_reference_in_float32(spec: MemorySpec) -> None:
    compare(spec, jnp.float32, 1e-5, 1e-4)


@pytest.mark.parametrize(
    ("spec", "tokens"),
    [(LINEAR, 1), (MLP, CHUNK - 1), (LINEAR, CHUNK), (MLP, CHUNK + 1)],
    ids=lambda x: x if isinstance(x, int) else name(x),
)
def test_short_calls(spec: MemorySpec, tokens: int, float64: None) -> None:
    """Calls around the length of a chunk, where the layout is another one."""
    state, inputs = make_state(spec, jnp.float64), make_inputs(spec, T, jnp.float64)
    got = compiled(spec)(state, first(inputs, tokens))
    assert_same(got, expected(spec, state, inputs, tokens))


@pytest.mark.slow
@pytest.mark.parametrize("spec", every_spec(), ids=name)
def test_short_calls_and_splits_of_every_kind(spec: MemorySpec, float64: None) -> None:
    """Without compiling: for so many shapes that is faster."""
    state, inputs = make_state(spec, jnp.float64), make_inputs(spec, T, jnp.float64)
    run = value_and_grads(spec, partial(memory_chunked, remat=False))
    for tokens in (1, CHUNK - 1, CHUNK, CHUNK + 1):
        want = expected(spec, state, inputs, tokens)
        with jax.disable_jit():
            assert_same(run(state, first(inputs, tokens)), want)
    with jax.disable_jit():
        got = value_and_grads(spec, partial(chained, (2, 2 * CHUNK + 1)))(state, inputs)
    assert_same(got, expected(spec, state, inputs, T))


def test_documents(float64: None) -> None:
    """Starts on a row's own grid, at the start of the call, and in slots that do not exist."""
    spec = LINEAR
    state, inputs = make_state(spec, jnp.float64, phase=(1, 2)), make_inputs(spec, T, jnp.float64)
    initial = fresh_state(spec, jnp.float64)
    starts = jnp.zeros((B, T), bool).at[0, 0].set(True).at[0, 2 * CHUNK].set(True)
    starts = starts.at[1, 1].set(True).at[1, 1 + 3 * CHUNK].set(True)
    fast = compiled(spec)
    for lengths in ((T, T - 1), (0, 1 + 3 * CHUNK)):
        masks = {"starts_BT": starts, "lengths_B": jnp.asarray(lengths, jnp.int32)}
        assert_same(*(f(state, inputs, initial=initial, **masks) for f in (fast, reference(spec))))


def test_a_start_equals_a_fresh_sequence(float64: None) -> None:
    """What stands before a document's start leaves no trace in its answers."""
    state, inputs = make_state(MLP, jnp.float64, phase=(1, 1)), make_inputs(MLP, T, jnp.float64)
    initial = fresh_state(MLP, jnp.float64)
    start = 2
    starts = jnp.zeros((B, T), bool).at[:, start].set(True)
    run = jax.jit(partial(memory_chunked, MLP))
    after, y_BTHV = jax.jit(
        lambda s, x, starts: memory_chunked(MLP, s, x, Rows(B, T, starts_BT=starts), initial)
    )(state, inputs, starts)
    alone, tail_BTHV = run(initial, jax.tree.map(lambda x: x[:, start:], inputs))
    assert_close(y_BTHV[:, start:], tail_BTHV, 1e-12)
    assert_close(after, alone, 1e-12)


@pytest.mark.parametrize("tokens", [2, 4 * CHUNK, T])
def test_aligned_is_phase_zero(tokens: int, float64: None) -> None:
    """The promise changes the layout, not the result: less than a chunk, whole chunks, a rest."""
    state, inputs = (
        make_state(LINEAR, jnp.float64, phase=(0, 0)),
        make_inputs(LINEAR, T, jnp.float64),
    )
    got = compiled(LINEAR, start="aligned")(state, first(inputs, tokens))
    assert_same(got, expected(LINEAR, state, inputs, tokens))


@pytest.mark.parametrize("memory", [memory_chunked, memory_reference])
@pytest.mark.parametrize("arch", ["linear", "mlp"])
def test_erasing_at_a_rate_of_its_own(arch: str, memory: Any, float64: None) -> None:
    """At the write's rate it is delta gradient descent, at rate 0 plain retention."""
    spec = MemorySpec(arch=arch, rule="dgd", objective="dot", chunk=CHUNK)
    state, inputs = make_state(spec, jnp.float64), make_inputs(spec, T, jnp.float64)
    assert inputs.erase_BTH is None
    run = jax.jit(partial(memory, spec))
    at_rate, at_0, plain = (
        run(state, inputs._replace(erase_BTH=erase))
        for erase in (inputs.rate_BTH, jnp.zeros_like(inputs.rate_BTH), None)
    )
    kept = jax.jit(partial(memory, replace(spec, rule="titans")))(state, inputs)
    assert_close(at_rate, plain, 1e-12)
    assert_close(at_0, kept, 1e-12)
    assert float(jnp.abs(at_0[1] - plain[1]).max()) > 0.01


def test_remat_changes_nothing(float64: None) -> None:
    state, inputs = make_state(MLP, jnp.float64), make_inputs(MLP, T, jnp.float64)
    run = jax.jit(value_and_grads(MLP, memory_chunked))
    assert_same(run(state, inputs), expected(MLP, state, inputs, T))


@pytest.mark.parametrize("spec", [LINEAR, MLP], ids=name)
def test_token_by_token(spec: MemorySpec, float64: None) -> None:
    """Decoding: T calls of one token end where one call of T tokens does."""
    state, inputs = make_state(spec, jnp.float64), make_inputs(spec, T, jnp.float64)
    want = jax.jit(partial(memory_chunked, spec))(state, inputs)
    step, outputs = jax.jit(partial(memory_chunked, spec)), []
    for t in range(T):
        state, y_B1HV = step(state, jax.tree.map(lambda x, t=t: x[:, t : t + 1], inputs))
        outputs.append(y_B1HV)
    assert_close((state, jnp.concatenate(outputs, 1)), want, 1e-12)


def chained(
    cuts: tuple[int, ...], spec: MemorySpec, state: MemoryState, inputs: Any, *_: Any
) -> tuple[MemoryState, Any]:
    """Run the pieces between the cuts one after the other."""
    outputs = []
    for begin, end in pairwise((0, *cuts, T)):
        piece = jax.tree.map(lambda x, a=begin, b=end: x[:, a:b], inputs)
        state, y = memory_chunked(spec, state, piece, remat=False)
        outputs.append(y)
    return state, jnp.concatenate(outputs, 1)


def test_splits(float64: None) -> None:
    """One cut on a boundary of row 0, one off every boundary, in values and gradients."""
    state, inputs = make_state(MLP, jnp.float64, phase=(1, 2)), make_inputs(MLP, T, jnp.float64)
    got = jax.jit(value_and_grads(MLP, partial(chained, (2, 2 * CHUNK + 1))))(state, inputs)
    assert_same(got, expected(MLP, state, inputs, T))


@pytest.mark.slow
def test_meta_gradient_of_second_order(float64: None) -> None:
    """Gradients through two writes of an MLP, against finite differences, twice."""
    spec = MemorySpec(arch="mlp", rule="titans", momentum=True, chunk=2)
    tokens = make_inputs(spec, 4, jnp.float64)
    inputs = jax.tree.map(lambda x: x[:1, :, :1], tokens)
    fast0 = jax.tree.map(lambda w: w[0, :1], make_state(spec, jnp.float64).fast)

    @jax.jit
    def loss(fast0: Any, v: Any, rate: Any, momentum: Any) -> Any:
        tokens = inputs._replace(v_BTHV=v, rate_BTH=rate, momentum_BTH=momentum)
        state, y = memory_chunked(spec, init_state(spec, fast0, 1), tokens, remat=False)
        return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.sin(w)) for w in state.fast)

    arguments = (fast0, inputs.v_BTHV, inputs.rate_BTH, inputs.momentum_BTH)
    check_grads(loss, arguments, order=2, modes=["rev"])


def test_absent_tokens_may_hold_anything() -> None:
    """Tokens beyond a row's length reach neither state nor answers nor gradients."""
    state, inputs = make_state(LINEAR, jnp.float32), make_inputs(LINEAR, T, jnp.float32)
    lengths_B = jnp.asarray([4, T], jnp.int32)
    other = jax.tree.map(lambda x: x.at[0, 4:].add(1.5), inputs)
    run = compiled(LINEAR)
    got, want = (run(state, x, lengths_B=lengths_B) for x in (other, inputs))
    assert_equal(got, want)
    assert all(not jnp.any(g[0, 4:]) for g in jax.tree.leaves(got[2][1]))


@pytest.mark.parametrize("spec", [LINEAR, MLP], ids=name)
@pytest.mark.parametrize("memory", [memory_chunked, memory_reference])
def test_state_keeps_its_type(spec: MemorySpec, memory: Any) -> None:
    """bfloat16 tokens leave a float32 state; answers come in the dtype of the queries."""
    state = make_state(spec, jnp.float32)
    inputs = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_inputs(spec, 5, jnp.float32))
    after, y = jax.eval_shape(partial(memory, spec), state, inputs)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    assert y.dtype == jnp.bfloat16
    assert y.shape == (B, 5, H, inputs.v_BTHV.shape[-1])


def test_errors_name_what_is_wrong() -> None:
    state, inputs = make_state(MLP, jnp.float32), make_inputs(MLP, 5, jnp.float32)
    run = partial(memory_chunked, MLP)
    with pytest.raises(ValueError, match=r"inputs\.keep_BTH=None: wants \(2, 5, 6\)"):
        run(state, inputs._replace(keep_BTH=None))
    with pytest.raises(ValueError, match=r"inputs\.v_BTHV"):
        run(state, inputs._replace(v_BTHV=inputs.v_BTHV[:, :-1]))
    with pytest.raises(ValueError, match=r"state\.fast.*wants B=1"):
        run(state, jax.tree.map(lambda x: x[:1], inputs))
    with pytest.raises(ValueError, match=r"state\.fast.*tuple of 2 matrices"):
        run(make_state(LINEAR, jnp.float32), inputs)
    with pytest.raises(ValueError, match=r"state\.momentum"):
        run(state._replace(momentum=()), inputs)
    with pytest.raises(ValueError, match=r"initial.*belongs to starts_BT"):
        run(state, inputs, initial=state)
    with pytest.raises(ValueError, match=r"rows=\(2, 6\): wants \(2, 5\), as the inputs"):
        run(state, inputs, Rows(B, 6))
    deep = make_state(MemorySpec(arch="mlp"), jnp.float32)
    widened = (deep.fast[0], jnp.pad(deep.fast[1], [(0, 0)] * 3 + [(0, 1)]))
    wide = deep._replace(fast=widened, anchor=widened)
    narrow = make_inputs(MemorySpec(arch="linear"), 5, jnp.float32)
    with pytest.raises(ValueError, match=f"equal key and value widths, got K={K}, V=5"):
        memory_chunked(MemorySpec(arch="mlp"), wide, narrow)
    titans = make_inputs(LINEAR, 5, jnp.float32)
    titans = titans._replace(erase_BTH=titans.rate_BTH)
    with pytest.raises(ValueError, match=r"inputs\.erase_BTH.*rule 'dgd', got 'titans'"):
        memory_chunked(LINEAR, make_state(LINEAR, jnp.float32), titans)
    with pytest.raises(ValueError, match=r"inputs\.keep_BTH.*wants None"):
        memory_chunked(MemorySpec(rule="gd"), make_state(LINEAR, jnp.float32), inputs)
