"""Nested-learning language models in JAX: HOPE, Titans, continuum memory, and their baselines."""

from nested_jax.config import Config, load_config
from nested_jax.models.lm import LanguageModel, build_model
from nested_jax.models.state import State, detach, load_state, reset, save_state
from nested_jax.outer_loss import loss_fn, stream_loss_fn
from nested_jax.teach import Taught, flush, teach
from nested_jax.train.checkpoint import load_checkpoint
from nested_jax.types import Batch

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Config",
    "LanguageModel",
    "State",
    "Taught",
    "build_model",
    "detach",
    "flush",
    "load_checkpoint",
    "load_config",
    "load_state",
    "loss_fn",
    "reset",
    "save_state",
    "stream_loss_fn",
    "teach",
]
