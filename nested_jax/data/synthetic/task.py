"""What a synthetic task is, and how its answers are scored. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


class Example(NamedTuple):
    """One row: ``targets_T[t]`` is the right answer of a model that has read ``tokens_T[: t + 1]``.

    The target need not be the next token: in MQAR the value that answers a key is never shown.
    """

    tokens_T: np.ndarray  # int32
    targets_T: np.ndarray  # int32; 0 where nothing is asked
    weights_T: np.ndarray  # float32, 1 where the answer counts and 0 elsewhere
    sets_TS: np.ndarray | None = None  # bool, valid next symbols (formal languages only)


@dataclass(frozen=True)
class Task:
    """A distribution of rows. Subclasses are frozen dataclasses whose fields are its settings.

    `read` says from where the answers are read: "each" position answers for itself, as in a
    language model; "last" means that all answers are decoded from the last position alone, by a
    model with ``model.answers="last"``.
    """

    metric: ClassVar[str]  # the field of `Scores` that publications report
    read: ClassVar[Literal["each", "last"]] = "each"

    @property
    def vocab_size(self) -> int:
        """Symbols of tokens and targets together."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        """Tokens of a row."""
        raise NotImplementedError

    @property
    def chance(self) -> float:
        """Expected `metric` of a uniform guess among the answers that the task has at all."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        """Return one row from `rng`."""
        raise NotImplementedError

    def example(self, seed: int, index: int, split: Split = "train") -> Example:
        """Return row `index`: a pure function of (task, seed, split, index)."""
        entropy = [seed, SPLITS.index(split), index]
        return self.draw(np.random.default_rng(entropy), split)

    def score(self, predictions_NT: np.ndarray, examples: list[Example]) -> Scores:
        """Score predicted ids, row by row; see `score_predictions`."""
        targets = np.stack([e.targets_T for e in examples])
        weights = np.stack([e.weights_T for e in examples])
        return score_predictions(predictions_NT, targets, weights)


@dataclass(frozen=True)
class SizedTask(Task):
    """A task whose size is set by two fields."""

    vocab: int = 16
    tokens: int = 64  # of a row

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def length(self) -> int:
        return self.tokens


class Scores(NamedTuple):
    """Four ways to count right answers, each in [0, 1]."""

    token: float  # of all answers that count
    example: float  # mean over rows of the fraction right (Zoology reports this)
    sequence: float  # of rows with every answer right (formal languages)
    macro: float  # mean over answers of the fraction right of each (MAD reports this)


def score_predictions(
    predictions_NT: np.ndarray, targets_NT: np.ndarray, weights_NT: np.ndarray
) -> Scores:
    """Score argmax predictions where the weight is not 0.

    Raises:
      ValueError: arrays of different shapes, or a row in which nothing is asked.
    """
    if not predictions_NT.shape == targets_NT.shape == weights_NT.shape:
        shapes = predictions_NT.shape, targets_NT.shape, weights_NT.shape
        raise ValueError(f"{shapes=} of predictions, targets, weights: want one shape [N, T]")
    asked = weights_NT > 0
    if not asked.any(axis=1).all():
        raise ValueError(f"row {int(np.argmin(asked.any(axis=1)))} asks nothing: wants a weight")
    right = (predictions_NT == targets_NT) & asked
    return Scores(
        token=float(right.sum() / asked.sum()),
        example=float(np.mean(right.sum(axis=1) / asked.sum(axis=1))),
        sequence=float(np.mean((right == asked).all(axis=1))),
        macro=macro_accuracy(predictions_NT[asked], targets_NT[asked]),
    )


def macro_accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean recall over the symbols that occur among targets or predictions.

    That is torchmetrics' ``MulticlassAccuracy`` with its default average, which MAD uses: a symbol
    that is predicted and is never right counts as 0, one that does not occur at all is left out.
    """
    symbols = np.union1d(predictions, targets)
    recalls = []
    for symbol in symbols:
        of_symbol = targets == symbol
        hits = np.sum(of_symbol & (predictions == symbol))
        recalls.append(hits / max(int(of_symbol.sum()), 1))
    return float(np.mean(recalls))


def answer_rows(
    tokens: np.ndarray | list[int], answers: dict[int, int], sets_TS: np.ndarray | None = None
) -> Example:
    """Return a row whose position p is asked for ``answers[p]`` and no other position is asked."""
    tokens_T = np.asarray(tokens, np.int32)
    targets_T, weights_T = np.zeros_like(tokens_T), np.zeros(len(tokens_T), np.float32)
    places = np.fromiter(answers, np.int64)
    targets_T[places] = np.fromiter(answers.values(), np.int32)
    weights_T[places] = 1.0
    return Example(tokens_T, targets_T, weights_T, sets_TS)


def next_token_rows(sequence: np.ndarray | list[int], weights: np.ndarray | None = None) -> Example:
    """Return a row of all but the last token that is asked for the next one everywhere."""
    tokens = np.asarray(sequence, np.int32)
    weights_T = np.ones(len(tokens) - 1, np.float32) if weights is None else weights
    return Example(tokens[:-1], tokens[1:], weights_T)
