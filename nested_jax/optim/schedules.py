"""Functions of the outer step: the learning rate, and the scale of the teach signal."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax

from nested_jax.config import OptimConfig, TeachConfig
from nested_jax.types import Array

# What is left of the peak when a fraction in [0, 1] of the decay is done, before the floor.
DECAYS: dict[str, Callable[[Array], Array]] = {
    "cosine": lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
    "linear": lambda done: 1.0 - done,
    "constant": jnp.ones_like,
}


def make_schedule(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Return the learning rate of outer step 0, 1, ... as a float32 function of the step.

    It counts steps done with this one, n = step + 1: n / warmup_steps of the peak while it rises
    (no step is spent at rate 0), the peak at n = warmup_steps, `final_fraction` of the peak at
    n = steps and after. A `constant` schedule stays at the peak. A run shorter than its warm-up
    ends on the way up.

    Args:
      steps: optimizer steps of the run.
    """
    decay = DECAYS[cfg.schedule]
    floor = 1.0 if cfg.schedule == "constant" else cfg.final_fraction

    def schedule(step: Array | int) -> Array:
        n = jnp.asarray(step).astype(jnp.float32) + 1.0
        rise = jnp.minimum(n / max(cfg.warmup_steps, 1), 1.0)
        done = jnp.clip((n - cfg.warmup_steps) / max(steps - cfg.warmup_steps, 1), 0.0, 1.0)
        return cfg.learning_rate * rise * (floor + (1.0 - floor) * decay(done))

    return schedule


def teach_scale(cfg: TeachConfig, step: Array | int) -> Array:
    """Return the scale of the teach signal at outer `step`, float32.

    scale * min(1, n / warmup_steps) * clip(1 - (n - start) / steps, 0, 1) with n = step + 1 and
    (start, steps) = decay; the factors are 1 without a warm-up or decay.
    """
    n = jnp.asarray(step).astype(jnp.float32) + 1.0
    scale = jnp.full_like(n, cfg.scale)
    if cfg.warmup_steps > 0:
        scale = scale * jnp.minimum(n / cfg.warmup_steps, 1.0)
    if cfg.decay:
        start, steps = cfg.decay
        scale = scale * jnp.clip(1.0 - (n - start) / steps, 0.0, 1.0)
    return scale
