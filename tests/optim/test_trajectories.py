"""Every optimizer against float64 numpy loops: matrices [6, 5] and scalars [1, 1], 9 steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close
from optim_reference import adam, deep_momentum, delta_momentum, m3_ema, m3_literal, muon

from nested_jax import optim

STEPS = 9
SHAPES = [(6, 5), (5, 6), (1, 1)]


def gradients(shape, seed=0, steps=STEPS):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 1) for _ in range(steps)]


def run(tx, grads, weight=None):
    """Return the updates of `tx` on a one-leaf tree, under jit."""
    params = {"w": jnp.asarray(np.zeros_like(grads[0]) if weight is None else weight, jnp.float32)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    out = []
    for g in grads:
        step, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        out.append(np.asarray(step["w"]))
        params = optax.apply_updates(params, step)
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_adam(shape):
    grads = gradients(shape)
    assert_close(run(optim.scale_by_adam(), grads), list(adam(grads)), rtol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon(shape, nesterov):
    grads = gradients(shape)
    got = run(optim.scale_by_muon(0.95, nesterov=nesterov), grads)
    assert_close(got, list(muon(grads, nesterov=nesterov)), rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["ema", "literal"])
def test_m3(shape, form):
    grads = gradients(shape)
    hyper = {"b1": 0.8, "b2": 0.7, "b3": 0.6, "alpha": 0.5, "period": 3, "eps": 1e-3}
    reference = {"ema": m3_ema, "literal": m3_literal}[form]
    m3 = optim.M3(0.8, 0.7, 0.6, alpha=0.5, period=3, eps=1e-3, form=form)
    assert_close(run(optim.scale_by_m3(m3), grads), list(reference(grads, **hyper)), rtol=1e-4)


def test_m3_without_its_slow_momentum_is_muon_where_the_second_moment_is_flat():
    rng = np.random.default_rng(1)
    grads = [np.sign(rng.normal(size=(6, 5))) * scale for scale in (0.1, 3.0, 0.7, 2.0)]
    hyper = optim.M3(beta1=0.95, alpha=0.0, period=2, eps=0.0)
    muon_step = optim.scale_by_muon(0.95, nesterov=False)
    assert_close(run(optim.scale_by_m3(hyper), grads), run(muon_step, grads), rtol=1e-6)


def test_m3_steps_are_as_long_as_muons():
    """`alpha` and V turn the step; they do not lengthen it."""
    grads = gradients((6, 5))
    long = run(optim.scale_by_m3(optim.M3(beta1=0.95, alpha=4.0, period=2)), grads)
    plain = run(optim.scale_by_muon(0.95, nesterov=False), grads)
    norms = [np.linalg.norm(x) for x in long], [np.linalg.norm(x) for x in plain]
    np.testing.assert_allclose(*norms, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["unit", "literal"])
def test_delta_momentum(shape, form):
    grads = [0.3 * scale * g / np.linalg.norm(g) for scale, g in enumerate(gradients(shape), 1)]
    want = list(delta_momentum(grads, unit=form == "unit"))
    assert_close(run(optim.scale_by_delta_momentum(0.9, form), grads), want, rtol=1e-5)


def test_literal_delta_momentum_diverges_and_the_unit_form_does_not():
    grads = [3.0 * g / np.linalg.norm(g) for g in gradients((1, 1), steps=20)]
    literal = run(optim.scale_by_delta_momentum(0.9, "literal"), grads)
    unit = run(optim.scale_by_delta_momentum(0.9, "unit"), grads)
    assert abs(literal[-1][0, 0]) > 1e10
    assert max(abs(u[0, 0]) for u in unit) <= 0.2 / (1 - 0.9) + 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", ["momentum", "preconditioned", "feature", "muon"])
def test_deep_momentum(shape, variant):
    grads = gradients(shape)
    got = run(optim.scale_by_deep_momentum(variant), grads)
    rtol = 1e-4 if variant == "muon" else 5e-6
    assert_close(got, list(deep_momentum(grads, variant)), rtol=rtol)


def test_deep_momentum_refuses_an_unknown_variant():
    with pytest.raises(
        ValueError, match=r"variant='dmgd': wants one of momentum, precond.*feature"
    ):
        optim.scale_by_deep_momentum("dmgd")


def descent(rate, form):
    return optax.chain(optim.scale_by_delta_gradient(form), optax.scale_by_learning_rate(rate))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["unit", "literal"])
def test_delta_gradient_descent(shape, form):
    grads, rate = gradients(shape), 0.1
    weight = np.random.default_rng(2).normal(size=shape)
    got = run(descent(rate, form), grads, weight)
    for g, step in zip(grads, got, strict=True):
        size = 0.2 * np.sqrt(g.size) / np.linalg.norm(g) if form == "unit" else 1.0
        want = -rate * (size * g + g @ g.T @ weight / np.sum(g * g))
        assert_close(step, want, rtol=2e-5)
        weight = weight + want


def test_delta_gradient_descent_solves_the_proximal_problem_of_one_token():
    """NL Eq. 56: min ||W x - u||^2 / 2 + ||W - W_t||^2 / (2 eta), u = -grad_y, by least squares."""
    rng = np.random.default_rng(3)
    x, grad_y, weight, eta = rng.normal(size=6), rng.normal(size=5), rng.normal(size=(5, 6)), 0.7
    x /= np.linalg.norm(x)
    rows = np.concatenate([x[None], np.eye(6) / np.sqrt(eta)])
    target = np.concatenate([-grad_y[None], weight.T / np.sqrt(eta)])
    want = np.linalg.lstsq(rows, target, rcond=None)[0]
    gradient = np.outer(x, grad_y)  # [in, out]
    tx = descent(eta / (1 + eta), "literal")
    assert_close(weight.T + run(tx, [gradient], weight.T)[0], want, rtol=1e-6)


def test_delta_gradient_descent_wants_the_parameters():
    tx = optim.scale_by_delta_gradient()
    with pytest.raises(ValueError, match="params=None"):
        tx.update({"w": jnp.ones((2, 3))}, tx.init(None))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: optim.M3(form="adam"), "form='adam'"),
        (lambda: optim.M3(period=0), "period=0"),
        (lambda: optim.scale_by_delta_momentum(0.9, "raw"), "form='raw'"),
        (lambda: optim.scale_by_delta_momentum(1.0), "alpha=1.0"),
        (lambda: optim.scale_by_delta_gradient("raw"), "form='raw'"),
    ],
)
def test_bad_arguments_are_named(make, error):
    with pytest.raises(ValueError, match=error):
        make()


@pytest.mark.parametrize(
    "tx",
    [
        optim.scale_by_muon(),
        optim.scale_by_m3(),
        optim.scale_by_delta_momentum(),
        optim.scale_by_deep_momentum("momentum"),
        optim.scale_by_deep_momentum("feature"),
        optim.scale_by_delta_gradient(),
        optim.scale_by_adam(),
    ],
)
def test_zero_gradients_and_low_precision_gradients(tx):
    """A zero gradient moves nothing; bfloat16 comes back as it went in; state stays float32."""
    params = {"w": jnp.zeros((3, 4), jnp.bfloat16)}
    state = tx.init(params)
    step, state = tx.update({"w": jnp.zeros((3, 4), jnp.bfloat16)}, state, params)
    assert step["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(step["w"], np.float32), 0.0)
    assert {x.dtype for x in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}
