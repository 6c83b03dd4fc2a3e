"""The `transformer` block in the layout of Hugging Face's `LlamaForCausalLM`, and back.

`Qwen2ForCausalLM` has biases of queries, keys and values beside it (`model.qkv_bias`) and is read
too. It is written as a Llama with biases, that of the output zero: transformers reads every folder
of Qwen2 with Qwen2's own tokenizer.

Both are pre-norm RMSNorm, rotary positions on the pairs (i, i + K/2), SwiGLU; ours scales
embeddings by sqrt(D), which goes into (comes out of) the table, so that the head is kept apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nested_jax.config import ModelConfig
from nested_jax.errors import require
from nested_jax.hub.tensors import Tensors, compare_names
from nested_jax.types import PyTree

BLOCK = "model.layers.{layer}."
TABLE = "model.embed_tokens.weight"
CONSTANT = "rotary_emb.inv_freq"  # old files hold the frequencies
NORMS = {"norm": "input_layernorm.weight", "mlp_norm": "post_attention_layernorm.weight"}
MLP = {"gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight"}
HEADS = {name: f"self_attn.{name}_proj.weight" for name in ("q", "k", "v", "o")}
BIASES = {f"{name}_bias": f"self_attn.{name}_proj.bias" for name in ("q", "k", "v")}
ZERO_BIAS = "self_attn.o_proj.bias"  # a Llama with biases has it, our block has not
KINDS = ("llama", "qwen2")  # that are read
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Fields whose other values are another function, and the value that is ours.
WANTED = {
    "llama": {"hidden_act": "silu", "mlp_bias": False},
    "qwen2": {"hidden_act": "silu", "use_sliding_window": False},
}


def check_llama(cfg: ModelConfig) -> None:
    """Raise for a model that the Llama layout cannot hold."""
    require(cfg.block == "transformer", "model.block", cfg.block, "Llama holds a 'transformer'")
    require(not cfg.qk_norm, "model.qk_norm", cfg.qk_norm, "Llama has no qk-norm")
    require(cfg.window == 0, "model.window", cfg.window, "Llama has full attention, a window of 0")


def llama_config(cfg: ModelConfig) -> dict[str, Any]:
    """Return the `config.json` of the Llama model."""
    check_llama(cfg)
    rope = {"rope_type": "default", "rope_theta": cfg.rope_theta}
    if cfg.rope_scaling:
        rope |= {"rope_type": "llama3", **dict(zip(SCALING, cfg.rope_scaling, strict=True))}
        rope[SCALING[-1]] = int(cfg.rope_scaling[-1])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_width,
        "max_position_embeddings": cfg.max_len,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": rope,
        "attention_bias": cfg.qkv_bias,
        **WANTED["llama"],
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def to_llama(params: PyTree, cfg: ModelConfig) -> Tensors:
    """Return the tensors of `LlamaForCausalLM` by name, float32.

    Raises:
      ValueError: another block, qk-norm or a window.
    """
    check_llama(cfg)
    embed = np.asarray(params["embed"])
    tensors = {
        TABLE: embed * math.sqrt(cfg.dim),
        "model.norm.weight": np.asarray(params["norm"]),
        "lm_head.weight": embed if cfg.tie_embeddings else np.asarray(params["head"]),
    }
    blocks = params["prefix"]
    for layer in range(cfg.layers):
        at = BLOCK.format(layer=layer)
        for ours, theirs in NORMS.items():
            tensors[at + theirs] = np.asarray(blocks[ours]["scale"][layer])
        for ours, theirs in MLP.items():
            tensors[at + theirs] = np.asarray(blocks["mlp"][ours][layer]).T
        for ours, theirs in HEADS.items():
            weight = np.asarray(blocks["mixer"][ours][layer])
            rows = weight.shape[0] if ours != "o" else weight.shape[0] * weight.shape[1]
            tensors[at + theirs] = weight.reshape(rows, -1).T
        for ours, theirs in BIASES.items() if cfg.qkv_bias else ():
            tensors[at + theirs] = np.asarray(blocks["mixer"][ours][layer]).reshape(-1)
            tensors[at + ZERO_BIAS] = np.zeros(cfg.dim)
    return {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}


def from_llama(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[PyTree, ModelConfig]:
    """Return the parameters, and the model's configuration, of a Llama or a Qwen2.

    Raises:
      ValueError: another kind of model, biases that ours has not, rotary positions that are scaled
        in another way than Llama 3.1's, a tensor that is missing.
    """
    kind = config.get("model_type")
    require(kind in KINDS, "model_type", kind, f"wants {' or '.join(map(repr, KINDS))}")
    for name, want in WANTED[str(kind)].items():
        require(config.get(name) in (want, None), name, config.get(name), f"wants {want!r}")
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        require(name in config, name, None, "config.json has to say it")
    heads = config["num_attention_heads"]
    cfg = ModelConfig(
        block="transformer",
        size=str(kind),
        vocab_size=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        mlp_hidden=config["intermediate_size"],
        max_len=config.get("max_position_embeddings", 2048),
        **_rope(config),
        qkv_bias=kind == "qwen2" or bool(config.get("attention_bias")),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_embeddings=False,
    )
    width = config.get("head_dim") or cfg.head_width
    want = f"wants hidden_size / heads = {cfg.head_width}"
    require(width == cfg.head_width, "head_dim", width, want)
    tied = bool(config.get("tie_word_embeddings", False))
    return read_llama(tensors, cfg, tied), cfg


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the rotary positions; older folders say the base beside them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    require(kind in ("default", "llama3"), "rope_type", kind, "wants 'default' or 'llama3'")
    missing = [name for name in SCALING if kind == "llama3" and name not in rope]
    require(not missing, "rope_scaling", rope, f"wants {', '.join(missing)}")
    scaling = tuple(float(rope[name]) for name in SCALING) if kind == "llama3" else ()
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    return {"rope_theta": float(theta), "rope_scaling": scaling}


def read_llama(tensors: Mapping[str, np.ndarray], cfg: ModelConfig, tied: bool) -> PyTree:
    found = {name: x for name, x in tensors.items() if not name.endswith(CONSTANT)}
    for name in [name for name in found if cfg.qkv_bias and name.endswith(ZERO_BIAS)]:
        require(not np.any(found.pop(name)), "tensor", name, "our output has no bias; wants zeros")
    if tied:
        found["lm_head.weight"] = found.get(TABLE, np.empty(0))
    compare_names(found, _shapes(cfg))

    def get(name: str) -> np.ndarray:
        return np.asarray(found[name], np.float32)

    def stack(name: str) -> np.ndarray:
        return np.stack([get(BLOCK.format(layer=i) + name).T for i in range(cfg.layers)])

    count = {"q": cfg.heads, "k": cfg.num_kv_heads, "v": cfg.num_kv_heads}
    mixer: dict[str, Any] = {
        name: stack(HEADS[name]).reshape(cfg.layers, cfg.dim, heads, cfg.head_width)
        for name, heads in count.items()
    }
    mixer["o"] = stack(HEADS["o"]).reshape(cfg.layers, cfg.heads, cfg.head_width, cfg.dim)
    for ours, theirs in BIASES.items() if cfg.qkv_bias else ():
        mixer[ours] = stack(theirs).reshape(cfg.layers, count[ours[0]], cfg.head_width)
    return {
        "embed": get(TABLE) / np.float32(math.sqrt(cfg.dim)),
        "head": get("lm_head.weight"),
        "norm": get("model.norm.weight"),
        "prefix": {
            "mixer": mixer,
            "mlp": {ours: stack(theirs) for ours, theirs in MLP.items()},
            **{ours: {"scale": stack(theirs)} for ours, theirs in NORMS.items()},
        },
    }


def _shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor."""
    d, f, width = cfg.dim, cfg.mlp_width, cfg.head_width
    rows = {"q": cfg.heads * width, "k": cfg.num_kv_heads * width, "v": cfg.num_kv_heads * width}
    layer = {HEADS[name]: (count, d) for name, count in rows.items()}
    layer |= {HEADS["o"]: (d, cfg.heads * width), MLP["down"]: (d, f)}
    layer |= {MLP[name]: (f, d) for name in ("gate", "up")}
    biases = {theirs: (rows[ours[0]],) for ours, theirs in BIASES.items() if cfg.qkv_bias}
    vectors = {**dict.fromkeys(NORMS.values(), (d,)), **biases}
    shapes: dict[str, tuple[int, ...]] = {
        BLOCK.format(layer=i) + name: shape
        for i in range(cfg.layers)
        for name, shape in {**layer, **vectors}.items()
    }
    tables = (TABLE, "lm_head.weight")
    return {**shapes, **dict.fromkeys(tables, (cfg.vocab_size, d)), "model.norm.weight": (d,)}
