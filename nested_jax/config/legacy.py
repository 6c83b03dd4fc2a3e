"""Fields that were renamed or removed: what is said of one that is given, how a saved one is read.

A configuration that an earlier version saved beside its checkpoints holds every field, these too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nested_jax.errors import require


class Gone(NamedTuple):
    """A removed field: the value that the code has now, and what to do instead."""

    value: Any  # None: it never touched what was computed
    instead: str


RENAMED = {"optim.muon_learning_rate": "optim.matrix_learning_rate"}
REMOVED = {
    "data.read_threads": Gone(None, "threads and rows read ahead are constants"),
    "data.prefetch": Gone(None, "threads and rows read ahead are constants"),
    "train.divergence_margin": Gone(None, "a run ends 0.5 nats above uniform"),
    "optim.max_bad_updates": Gone(None, "a run ends after 25 bad updates in a row"),
    "teach.decay_start": Gone(None, "wants teach.decay=(start, steps)"),
    "teach.decay_steps": Gone(None, "wants teach.decay=(start, steps)"),
    "optim.period_lr": Gone("scaled", "the rate of a level is optim.learning_rate / period"),
    "optim.muon_heads": Gone("joint", "the heads of a projection are one matrix"),
    "optim.newton_schulz_steps": Gone(5, "there are always 5"),
    "optim.m3_form": Gone("ema", "it is always 'ema'; nested_jax.optim.M3 has the other"),
    "optim.m3_beta3": Gone(0.9, "it is always 0.9"),
    "optim.m3_alpha": Gone(1.0, "it is always 1"),
}


def advice(path: str) -> str | None:
    """Return what to say of a field that once was, None of one that never was."""
    if path in RENAMED:
        return f"is called {RENAMED[path]} now"
    return f"was removed; {REMOVED[path].instead}" if path in REMOVED else None


def upgrade(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration with today's fields.

    Raises:
      ValueError: a removed field has another value than the code has now.
    """
    data = {name: dict(v) if isinstance(v, Mapping) else v for name, v in saved.items()}

    def pop(path: str, default: Any = None) -> Any:
        block, _, name = path.partition(".")
        return data.get(block, {}).pop(name, default)

    for old, new in RENAMED.items():
        if (value := pop(old)) is not None:
            data[new.split(".")[0]][new.split(".")[1]] = value
    if steps := pop("teach.decay_steps"):
        data["teach"]["decay"] = (pop("teach.decay_start"), steps)
    for name, gone in REMOVED.items():
        value = pop(name, gone.value)
        want = f"an earlier version saved this; the field was removed; {gone.instead}"
        require(gone.value is None or value == gone.value, name, value, want)
    return data
