"""The formal languages of NL Table 5, as next-symbol-set prediction.

After every symbol of a string the model says which symbols may follow, the end "$" among them; a
string is right only if every position is. **The set is the target token**: each set that a language
can ask for is one symbol of the output vocabulary, so that training is the ordinary cross-entropy
on one target per position and an answer is an argmax. That is how Irie et al. (EMNLP 2023), whose
numbers NL's table extends, train: their target files hold one label per position. Nothing is lost,
because the right set is a function of the prefix. The older form (Bhattamishra et al., 2009.11264)
is a sigmoid for each symbol, trained with MSE and thresholded at 0.5: `sets_TS` holds its targets
and `set_accuracy` its score.

Ids: 0 is padding, then the symbols of the alphabet, then the sets. Inputs and answers share no id.

Where this differs from the data of Bhattamishra et al., which Irie et al. used:
lengths are uniform over the lengths that exist in the bin (theirs: geometric for Parity, n uniform
for the counters); (abab)* has three sets where they mark only whether the string may end, which
differ by what the last input symbol says; their Shuffle-2 strings come from a grammar of nested
brackets, so that the two types never cross: ours cross, and those of "shuffle2_nested" do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nested_jax.data.synthetic.task import Example, Split, Task, answer_rows
from nested_jax.errors import require

END = "$"
BINS = ((2, 50), (51, 100))  # lengths: Bin 0 is trained on, Bin 1 is longer


@dataclass(frozen=True)
class Language:
    """One formal language."""

    alphabet: str
    sets: tuple[str, ...]  # every set of next symbols that a prefix can have
    multiple: int  # lengths of its strings are multiples of it
    sample: Callable[[np.random.Generator, int], str]  # a string of a given length
    allowed: Callable[[str], list[str]]  # the set after each symbol of a string


def parity_sample(rng: np.random.Generator, length: int) -> str:
    bits = rng.integers(0, 2, length)
    bits[-1] = bits[:-1].sum() % 2
    return "".join(map(str, bits))


def parity_allowed(string: str) -> list[str]:
    ones = np.cumsum([symbol == "1" for symbol in string])
    return ["01" if odd else "01$" for odd in ones % 2]


def repeat(word: str) -> Callable[[np.random.Generator, int], str]:
    return lambda _, length: word * (length // len(word))


def repeat_allowed(word: str) -> Callable[[str], list[str]]:
    """Return the sets of (word)*: the next letter, and the end where a word is complete."""

    def allowed(string: str) -> list[str]:
        after = [word[(i + 1) % len(word)] for i in range(len(word))]
        after[-1] += END
        return [after[i % len(word)] for i in range(len(string))]

    return allowed


def blocks(letters: str) -> Callable[[np.random.Generator, int], str]:
    return lambda _, length: "".join(x * (length // len(letters)) for x in letters)


def blocks_allowed(letters: str) -> Callable[[str], list[str]]:
    """Return the sets of {x^n y^n ...: n >= 1}: n is open in the first block only."""

    def allowed(string: str) -> list[str]:
        n = len(string) // len(letters)
        sets = [letters[:2]] * n
        for i in range(n + 1, len(string)):
            sets.append(letters[i // n])
        return [*sets, END]

    return allowed


def shuffle_sample(rng: np.random.Generator, length: int) -> str:
    """Walk two depths at once: open or close with equal odds where both lead to the end in time."""
    depth = np.zeros(2, int)
    string = ""
    for left in range(length, 0, -1):
        may_open, may_close = depth.sum() < left, depth.sum() > 0
        if may_open and (not may_close or rng.random() < 0.5):
            kind = int(rng.integers(2))
            depth[kind] += 1
            string += "(["[kind]
        else:
            kind = int(rng.choice(np.flatnonzero(depth)))
            depth[kind] -= 1
            string += ")]"[kind]
    return string


def nested_sample(rng: np.random.Generator, length: int) -> str:
    """Walk as `shuffle_sample` does, and close what was opened last: the types never cross."""
    opened: list[int] = []
    string = ""
    for left in range(length, 0, -1):
        if len(opened) < left and (not opened or rng.random() < 0.5):
            opened.append(int(rng.integers(2)))
            string += "(["[opened[-1]]
        else:
            string += ")]"[opened.pop()]
    return string


def shuffle_allowed(string: str) -> list[str]:
    sets, depth = [], {"(": 0, "[": 0}
    opened_by = {")": "(", "]": "["}
    for symbol in string:
        depth[opened_by.get(symbol, symbol)] += -1 if symbol in opened_by else 1
        closing = "".join(c for c, o in opened_by.items() if depth[o])
        sets.append("([" + (closing or END))
    return sets


SHUFFLE_SETS = ("([$", "([)", "([]", "([)]")

LANGUAGES: dict[str, Language] = {
    "parity": Language("01", ("01", "01$"), 1, parity_sample, parity_allowed),
    "aa": Language("a", ("a", "a$"), 2, repeat("aa"), repeat_allowed("aa")),
    "abab": Language("ab", ("a", "b", "a$"), 4, repeat("abab"), repeat_allowed("abab")),
    "anbn": Language("ab", ("ab", "b", END), 2, blocks("ab"), blocks_allowed("ab")),
    "anbncn": Language("abc", ("ab", "b", "c", END), 3, blocks("abc"), blocks_allowed("abc")),
    "shuffle2": Language("()[]", SHUFFLE_SETS, 2, shuffle_sample, shuffle_allowed),
    "shuffle2_nested": Language("()[]", SHUFFLE_SETS, 2, nested_sample, shuffle_allowed),
}


@dataclass(frozen=True)
class Formal(Task):
    """Next-symbol-set prediction over strings of one language, one string per row.

    Splits differ in their random draws alone; a bin is a setting. Train on ``Formal(name)``, test
    on it and on ``Formal(name, *BINS[1])``, which has the same vocabulary and longer rows.
    """

    metric = "sequence"
    language: str = "parity"
    min_length: int = BINS[0][0]
    max_length: int = BINS[0][1]

    def __post_init__(self) -> None:
        known = ", ".join(LANGUAGES)
        require(self.language in LANGUAGES, "language", self.language, f"wants one of {known}")
        window = (self.min_length, self.max_length)
        require(len(self.lengths) > 0, "lengths", window, "no string of the language has such one")

    @property
    def definition(self) -> Language:
        return LANGUAGES[self.language]

    @property
    def lengths(self) -> range:
        """Lengths of strings of this bin."""
        step = self.definition.multiple
        first = -(-max(self.min_length, 1) // step) * step
        return range(first, self.max_length + 1, step)

    @property
    def vocab_size(self) -> int:
        return self.first_set + len(self.definition.sets)

    @property
    def first_set(self) -> int:
        """Id of the first set; the ids of symbols are below it."""
        return 1 + len(self.definition.alphabet)

    @property
    def length(self) -> int:
        return self.max_length

    @property
    def chance(self) -> float:
        """Expected over lengths, of guessing every position among the sets."""
        odds = 1.0 / len(self.definition.sets)
        return float(np.mean([odds**length for length in self.lengths]))

    def draw(self, rng: np.random.Generator, split: Split) -> Example:
        del split
        return self.encode(self.definition.sample(rng, int(rng.choice(self.lengths))))

    def encode(self, string: str) -> Example:
        """Return the row of one string of the language."""
        alphabet, sets = self.definition.alphabet, self.definition.sets
        tokens = np.zeros(self.length, np.int32)
        tokens[: len(string)] = [1 + alphabet.index(symbol) for symbol in string]
        allowed = self.definition.allowed(string)
        answers = {i: self.first_set + sets.index(chosen) for i, chosen in enumerate(allowed)}
        sets_TS = np.zeros((self.length, len(alphabet) + 1), bool)
        for i, chosen in enumerate(allowed):
            sets_TS[i] = [symbol in chosen for symbol in alphabet + END]
        return answer_rows(tokens, answers, sets_TS)


def set_accuracy(scores_NTS: np.ndarray, examples: list[Example], threshold: float = 0.5) -> float:
    """Return the fraction of rows in which ``score > threshold`` is the right set everywhere.

    Args:
      scores_NTS: a probability for every symbol of the alphabet and the end, in that order.
    """
    sets_NTS = np.stack([e.sets_TS for e in examples if e.sets_TS is not None])
    asked_NT = np.stack([e.weights_T for e in examples]) > 0
    wrong_NT = ((scores_NTS > threshold) != sets_NTS).any(axis=-1) & asked_NT
    return float(np.mean(~wrong_NT.any(axis=1)))
