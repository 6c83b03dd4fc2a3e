"""Exported checkpoints: what was written is what was trained, in our layout and in Llama's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, assert_equal

from nested_jax.config import ModelConfig
from nested_jax.hub.export import flat, main, unflat
from nested_jax.hub.imports import open_folder
from nested_jax.hub.llama import from_llama, llama_config, to_llama
from nested_jax.hub.oracle import oracle_logits
from nested_jax.models.lm import build_model

CFG = ModelConfig(
    block="transformer",
    vocab_size=31,
    dim=24,
    layers=3,
    heads=4,
    kv_heads=2,
    mlp_hidden=40,
    max_len=16,
    rope_theta=500.0,
    tie_embeddings=True,
)


def logits(cfg: ModelConfig, params: Any) -> Any:
    model = build_model(cfg)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 31, (2, 13)), jnp.int32)
    state = model.init_state(params, batch_size=2)
    return jax.jit(model.apply)(params, state, tokens)[1], tokens


@pytest.fixture(scope="module")
def params() -> Any:
    """Random parameters, norms included."""
    start = jax.jit(build_model(CFG).init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, noise)


def test_paths_are_a_tree(params: Any) -> None:
    tensors = flat(params)
    assert "prefix/mixer/q" in tensors
    assert_equal(unflat(tensors), params)


def test_there_and_back_is_the_same_model(params: Any) -> None:
    back, cfg = from_llama(to_llama(params, CFG), llama_config(CFG))
    assert_close(logits(cfg, jax.tree.map(jnp.asarray, back))[0], logits(CFG, params)[0], rtol=1e-6)


def test_the_oracle_is_the_same_model(params: Any) -> None:
    ours, tokens = logits(CFG, params)
    want = oracle_logits(to_llama(params, CFG), llama_config(CFG), np.asarray(tokens))
    assert_close(ours, want, rtol=1e-5)


def test_qwen2_is_a_llama_with_biases_and_none_of_the_output() -> None:
    cfg = dataclasses.replace(CFG, qkv_bias=True, tie_embeddings=False, size="qwen2")
    start = jax.jit(build_model(cfg).init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape) % 7 / 10, start)
    tensors, config = to_llama(params, cfg), llama_config(cfg)
    theirs = {name: x for name, x in tensors.items() if not name.endswith("o_proj.bias")}
    assert len(theirs) == len(tensors) - cfg.layers
    back, read = from_llama(theirs, config | {"model_type": "qwen2"})
    assert read == dataclasses.replace(cfg, mlp_hidden=cfg.mlp_width, kv_heads=cfg.num_kv_heads)
    assert_close(back, jax.tree.map(np.asarray, params), rtol=1e-6)
    assert_equal(from_llama(tensors, config)[0], back)
    tensors["model.layers.0.self_attn.o_proj.bias"] += 1
    with pytest.raises(ValueError, match=r"o_proj\.bias': our output has no bias"):
        from_llama(tensors, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2': wants 'llama' or 'qwen2'"),
        ({"model_type": "qwen2"}, r"q_proj\.bias.*is not among"),
        ({"attention_bias": True}, r"q_proj\.bias.*is not among"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window=True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "wants factor, low_freq_factor"),
        ({"head_dim": 7}, r"head_dim=7: wants hidden_size / heads = 6"),
        ({"num_hidden_layers": 2}, r"tensor='model\.layers\.2\..*has no place"),
        ({"vocab_size": 30}, r"has shape \[31, 24\], config\.json says \[30, 24\]"),
        ({"num_hidden_layers": 4}, r"tensor='model\.layers\.3\..*is not among"),
    ],
)
def test_what_is_no_such_llama(params: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_llama(to_llama(params, CFG), {**llama_config(CFG), **change})


@pytest.mark.parametrize(
    "change",
    [{"block": "hope"}, {"qk_norm": True}, {"window": 8}],
    ids=lambda c: next(iter(c)),
)
def test_what_llama_cannot_hold(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"model.{next(iter(change))}="):
        llama_config(dataclasses.replace(CFG, **change))


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors")
    assert main(["--checkpoint", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    assert "checkpoint=" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["--checkpoint", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "wants a new folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"has no config\.json"):
        open_folder(tmp_path)
