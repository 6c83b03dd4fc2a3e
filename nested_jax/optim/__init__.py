"""The outer optimizers: ``optax.GradientTransformation``s that `make_optimizer` puts together."""

from nested_jax.optim.adam import scale_by_adam
from nested_jax.optim.deep_momentum import scale_by_deep_momentum
from nested_jax.optim.delta_gradient_descent import scale_by_delta_gradient
from nested_jax.optim.delta_momentum import scale_by_delta_momentum
from nested_jax.optim.dimensions import MatrixDims, matrix_dims, tree_dims
from nested_jax.optim.factory import group_counts, make_optimizer, optimizer_shardings
from nested_jax.optim.guards import BadUpdates, bad_updates, skip_non_finite
from nested_jax.optim.levels import every
from nested_jax.optim.m3 import M3, scale_by_m3
from nested_jax.optim.muon import scale_by_muon
from nested_jax.optim.schedules import make_schedule, teach_scale

__all__ = [
    "M3",
    "BadUpdates",
    "MatrixDims",
    "bad_updates",
    "every",
    "group_counts",
    "make_optimizer",
    "make_schedule",
    "matrix_dims",
    "optimizer_shardings",
    "scale_by_adam",
    "scale_by_deep_momentum",
    "scale_by_delta_gradient",
    "scale_by_delta_momentum",
    "scale_by_m3",
    "scale_by_muon",
    "skip_non_finite",
    "teach_scale",
    "tree_dims",
]
