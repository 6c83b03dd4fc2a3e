"""Hugging Face's models in plain numpy, from the tensors and the `config.json` of a folder.

Nothing here is shared with our models: `export --check` and the tests compare them with this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]


def oracle_logits(tensors: Tensors, config: Mapping[str, Any], tokens_BT: np.ndarray) -> np.ndarray:
    """Return the logits of a folder's model for rows of tokens, float64 [B, T, S]."""
    wide = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
    logits = gpt2_logits if config["model_type"] == "gpt2" else llama_logits
    return np.stack([logits(wide, config, tokens_T) for tokens_T in tokens_BT])


def gpt2_logits(w: Tensors, config: Mapping[str, Any], tokens_T: np.ndarray) -> np.ndarray:
    """`GPT2LMHeadModel`: tensors named `transformer.h.0.attn.c_attn.weight`, [in, out]."""
    eps, heads = config["layer_norm_epsilon"], config["n_head"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    h = w["transformer.wte.weight"][tokens_T] + w["transformer.wpe.weight"][: len(tokens_T)]
    for i in range(config["n_layer"]):
        at = f"transformer.h.{i}"
        qkv = np.split(conv1d(norm(h, f"{at}.ln_1"), f"{at}.attn.c_attn"), 3, axis=-1)
        q, k, v = (x.reshape(len(x), heads, -1).swapaxes(0, 1) for x in qkv)
        h = h + conv1d(attend(q, k, v), f"{at}.attn.c_proj")
        x = conv1d(norm(h, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        h = h + conv1d(gelu, f"{at}.mlp.c_proj")
    head = w["transformer.wte.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"]
    return norm(h, "transformer.ln_f") @ head.T


def llama_logits(w: Tensors, config: Mapping[str, Any], tokens_T: np.ndarray) -> np.ndarray:
    """`LlamaForCausalLM`: tensors named `model.layers.0.self_attn.q_proj.weight`, [out, in].

    With `attention_bias` there are biases beside them, which `Qwen2ForCausalLM` has too.
    """
    eps, heads = config["rms_norm_eps"], config["num_attention_heads"]
    groups, theta = config["num_key_value_heads"], config["rope_theta"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"]

    def rotate(x_HTK: np.ndarray) -> np.ndarray:
        half = x_HTK.shape[-1] // 2
        frequency = scaled(theta ** (-np.arange(half) / half), config["rope_parameters"])
        angle = np.arange(x_HTK.shape[1])[:, None] * frequency
        angle = np.concatenate([angle, angle], axis=-1)
        turned = np.concatenate([-x_HTK[..., half:], x_HTK[..., :half]], axis=-1)
        return x_HTK * np.cos(angle) + turned * np.sin(angle)

    h = w["model.embed_tokens.weight"][tokens_T]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        x = norm(h, f"{at}.input_layernorm")
        q, k, v = (
            x @ w[f"{at}.self_attn.{n}_proj.weight"].T + w.get(f"{at}.self_attn.{n}_proj.bias", 0.0)
            for n in "qkv"
        )
        q, k, v = (
            y.reshape(len(y), n, -1).swapaxes(0, 1)
            for y, n in ((q, heads), (k, groups), (v, groups))
        )
        k, v = (np.repeat(y, heads // groups, axis=0) for y in (rotate(k), v))
        h = h + attend(rotate(q), k, v) @ w[f"{at}.self_attn.o_proj.weight"].T
        x = norm(h, f"{at}.post_attention_layernorm")
        gate, up = (x @ w[f"{at}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        h = h + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}.mlp.down_proj.weight"].T
    tied = config.get("tie_word_embeddings", False)
    return norm(h, "model.norm") @ w["model.embed_tokens.weight" if tied else "lm_head.weight"].T


def scaled(frequency: np.ndarray, rope: Mapping[str, Any]) -> np.ndarray:
    """Return rotary frequencies as `_compute_llama3_parameters` has them, case by case."""
    if rope["rope_type"] == "default":
        return frequency
    factor, low, high = (rope[n] for n in ("factor", "low_freq_factor", "high_freq_factor"))
    tokens, found = rope["original_max_position_embeddings"], []
    for f in frequency:
        wavelength = 2 * np.pi / f
        if wavelength < tokens / high:
            found.append(f)
        elif wavelength > tokens / low:
            found.append(f / factor)
        else:
            smooth = (tokens / wavelength - low) / (high - low)
            found.append((1 - smooth) * f / factor + smooth * f)
    return np.asarray(found)


def attend(q_HTK: np.ndarray, k_HTK: np.ndarray, v_HTK: np.ndarray) -> np.ndarray:
    """Return causal softmax attention, the heads side by side, [T, H*K]."""
    tokens, width = q_HTK.shape[1:]
    scores = q_HTK @ k_HTK.swapaxes(1, 2) / np.sqrt(width)
    scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    y_HTK = p / p.sum(-1, keepdims=True) @ v_HTK
    return y_HTK.swapaxes(0, 1).reshape(tokens, -1)
