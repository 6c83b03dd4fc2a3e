"""The outer optimizer that a config names, derived from what every parameter says of itself."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nested_jax.config import OptimConfig
from nested_jax.errors import require
from nested_jax.optim.adam import scale_by_adam
from nested_jax.optim.deep_momentum import scale_by_deep_momentum
from nested_jax.optim.delta_gradient_descent import scale_by_delta_gradient
from nested_jax.optim.delta_momentum import scale_by_delta_momentum
from nested_jax.optim.dimensions import tree_dims
from nested_jax.optim.guards import skip_non_finite
from nested_jax.optim.levels import every, level_schedule
from nested_jax.optim.m3 import M3, scale_by_m3
from nested_jax.optim.muon import scale_by_muon
from nested_jax.optim.schedules import make_schedule
from nested_jax.types import ParamInfo, PyTree

logger = logging.getLogger(__name__)

DECAYED = ("matrix", "embed", "head")
KINDS = (*DECAYED, "vector", "conv", "fast0")
POLICIES = {
    "all": lambda _, __: True,
    "exclude_memory": lambda memory, _: not memory,
    "only_memory": lambda memory, _: memory,
    "only_vectors": lambda _, kind: kind == "vector",
}
FROZEN = "frozen"


class Group(NamedTuple):
    """Parameters that share one transformation."""

    rule: str  # a name of OptimConfig.name
    level: int
    decays: bool
    own_rate: bool = False  # vectors, where they have a rate of their own

    @property
    def label(self) -> str:
        name = f"{self.rule}_level{self.level}" + ("" if self.decays else "_no_decay")
        return name + ("_own_rate" if self.own_rate else "")

    def rate(self, cfg: OptimConfig) -> float:
        """Return the peak of the learning rate."""
        if self.own_rate:
            return cfg.vector_learning_rate
        return cfg.learning_rate if self.rule == "adamw" else cfg.matrix_learning_rate


def make_optimizer(cfg: OptimConfig, steps: int, info: PyTree) -> optax.GradientTransformation:
    """Return the optimizer of a run: pass it gradients, its state and the parameters.

    In this order: gradients of frozen parameters are dropped; a step that is not finite is skipped
    (`skip_non_finite`); the rest is clipped to one global norm; then each group goes its way.
    Matrices go by ``cfg.name`` at ``matrix_learning_rate``, everything else by AdamW at
    ``learning_rate``, vectors at ``vector_learning_rate`` if there is one. All of these rules give
    steps of RMS about 0.2 per element before the rate, as AdamW does. (On 200 steps of a byte model
    of 2 layers and width 64, the best of a few rates was 0.02 for muon, m3 and dgd, 0.005 for
    delta_momentum and deep_momentum.) Weight decay is decoupled, times the rate, and only on kinds
    `DECAYED`. A level acts once in its period, see `every`.

    Args:
      steps: optimizer steps of the run.
      info: tree of `ParamInfo` with the structure of the parameters.
    Raises:
      ValueError: an unknown kind, a matrix whose axes cannot be resolved, or nothing to train.
    """
    groups = group_tree(cfg, info)
    labels = jax.tree.map(_label, groups, is_leaf=_is_group)
    labelled = jax.tree.leaves(groups, is_leaf=_is_group)
    present = list(dict.fromkeys(g for g in labelled if g is not None))  # the same in every process
    require(
        bool(present), "optim.param_policy", cfg.param_policy, "selects no parameter of this model"
    )
    schedule = make_schedule(cfg, steps)
    dims = None if cfg.name == "adamw" else tree_dims(info)
    transforms = {group.label: _transform(cfg, group, schedule, dims) for group in present}
    transforms[FROZEN] = optax.set_to_zero()
    tx = optax.partition(transforms, labels)
    if cfg.clip_norm > 0:
        tx = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), tx)
    logger.info("optimizer %s, elements a group: %s", cfg.name, group_counts(cfg, info))
    return optax.chain(_drop_frozen(labels), skip_non_finite(tx))


def group_tree(cfg: OptimConfig, info: PyTree) -> PyTree:
    """Return a tree with the `Group` of every parameter, None where it is not trained."""
    trained = POLICIES[cfg.param_policy]

    def group(path: Any, leaf: ParamInfo) -> Group | None:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        require(leaf.kind in KINDS, f"kind of parameter {name}", leaf.kind, f"wants one of {KINDS}")
        memory = leaf.level >= 1 or leaf.kind == "fast0"
        if not trained(memory, leaf.kind):
            return None
        rule = cfg.name if leaf.kind == "matrix" else "adamw"
        own_rate = cfg.vector_learning_rate > 0 and leaf.kind == "vector"
        return Group(rule, leaf.level, leaf.kind in DECAYED, own_rate)

    return jax.tree_util.tree_map_with_path(group, info)


def group_counts(cfg: OptimConfig, info: PyTree) -> dict[str, int]:
    """Return the number of elements in each group, "frozen" included, by label."""
    counts: Counter[str] = Counter()
    groups = jax.tree.leaves(group_tree(cfg, info), is_leaf=_is_group)
    for group, leaf in zip(groups, jax.tree.leaves(info), strict=True):
        counts[_label(group)] += math.prod(leaf.shape)
    return dict(sorted(counts.items()))


def optimizer_shardings(
    tx: optax.GradientTransformation, abstract_params: PyTree, param_shardings: PyTree, mesh: Mesh
) -> PyTree:
    """Return the shardings of ``tx.init(params)``: what is like a parameter lies where it does.

    Counters are replicated. Give it to ``jax.jit(tx.init, out_shardings=...)``: without it the
    zeros of a jitted init land on one device.

    Args:
      abstract_params: shapes of the parameters.
      param_shardings: a tree of `NamedSharding` of the same structure.
    """

    def place(leaf: Any, sharding: NamedSharding) -> Any:
        return leaf if isinstance(leaf, optax.MaskedNode) else sharding

    return optax.tree_utils.tree_map_params(
        tx,
        place,
        jax.eval_shape(tx.init, abstract_params),
        param_shardings,
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def _transform(
    cfg: OptimConfig, group: Group, schedule: optax.Schedule, dims: PyTree | None
) -> optax.GradientTransformation:
    period = cfg.periods[min(group.level, len(cfg.periods) - 1)]
    factor = group.rate(cfg) / cfg.learning_rate
    rate = level_schedule(schedule, period, cfg.period_mode, factor / period)
    decay = cfg.weight_decay if group.decays else 0.0
    parts = [_rule(cfg, group.rule, dims)]
    if decay > 0:
        parts.append(optax.add_decayed_weights(decay))
    parts.append(optax.scale_by_learning_rate(rate))
    return every(optax.chain(*parts), period, cfg.period_mode)


def _rule(cfg: OptimConfig, rule: str, dims: PyTree | None) -> optax.GradientTransformation:
    if rule == "adamw":
        return scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps)
    if rule == "muon":
        return scale_by_muon(cfg.muon_momentum, dims=dims)
    if rule == "m3":
        return scale_by_m3(M3(cfg.beta1, cfg.beta2, period=cfg.m3_period, eps=cfg.eps), dims=dims)
    if rule == "dgd":
        return scale_by_delta_gradient(dims=dims)
    if rule == "delta_momentum":
        return scale_by_delta_momentum(cfg.beta1, dims=dims)
    if rule == "deep_momentum":
        return scale_by_deep_momentum(cfg.variant, cfg.beta1, cfg.beta2, eps=cfg.eps, dims=dims)
    raise ValueError(f"optim.name={rule!r}: unknown rule")


def _drop_frozen(labels: PyTree) -> optax.GradientTransformation:
    def drop(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        return jax.tree.map(
            lambda label, g: jnp.zeros_like(g) if label == FROZEN else g, labels, updates
        )

    return optax.stateless(drop)


def _label(group: Group | None) -> str:
    return FROZEN if group is None else group.label


def _is_group(node: Any) -> bool:
    return node is None or isinstance(node, Group)
