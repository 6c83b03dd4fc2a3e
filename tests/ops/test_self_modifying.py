"""Self-modifying memories: the scan over chunks equals the definition, token by token."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers import assert_close, assert_equal

from nested_jax.ops.chunking import Rows
from nested_jax.ops.memory.self_modifying import (
    GateReadout,
    SelfModInputs,
    SelfModSpec,
    SelfModState,
    init_self_modifying,
    stretched_sigmoid,
)
from nested_jax.ops.memory.self_modifying_chunked import self_modifying_chunked
from nested_jax.ops.memory.self_modifying_reference import self_modifying_reference
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.normalize import l2_normalize
from nested_jax.types import PyTree

B, H, K = 2, 3, 4
DGD: dict[str, Any] = {"rule": "dgd", "objective": "dot", "momentum": True}
SPECS: dict[str, dict[str, Any]] = {
    "dgd": {**DGD, "chunks": (4, 4)},
    "generators_slower": {**DGD, "chunks": (2, 6)},
    "memory_slower": {**DGD, "chunks": (6, 2), "momentum": False},
    "online": {**DGD, "chunks": (1, 1), "momentum": False},
    "titans": {"rule": "titans", "objective": "l2", "momentum": True, "chunks": (4, 4)},
    "gd": {"rule": "gd", "objective": "l2", "generators": ("k", "v", "rate"), "chunks": (4, 8)},
    "mlp": {**DGD, "arch": "mlp", "chunks": (3, 3), "objective": "l2"},
    "chunk_read": {**DGD, "read": "chunk", "order": "read_write", "chunks": (4, 8)},
    "adaptive_q": {**DGD, "generators": ("k", "v", "q", "rate", "keep"), "chunks": (4, 4)},
    "slow_kv": {**DGD, "generators": ("rate", "keep"), "chunks": (4, 4)},
    "apart": {**DGD, "chunks": (2, 4), "momentum": False},  # each generator: own pace and input
    "erase": {**DGD, "chunks": (1, 2), "momentum": False, "stretch": 0.3},  # at a rate of its own
}


def make_spec(name: str) -> SelfModSpec:
    fields = dict(SPECS[name])
    memory_chunk, generator_chunk = fields.pop("chunks")
    generators = fields.pop("generators", ("k", "v", "rate", "keep"))
    stretch = fields.pop("stretch", 0.0)
    memory = MemorySpec(chunk=memory_chunk, **fields)
    generator = replace(memory, chunk=generator_chunk, read="chunk")
    return SelfModSpec(memory, generator, generators, max_rate=1.6, erase_stretch=stretch)


def draw(
    spec: SelfModSpec, tokens: int, seed: int = 0, *, apart: bool = False, erase: bool = False
) -> tuple[PyTree, SelfModInputs]:
    """Return slow parameters (readout, initial memories) and inputs.

    Args:
      apart: generators have a pace each, and inputs of their own.
      erase: what is erased has a gate.
    """
    keys = iter(jax.random.split(jax.random.key(seed), 40))
    normal = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    matrices = spec.memory.num_matrices
    generators0 = tuple(
        normal(H, len(spec.generators), K, K) / 2 + jnp.eye(K)[None, None] / 2
        for _ in range(matrices)
    )
    memory0 = tuple(normal(H, K, K) / 2 for _ in range(matrices))
    keeps = "keep" in spec.generators
    readout = GateReadout(
        normal(H, K), normal(H), normal(H, K) if keeps else None, 2 + normal(H) if keeps else None
    )
    if erase:
        readout = readout._replace(erase_HV=normal(H, K), erase_bias_H=normal(H))
    if apart:
        pace_HG = jax.nn.sigmoid(normal(H, len(spec.generators)))
        readout = readout._replace(pace_HG=pace_HG)
    given = {n: None if n in spec.generators else normal(B, tokens, H, K) for n in "qkv"}
    momentum = jax.nn.sigmoid(normal(B, tokens, H)) if spec.memory.momentum else None
    own = (len(spec.generators),) if apart else ()
    x = l2_normalize(normal(B, tokens, H, *own, K))
    return (readout, generators0, memory0), SelfModInputs(x, **given, momentum=momentum)


def run(run_op: Any, spec: SelfModSpec, slow: PyTree, inputs: SelfModInputs) -> Any:
    readout, generators0, memory0 = slow
    state = init_self_modifying(spec, generators0, memory0, B)
    return run_op(spec, readout, state, inputs)


def piece(inputs: SelfModInputs, start: int, stop: int) -> SelfModInputs:
    return jax.tree.map(lambda x: x[:, start:stop], inputs)


def used_state(spec: SelfModSpec, slow: PyTree) -> SelfModState:
    """A state in the middle of its chunks: running memory, anchor and momentum all differ."""
    fresh = init_self_modifying(spec, *slow[1:], B)
    key = jax.random.key(7)

    def used(m: Any, chunk: int) -> Any:
        noise = lambda i: jax.tree.map(  # noqa: E731
            lambda w: 0.1 * jax.random.normal(jax.random.fold_in(key, i), w.shape), m.fast
        )
        momentum = noise(2) if m.momentum else ()
        phase_B = jnp.arange(3, 3 + B, dtype=jnp.int32) % chunk
        fast = jax.tree.map(jnp.add, m.fast, noise(0))
        return m._replace(fast=fast, anchor=m.fast, momentum=momentum, phase_B=phase_B)

    return SelfModState(
        used(fresh.generators, spec.generator.chunk), used(fresh.memory, spec.memory.chunk)
    )


DEFAULT = ("erase", "titans")  # the others compile for seconds each


@pytest.mark.parametrize(
    "name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in SPECS]
)
def test_chunked_equals_reference_in_values_and_gradients(name: str, float64: None) -> None:
    """From the middle of a chunk, to the middle of another, with rows of different lengths."""
    spec = make_spec(name)
    slow, inputs = draw(spec, 13, apart=name in ("apart", "erase"), erase=name == "erase")
    state = used_state(spec, slow)
    lengths_B = jnp.array([13, 9], jnp.int32)

    def loss(run_op: Any, readout: Any, memories: PyTree, inputs: SelfModInputs) -> Any:
        start = SelfModState(
            *(
                m._replace(fast=f, anchor=a, momentum=s)
                for m, (f, a, s) in zip(state, memories, strict=True)
            )
        )
        after, y = run_op(spec, readout, start, inputs, Rows(B, 13, lengths_B))
        weigh = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        ends = jax.tree.leaves((after[0][:3], after[1][:3]))
        return jnp.sum(weigh * y) + sum(jnp.sum(jnp.sin(w)) for w in ends), (after, y)

    memories = tuple(m[:3] for m in state)
    got, want = (
        jax.jit(jax.value_and_grad(partial(loss, op), argnums=(0, 1, 2), has_aux=True))(
            slow[0], memories, inputs
        )
        for op in (self_modifying_chunked, self_modifying_reference)
    )
    assert_close(got[0], want[0], rtol=1e-10)
    assert_close(got[1], want[1], rtol=1e-8)
    for index, generator in enumerate(spec.generators):
        norms = [float(jnp.linalg.norm(w[:, :, index])) for w in got[1][1][0][1]]
        assert min(norms) > 1e-4, f"M_{generator} gets no gradient through its reads: {norms}"


def test_pace_scales_writes_and_forgetting_of_the_generators_alone() -> None:
    """Pace 1 is no pace, and with pace 0 the generators never write."""
    spec = make_spec("slow_kv")
    slow, inputs = draw(spec, 9)
    readout, *memories = slow

    def at(pace: float, spec: SelfModSpec = spec) -> PyTree:
        pace_HG = jnp.full((H, len(spec.generators)), pace)
        paced = (readout._replace(pace_HG=pace_HG), *memories)
        return run(self_modifying_chunked, spec, paced, inputs)

    at_1, at_0, plain = jax.jit(
        lambda: (at(1.0), at(0.0), run(self_modifying_chunked, spec, slow, inputs))
    )()
    assert_close(at_1, plain, rtol=1e-5)
    fresh = init_self_modifying(spec, *memories, B)
    assert_equal(at_0[0].generators.fast, fresh.generators.fast)
    moved = jnp.abs(at_0[0].memory.fast[0] - fresh.memory.fast[0])
    assert float(moved.max()) > 0.1
    change = jnp.abs(at_1[0].generators.fast[0] - at_0[0].generators.fast[0])
    assert float(change.max()) > 0.1


def test_a_stretched_sigmoid_reaches_both_ends() -> None:
    logits = jnp.linspace(-6.0, 6.0, 25)
    assert_close(stretched_sigmoid(logits, 0.0), jax.nn.sigmoid(logits), rtol=1e-6)
    stretched = stretched_sigmoid(logits, 0.1)
    assert float(stretched[12]) == 0.5
    assert set(map(float, stretched[jnp.abs(logits) > 2.5])) == {0.0, 1.0}
    slope = jax.vmap(jax.grad(partial(stretched_sigmoid, stretch=0.1)))(logits)
    assert bool(jnp.all((slope > 0) == (jnp.abs(logits) < 2.39)))  # where 1.2 sigmoid - 0.1 is in


@pytest.mark.parametrize("stretch", [0.0, 0.1])
def test_what_erases_nothing_adds_up(stretch: float) -> None:
    """The same token n times moves a memory n times as far as once; a sigmoid erases a little."""
    spec = make_spec("erase")
    names = ("k", "v", "rate")
    spec = replace(spec, generators=names, targets="value", erase_stretch=stretch)
    slow, inputs = draw(spec, 12, erase=True)
    readout = slow[0]._replace(
        erase_HV=jnp.zeros((H, K)),
        erase_bias_H=jnp.full((H,), -4.0),
        keep_HV=None,
        pace_HG=jnp.zeros((H, len(names))),  # generators that are never written
    )
    same = jax.tree.map(lambda z: jnp.broadcast_to(z[:, :1], z.shape), inputs)

    def moved(tokens: int) -> Any:
        memory = run(self_modifying_chunked, spec, (readout, *slow[1:]), piece(same, 0, tokens))[
            0
        ].memory
        return memory.fast[0] - slow[2][0][None]

    once, often = jax.jit(lambda: (moved(1), moved(12)))()
    off = float(jnp.linalg.norm(often - 12 * once) / jnp.linalg.norm(12 * once))
    assert off < 1e-5 if stretch else off > 0.02
