"""The `gpt2` block and its layout, against GPT-2 written in plain numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_equal

from nested_jax.config import ModelConfig
from nested_jax.hub.gpt2 import from_gpt2, gpt2_config, to_gpt2
from nested_jax.hub.oracle import oracle_logits
from nested_jax.models.lm import build_model

# 4 heads of width 3: a head that is taken for a width shows.
CFG = ModelConfig(block="gpt2", vocab_size=37, dim=12, layers=2, heads=4, max_len=17, norm_eps=1e-5)
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 17)).astype(np.int32)


@cache
def start(cfg: ModelConfig = CFG) -> Any:
    return jax.jit(build_model(cfg).init)(jax.random.key(0))


@cache
def program(cfg: ModelConfig) -> Callable[..., Any]:
    return jax.jit(build_model(cfg).apply)


def everything(cfg: ModelConfig = CFG, size: float = 0.3) -> Any:
    """Parameters that are all in use and differ from one another, biases and norms included."""
    rng = np.random.default_rng(1)
    noise = lambda p: p + size * rng.standard_normal(p.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(noise, start(cfg))


def logits(params: Any, cfg: ModelConfig = CFG) -> np.ndarray:
    state = build_model(cfg).init_state(params, len(TOKENS), capacity=TOKENS.shape[1])
    with jax.default_matmul_precision("highest"):
        return np.asarray(program(cfg)(params, state, jnp.asarray(TOKENS))[1])


def off(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest difference, relative to the spread of the logits."""
    return float(np.abs(got - want).max() / want.std())


@pytest.mark.parametrize(("size", "tied"), [(0.0, True), (0.3, True), (1.0, True), (0.3, False)])
def test_logits_are_those_of_the_oracle(size: float, tied: bool) -> None:
    """At fresh parameters (small activations, where eps shows), at random and at large ones."""
    cfg = dataclasses.replace(CFG, tie_embeddings=tied)
    params = everything(cfg, size)
    want = oracle_logits(to_gpt2(params, cfg), gpt2_config(cfg), TOKENS)
    assert off(logits(params, cfg), want) < 1e-5


def test_fresh_parameters_are_gpt2s() -> None:
    cfg = dataclasses.replace(CFG, dim=64, layers=8, vocab_size=999)
    tensors = to_gpt2(start(cfg), cfg)
    for name, x in tensors.items():
        if name.endswith(".bias"):
            assert (x == 0).all(), name
        elif "ln_" in name:
            assert (x == 1).all(), name
        else:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert x.std() == pytest.approx(std, rel=0.1), name
            assert abs(x).max() > 3 * std, name  # not cut off


def test_there_and_back_is_every_tensor() -> None:
    params = everything()
    tensors = to_gpt2(params, CFG)
    back, cfg = from_gpt2(tensors, gpt2_config(CFG))
    assert dataclasses.replace(cfg, size="custom") == CFG
    assert_equal(back, jax.tree.map(np.asarray, params))
    again = to_gpt2(back, cfg)
    assert again.keys() == tensors.keys()
    assert all((again[name] == x).all() for name, x in tensors.items())
    assert len({x.tobytes() for x in tensors.values()}) == len(tensors)  # none twice


def test_names_without_prefix_masks_and_a_tied_head_are_read() -> None:
    tensors = to_gpt2(everything(), CFG)
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 17, 17)), "h.0.attn.masked_bias": np.float32(-1e4)}
    bare["lm_head.weight"] = bare["wte.weight"]
    config = {**gpt2_config(CFG), "n_inner": None}
    assert_equal(from_gpt2(bare, config)[0], from_gpt2(tensors, config)[0])


def test_124m_has_the_published_count() -> None:
    cfg = dataclasses.replace(CFG, vocab_size=50257, dim=768, layers=12, heads=12, max_len=1024)
    info = build_model(cfg).param_info()
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(info)) == 124_439_808
    decayed = [p for p in jax.tree.leaves(info) if p.kind in ("matrix", "embed", "head")]
    assert sum(p.shape[0] if p.axes[0] == "layers" else 1 for p in decayed) == 12 * 6 + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama': wants 'gpt2'"),
        ({"activation_function": "gelu"}, "activation_function='gelu': wants 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"n_layer": 3}, r"tensor='h\.2\..*is not among"),
        ({"n_layer": 1}, r"tensor='h\.1\..*no place in the model"),
        ({"n_inner": 7}, r"tensor='h\.0\.mlp.*has shape .*config.json says"),
        ({"n_positions": 16}, r"tensor='wpe.weight'.*\[17, 12\].*\[16, 12\]"),
        ({"vocab_size": None}, "model.vocab_size=None: got NoneType"),
    ],
)
def test_what_is_no_such_gpt2(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_gpt2(to_gpt2(start(), CFG), {**gpt2_config(CFG), **change})


@pytest.mark.parametrize("name", ["window", "qk_norm", "kv_heads"])
def test_what_gpt2_does_not_have(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{name}=.*GPT-2"):
        dataclasses.replace(CFG, **{name: 2 if name != "qk_norm" else True})


def test_no_position_after_the_last() -> None:
    """Refused where the shapes say so; a row that runs out under jit is NaN, and no other."""
    model, params = build_model(CFG), start()
    state = model.init_state(params, 2, capacity=40)
    with pytest.raises(ValueError, match=r"positions for model\.max_len=17"):
        model.apply(params, state, jnp.zeros((2, 18), jnp.int32))
    lengths = jnp.asarray([17, 9], jnp.int32)
    read = jax.jit(lambda *args: model.apply(*args, lengths_B=lengths))
    state, out = read(params, state, jnp.asarray(TOKENS))
    assert np.isfinite(out).all()
    _, out = program(CFG)(params, state, jnp.asarray(TOKENS[:, :1]))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
