"""One start of a run: where it goes on from, and what it has open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax

from nested_jax.config.schema import to_dict
from nested_jax.data.identity import data_identity, train_order_sha256
from nested_jax.data.pipeline import BatchIterator, make_train_iterator
from nested_jax.errors import require
from nested_jax.files import write_bytes, write_json
from nested_jax.train.checkpoint import Checkpoints, Restored
from nested_jax.train.layout import sharding_of
from nested_jax.train.mirror import Mirror, open_mirror
from nested_jax.train.plan import Plan
from nested_jax.train.state import TrainState, create_state
from nested_jax.train.watch.progress import Display
from nested_jax.train.watch.record import Evaluator, Record
from nested_jax.train.workdir import CONFIG, keep_lines, saved_steps, set_aside_record
from nested_jax.types import PyTree


class Start(NamedTuple):
    """What the loop works with."""

    state: TrainState
    step: int
    batches: BatchIterator
    checkpoints: Checkpoints
    record: Record


@contextmanager
def open_start(
    plan: Plan,
    display: Display,
    evaluators: Sequence[Evaluator] = (),
    params: PyTree | None = None,
    resume_step: int | None = None,
) -> Iterator[Start]:
    """Go on from the newest checkpoint of the workdir, or begin; close everything at the end.

    The caller holds the workdir.

    Args:
      params: what a run without a checkpoint begins with; None are those that its seed makes.
    Raises:
      ValueError: the run is not the one of the checkpoints or of the mirror, or is past its last
        step; there is no checkpoint `resume_step`.
      CheckpointError: there are checkpoints, and none can be read.
    """
    cfg, say = plan.cfg, display.say
    order: Any = {"batch_size": cfg.train.batch_size, "align": cfg.align, "seed": cfg.seed}
    data = data_identity(cfg.data, train_order_sha256(cfg.data, **order))
    mirror = open_mirror(cfg, plan.workdir, say)
    if jax.process_index() == 0:
        set_aside_record(plan.workdir, say)
    with ExitStack() as stack:
        if mirror is not None:
            stack.push(partial(end_mirror, mirror, say))
        record = Record(plan, data, display, evaluators)
        stack.callback(record.close)
        held = mirror.holding if mirror is not None else ()
        checkpoints = Checkpoints(plan.workdir, cfg.train, say, held)
        stack.callback(checkpoints.close)
        ahead = [s for s in saved_steps(checkpoints.folder) if s > (resume_step or s)]
        restored = checkpoints.restore(plan.abstract, cfg, data, resume_step)
        if ahead and jax.process_index() == 0:
            keep_lines(plan.workdir, resume_step or 0, say)
        state = first_state(plan, restored, params)
        step = int(state.step)
        if restored is not None:
            say(f"going on from checkpoint {step} of {plan.workdir}")
        batches = make_train_iterator(
            cfg.data, **order, process_index=plan.rows.part, process_count=plan.rows.parts
        )
        if restored is not None:
            batches.set_state(restored.data)
        if jax.process_index() == 0:
            write_beginning(plan)
        record.open(step, restored.meta if restored is not None else None)
        if mirror is not None:
            mirror.begin(record.run)
        yield Start(state, step, batches, checkpoints, record)


def end_mirror(mirror: Mirror, say: Callable[[str], None], *found: Any) -> None:
    """Close the mirror; where the run ends by an error, that is what it ends by."""
    try:
        mirror.close()
    except OSError as error:
        if found[0] is None:
            raise
        say(str(error))


def first_state(plan: Plan, restored: Restored | None, params: PyTree | None) -> TrainState:
    """Return the state that a start begins with, placed on the devices."""
    if restored is None:
        given = () if params is None else (params,)
        return create_state(plan.init, jax.tree.map(sharding_of, plan.abstract), *given)
    step, train = int(restored.state.step), plan.cfg.train
    if step > train.steps:
        field = "tokens" if train.tokens else "steps"
        of = f" of {train.steps}" if train.tokens else ""
        want = f"the workdir is already at step {step}{of}"
        require(False, f"train.{field}", getattr(train, field), want)
    return restored.state


def write_beginning(plan: Plan) -> None:
    """Write the resolved configuration and the tokenizer."""
    write_json(plan.workdir / CONFIG, to_dict(plan.cfg))
    tokenizer = plan.data.tokenizer_path
    if tokenizer is not None:
        # A checkpoint can then be used where the data, or their cache, are not.
        write_bytes(plan.workdir / tokenizer.name, tokenizer.read_bytes())
