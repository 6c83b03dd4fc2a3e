"""Evaluators that run inside training: ``train.eval_tasks=("piqa", "repeat:512,2048")``.

A set of zero-shot questions, `repeat`, or any task of ``python -m eval`` with its flags, as in
``"perplexity --segments run --max-tokens 4096"``. Of several processes each reads the texts and
makes the same calls; the model stays spread over them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax

from eval.core.cli import Task, tasks
from eval.core.datasets import DataRoot
from eval.core.flags import parse_lengths
from eval.core.memorize.options import MemorizeOptions
from eval.core.memorize.write import Memorizer
from eval.core.reader import ModelReader
from eval.core.scoring import Scorer
from eval.core.subject import Subject
from eval.tasks import repeat
from eval.tasks.zeroshot import encode, judge, score, summarize
from eval.tasks.zeroshot_files import SETS, Question
from nested_jax.config import Config
from nested_jax.data.pipeline import prepare
from nested_jax.data.tokenizers.tokenizer import load_tokenizer
from nested_jax.errors import raised_here, require
from nested_jax.train.watch.record import Evaluator
from nested_jax.types import PyTree

MEASURES = ("acc", "acc_norm", "accuracy", "loss", "bits_per_byte")
SAMPLES = 200  # questions of a task, the same at every evaluation
REPEAT, PASSAGE, PASSAGES = "repeat", 128, 8  # the name, tokens of a passage, their number
DISTANCE = "1024"  # tokens between the readings, where none is given


def make_evaluators(cfg: Config) -> list[Evaluator]:
    """Return one evaluator for each of ``train.eval_tasks``; their files are read here.

    Raises:
      ValueError: an unknown task, one whose file is missing, or whose text is too short.
    """
    evaluators: list[Evaluator] = []
    for task in cfg.train.eval_tasks:
        name, colon, distances = task.partition(":")
        word, *words = task.split() or [""]
        known = ", ".join((REPEAT, f"{REPEAT}:512,2048", *SETS))
        want = f"wants some of {known}; or a task and its flags: {', '.join(tasks())}"
        right = name == REPEAT or (name in SETS and not colon) or word in tasks()
        require(right, "train.eval_tasks", cfg.train.eval_tasks, want)
        if name != REPEAT and word not in SETS:
            evaluators.append(TaskEvaluator(tasks()[word], words))
        elif name == REPEAT:
            found = parse_lengths(distances if colon else DISTANCE, f"train.eval_tasks {task}")
            evaluators.append(RepeatEvaluator(sorted(found), asked=bool(colon)))
        else:
            questions = list(SETS[name].questions(DataRoot(), SAMPLES))
            evaluators.append(ZeroShotEvaluator(name, questions))
    return evaluators


@dataclasses.dataclass(frozen=True)
class ZeroShotEvaluator:
    """Scores one task; returns ``TASK/acc``, ``TASK/acc_norm`` (of choices) and ``TASK/chance``."""

    name: str
    questions: list[Question]

    def __call__(self, model: Any, params: PyTree, cfg: Config, step: int) -> dict[str, float]:
        subject = subject_in_training(model, params, cfg, step)
        rows = judge(self.questions, score(subject, encode(subject, self.questions)))
        found = summarize(SETS[self.name].kind, self.questions, rows)
        kept = ("acc", "acc_norm", "chance")
        return {f"{self.name}/{key}": found[key] for key in kept if key in found}


class TaskEvaluator:
    """Runs a task of ``python -m eval``; returns ``TASK/GROUP/MEASURE``, of `MEASURES`.

    With --memorize also ``TASK/GROUP/memorized_MEASURE``. The flags are checked when a run starts.
    """

    def __init__(self, task: Task, words: Sequence[str]) -> None:
        self.task = task
        # The checkpoint is the model in training; a task that loads others has its own flags.
        self.flags = task.parse(["--checkpoint", ".", *words])

    def __call__(self, model: Any, params: PyTree, cfg: Config, step: int) -> dict[str, float]:
        subject = subject_in_training(model, params, cfg, step)
        scores: dict[str, float] = {}
        for name, group in self.task.evaluate(subject, self.flags).metrics.items():
            for kind, numbers in (("", group), ("memorized_", group.get("memorized", {}))):
                for measure in MEASURES:
                    if isinstance(numbers.get(measure), (int, float)):
                        scores[f"{self.task.name}/{name}/{kind}{measure}"] = numbers[measure]
        return scores


class RepeatEvaluator:
    """Reads held-out passages twice, see eval/tasks/repeat.py, without and with writes.

    Returns ``repeat/DISTANCE/gain`` and ``/written`` in bits per token, and their standard errors.
    What it compiles serves all evaluations.
    """

    def __init__(self, distances: list[int], asked: bool = True) -> None:
        self.distances, self.asked = distances, asked
        self.writer: Memorizer | None = None
        self.items: list[repeat.Item] = []
        self.fits = True

    def prepare(self, subject: Subject, cfg: Config) -> None:
        longest = self.distances[-1] + 2 * PASSAGE
        subject.scorer.check(longest)
        segments = repeat.run_segments(cfg, "valid")
        texts = repeat.texts_of(subject, segments, "valid", longest)
        sizes = PASSAGE, self.distances[-1], PASSAGES
        self.items = repeat.make_items(subject, repeat.RUN, texts, *sizes, seed=0)
        self.writer = Memorizer(subject, MemorizeOptions(on=True))

    def __call__(self, model: Any, params: PyTree, cfg: Config, step: int) -> dict[str, float]:
        """Return the scores; none, which is said, where nobody asked for a distance that fits."""
        if not self.fits:
            return {}
        try:
            subject = subject_in_training(model, params, cfg, step)
            if self.writer is None:
                self.prepare(subject, cfg)
        except ValueError as error:
            if self.asked or not raised_here(error):
                raise
            self.fits = False
            if jax.process_index() == 0:
                print(f"repeat: not measured: {error}", flush=True)
            return {}
        assert self.writer is not None
        self.writer.reader.params = subject.model_reader.params
        subject.scorer.reader = self.writer.reader
        found, *_ = repeat.measure(subject, self.items, self.distances, self.writer)
        scores = {}
        for distance, group in found.items():
            for name, run in (("gain", group), ("written", group["memorized"])):
                scores[f"{REPEAT}/{distance}/{name}"] = run["gain"]
                scores[f"{REPEAT}/{distance}/{name}_stderr"] = run["gain_stderr"]
        return scores


def sentences(scores: Mapping[str, float]) -> list[str]:
    """Return in words what evaluators have found that a reader of the log must be told."""
    said = []
    for name in (name for name in scores if name.endswith("/written")):
        stem = name.removesuffix("/written")
        written, gain = (
            f"{scores[f'{stem}/{kind}']:.2f} ± {scores[f'{stem}/{kind}_stderr']:.2f}"
            for kind in ("written", "gain")
        )
        said.append(
            f"repeat: a held-out passage that it read {int(stem.split('/')[1]):,} tokens ago costs "
            f"{written} bits per token less than one that it did not read; with writes off {gain}"
        )
    return said


def subject_in_training(model: Any, params: PyTree, cfg: Config, step: int) -> Subject:
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    tokenizer = run_tokenizer(cfg)
    scorer = Scorer(ModelReader(model, params, mesh, tokenizer.vocab_size))
    return Subject("training", cfg, step, tokenizer, scorer, parameters=0)


def silent(message: str) -> None:
    del message


@cache
def run_tokenizer(cfg: Config) -> Any:
    """Load the tokenizer of the run's data, which are prepared by the time of an evaluation."""
    path = prepare(cfg.data, silent).tokenizer_path
    require(path is not None, "train.eval_tasks", cfg.train.eval_tasks, "want data of text")
    assert path is not None
    return load_tokenizer(path)
