"""Memories of every kind with random states and inputs, and the comparison of two forms of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers import assert_close

from nested_jax.ops.chunking import Rows, where_rows
from nested_jax.ops.memory.arch import matrix_shapes
from nested_jax.ops.memory.reference import memory_reference
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState

B, CHUNK, K, V, H, F = 2, 3, 4, 5, 6, 7  # pairwise different: no swapped axis passes
T = 3 * CHUNK + 5

RULES = (("gd", False), ("titans", False), ("titans", True), ("dgd", False), ("dgd", True))
READS = (("token", "write_read"), ("token", "read_write"), ("chunk", "write_read"))


def make_specs(arch: str, chunk: int = CHUNK, **fields: Any) -> list[MemorySpec]:
    """Return every rule x objective x read x order of an architecture."""
    return [
        MemorySpec(
            arch=arch,
            objective=objective,
            rule=rule,
            momentum=momentum,
            read=read,
            order=order,
            chunk=chunk,
            **fields,
        )
        for (rule, momentum), objective, (read, order) in product(RULES, ("l2", "dot"), READS)
    ]


def every_spec() -> list[MemorySpec]:
    """Return all specs of chunk 3, and MLPs of other depths, kinds and chunk 1."""
    base = MemorySpec(arch="mlp", rule="dgd", momentum=True, chunk=CHUNK)
    variants = [
        replace(base, depth=1),
        replace(base, depth=3, activation="silu"),
    ]
    online = [replace(s, chunk=1) for s in make_specs("mlp")[::5]]
    return make_specs("linear") + make_specs("mlp") + variants + online


def name(spec: MemorySpec) -> str:
    """Return the test id of a spec."""
    parts = [spec.arch if spec.arch == "linear" else f"mlp{spec.depth}", spec.objective]
    parts += [spec.rule + ("+m" if spec.momentum else ""), spec.read]
    parts += [spec.order] if spec.read == "token" else []
    parts += [f"c{spec.chunk}"] if spec.chunk != CHUNK else []
    parts += ["decayed"] if spec.gradient_at == "decayed" else []
    return "-".join(parts)


def value_width(spec: MemorySpec) -> int:
    return K if spec.is_residual else V


def make_inputs(spec: MemorySpec, tokens: int, dtype: Any, seed: int = 0) -> MemoryInputs:
    """Return unit keys and queries and gates that differ from token to token and head to head."""
    rng = np.random.default_rng(seed)

    def unit(*shape: int) -> jax.Array:
        x = rng.normal(size=shape)
        return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype)

    def gate(low: float, high: float) -> jax.Array:
        return jnp.asarray(rng.uniform(low, high, (B, tokens, H)), dtype)

    momentum_BTH = gate(0.0, 0.9).at[:, 1::3].set(0.0)  # mu = 0 is allowed, and has a gradient
    return MemoryInputs(
        unit(B, tokens, H, K),
        unit(B, tokens, H, K),
        jnp.asarray(rng.normal(size=(B, tokens, H, value_width(spec))), dtype),
        gate(0.05, 0.6),
        gate(0.7, 1.0) if spec.has_keep else None,
        momentum_BTH if spec.momentum else None,
        gate(0.05, 0.6) if spec.rule == "dgd" and spec.objective == "l2" else None,
    )


def make_state(
    spec: MemorySpec, dtype: Any, seed: int = 1, phase: tuple[int, int] = (1, 2)
) -> MemoryState:
    """Return a state in the middle of a stream: nothing is zero; phase 0 has its anchor at fast."""
    rng = np.random.default_rng(seed)
    shapes = matrix_shapes(spec, K, value_width(spec), F)

    def matrices(scale: float) -> tuple[jax.Array, ...]:
        return tuple(jnp.asarray(scale * rng.normal(size=(B, H, *s)), dtype) for s in shapes)

    fast, other = matrices(0.4), matrices(0.4)
    phase_B = jnp.asarray(phase, jnp.int32) % spec.chunk
    return MemoryState(
        fast,
        where_rows(phase_B == 0, fast, other),
        matrices(0.2) if spec.momentum else (),
        phase_B,
    )


def fresh_state(spec: MemorySpec, dtype: Any) -> MemoryState:
    return make_state(spec, dtype, seed=2, phase=(0, 0))


def value_and_grads(spec: MemorySpec, memory: Callable[..., Any]) -> Callable[..., Any]:
    """Return f(state, inputs, **rows) -> (state, y, gradients w.r.t. every leaf of both).

    `rows` has fields of `Rows`, and `initial`. The scalar weighs every output and every leaf of the
    end state differently. The anchor of a row on a boundary is its `fast`, also for the gradients.
    """

    def loss(weights: tuple[Any, ...], inputs: MemoryInputs, phase_B: Any, fields: dict[str, Any]):
        initial = fields.pop("initial", None)
        rows = Rows(*inputs.q_BTHK.shape[:2], **fields)
        fast, other, momentum = weights
        anchor = where_rows(phase_B == 0, fast, other)
        after, y = memory(spec, MemoryState(fast, anchor, momentum, phase_B), inputs, rows, initial)
        leaves = [y, *jax.tree.leaves(after[:3])]
        total = sum(jnp.sum(jnp.sin((i + 1.0) * x)) for i, x in enumerate(leaves))
        return total, (after, y)

    def run(state: MemoryState, inputs: MemoryInputs, **rows: Any) -> tuple[Any, ...]:
        weights = tuple(state[:3])
        (_, (after, y)), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            weights, inputs, state.phase_B, rows
        )
        return after, y, grads

    return run


@lru_cache
def reference(spec: MemorySpec) -> Callable[..., Any]:
    """Return the compiled reference, shared by the tests of a spec; it takes T tokens, lengths."""
    return jax.jit(value_and_grads(spec, memory_reference))


def expected(spec: MemorySpec, state: MemoryState, inputs: MemoryInputs, tokens: int) -> Any:
    """Return what the reference makes of the first `tokens` of T tokens."""
    lengths_B = jnp.full((B,), tokens, jnp.int32)
    after, y, (of_state, of_inputs) = reference(spec)(state, inputs, lengths_B=lengths_B)
    return after, y[:, :tokens], (of_state, first(of_inputs, tokens))


def first(inputs: MemoryInputs, tokens: int) -> MemoryInputs:
    return jax.tree.map(lambda x: x[:, :tokens], inputs)


def assert_same(got: Any, want: Any, rtol: float = 1e-10, grad_rtol: float = 1e-8) -> None:
    """Compare two results of `value_and_grads`."""
    assert_close(got[:2], want[:2], rtol)
    assert_close(got[2], want[2], grad_rtol)
