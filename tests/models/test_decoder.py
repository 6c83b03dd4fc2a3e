"""The decoder of MAD's compression task, against a loop over places."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from nested_jax.config import ModelConfig
from nested_jax.layers.basic import unbox
from nested_jax.models.decoder import declare_decoder, decode_last, position_vectors
from nested_jax.models.lm import build_model

B, T, D = 2, 5, 12
CFG = ModelConfig(block="transformer", vocab_size=7, dim=D, layers=2, heads=3, answers="last")


def by_hand(params: Any, last_D: np.ndarray, place: int) -> np.ndarray:
    """One answer, in numpy."""
    k = np.arange(D // 2)
    angle = place / 10_000.0 ** (k / (D // 2 - 1))
    y = last_D + np.concatenate([np.sin(angle), np.cos(angle)])
    for i in range(2):
        y = y / np.sqrt(np.mean(y**2) + 1e-6) * np.asarray(params[f"norm_{i}"])
        y = y @ np.asarray(params[f"dense_{i}"])
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y


def test_every_place_is_answered_from_the_last_position() -> None:
    params = unbox(declare_decoder(jax.random.key(1), D))
    x_BTD = jax.random.normal(jax.random.key(2), (B, T, D))
    got_BTD = jax.jit(decode_last, static_argnums=2)(params, x_BTD, 1e-6)
    want_BTD = [
        [by_hand(params, last_D, t) for t in range(T)] for last_D in np.asarray(x_BTD)[:, -1]
    ]
    assert_close(np.asarray(got_BTD), np.asarray(want_BTD), rtol=1e-5)
    changed = decode_last(params, x_BTD.at[:, :-1].set(0.0), 1e-6)
    assert_close(changed, got_BTD, rtol=1e-5)


def test_places_have_different_vectors_of_one_length() -> None:
    vectors_TD = position_vectors(50, D)
    assert_close(np.linalg.norm(vectors_TD, axis=1), np.full(50, np.sqrt(D / 2)), rtol=1e-6)
    gaps = np.linalg.norm(vectors_TD[:, None] - vectors_TD[None], axis=-1)
    assert gaps[~np.eye(50, dtype=bool)].min() > 0.1


@pytest.mark.slow
def test_a_model_with_a_decoder_answers_for_all_places_what_the_last_one_knows() -> None:
    """A change of the first token reaches every answer, and the decoder's parameters learn."""
    model = build_model(CFG)
    params = model.init(jax.random.key(0))
    row_T = jax.random.randint(jax.random.key(3), (T,), 0, 7)
    tokens_BT = jnp.stack([row_T, row_T.at[0].set((row_T[0] + 1) % 7)])

    def answers(params: Any) -> Any:
        state = model.init_state(params, B, T)
        logits_BTS = model.apply(params, state, tokens_BT, start="fresh")[1]
        return logits_BTS[:, 0, 1].sum(), logits_BTS

    (_, logits_BTS), grads = jax.jit(jax.value_and_grad(answers, has_aux=True))(params)
    assert np.abs(np.diff(logits_BTS, axis=0)).max(axis=(0, 2)).min() > 1e-4
    assert all(np.abs(np.asarray(g)).max() > 0 for g in jax.tree.leaves(grads["decoder"]))
