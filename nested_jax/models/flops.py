"""How much arithmetic a step needs: an estimate from the parameters, for MFU and reports."""

from __future__ import annotations

import jax

from nested_jax.config import Config
from nested_jax.types import ParamInfo, PyTree

MULTIPLIED = ("matrix", "head", "conv", "fast0")  # kinds of parameters that every token multiplies


def flops_per_token(cfg: Config, info: PyTree) -> float:
    """Return the model FLOPs of one training token; recomputation (remat) does not count.

    2 a weight and token forward and twice that backward (Kaplan et al. 2020, section 2.1), causal
    attention over its mean context, and the inner loop: a backward pass through the taught blocks
    and the head, which "through" differentiates once more (three times its cost with "stop").

    Args:
      info: tree of `ParamInfo` of the model.
    """
    forward = 2.0 * _weights(cfg, info) + _attention(cfg)
    inner = 0.0
    if cfg.teaches:
        inner = 4.0 * (_weights(cfg, info.get("suffix", {})) + _head_weights(cfg, info))
        inner *= 1.0 if cfg.teach.meta_gradient == "stop" else 3.0
    return 3.0 * forward + inner


def count_parameters(info: PyTree) -> int:
    return sum(_size(leaf) for leaf in jax.tree.leaves(info))


def _weights(cfg: Config, info: PyTree) -> int:
    """Return the weights that a token is multiplied by."""
    stacked = sum(_size(leaf) for leaf in jax.tree.leaves(info) if leaf.kind in MULTIPLIED)
    return stacked + (_head_weights(cfg, info) if cfg.model.tie_embeddings else 0)


def _head_weights(cfg: Config, info: PyTree) -> int:
    return cfg.model.vocab_size * cfg.model.dim if "embed" in info else 0


def _attention(cfg: Config) -> float:
    """Return the FLOPs per token of q k and p v, over the mean number of keys that it sees."""
    return 4.0 * _seen(cfg) * cfg.model.dim * cfg.model.layers


def _seen(cfg: Config) -> float:
    """Return the mean number of keys that a token attends to."""
    model, tokens = cfg.model, cfg.data.seq_len
    if model.kind.attention == "segment":  # tokens, and what was retrieved for them
        return min(model.memory_segment, tokens) + 1 + model.persistent_tokens
    if not model.attends:
        return 0.0
    seen = (tokens + 1) / 2
    if model.window and model.window < tokens:
        seen = model.window - model.window * (model.window - 1) / (2 * tokens)
    return seen + model.persistent_tokens


def _size(leaf: ParamInfo) -> int:
    count = 1
    for axis in leaf.shape:
        count *= axis
    return count
