"""The six tasks of MAD (Poli et al., 2403.17844), with the settings of athms/mad-lab as defaults.

Scored as MAD does by `Scores.macro`. Training rows of the three recall tasks ask for every next
token, test rows for the recalled values alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nested_jax.data.synthetic.task import (
    Example,
    SizedTask,
    Split,
    answer_rows,
    next_token_rows,
)
from nested_jax.errors import require


@dataclass(frozen=True)
class MADTask(SizedTask):
    """What the six share."""

    metric = "macro"
    tokens: int = 128

    def __post_init__(self) -> None:
        require(self.vocab >= 4, "vocab", self.vocab, "wants 4 or more")
        require(self.tokens >= 4, "tokens", self.tokens, "wants 4 or more")


@dataclass(frozen=True)
class InContextRecall(MADTask):
    """Pairs drawn with repetition from a mapping that is fixed within a row.

    Keys are the lower half of the ids, values the upper. A test row asks for the value of every key
    that was seen before; its last pair is one of them. With `noise_vocab` ids at the top, a
    two-token slot is noise with odds `noise` (noisy in-context recall).
    """

    noise_vocab: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tokens % 2 == 0, "tokens", self.tokens, "wants an even number")
        require(0 <= self.noise < 1, "noise", self.noise, "wants odds in [0, 1)")
        require(
            (self.noise > 0) <= (self.noise_vocab > 0),
            "noise_vocab",
            self.noise_vocab,
            "wants 1 or more where there is noise",
        )
        require(
            self.vocab - self.noise_vocab >= 4,
            "noise_vocab",
            self.noise_vocab,
            "leaves fewer than 4 ids for keys and values",
        )

    @property
    def length(self) -> int:
        return self.tokens - 1  # the last value is a target only

    @property
    def chance(self) -> float:
        signal = self.vocab - self.noise_vocab
        return 1.0 / (signal - signal // 2)

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        signal = self.vocab - self.noise_vocab
        slots = self.tokens // 2 - 1
        sure = int(rng.integers(slots))  # at least one slot is a pair
        known: dict[int, int] = {}
        row: list[int] = []
        answers: dict[int, int] = {}
        for slot in range(slots):
            if slot != sure and rng.random() < self.noise:
                row += rng.integers(signal, self.vocab, 2).tolist()
                continue
            key = int(rng.integers(signal // 2))
            if key in known:
                answers[len(row)] = known[key]
            known.setdefault(key, int(rng.integers(signal // 2, signal)))
            row += [key, known[key]]
        last = int(rng.choice(list(known)))
        answers[len(row)] = known[last]
        row += [last, known[last]]
        return next_token_rows(row) if split == "train" else answer_rows(row[:-1], answers)


@dataclass(frozen=True)
class FuzzyRecall(MADTask):
    """In-context recall whose keys and values are motifs of up to 3 different adjacent tokens.

    Training keys have 1 to `motif` tokens, test keys always `motif`; values 1 to `motif`. All
    tokens of a value are asked whose key was seen before. Rows are padded on the left with id
    V - 1, which is never asked for.
    """

    motif: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= self.motif <= (self.vocab - 1) // 2,
            "motif",
            self.motif,
            f"wants 1 to {(self.vocab - 1) // 2} different tokens of {self.vocab=}",
        )
        require(
            self.tokens >= 6 * self.motif, "tokens", self.tokens, f"wants {6 * self.motif} or more"
        )

    @property
    def chance(self) -> float:
        return 1.0 / (self.vocab - 1 - (self.vocab - 1) // 2)

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        shortest = 1 if split == "train" else self.motif
        probe = self._key(rng, shortest)
        known: dict[tuple[int, ...], tuple[int, ...]] = {probe: self._value(rng)}
        end = len(probe) + len(known[probe])
        room = self.tokens + 1 - end - 2 * self.motif
        place = int(rng.integers(room - 2 * self.motif + 1))  # the probe's first showing, in room
        row: list[int] = []
        answers: dict[int, int] = {}
        seen: set[tuple[int, ...]] = set()

        def show(key: tuple[int, ...]) -> None:
            value = known.setdefault(key, self._value(rng))
            if key in seen:
                answers.update({len(row) + len(key) - 1 + i: v for i, v in enumerate(value)})
            seen.add(key)
            row.extend(key + value)

        while len(row) < room:
            show(probe if len(row) >= place and probe not in seen else self._key(rng, shortest))
        show(probe)
        left = self.tokens + 1 - len(row)
        padded = np.array([self.vocab - 1] * left + row)
        if split == "train":
            return next_token_rows(padded, (padded[1:] < self.vocab - 1).astype(np.float32))
        return answer_rows(padded[:-1], {left + p: v for p, v in answers.items()})

    def _key(self, rng: np.random.Generator, shortest: int) -> tuple[int, ...]:
        size = int(rng.integers(shortest, self.motif + 1))
        return tuple(rng.choice((self.vocab - 1) // 2, size, replace=False).tolist())

    def _value(self, rng: np.random.Generator) -> tuple[int, ...]:
        size = int(rng.integers(1, self.motif + 1))
        ids = np.arange((self.vocab - 1) // 2, self.vocab - 1)
        return tuple(rng.choice(ids, size, replace=False).tolist())


@dataclass(frozen=True)
class SelectiveCopy(MADTask):
    """Copy the tokens among which blanks stand, in order.

    Blanks (V - 2) before or between `count` tokens, the copy token (V - 1), then `count` blanks,
    each of which asks for one token.
    """

    tokens: int = 256
    count: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.count >= 1 and 2 * self.count + 1 < self.tokens,
            "count",
            self.count,
            f"wants 1 or more, and 2 count + 1 < {self.tokens=}",
        )

    @property
    def chance(self) -> float:
        return 1.0 / (self.vocab - 2)

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        del split
        taken = rng.integers(0, self.vocab - 2, self.count)
        blanks = self.tokens - 2 * self.count - 1
        before = rng.integers(0, self.count, blanks)  # the token in front of which a blank goes
        row = np.insert(taken, before, self.vocab - 2)
        row = np.concatenate([row, [self.vocab - 1], np.full(self.count, self.vocab - 2)])
        first = self.tokens - self.count
        return answer_rows(row, {first + i: int(x) for i, x in enumerate(taken)})


@dataclass(frozen=True)
class Compression(MADTask):
    """Random tokens and a compression token (V - 1), from which the whole input is recovered.

    The targets are the inputs, decoded from the last position alone (``model.answers="last"``): a
    model that answered at each place would learn the identity.
    """

    read = "last"
    tokens: int = 32

    @property
    def chance(self) -> float:
        return 1.0 / (self.vocab - 1)

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        del split
        row = np.append(rng.integers(0, self.vocab - 1, self.tokens - 1), self.vocab - 1)
        return answer_rows(row, dict(enumerate(row.tolist())))


@dataclass(frozen=True)
class Memorization(MADTask):
    """Values of keys by a mapping that is fixed over the whole corpus and never shown in a row.

    key, insert token (V - 1), key, insert token ...; an insert token asks for the value of the key
    before it. Only the weights can hold the mapping: MAD trains on 256 rows.
    """

    vocab: int = 256
    tokens: int = 32
    mapping_seed: int = 12345

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tokens % 2 == 0, "tokens", self.tokens, "wants an even number")

    @property
    def chance(self) -> float:
        return 1.0 / (self.vocab - 1 - (self.vocab - 1) // 2)

    @property
    def mapping(self) -> np.ndarray:
        """Return the value of key k at place k."""
        keys = (self.vocab - 1) // 2
        values = np.arange(keys, self.vocab - 1)
        return np.random.default_rng(self.mapping_seed).permutation(values)[:keys]

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        del split
        keys = rng.integers(0, (self.vocab - 1) // 2, self.tokens // 2)
        row = np.stack([keys, np.full_like(keys, self.vocab - 1)], axis=1).ravel()
        values = self.mapping[keys]
        return answer_rows(row, {2 * i + 1: int(v) for i, v in enumerate(values)})
