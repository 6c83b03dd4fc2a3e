"""Decoding: the sampler against its definition, the loop against the parallel pass."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nested_jax
from nested_jax.config import from_config_dict
from nested_jax.models.decode import Sampling, generate, sample
from nested_jax.teach import teach

CFG = from_config_dict(
    {
        "model": {
            "block": "hope_attention",
            "vocab_size": 23,
            "dim": 12,
            "layers": 2,
            "heads": 2,
            "window": 6,
            "cms": {"periods": (4, 8), "inner_lr": 0.5},
        },
        "teach": {"mode": "exact", "chunk": 4},
        "data": {"seq_len": 8},
    }
)
GREEDY = Sampling(temperature=0)


def setup():
    model = nested_jax.build_model(CFG.model)
    prompt = np.asarray(jax.random.randint(jax.random.key(1), (2, 6), 0, 23), np.int32)
    return model, model.init(jax.random.key(0)), prompt


def test_greedy_decoding_is_the_argmax_of_the_parallel_pass():
    model, params, prompt = setup()
    tokens = list(generate(model, params, prompt, 5, jax.random.key(0), GREEDY))
    text = np.concatenate([prompt, np.stack(tokens, axis=1)], axis=1)
    _, logits = model.apply(params, model.init_state(params, 2), jnp.asarray(text))
    np.testing.assert_array_equal(np.argmax(logits[:, 5:-1], axis=-1), text[:, 6:])


@pytest.mark.slow
def test_adapting_equals_teaching_the_whole_text():
    """Each token comes from the weights that the complete chunks before it have written."""
    model, params, prompt = setup()
    step = jax.jit(partial(teach, model, cfg=CFG.teach))
    learn = lambda s, x, y: step(params, s, x, y)[0]  # noqa: E731
    tokens = list(
        generate(model, params, prompt, 9, jax.random.key(0), GREEDY, learn=learn, chunk=4)
    )
    text = jnp.asarray(np.concatenate([prompt, np.stack(tokens, axis=1)], axis=1))
    read, fresh = jax.jit(model.apply), model.init_state(params, 2)
    for end in range(6, 14):
        known = jnp.full((2,), end - 1, jnp.int32)  # one compilation for every length
        state, _ = step(params, fresh, text[:, :-1], text[:, 1:], lengths_B=known)
        _, logits = read(params, state, text[:, end - 1 : end])
        np.testing.assert_array_equal(np.argmax(logits[:, -1], axis=-1), text[:, end])
    frozen = list(generate(model, params, prompt, 9, jax.random.key(0), GREEDY))
    assert any((a != b).any() for a, b in zip(tokens, frozen, strict=True))


def test_seed_decides_the_draws():
    model, params, prompt = setup()
    draw = lambda seed: np.stack(  # noqa: E731
        list(generate(model, params, prompt, 4, jax.random.key(seed), Sampling()))
    )
    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def frequencies(how, probabilities, draws=4000):
    logits = jnp.broadcast_to(
        jnp.log(jnp.asarray(probabilities))[None], (draws, len(probabilities))
    )
    tokens = np.asarray(sample(logits, jax.random.key(0), how))
    return np.bincount(tokens, minlength=len(probabilities)) / draws


def test_sampler_follows_its_definition():
    p = np.array([0.1, 0.5, 0.3, 0.1], np.float32)
    np.testing.assert_allclose(frequencies(Sampling(), p), p, atol=0.03)
    np.testing.assert_allclose(frequencies(Sampling(top_k=2), p), [0, 0.625, 0.375, 0], atol=0.03)
    np.testing.assert_allclose(frequencies(Sampling(top_p=0.6), p), [0, 0.625, 0.375, 0], atol=0.03)
    np.testing.assert_allclose(frequencies(Sampling(top_p=0.5), p), [0, 1, 0, 0], atol=0)
    cold = p**2 / (p**2).sum()
    np.testing.assert_allclose(frequencies(Sampling(temperature=0.5), p), cold, atol=0.03)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, r"top_p=0\.0: wants a probability"),
    ],
)
def test_bad_sampling(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(Sampling(), **fields)


def test_bad_request():
    model, params, prompt = setup()
    with pytest.raises(ValueError, match="count=0"):
        next(generate(model, params, prompt, 0, jax.random.key(0), GREEDY))
    with pytest.raises(ValueError, match="wants at least one token"):
        next(generate(model, params, prompt[:, :0], 1, jax.random.key(0), GREEDY))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_control_tokens_and_ids_of_nothing_are_never_drawn(temperature: float) -> None:
    """However likely they are: padding (2, 3) and what the tokenizer lacks (7 on)."""
    logits_BS = jnp.zeros((64, 9)).at[:, jnp.array([2, 3, 7, 8])].set(50.0)
    how = Sampling(temperature, symbols=7, never=(2, 3))
    drawn = {int(t) for t in sample(logits_BS, jax.random.key(0), how)}
    assert drawn <= {0, 1, 4, 5, 6}
    assert len(drawn) == (1 if temperature == 0 else 5)
    alone = {int(t) for t in sample(logits_BS, jax.random.key(0), replace(how, symbols=0))}
    assert alone <= {7, 8}
