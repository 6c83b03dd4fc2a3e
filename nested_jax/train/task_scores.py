"""Exact scores of synthetic tasks: what the held-out loss is for text.

Every spec of ``data.task.tests`` is scored on its own fixed test rows by its own rule
(data/synthetic_task.py): a predicted symbol is an argmax, and counts only where it is asked for.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from nested_jax.config import Config
from nested_jax.data.identity import valid_tasks_sha256
from nested_jax.data.packing import Row
from nested_jax.data.synthetic.rows import SyntheticSource, task_of
from nested_jax.data.synthetic.rows import symbols as task_symbols
from nested_jax.data.synthetic.task import Example, Task
from nested_jax.losses import prediction_below
from nested_jax.sharding import place_batch, process_rows, replicated
from nested_jax.teach import teach
from nested_jax.train.heldout import own_rows
from nested_jax.train.plan import Plan
from nested_jax.train.state import TrainState
from nested_jax.types import Array, Batch, PyTree


class Answers(NamedTuple):
    """What a model answers to a batch of rows."""

    predictions_BT: Array  # int32, the most likely symbol
    loss_BT: Array  # float32, nats of the right one


class TaskRows(NamedTuple):
    """The fixed test rows of one spec."""

    spec: str
    task: Task
    examples: list[Example]
    batches: list[Row]  # this process's part of each; the last is filled up with empty rows


class TaskScores:
    """The test rows of a run's tasks, and how to score them."""

    def __init__(self, plan: Plan) -> None:
        self.mesh = plan.mesh
        self.tests = [read_test(plan, spec) for spec in plan.cfg.data.task.scored]
        self.sha256 = valid_tasks_sha256((test.task, test.examples) for test in self.tests)
        step = partial(answer_step, model=plan.model, cfg=plan.cfg)
        self.answer_step = jax.jit(step, out_shardings=replicated(plan.mesh))

    def score(self, state: TrainState) -> dict[str, float]:
        """Return ``valid_loss``, of the first spec, and SPEC/FIELD for every spec.

        FIELD is ``loss``, each of `synthetic_task.Scores`, and ``accuracy``, which is the one of
        them that publications report for the task.
        """
        scores: dict[str, float] = {}
        for test in self.tests:
            for name, value in self.score_test(state, test).items():
                scores[f"{test.spec}/{name}"] = value
        return {"valid_loss": scores[f"{self.tests[0].spec}/loss"], **scores}

    def score_test(self, state: TrainState, test: TaskRows) -> dict[str, float]:
        answers = [
            jax.device_get(self.answer_step(state, place_batch(self.mesh, batch)))
            for batch in test.batches
        ]
        count, length = len(test.examples), test.task.length
        predictions_NT, loss_NT = (
            np.concatenate(parts)[:count, :length] for parts in zip(*answers, strict=True)
        )
        asked_NT = np.stack([example.weights_T for example in test.examples]) > 0
        scores = test.task.score(predictions_NT, test.examples)._asdict()
        accuracy = scores[test.task.metric]
        return {"accuracy": accuracy, "loss": float(loss_NT[asked_NT].mean()), **scores}


def read_test(plan: Plan, spec: str) -> TaskRows:
    """Draw the ``data.valid_rows`` test rows of a spec; rows are as long as the task needs."""
    data, chunk = plan.cfg.data, plan.cfg.chunk
    task = task_of(spec)
    source = SyntheticSource(
        task, data.task.seed, -(-task.length // chunk) * chunk, data.valid_rows, "test"
    )
    own = process_rows(plan.mesh, plan.eval_rows)
    batches = []
    for first in range(0, len(source), plan.eval_rows):
        batch = source.empty(plan.eval_rows)
        for place in range(min(plan.eval_rows, len(source) - first)):
            source.fill(batch, place, first + place)
        batches.append(own_rows(batch, own))
    examples = [task.example(data.task.seed, i, "test") for i in range(data.valid_rows)]
    return TaskRows(spec, task, examples, batches)


def answer_step(state: TrainState, batch: Batch, model: Any, cfg: Config) -> Answers:
    return answer(model, state.params, batch, cfg, task_symbols(cfg.data.task))


def answer(model: Any, params: PyTree, batch: Batch, cfg: Config, symbols: int = 0) -> Answers:
    """Return a model's answers to rows of one document each, [B, T], of the first `symbols` ids.

    With the inner loop on, a chunk is answered by the fast weights that the chunks before it left,
    as in training; T is then a multiple of ``teach.chunk``.
    """
    rows, tokens = batch.tokens_BT.shape
    prediction = prediction_below(symbols)
    _, taught = teach(
        model,
        params,
        model.init_state(params, rows, capacity=tokens),
        batch.tokens_BT,
        batch.targets_BT,
        cfg.teach,
        measures=("loss", prediction),
        weights_BT=batch.weights_BT,
        start="fresh",
    )
    return Answers(taught.measures[prediction], taught.loss_BT)
