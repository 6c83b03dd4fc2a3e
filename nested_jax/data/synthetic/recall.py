"""Recall tasks: MQAR, induction, copying, and needles in a haystack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nested_jax.data.synthetic.task import Example, SizedTask, Split, Task, answer_rows
from nested_jax.errors import require


@dataclass(frozen=True)
class MQAR(SizedTask):
    """Multi-query associative recall (Arora et al., Zoology, 2312.04927).

    `pairs` keys with their values, then the same keys once each at two-token slots that bunch near
    the context, with odds proportional to a * i^(a - 1) for slot i. A key asks for its value, which
    is not shown. Keys are ids 1 to V/2 - 1, values V/2 to V - 1, without repetition in a row.
    """

    metric = "example"
    vocab: int = 8192
    pairs: int = 4
    fill: Literal["random", "zero"] = "random"  # tokens between the queries
    power: float = 0.01  # a; smaller bunches more

    def __post_init__(self) -> None:
        require(self.fill in ("random", "zero"), "fill", self.fill, "wants 'random' or 'zero'")
        require(self.tokens % 2 == 0, "tokens", self.tokens, "wants an even number")
        require(self.vocab > self.tokens, "vocab", self.vocab, f"wants more than {self.tokens=}")
        require(
            self.pairs >= 1 and 4 * self.pairs <= self.tokens,
            "pairs",
            self.pairs,
            f"wants at least 1, and 4 tokens each of the {self.tokens}",
        )

    @property
    def chance(self) -> float:
        return 1.0 / (self.vocab - self.vocab // 2)

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        del split
        half, context = self.vocab // 2, 2 * self.pairs
        keys = 1 + rng.choice(half - 1, self.pairs, replace=False)
        values = half + rng.choice(self.vocab - half, self.pairs, replace=False)
        odds = np.arange(1.0, (self.tokens - context) // 2 + 1) ** (self.power - 1.0)
        slots = rng.choice(len(odds), self.pairs, replace=False, p=odds / odds.sum())
        row = np.zeros(self.tokens, np.int64)
        if self.fill == "random":
            row = rng.integers(0, self.vocab, self.tokens)
        row[0:context:2], row[1:context:2] = keys, values
        places = context + 2 * slots
        row[places] = keys
        return answer_rows(row, dict(zip(places.tolist(), values.tolist(), strict=True)))


@dataclass(frozen=True)
class Induction(SizedTask):
    """Induction heads (Olsson et al. 2022; the form of Mamba, 2312.00752).

    Random tokens with one special token (id V - 1) somewhere inside and again at the end, which
    asks for the token that followed the first one.
    """

    metric = "token"

    def __post_init__(self) -> None:
        require(self.vocab >= 3, "vocab", self.vocab, "wants 3 or more")
        require(self.tokens >= 3, "tokens", self.tokens, "wants 3 or more")

    @property
    def chance(self) -> float:
        return 1.0 / (self.vocab - 1)

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        del split
        row = rng.integers(0, self.vocab - 1, self.tokens)
        place = int(rng.integers(0, self.tokens - 2))
        row[[place, -1]] = self.vocab - 1
        return answer_rows(row, {self.tokens - 1: int(row[place + 1])})


@dataclass(frozen=True)
class Copy(Task):
    """Repeat `count` random tokens after `gap` blanks, each asked one step before it is shown.

    x_1 ... x_n, blanks, the copy token, x_1 ... x_{n-1}: the copy token asks for x_1 and a shown
    x_i for x_{i+1}, as in language modelling. Blank is id V - 2, copy V - 1.
    """

    metric = "token"
    vocab: int = 16
    count: int = 16
    gap: int = 0  # blanks between the tokens and their copy

    def __post_init__(self) -> None:
        require(self.vocab >= 4, "vocab", self.vocab, "wants 4 or more")
        require(self.count >= 1, "count", self.count, "wants 1 or more")
        require(self.gap >= 0, "gap", self.gap, "wants 0 or more")

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def length(self) -> int:
        return 2 * self.count + self.gap

    @property
    def chance(self) -> float:
        return 1.0 / (self.vocab - 2)

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        del split
        taken = rng.integers(0, self.vocab - 2, self.count)
        blanks = np.full(self.gap, self.vocab - 2)
        row = np.concatenate([taken, blanks, [self.vocab - 1], taken[:-1]])
        first = self.count + self.gap
        return answer_rows(row, {first + i: int(x) for i, x in enumerate(taken)})


@dataclass(frozen=True)
class Needle(SizedTask):
    """A single needle in a haystack, in tokens instead of words (RULER's S-NIAH).

    Needles ``MARK key value...`` stand at random places of a haystack; the row ends with
    ``ASK key value...`` of one of them, whose value is asked token by token, the first by the key.
    Near RULER's settings: S-NIAH-1 is haystack "repeated", one key, a value of a few tokens;
    S-NIAH-2 haystack "random"; S-NIAH-3 a `value_tokens` of 16 or more; multi-key is `keys` > 1,
    and `keys` that leave no hay are its hardest form. Ids: MARK V - 2, ASK V - 1; keys are the
    lower quarter of the rest, values the next quarter, hay the upper half: no hay looks like them.
    """

    metric = "sequence"
    vocab: int = 256
    tokens: int = 512
    keys: int = 1  # needles; each has its own key and value
    value_tokens: int = 4
    haystack: Literal["repeated", "random"] = "random"
    period: int = 16  # tokens of the sentence that a repeated haystack repeats

    def __post_init__(self) -> None:
        hays = ("repeated", "random")
        require(self.haystack in hays, "haystack", self.haystack, f"wants one of {hays}")
        require(self.period >= 1, "period", self.period, "wants 1 or more")
        require(self.value_tokens >= 1, "value_tokens", self.value_tokens, "wants 1 or more")
        quarter = (self.vocab - 2) // 4
        require(1 <= self.keys <= quarter, "keys", self.keys, f"wants 1 to {quarter}")
        least = (self.keys + 1) * self.needle - 1
        require(self.tokens >= least, "tokens", self.tokens, f"wants {least} or more")

    @property
    def needle(self) -> int:
        """Tokens of a needle."""
        return 2 + self.value_tokens

    @property
    def chance(self) -> float:
        return (1.0 / ((self.vocab - 2) // 4)) ** self.value_tokens

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        del split
        quarter = (self.vocab - 2) // 4
        keys = rng.choice(quarter, self.keys, replace=False)
        values = quarter + rng.integers(0, quarter, (self.keys, self.value_tokens))
        context = self.tokens - (self.needle - 1)
        hay = context - self.keys * self.needle
        pieces = list(self.hay(rng, hay)[:, None])
        places = np.sort(rng.integers(0, hay + 1, self.keys))[::-1]
        for place, key, value in zip(places, keys, values, strict=True):
            pieces.insert(place, np.concatenate([[self.vocab - 2, key], value]))
        asked = int(rng.integers(self.keys))
        question = [[self.vocab - 1, keys[asked]], values[asked][:-1]]
        row = np.concatenate([*pieces, *question])
        first = self.tokens - self.value_tokens
        return answer_rows(row, {first + i: int(x) for i, x in enumerate(values[asked])})

    def hay(self, rng: np.random.Generator, count: int) -> np.ndarray:
        low = 2 * ((self.vocab - 2) // 4)
        if self.haystack == "random":
            return rng.integers(low, self.vocab - 2, count)
        sentence = rng.integers(low, self.vocab - 2, self.period)
        return np.resize(sentence, count)
