"""The memories that a test-time write can go to, by name, and what they hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nested_jax.config import KINDS, ModelConfig
from nested_jax.errors import require
from nested_jax.models.state import State
from nested_jax.types import Array, PyTree

LEVELS = ("cms_fast", "cms_mid", "cms_slow", "cms_ultra")  # CMS levels, the fastest first
SEQUENCE = tuple(dict.fromkeys(kind.memory for kind in KINDS.values() if kind.memory))
KNOWN = (*SEQUENCE, *LEVELS)


def model_paths(cfg: ModelConfig) -> tuple[str, ...]:
    """Return the names of a model's memories: the sequence memory, then the CMS levels.

    `titan` is the neural memory of `hope`, `hope_hybrid` and the Titans, `delta` the matrix of the
    DeltaNets.
    """
    written = cfg.kind.memory and not cfg.memory.frozen
    sequence = (cfg.kind.memory,) if written else ()
    levels = len(cfg.cms.periods) if cfg.fast_layers else 0
    return sequence + tuple(level_name(i) for i in range(levels))


def level_name(level: int) -> str:
    return LEVELS[level] if level < len(LEVELS) else f"cms_level{level}"


def choose_paths(text: str, cfg: ModelConfig) -> tuple[str, ...]:
    """Return the memories of a model that ``all`` or a comma-separated list of names chooses.

    A name that is known and that this model does not have is left out: one command serves models of
    several kinds.

    Raises:
      ValueError: an unknown name, with the known ones.
    """
    here = model_paths(cfg)
    if text == "all":
        return here
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = (*KNOWN, *(name for name in here if name not in KNOWN))
    for name in names:
        require(
            name in known, "--memorize-paths", name, f"wants all, or some of {', '.join(known)}"
        )
    require(len(names) > 0, "--memorize-paths", text, f"wants all, or some of {', '.join(known)}")
    return tuple(name for name in here if name in names)


def choose_layers(text: str, cfg: ModelConfig) -> tuple[int, ...] | None:
    """Return the layers of ``all`` (None), ``last`` or a list of indices; negative ones count back.

    Raises:
      ValueError: neither, or an index that the model does not have.
    """
    if text == "all":
        return None
    if text == "last":
        return (cfg.layers - 1,)
    wanted = f"wants all, last, or indices below {cfg.layers} as in 0,-1"
    chosen = []
    for part in text.split(","):
        index = int(part) if part.strip().lstrip("-").isdigit() else cfg.layers
        require(-cfg.layers <= index < cfg.layers, "--memorize-layers", text, wanted)
        chosen.append(index % cfg.layers)
    return tuple(sorted(set(chosen)))


def sequence_change(params: PyTree, state: State) -> Array:
    """Return |W - W0| / |W0| of the sequence memory, float32 [B]; |W| where W0 is 0 (DeltaNet)."""
    squares: Any = 0.0
    norms: Any = 0.0
    suffix = params.get("suffix", {})
    stacks = (
        (params.get("prefix", {}), state.prefix),
        (jax.tree.map(lambda p: p[:1], suffix), state.entry),
        (jax.tree.map(lambda p: p[1:], suffix), state.now.suffix),
    )
    for stack, mixers in stacks:
        if not hasattr(mixers, "matrices"):
            continue
        initial = initial_memory(stack["mixer"])
        for i, w_BL in enumerate(mixers.matrices):
            w0_L = initial[i][None] if initial else jnp.zeros_like(w_BL[:1])
            axes = tuple(range(1, w_BL.ndim))
            squares = squares + jnp.sum(jnp.square(w_BL - w0_L), axis=axes)
            norms = norms + jnp.sum(jnp.square(w0_L), axis=axes)
    return jnp.sqrt(squares) / jnp.sqrt(jnp.where(norms > 0, norms, 1.0))


def initial_memory(mixer: PyTree) -> list[Array]:
    """Return the learned initial matrices of a sequence memory, [L, H, I, O]; [] for DeltaNets."""
    found: list[Array] = []
    mixer = mixer.get("memory", mixer)  # a part of a mixer that has attention too
    for stem in ("fast0", "memory0"):
        while f"{stem}_{len(found)}" in mixer:
            found.append(mixer[f"{stem}_{len(found)}"])
    return found
