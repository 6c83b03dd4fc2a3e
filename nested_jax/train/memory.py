"""What a step needs of a device's memory, and what to change where there is too little."""

from __future__ import annotations

import math
import os
from typing import Any

import jax

from nested_jax import machine
from nested_jax.config import Config
from nested_jax.ops.chunking import group_size
from nested_jax.train.layout import Layout
from nested_jax.train.state import HOST
from nested_jax.types import PyTree


def peak_bytes(needs: Any) -> int:
    """Return the bytes that a compiled program holds at its peak, by XLA's analysis."""
    held = needs.argument_size_in_bytes + needs.output_size_in_bytes
    return held + needs.temp_size_in_bytes - needs.alias_size_in_bytes


def state_bytes(needs: Any) -> int:
    """Return the bytes of a compiled program's arguments: what stays between its runs."""
    return needs.argument_size_in_bytes


def available() -> tuple[int, str] | None:
    """Return the bytes that one device can have and whose they are, None where nobody says.

    Devices on a CPU share the host's memory.
    """
    limit = machine.memory_limit()
    if limit is not None:
        return limit, f"of {jax.local_devices()[0].device_kind}"
    if jax.default_backend() != "cpu":
        return None
    return machine.host_memory() // jax.local_device_count(), "of this machine's memory"


def lower_bound(layout: Layout) -> int:
    """Return bytes of one device that no compilation can do without.

    State, gradients, and the fast weights of the rows of a microbatch: those in use, and where the
    outer gradient passes through the writes, their gradient and those that are kept for it.
    """
    fixed = _local_bytes(layout.abstract) + _local_bytes(layout.abstract.params)
    return fixed + fast_bytes(layout) * _local_rows(layout) * _copies(layout.cfg)


def _copies(cfg: Config) -> int:
    """Return how many copies of the fast weights exist at once in the backward pass, at least."""
    if not cfg.teaches or cfg.teach.meta_gradient == "stop":
        return 1
    chunks = -(-cfg.data.seq_len // cfg.teach.chunk)
    if isinstance(cfg.teach.meta_gradient, int):
        chunks = min(chunks, cfg.teach.meta_gradient)
    kept = chunks // group_size(chunks) if cfg.teach.remat == "sqrt" else chunks
    return 2 + kept


def fast_bytes(layout: Layout) -> int:
    """Return the bytes of the fast weights of one row, pending gradients included."""
    cfg = layout.cfg
    if not cfg.teaches:
        return 0
    state = jax.eval_shape(lambda p: layout.model.init_state(p, 1), layout.abstract.params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.fast))


def _local_rows(layout: Layout) -> int:
    rows = layout.cfg.train.batch_size // layout.cfg.train.grad_accum
    parts = layout.mesh.shape["data"] * layout.mesh.shape["fsdp"]
    return math.ceil(rows / parts)


def _local_bytes(tree: PyTree) -> int:
    """Return the bytes of one device's part of a tree of shapes, without what the host keeps."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if x.sharding.memory_kind != HOST
    )


def check_lower_bound(layout: Layout) -> None:
    """Raise if a run cannot fit whatever the compiler does; costs no compilation.

    Raises:
      ValueError: what the run needs, what there is, and the fields that would make it fit.
    """
    check(layout.cfg, lower_bound(layout), "at least ")


def check(cfg: Config, needed: int, words: str = "") -> None:
    """Raise if a device of this machine has less than `needed` bytes.

    Raises:
      ValueError: see `check_lower_bound`.
    """
    found = available()
    if found is None or needed <= found[0] or os.environ.get(IGNORE) == "1":
        return
    have, whose = found
    raise ValueError(
        f"a training step needs {words}{machine.human_bytes(needed)} per device, and there are "
        f"{machine.human_bytes(have)} {whose}; to make it fit: {'; '.join(advice(cfg))}. "
        f"`python -m nested_jax.fit` compiles a plan for other devices; {IGNORE}=1 starts anyway"
    )


IGNORE = "NESTED_JAX_IGNORE_MEMORY"


def advice(cfg: Config) -> list[str]:
    """Return the changes of fields that make a step smaller, the most useful first."""
    train, model, found = cfg.train, cfg.model, []
    rows = train.batch_size // train.grad_accum
    if rows > 1:
        found.append(
            f"--config.train.device_rows=1 (now train.grad_accum={train.grad_accum}: {rows} rows "
            "at once over all devices)"
        )
    if cfg.teaches:
        if model.fast_layers > 1:
            found.append(f"--config.model.cms.fast_layers=1 (now {model.cms.fast_layers})")
        if cfg.teach.remat != "sqrt":
            found.append(f"--config.teach.remat=sqrt (now {cfg.teach.remat})")
        if cfg.teach.chunk < model.cms.periods[0]:
            found.append(
                f"--config.teach.chunk={model.cms.periods[0]} (now {cfg.teach.chunk}: fewer chunks)"
            )
    if model.remat != "nested":
        more = "nested" if model.remat == "full" else "full"
        found.append(f"--config.model.remat={more} (now {model.remat})")
    if not cfg.mesh.offload:
        found.append("--config.mesh.offload=True (moments of the optimizer in the host's memory)")
    found.append("--config.mesh.fsdp=N over more devices")
    return [*found, "a smaller size, such as FILE.py:smoke"]
