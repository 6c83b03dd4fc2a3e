"""What is scored: requests of tokens, how texts become tokens, and the shapes of batches.

Tokens of a prompt and its answer follow each other with nothing between them. Every batch has one
of few shapes: rows and tokens are padded (`bucket`), and a text longer than `PIECE` tokens is read
piece by piece with its state carried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from nested_jax.data.tokenizers.tokenizer import Tokenizer
from nested_jax.errors import require

PIECE = 1024  # tokens read in one call
SMALLEST = 8  # tokens of the smallest bucket


class Request(NamedTuple):
    """The tokens of `continuation` are scored after those of `context` (at least one)."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Score(NamedTuple):
    logprob: float  # sum over the continuation, nats
    greedy: bool  # every token of it is the likeliest one
    tokens: int


class Start(Protocol):
    """States that rows start from in the place of fresh ones."""

    @property
    def held(self) -> int:
        """Tokens that such a state already holds."""

    def __call__(self, rows: np.ndarray, capacity: int) -> Any:
        """Return the states of `rows`, for `capacity` tokens in all."""


# --- text to tokens ------------------------------------------------------------------------------


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Return the tokens of a continuation that is scored after a context.

    The text is tokenized as one and cut after the tokens of the context, as in the common harness:
    spaces that end the context belong to the continuation, and an empty context is the document
    separator. Where a token would cross the cut ("3." and "5" as one token), both parts are
    tokenized on their own: what is scored is always the whole continuation, and nothing else.

    Raises:
      ValueError: a continuation of no character.
    """
    require(continuation != "", "continuation", continuation, "wants at least one character")
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    if not context:
        return Request((tokenizer.eos_id,), tuple(tokenizer.encode(continuation)))
    before, whole = tokenizer.encode_batch([context, context + continuation])
    after = whole[len(before) :]
    if not after or whole[: len(before)] != before:
        after = tokenizer.encode(continuation)
    return Request(tuple(before), tuple(after))


def encode_apart(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Return the tokens of both parts, each tokenized on its own."""
    return Request(tuple(tokenizer.encode(context)), tuple(tokenizer.encode(continuation)))


class Window(NamedTuple):
    """Tokens `context` are read without a score, then `scored`; one window of a long text."""

    context: tuple[int, ...]
    scored: tuple[int, ...]


def windows(tokens: Sequence[int], prefix: int, limit: int | None) -> list[Window]:
    """Cut a text so that every token is scored once, in windows that the model can hold.

    The cuts are those of the common harness: disjoint windows, of which the last one reaches back
    so that it is full. Without a `limit` the text is one window.
    """
    if limit is None or len(tokens) <= limit:
        return [Window((prefix,), tuple(tokens))]
    cut = [Window((prefix,), tuple(tokens[:limit]))]
    done = limit
    while done < len(tokens):
        end = min(done + limit, len(tokens))
        cut.append(Window(tuple(tokens[end - limit - 1 : done]), tuple(tokens[done:end])))
        done = end
    return cut


# --- shapes --------------------------------------------------------------------------------------


def bucket(tokens: int) -> int:
    """Return the width that holds so many tokens: 8, 16, 32, 48, 64, 96, 128, 192, 256, ...

    Steps of a power of two and a half waste a sixth on average, where powers of two waste a third;
    below 32 tokens a padded call costs less than another one to compile.
    """
    if tokens <= 0:
        return 0
    power = max(SMALLEST, 1 << (tokens - 1).bit_length())
    return power * 3 // 4 if power > 32 and tokens <= power * 3 // 4 else power


def room(tokens: int) -> int:
    """Return the slots of a cache that holds so many tokens; an eighth more at most."""
    unit = max(SMALLEST, (1 << (tokens - 1).bit_length()) // 16)
    return -(-tokens // unit) * unit


def padded(tokens: int) -> int:
    """Return the slots that `pieces` of texts of so many tokens fill or pass over."""
    return max(tokens, min(bucket(tokens), PIECE))


def pad(rows: Sequence[Sequence[int]], count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens int32 [count, width], padded with 0, and the lengths of the rows."""
    tokens_BT = np.zeros((count, width), np.int32)
    lengths_B = np.zeros(count, np.int32)
    for i, row in enumerate(rows):
        tokens_BT[i, : len(row)] = row
        lengths_B[i] = len(row)
    return tokens_BT, lengths_B


class Group(NamedTuple):
    """Requests with one context and one start."""

    row: int  # of the start
    context: tuple[int, ...]
    members: list[int]


class Written(NamedTuple):
    """What a model wrote: the text before a stop, its tokens, and whether a stop came."""

    text: str
    tokens: tuple[int, ...]  # those whose text begins before the stop
    ended: bool


def stopped(tokens: np.ndarray, tokenizer: Tokenizer, until: Sequence[str]) -> Written:
    """Return what was written before the first stop: one of the strings, or the end of document."""
    ends = np.flatnonzero(tokens == tokenizer.eos_id)
    kept = tokens[: ends[0]] if len(ends) else tokens
    text = tokenizer.decode(kept)
    cuts = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    if not cuts:
        return Written(text, tuple(map(int, kept)), len(ends) > 0)
    cut = min(cuts)
    count = next(n for n in range(len(kept) + 1) if len(tokenizer.decode(kept[:n])) >= cut)
    return Written(text[:cut], tuple(map(int, kept[:count])), True)


def pieces(
    texts: Sequence[Sequence[int]], count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (tokens [count, width], lengths, offset): the texts in pieces of constant width."""
    longest = max((len(t) for t in texts), default=0)
    width = min(bucket(longest), PIECE)
    for at in range(0, longest, PIECE):
        yield *pad([t[at : at + PIECE] for t in texts], count, width), at
