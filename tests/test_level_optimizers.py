"""CMS levels with inner optimizers of their own, against a loop in Python."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal

import nested_jax
from nested_jax.config import Config, from_config_dict

CHUNK, PERIODS, TOKENS = 4, (4, 8), 16  # two writes of the slower level


def config(**cms) -> Config:
    cms = {"periods": PERIODS, "inner_lr": (0.3, 0.02), "fast_layers": 1} | cms
    model = {"block": "hope_attention", "vocab_size": 23, "dim": 12, "layers": 1, "heads": 2}
    model |= {"mlp_hidden": 14, "window": 6, "cms": cms}
    teach = {"mode": "exact", "chunk": CHUNK}
    return from_config_dict({"model": model, "teach": teach, "data": {"seq_len": 32}})


def make(cfg: Config):
    model = nested_jax.build_model(cfg.model)
    text = jax.random.randint(jax.random.key(1), (2, TOKENS + 1), 0, 23)
    return model, model.init(jax.random.key(0)), text[:, :-1], text[:, 1:]


def outer(function):
    """Return loss, deltas and the gradient of an outer loss that no chunk is symmetric in."""
    weights = jnp.linspace(0.5, 1.5, TOKENS, dtype=jnp.float32)[None]

    def loss(params):
        loss_BT, state = function(params)
        return jnp.mean(loss_BT * weights), (loss_BT, state)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def taught(cfg, model, tokens, targets):
    """Return the losses and the state of the inner loop as a function of the parameters."""

    def function(params):
        state = model.init_state(params, 2, capacity=TOKENS)
        state, aux = nested_jax.teach(model, params, state, tokens, targets, cfg.teach)
        return aux.loss_BT, state

    return function


# --- the slow twin --------------------------------------------------------------------------------


def tree(function, *trees):
    return jax.tree.map(function, *trees)


def momentum(beta, moments, g, writes):
    m = tree(lambda m, g: beta * m + g, moments.get("m", tree(jnp.zeros_like, g)), g)
    return {"m": m}, m


def adam(beta, moments, g, writes):
    zeros = tree(jnp.zeros_like, g)
    m = tree(lambda m, g: beta * m + (1 - beta) * g, moments.get("m", zeros), g)
    v = tree(lambda v, g: beta * v + (1 - beta) * g * g, moments.get("v", zeros), g)
    unbias = 1 - beta ** (writes + 1)
    step = tree(lambda m, v: m / unbias / (jnp.sqrt(jnp.maximum(v / unbias, 1e-16)) + 1e-8), m, v)
    return {"m": m, "v": v}, step


STEPS = {"sgd": lambda beta, moments, g, writes: ({}, g), "momentum": momentum, "adam": adam}


def looped(cfg, model, tokens, targets):
    """Whole chunks; each level steps its own optimizer when its period ends."""
    cms = cfg.model.cms

    def chunk_loss(deltas, params, state, x, y):
        fast = tuple(f._replace(delta=d) for f, d in zip(state.fast, deltas, strict=True))
        state, logits = model.apply(params, state._replace(fast=fast), x)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1)[..., 0]
        return loss.sum(), (state, loss)

    def function(params):
        state, losses = model.init_state(params, 2, capacity=TOKENS), []
        deltas = [level.delta for level in state.fast]
        pending = [tree(jnp.zeros_like, d) for d in deltas]
        moments, writes = [{}, {}], [0, 0]
        for c in range(TOKENS // CHUNK):
            x, y = (a[:, c * CHUNK : (c + 1) * CHUNK] for a in (tokens, targets))
            gradient = jax.grad(chunk_loss, has_aux=True)
            grads, (state, loss) = gradient(tuple(deltas), params, state, x, y)
            losses.append(loss)
            for i, period in enumerate(PERIODS):
                pending[i] = tree(jnp.add, pending[i], grads[i])
                if (c + 1) * CHUNK % period:
                    continue
                step = STEPS[cms.optimizer[i]]
                moments[i], d = step(cms.momentum[i], moments[i], pending[i], writes[i])
                rates = model.rates(params)[i]
                move = lambda w, d, r: w - r.reshape(1, -1, 1, 1) * d  # noqa: E731
                deltas[i] = tree(move, deltas[i], d, rates)
                pending[i], writes[i] = tree(jnp.zeros_like, pending[i]), writes[i] + 1
        return jnp.concatenate(losses, axis=1), tuple(deltas)

    return function


@pytest.mark.parametrize(
    "optimizers", [("sgd", "adam"), pytest.param(("adam", "momentum"), marks=pytest.mark.slow)]
)
def test_two_levels_with_two_optimizers_equal_the_loop(optimizers):
    lr = tuple(0.01 if name == "adam" else 0.3 for name in optimizers)
    cfg = config(optimizer=optimizers, momentum=(0.6, 0.8), inner_lr=lr)
    model, params, tokens, targets = make(cfg)
    (got, (got_loss, state)), got_grad = outer(taught(cfg, model, tokens, targets))(params)
    (want, (want_loss, deltas)), want_grad = outer(looped(cfg, model, tokens, targets))(params)
    assert_close(got, want, rtol=1e-5)
    assert_close(got_loss, want_loss, rtol=1e-5)
    assert_close(tuple(level.delta for level in state.fast), deltas, rtol=1e-4, atol=1e-7)
    assert_close(got_grad, want_grad, rtol=2e-3, atol=1e-6)
    kept = {"sgd": 0, "momentum": 1, "adam": 2}
    assert [len(level.moments) for level in state.fast] == [kept[name] for name in optimizers]
    assert np.asarray(state.fast[0].writes_B).tolist() == [4, 4]


def final_state(cfg):
    model, params, tokens, targets = make(cfg)
    return jax.jit(taught(cfg, model, tokens[:, :12], targets[:, :12]))(params)


@pytest.mark.parametrize("name", ["adam", pytest.param("dgd", marks=pytest.mark.slow)])
def test_one_value_is_that_value_for_each_level_bit_for_bit(name):
    one = config(optimizer=name, momentum=0.7, inner_lr=0.01)
    each = config(optimizer=(name, name), momentum=(0.7, 0.7), inner_lr=(0.01, 0.01))
    assert_equal(final_state(one), final_state(each))


@pytest.mark.slow
def test_erasing_along_the_inputs_is_of_the_levels_that_descend_it():
    """`dgd` at one level changes that level's writes."""
    sgd, mixed, dgd = (
        final_state(config(optimizer=names))[1].fast
        for names in ("sgd", ("dgd", "sgd"), ("dgd", "dgd"))
    )
    change = lambda a, b, i: float(jnp.abs(a[i].delta.up - b[i].delta.up).max())  # noqa: E731
    assert change(sgd, mixed, 0) > 0
    assert change(mixed, dgd, 0) == 0  # one write of the slower level, after the last chunk but one
    assert change(mixed, dgd, 1) == 0  # that write erases nothing: there was nothing yet


@pytest.mark.slow
def test_a_nested_chain_may_have_an_optimizer_per_level():
    """A level that restarts at the slower one's weights starts its own moments again."""
    cfg = config(chain="nested", optimizer=("adam", "momentum"), inner_lr=0.01)
    model, params, tokens, targets = make(cfg)
    loss_BT, state = jax.jit(taught(cfg, model, tokens[:, :8], targets[:, :8]))(params)
    assert np.isfinite(np.asarray(loss_BT)).all()
    assert_equal(state.fast[0].delta, state.fast[1].delta)
    assert float(jnp.abs(state.fast[1].delta.up).max()) > 0
    assert [len(level.moments) for level in state.fast] == [2, 1]
    assert all(float(jnp.abs(m).max()) == 0 for m in jax.tree.leaves(state.fast[0].moments))
    assert float(jnp.abs(state.fast[1].moments[0].up).max()) > 0


@pytest.mark.parametrize(
    ("cms", "message"),
    [
        ({"optimizer": ("sgd",) * 3}, r"^model\.cms\.optimizer=.*for each of the 2 periods"),
        ({"momentum": (0.1, 0.2, 0.3)}, r"^model\.cms\.momentum=.*for each of the 2 periods"),
        ({"optimizer": ("sgd", "lion")}, r"^model\.cms\.optimizer=.*'sgd', 'momentum', 'dgd'"),
        ({"momentum": (0.9, 1.0)}, r"^model\.cms\.momentum=.*each wants 0 or more, less than 1"),
        ({"optimizer": ()}, r"^model\.cms\.optimizer=\(\): wants one, or one for each"),
    ],
)
def test_as_many_as_levels(cms, message):
    with pytest.raises(ValueError, match=message):
        config(**cms)
