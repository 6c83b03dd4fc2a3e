"""The definition itself: `memory_reference` against a numpy loop with difference quotients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close
from jax.test_util import check_grads
from memory_cases import CHUNK, B, H, K, make_inputs, make_state, name

from nested_jax.ops.memory.arch import memory_apply, memory_deltas
from nested_jax.ops.memory.objectives import OBJECTIVES
from nested_jax.ops.memory.reference import HeadToken, memory_reference, write_token
from nested_jax.ops.memory.spec import MemorySpec
from nested_jax.ops.memory.state import MemoryInputs, MemoryState, init_state
from nested_jax.ops.memory.update_rules import TokenGates

BASE = MemorySpec(arch="mlp", depth=2, rule="titans", momentum=True, chunk=CHUNK)
SPECS = [
    BASE,
    replace(BASE, rule="gd", momentum=False, objective="dot", read="chunk"),
    replace(BASE, rule="dgd", order="read_write", depth=3),
    replace(BASE, rule="dgd", momentum=False, chunk=1),
    replace(BASE, arch="linear", objective="dot", chunk=1),
    replace(BASE, arch="linear", rule="dgd", objective="l2"),
]


def act(spec: MemorySpec, x: np.ndarray) -> np.ndarray:
    return np.asarray(getattr(jax.nn, spec.activation)(jnp.asarray(x)))


def forward(spec: MemorySpec, matrices: list[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """Return the input of every matrix, and the answer after them."""
    values, hidden = [], x
    for i, w in enumerate(matrices):
        values.append(hidden if i == 0 else act(spec, hidden))
        hidden = values[-1] @ w
    return [*values, x + hidden if spec.is_residual else hidden]


def quotient(spec: MemorySpec, matrices: list[np.ndarray], k: np.ndarray, v: np.ndarray) -> Any:
    """The gradient of the objective by central differences of every entry."""

    def loss() -> float:
        answer = forward(spec, matrices, k)[-1]
        return 0.5 * ((answer - v) ** 2).sum() if spec.objective == "l2" else -(answer @ v)

    grads = [np.zeros_like(w) for w in matrices]
    for w, g in zip(matrices, grads, strict=True):
        for at in np.ndindex(*w.shape):
            kept, values = w[at], []
            for sign in (1, -1):
                w[at] = kept + sign * 1e-6
                values.append(loss())
            w[at], g[at] = kept, (values[0] - values[1]) / 2e-6
    return grads


def one_head(spec: MemorySpec, x: dict[str, np.ndarray], start: list[np.ndarray]) -> Any:
    """Titans Eq. 10 and 13, NL Eq. 57, with gradients at the last boundary (NL Eq. 90)."""
    w, s = [m.copy() for m in start], [np.zeros_like(m) for m in start]
    anchor, answers = [m.copy() for m in w], []
    for t in range(len(x["k"])):
        before, grads = [m.copy() for m in w], quotient(spec, anchor, x["k"][t], x["v"][t])
        inputs = forward(spec, anchor, x["k"][t])
        keep = x["keep"][t] if spec.has_keep else 1.0
        for i, g in enumerate(grads):
            s[i] = (x["momentum"][t] * s[i] if spec.momentum else 0.0) - x["rate"][t] * g
            kept = keep * w[i]
            if spec.rule == "dgd":
                u = inputs[i] / (np.linalg.norm(inputs[i]) if i else 1.0)
                kept = kept - x.get("erase", x["rate"])[t] * np.outer(u, u @ w[i])
            w[i] = kept + s[i]
        source = {"write_read": w, "read_write": before}[spec.order]
        answers.append(forward(spec, source if spec.read == "token" else anchor, x["q"][t])[-1])
        if (t + 1) % spec.chunk == 0:
            anchor = [m.copy() for m in w]
    return w, answers


def fresh(spec: MemorySpec) -> MemoryState:
    fast0 = tuple(w[0] for w in make_state(spec, jnp.float64).fast)
    return init_state(spec, fast0, B)


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_it_is_the_papers_loop(spec: MemorySpec, float64: None) -> None:
    tokens = 5
    state, inputs = fresh(spec), make_inputs(spec, tokens, jnp.float64)
    after, y = jax.jit(partial(memory_reference, spec))(state, inputs)
    names = {f: getattr(inputs, f) for f in MemoryInputs._fields}
    for b, h in ((0, 0), (B - 1, H - 1)):
        x = {f.split("_")[0]: np.array(a[b, :, h]) for f, a in names.items() if a is not None}
        want, answers = one_head(spec, x, [np.array(w[b, h]) for w in state.fast])
        assert_close([w[b, h] for w in after.fast], want, 1e-7)
        assert_close(y[b, :, h], np.stack(answers), 1e-7)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deltas_are_the_gradient_of_every_token(objective: str, depth: int, float64: None) -> None:
    """The chunk form's x delta^T is what `jax.grad` of that token's loss alone gives."""
    spec = MemorySpec(arch="mlp", depth=depth, objective=objective)
    fast = tuple(w[0, 0] for w in make_state(spec, jnp.float64).fast)
    inputs = make_inputs(spec, 3, jnp.float64)
    k_CK, v_CV = inputs.k_BTHK[0, :, 0], inputs.v_BTHV[0, :, 0]
    x, d = memory_deltas(spec, fast, k_CK, v_CV)

    def loss(fast: Any, k_K: Any, v_V: Any) -> Any:
        return OBJECTIVES[objective](memory_apply(spec, fast, k_K), v_V)

    want = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(fast, k_CK, v_CV)
    got = tuple(jnp.einsum("ci,co->cio", a, b) for a, b in zip(x, d, strict=True))
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize("rule", ["gd", "titans", "dgd"])
def test_one_write_differentiates(rule: str, float64: None) -> None:
    spec = MemorySpec(arch="mlp", rule=rule, momentum=rule != "gd")
    state, x = make_state(spec, jnp.float64), make_inputs(spec, 1, jnp.float64)
    fast, anchor, momentum = (tuple(w[0, 0] for w in part) for part in state[:3])
    gates = TokenGates(*(None if g is None else g[0, 0, 0] for g in x[3:]))

    @jax.jit
    def write(fast: Any, anchor: Any, momentum: Any, k_K: Any, v_K: Any, gates: Any) -> Any:
        return write_token(spec, fast, anchor, momentum, HeadToken(k_K, k_K, v_K, gates))

    arguments = (fast, anchor, momentum, x.k_BTHK[0, 0, 0], x.v_BTHV[0, 0, 0], gates)
    check_grads(write, arguments, order=1, modes=["rev"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "oja"}, r"memory\.rule='oja': known: gd, titans, dgd"),
        ({"objective": "hinge"}, r"memory\.objective='hinge': known: l2, dot"),
        ({"arch": "conv"}, r"memory\.arch='conv': known: linear, mlp"),
        ({"read": "row"}, r"memory\.read='row': known: token, chunk"),
        ({"order": "write"}, r"memory\.order='write': known: write_read, read_write"),
        ({"activation": "tanh"}, r"memory\.activation='tanh': known: gelu, silu"),
        ({"chunk": 0}, r"memory\.chunk=0: wants at least 1 token"),
        ({"depth": 0}, r"memory\.depth=0: wants at least 1 matrix"),
        ({"rule": "gd", "momentum": True}, r"memory\.momentum=True: rule 'gd' has none"),
        ({"gradient_at": "decayed"}, r"memory\.gradient_at='decayed': wants a linear memory"),
    ],
)
def test_a_spec_names_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemorySpec(**fields)


def test_a_spec_is_a_static_value() -> None:
    assert hash(MemorySpec()) == hash(MemorySpec())
    assert MemorySpec(chunk=1).is_online_linear
    assert not MemorySpec(arch="mlp", chunk=1).is_online_linear
    assert K == 4
