"""Readers made by hand: what a score must be is known without the code under test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from eval.core.reader import Draw
from nested_jax.data.tokenizers.tokenizer import Tokenizer, train_tokenizer


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat, the dog ran at the cat. " * 40], 300)


History = tuple[int, ...]


class HandMade:
    """A `Reader` whose next-token log-probabilities are a function of all tokens before it."""

    limit: int | None = None
    row_multiple = 1

    def __init__(self, log_p: Callable[[History], np.ndarray], limit: int | None = None) -> None:
        self.log_p, self.limit = log_p, limit
        self.shapes: set[tuple[str, tuple[int, ...]]] = set()
        self.tokens_read = 0

    def fresh(self, rows: int, capacity: int) -> list[History]:
        return [()] * rows

    def take(self, state: list[History], rows: np.ndarray) -> list[History]:
        return [state[i] for i in rows]

    def read(self, state: Any, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> list[History]:
        self.shapes.add(("read", tokens_BT.shape))
        self.tokens_read += int(lengths_B.sum())
        rows = zip(state, tokens_BT, lengths_B, strict=True)
        return [(*h, *(int(t) for t in row[:n])) for h, row, n in rows]

    def score(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        self.shapes.add(("score", tokens_BT.shape))
        nats, likeliest = np.full(tokens_BT.shape, np.nan), np.zeros(tokens_BT.shape, bool)
        for i, length in enumerate(lengths_B):
            for t in range(length):
                log_p = self.log_p((*state[i], *(int(x) for x in tokens_BT[i, : t + 1])))
                nats[i, t] = -log_p[targets_BT[i, t]]
                likeliest[i, t] = int(np.argmax(log_p)) == targets_BT[i, t]
        return self.read(state, tokens_BT, lengths_B), nats, likeliest

    def score_last(
        self, state: Any, tokens_BT: np.ndarray, targets_BT: np.ndarray, lengths_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.score(state, tokens_BT, targets_BT, lengths_B)[1:]

    def decode(
        self, state: Any, last_B: np.ndarray, count: int, draw: Draw
    ) -> tuple[Any, np.ndarray]:
        rows, written = list(state), np.zeros((len(last_B), count), np.int32)
        last = [int(t) for t in last_B]
        for t in range(count):
            rows = [(*h, x) for h, x in zip(rows, last, strict=True)]
            last = [int(np.argmax(self.log_p(h))) for h in rows]
            written[:, t] = last
        return rows, written


def uniform(vocab: int, limit: int | None = None) -> HandMade:
    return HandMade(lambda history: np.full(vocab, -np.log(vocab)), limit)


def bigram(table_SS: np.ndarray, limit: int | None = None) -> HandMade:
    """p(next | last) is a row of the table."""
    return HandMade(lambda history: np.log(table_SS[history[-1]]), limit)


def order_two(vocab: int) -> HandMade:
    """A model that needs its whole history: a lost, doubled or foreign token changes the score."""

    def log_p(history: Sequence[int]) -> np.ndarray:
        code = hash(tuple(history)) % (1 << 32)  # of integers: the same in every process
        logits = np.random.default_rng(code).normal(size=vocab)
        return logits - np.log(np.exp(logits).sum())

    return HandMade(log_p)
