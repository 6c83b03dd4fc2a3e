"""Needles in a haystack after RULER (arXiv 2404.06654): prompts of an exact number of tokens.

A prompt is made of parts that are tokenized on their own and begin with a space, where no token
crosses; sentences of the haystack are added until the prompt has its length, the first one cut to
fit. Needles stand between sentences, at depths spread evenly over the samples.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eval.core.datasets import DataRoot
from eval.core.items import ASKED, item_hash
from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require

NOISE = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
INTRO = "A special magic {type} is hidden within the following text. Memorize it."
WORDS = "long_context/english_words.txt.gz"
BOOKS = "lm/literary_novels/test.jsonl.gz"
DISTRACTORS = 9  # wrong values beside the right one, for the rank


@dataclass(frozen=True)
class NeedleKind:
    """One task of the suite."""

    haystack: str  # noise | essay
    value: str  # number | uuid | passkey
    keys: int = 1  # needles of different keys
    values: int = 1  # needles of the key that is asked for
    queries: int = 1  # keys that are asked for, each after the same text


KINDS: dict[str, NeedleKind] = {
    "s1": NeedleKind("noise", "number"),
    "s2": NeedleKind("essay", "number"),
    "s3": NeedleKind("essay", "uuid"),
    "mk": NeedleKind("essay", "number", keys=4),
    "mq": NeedleKind("essay", "number", keys=4, queries=4),
    "mv": NeedleKind("essay", "number", values=4),
    "passkey": NeedleKind("noise", "passkey"),
}


class Query(NamedTuple):
    """A question after the text of an item."""

    tokens: tuple[int, ...]
    answers: list[str]
    wrong: list[str]  # values of the same form that stand nowhere in the text


class NeedleItem(NamedTuple):
    id: str
    context: tuple[int, ...]  # the text, without the question
    queries: list[Query]
    depth: float  # wanted, 0 at the beginning
    places: list[float]  # where the needles stand, in tokens of the whole prompt
    length: int  # tokens of context and question


class Haystack:
    """Sentences, tokenized, in a fixed order.

    Args:
      source: noise (five sentences again and again), essay (novels of the data root) or stdlib
        (the embedded text, for a machine without data files).
    """

    def __init__(self, tokenizer: Tokenizer, source: str, root: DataRoot, tokens: int) -> None:
        self.sentences: list[tuple[int, ...]] = []
        held = 0
        for sentence in HAYSTACKS[source](root):
            encoded = tokenizer.encode(f" {sentence.strip()}")
            self.sentences.append(tuple(encoded))
            held += len(encoded)
            if held >= 2 * tokens:
                break
        require(held > 0, "--haystack", source, "has no sentence: its texts are empty")

    def cut(self, first: int, tokens: int) -> list[tuple[int, ...]]:
        """Return sentences from the `first` one on of so many tokens, the first one cut to fit."""
        found: list[tuple[int, ...]] = []
        left, at = tokens, first
        while left > 0:
            sentence = self.sentences[at % len(self.sentences)]
            found.append(sentence)
            left -= len(sentence)
            at += 1
        if found and left < 0:
            found[0], spare = found[0][min(-left, len(found[0])) :], -left - len(found[0])
            while spare > 0:  # the first sentence was shorter than what is too much
                found.pop(0)
                found[0], spare = found[0][min(spare, len(found[0])) :], spare - len(found[0])
        return [s for s in found if s]


def noise(root: DataRoot) -> Iterator[str]:
    del root
    while True:
        yield from (f"{s}." for s in NOISE.strip(" .").split(". "))


def essays(root: DataRoot) -> Iterator[str]:
    for _, row in root.rows(BOOKS, text=str):
        yield from sentences(row["text"])


def embedded(root: DataRoot) -> Iterator[str]:
    """Yield the sentences of the topics of ``pydoc``, which every Python has."""
    del root
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from sentences(topics[name])


HAYSTACKS = {"noise": noise, "essay": essays, "stdlib": embedded}


def sentences(text: str) -> Iterator[str]:
    flat = " ".join(text.split())
    yield from (f"{part.strip()}." for part in flat.split(". ") if part.strip())


def draw_value(kind: str, rng: np.random.Generator) -> str:
    makers: dict[str, Callable[[], str]] = {
        "number": lambda: str(rng.integers(1_000_000, 10_000_000)),
        "passkey": lambda: str(rng.integers(10_000, 100_000)),
        "uuid": lambda: str(uuid.UUID(bytes=rng.bytes(16), version=4)),
    }
    return makers[kind]()


def draw_values(kind: str, count: int, rng: np.random.Generator) -> list[str]:
    """Return different values."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw_value(kind, rng)] = None
    return list(found)


def statement(kind: NeedleKind, key: str) -> str:
    """Return the words that stand before a value, in the needle and at the end of the prompt."""
    if kind.value == "passkey":
        return " The pass key is"
    return f" The special magic {kind.value} for {key} is:"


def question(kind: NeedleKind, key: str) -> str:
    if kind.value == "passkey":
        return " What is the pass key?" + statement(kind, key)
    if kind.values > 1:
        return f" List all special magic {kind.value}s for {key}." + statement(kind, key)
    return f" What is the special magic {kind.value} for {key}?" + statement(kind, key)


def make_item(
    name: str,
    tokenizer: Tokenizer,
    hay: Haystack,
    words: Sequence[str],
    length: int,
    number: int,
    samples: int,
    seed: int,
) -> NeedleItem:
    """Return sample `number` of `samples`: the same for every checkpoint of one tokenizer.

    Raises:
      ValueError: a length that does not hold the needles and the question.
    """
    kind = KINDS[name]
    rng = np.random.default_rng([seed, list(KINDS).index(name), length, number])
    keys = [str(k) for k in rng.choice(words, kind.keys, replace=False)]
    values = draw_values(kind.value, kind.keys + kind.values - 1 + DISTRACTORS, rng)
    asked = [int(i) for i in rng.permutation(kind.keys)[: kind.queries]]
    owners = list(range(kind.keys)) + [asked[0]] * (kind.values - 1)
    needles = [
        tuple(tokenizer.encode(f"{statement(kind, keys[o])} {v}."))
        for o, v in zip(owners, values, strict=False)
    ]
    used, wrong = values[: len(owners)], values[len(owners) :]
    queries = [
        Query(
            tuple(tokenizer.encode(question(kind, keys[k]))),
            [v for v, o in zip(used, owners, strict=True) if o == k],
            wrong,
        )
        for k in asked
    ]
    intro = tuple(tokenizer.encode(INTRO.format(type=kind.value)))
    longest = max(len(q.tokens) for q in queries)
    room = length - len(intro) - sum(map(len, needles)) - longest
    require(room >= 0, "--context-lengths", length, f"{name} wants {length - room} tokens at least")
    body = hay.cut(int(rng.integers(len(hay.sentences))), room)
    main_depth = (number + float(rng.random())) / samples
    order = [int(i) for i in rng.permutation(len(needles))]
    depths = {order[0]: main_depth} | {i: float(rng.random()) for i in order[1:]}
    asked_needle = owners.index(asked[0])
    depths[asked_needle], depths[order[0]] = depths[order[0]], depths[asked_needle]
    context, places = insert(intro, body, needles, depths, length)
    depth = depths[asked_needle]
    return NeedleItem(f"{name}/{length}/{number}", context, queries, depth, places, length)


def insert(
    intro: tuple[int, ...],
    body: Sequence[tuple[int, ...]],
    needles: Sequence[tuple[int, ...]],
    depths: dict[int, float],
    length: int,
) -> tuple[tuple[int, ...], list[float]]:
    """Put needle i after the share ``depths[i]`` of the sentences; return text and places."""
    at = {i: round(depth * len(body)) for i, depth in depths.items()}
    tokens = list(intro)
    places = [0.0] * len(needles)
    for number in range(len(body) + 1):
        for i in sorted(i for i, place in at.items() if place == number):
            places[i] = len(tokens) / length
            tokens += needles[i]
        if number < len(body):
            tokens += body[number]
    return tuple(tokens), places


def needle_words(root: DataRoot) -> list[str]:
    """Return words that are keys: the word list of the data root, or a small one without it."""
    if root.has(WORDS):
        words = dict.fromkeys(w.strip() for w in root.lines(WORDS))
        fit = [w for w in words if 5 <= len(w) <= 9 and w.isalpha() and w.islower()]
        most = max(kind.keys for kind in KINDS.values())
        wanted = f"has {len(fit)} words of 5 to 9 small letters; wants {most}"
        require(len(fit) >= most, "data file", str(root.find(WORDS)), wanted)
        return fit
    return list(FALLBACK)


FALLBACK = tuple(
    a + b
    for a in ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor")
    for b in ("stone", "light", "field", "crest", "water", "bridge", "tower", "wind")
)


def describe(item: NeedleItem) -> dict[str, Any]:
    queries = [(query.tokens, query.answers, query.wrong) for query in item.queries]
    return {
        "id": item.id,
        "tokens": item.length,
        "depth": item.depth,
        "places": item.places,
        ASKED: item_hash(item.context, queries),
    }
