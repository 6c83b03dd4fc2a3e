"""Evaluators that run inside training: ``train.eval_tasks=("piqa", "hellaswag")``."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax

from eval.core.datasets import DataRoot
from eval.core.reader import ModelReader
from eval.core.scoring import Scorer
from eval.core.subject import Subject
from eval.tasks.zeroshot import encode, judge, score, summarize
from eval.tasks.zeroshot_files import SETS, Question
from nested_jax.config import Config
from nested_jax.data.pipeline import prepare
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.errors import require
from nested_jax.train.record import Evaluator
from nested_jax.types import PyTree

SAMPLES = 200  # questions of a task, the same at every evaluation


def make_evaluators(cfg: Config) -> list[Evaluator]:
    """Return one evaluator for each of ``train.eval_tasks``; their files are read here.

    Raises:
      ValueError: an unknown task, or one whose file is missing.
    """
    evaluators = []
    for name in cfg.train.eval_tasks:
        known = f"wants some of {', '.join(SETS)}"
        require(name in SETS, "train.eval_tasks", cfg.train.eval_tasks, known)
        evaluators.append(ZeroShotEvaluator(name, list(SETS[name].questions(DataRoot(), SAMPLES))))
    require(
        not evaluators or jax.process_count() == 1,
        "train.eval_tasks",
        cfg.train.eval_tasks,
        "tasks are evaluated in one process",
    )
    return list(evaluators)


@dataclasses.dataclass(frozen=True)
class ZeroShotEvaluator:
    """Scores one task; returns ``TASK/acc`` and ``TASK/chance``."""

    name: str
    questions: list[Question]

    def __call__(self, model: Any, params: PyTree, cfg: Config, step: int) -> dict[str, float]:
        mesh = jax.tree.leaves(params)[0].sharding.mesh
        tokenizer = run_tokenizer(cfg)
        subject = Subject(
            name="training",
            cfg=cfg,
            step=step,
            tokenizer=tokenizer,
            scorer=Scorer(ModelReader(model, params, mesh, tokenizer.vocab_size)),
            parameters=0,
        )
        rows = judge(self.questions, score(subject, encode(subject, self.questions)))
        found = summarize(SETS[self.name].kind, self.questions, rows)
        return {f"{self.name}/acc": found["acc"], f"{self.name}/chance": found["chance"]}


def silent(message: str) -> None:
    del message


@cache
def run_tokenizer(cfg: Config) -> Any:
    """Load the tokenizer of the run's data, which are prepared by the time of an evaluation."""
    path = prepare(cfg.data, silent).tokenizer_path
    require(path is not None, "train.eval_tasks", cfg.train.eval_tasks, "want data of text")
    assert path is not None
    return load_tokenizer(path)
