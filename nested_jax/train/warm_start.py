"""A run that begins with the parameters of another one: ``train.init_from``.

Only parameters are taken: step, optimizer state, data and random numbers begin anew, as a stage of
continual learning or a fine-tuning wants it.
"""

from __future__ import annotations

import jax

from nested_jax.errors import require
from nested_jax.storage import as_path
from nested_jax.train.checkpoint import Saved, find_checkpoint, read_params
from nested_jax.train.opened import tokenizer_of
from nested_jax.train.plan import Plan
from nested_jax.train.workdir import CHECKPOINTS, saved_steps
from nested_jax.types import PyTree

NAME = "train.init_from"


def first_params(plan: Plan) -> PyTree | None:
    """Return the parameters that a run begins with, placed; None where its seed makes them.

    A run that has checkpoints of its own goes on from those.

    Raises:
      ValueError: no checkpoint there, another block kind, another tokenizer, or parameters of
        other names or shapes.
    """
    source = plan.cfg.train.init_from
    if not source or saved_steps(plan.workdir / CHECKPOINTS):
        return None
    require(as_path(source, NAME).is_dir(), NAME, source, "wants the folder of a run or of a step")
    saved = find_checkpoint(source)
    block = saved.cfg.model.block
    want = f"wants a checkpoint of model.block={plan.cfg.model.block!r}, got {block!r}"
    require(block == plan.cfg.model.block, NAME, source, want)
    check_tokenizer(plan, saved)
    params = read_params(saved)
    check_shapes(plan, params)
    return jax.device_put(params, jax.tree.map(lambda x: x.sharding, plan.abstract.params))


def check_tokenizer(plan: Plan, saved: Saved) -> None:
    """Raise if the checkpoint's symbols are not those of the data; ids of tasks have none."""
    tokenizer = tokenizer_of(saved)
    if tokenizer is None or plan.data.tokenizer_path is None:
        return
    found, wanted = tokenizer.hash, plan.data.tokenizer_sha256
    want = f"has tokenizer {found[:12]}, the data {wanted[:12]}"
    require(found == wanted, NAME, str(saved.workdir), want)


def check_shapes(plan: Plan, params: PyTree) -> None:
    """Raise unless the parameters are those of the model, by name and shape."""
    found, wanted = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (params, plan.abstract.params)
    )
    wrong = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if wrong:
        name = wrong[0]
        want = f"has {name} of {found.get(name)}, the model wants {wanted.get(name)}"
        require(False, NAME, plan.cfg.train.init_from, want)
