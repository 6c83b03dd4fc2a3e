"""The `gpt2` block in the layout of Hugging Face's `GPT2LMHeadModel`, and back.

Both multiply inputs by matrices from the right, so that nothing is transposed. Columns of `c_attn`
are queries, then keys, then values; each is head-major.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nested_jax.config import ModelConfig
from nested_jax.errors import require
from nested_jax.hub.tensors import Tensors, compare_names
from nested_jax.types import PyTree

PREFIX = "transformer."
MASKS = (".attn.bias", ".attn.masked_bias")  # constants that old files hold
TABLES = {"embed": "wte.weight", "positions": "wpe.weight"}
FINAL = {"norm": "ln_f.weight", "norm_bias": "ln_f.bias"}
NORMS = {"norm": "ln_1", "mlp_norm": "ln_2"}
MLP = {
    "up": "mlp.c_fc.weight",
    "up_bias": "mlp.c_fc.bias",
    "down": "mlp.c_proj.weight",
    "down_bias": "mlp.c_proj.bias",
}
# Fields whose other values are another function, and the value that is ours.
WANTED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def check_gpt2(cfg: ModelConfig) -> None:
    """Raise for a model that GPT-2's layout cannot hold."""
    require(cfg.block == "gpt2", "model.block", cfg.block, "the layout holds a 'gpt2'")


def gpt2_config(cfg: ModelConfig) -> dict[str, Any]:
    """Return the `config.json` of the GPT-2 model."""
    check_gpt2(cfg)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": cfg.vocab_size,
        "n_positions": cfg.max_len,
        "n_embd": cfg.dim,
        "n_layer": cfg.layers,
        "n_head": cfg.heads,
        "n_inner": None if cfg.mlp_width == 4 * cfg.dim else cfg.mlp_width,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": cfg.norm_eps,
        "initializer_range": 0.02,
        **WANTED,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": cfg.tie_embeddings,
        "use_cache": True,
        "dtype": "float32",
    }


def to_gpt2(params: PyTree, cfg: ModelConfig) -> Tensors:
    """Return the tensors of `GPT2LMHeadModel` by name, float32.

    Raises:
      ValueError: another block.
    """
    check_gpt2(cfg)
    tensors = {PREFIX + theirs: params[ours] for ours, theirs in {**TABLES, **FINAL}.items()}
    if not cfg.tie_embeddings:
        tensors["lm_head.weight"] = params["head"]
    blocks, d = params["prefix"], cfg.dim
    for layer in range(cfg.layers):
        at = f"{PREFIX}h.{layer}."
        for ours, theirs in NORMS.items():
            tensors[f"{at}{theirs}.weight"] = blocks[ours]["scale"][layer]
            tensors[f"{at}{theirs}.bias"] = blocks[ours]["bias"][layer]
        for ours, theirs in MLP.items():
            tensors[at + theirs] = blocks["mlp"][ours][layer]
        mixer = {name: np.asarray(x[layer]) for name, x in blocks["mixer"].items()}
        joined = [mixer[name].reshape(d, -1) for name in ("q", "k", "v")]
        tensors[f"{at}attn.c_attn.weight"] = np.concatenate(joined, axis=1)
        biases = [mixer[f"{name}_bias"].reshape(-1) for name in ("q", "k", "v")]
        tensors[f"{at}attn.c_attn.bias"] = np.concatenate(biases)
        tensors[f"{at}attn.c_proj.weight"] = mixer["o"].reshape(-1, d)
        tensors[f"{at}attn.c_proj.bias"] = mixer["o_bias"]
    return {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}


def from_gpt2(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[PyTree, ModelConfig]:
    """Return the parameters, and the model's configuration, of a `GPT2LMHeadModel`.

    Names may lack the prefix ``transformer.``, as those of the first files do.

    Raises:
      ValueError: another kind of model; a field whose value is another function; a tensor that is
        missing, of another shape, or of no place in the model.
    """
    cfg = gpt2_model(config)
    found = {}
    for name, x in tensors.items():
        name = name.removeprefix(PREFIX)
        if not name.endswith(MASKS):
            found[name] = x
    if cfg.tie_embeddings:
        found.pop("lm_head.weight", None)  # the table, once more
    compare_names(found, _shapes(cfg))
    found = {name: np.asarray(x, np.float32) for name, x in found.items()}

    def stack(name: str) -> np.ndarray:
        return np.stack([found[f"h.{layer}.{name}"] for layer in range(cfg.layers)])

    lead, heads = (cfg.layers,), (cfg.heads, cfg.head_width)
    mixer = {
        "o": stack("attn.c_proj.weight").reshape(*lead, *heads, cfg.dim),
        "o_bias": stack("attn.c_proj.bias"),
    }
    columns = np.split(stack("attn.c_attn.weight"), 3, axis=-1)
    biases = np.split(stack("attn.c_attn.bias"), 3, axis=-1)
    for name, weight, bias in zip("qkv", columns, biases, strict=True):
        mixer[name] = weight.reshape(*lead, cfg.dim, *heads)
        mixer[f"{name}_bias"] = bias.reshape(*lead, *heads)
    norms = {
        ours: {"scale": stack(f"{theirs}.weight"), "bias": stack(f"{theirs}.bias")}
        for ours, theirs in NORMS.items()
    }
    params = {ours: found[theirs] for ours, theirs in {**TABLES, **FINAL}.items()}
    if not cfg.tie_embeddings:
        params["head"] = found["lm_head.weight"]
    mlp = {ours: stack(theirs) for ours, theirs in MLP.items()}
    return {**params, "prefix": {"mixer": mixer, "mlp": mlp, **norms}}, cfg


def gpt2_model(config: Mapping[str, Any]) -> ModelConfig:
    """Return our configuration of a GPT-2 model's `config.json`.

    Raises:
      ValueError: another kind of model, or a field whose value is another function.
    """
    kind = config.get("model_type")
    require(kind == "gpt2", "model_type", kind, "wants 'gpt2'")
    act = config.get("activation_function", "gelu_new")
    known = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function
    require(act in known, "activation_function", act, f"wants {known[0]!r}, the tanh GELU")
    for name, value in WANTED.items():
        got = config.get(name, value)
        require(got == value, name, got, f"wants {value}")
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        require(name in config, name, None, "config.json has to say it")
    return ModelConfig(
        block="gpt2",
        size="gpt2",
        vocab_size=config["vocab_size"],
        dim=config["n_embd"],
        layers=config["n_layer"],
        heads=config["n_head"],
        mlp_hidden=config.get("n_inner") or 0,
        max_len=config["n_positions"],
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", True),
    )


def _shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, by its name without prefix."""
    d, f = cfg.dim, cfg.mlp_width
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (cfg.vocab_size, d),
        "wpe.weight": (cfg.max_len, d),
        "ln_f.weight": (d,),
        "ln_f.bias": (d,),
    }
    if not cfg.tie_embeddings:
        shapes["lm_head.weight"] = (cfg.vocab_size, d)
    linear = {
        "attn.c_attn": (d, 3 * d),
        "attn.c_proj": (d, d),
        "mlp.c_fc": (d, f),
        "mlp.c_proj": (f, d),
    }
    for layer in range(cfg.layers):
        for name in NORMS.values():
            shapes |= {f"h.{layer}.{name}.weight": (d,), f"h.{layer}.{name}.bias": (d,)}
        for name, (inputs, outputs) in linear.items():
            shapes[f"h.{layer}.{name}.weight"] = (inputs, outputs)
            shapes[f"h.{layer}.{name}.bias"] = (outputs,)
    return shapes
