"""What is read together: the way that reads the fewest tokens, padding included."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from eval.core.requests import bucket

COPY = 8  # tokens that are read in the time of copying the state of one row, about


class Call(NamedTuple):
    """Continuations that are scored together: (row of the contexts, number of the request)."""

    pairs: list[tuple[int, int]]
    rows: int  # of the batch
    copies: bool  # of the contexts' rows, one for each pair; else the rows as they are


def choose_calls(
    lengths: Sequence[Mapping[int, int]], count: int, rows: Callable[[int | None], int]
) -> list[Call]:
    """Return the calls that score all continuations of a batch of contexts.

    Either call j scores the j-th shortest continuation of every context, from the rows as they are;
    or as many continuations as make a batch are scored from copies of their rows, the shorter ones
    first.

    Args:
      lengths: tokens of the continuations of each context, by the number of the request.
      count: rows of the contexts' batch.
      rows: of a batch of so many continuations; None is as many as fit.
    """
    tokens = {i: n for of_context in lengths for i, n in of_context.items()}

    def length(pair: tuple[int, int]) -> int:
        return tokens[pair[1]]

    def cost(call: Call) -> int:
        return call.rows * (bucket(max(map(length, call.pairs))) + COPY * call.copies)

    ranked = [sorted(((r, i) for i in found), key=length) for r, found in enumerate(lengths)]
    columns = itertools.zip_longest(*ranked)
    in_place = [Call([p for p in column if p is not None], count, False) for column in columns]
    pairs, most = sorted(itertools.chain(*ranked), key=length), rows(None)
    parts = [pairs[at : at + most] for at in range(0, len(pairs), most)]
    copied = [Call(part, rows(len(part)), True) for part in parts]
    return min(in_place, copied, key=lambda calls: sum(map(cost, calls)))


def shared_tokens(texts: Sequence[tuple[int, ...]], count: int, few: int) -> int:
    """Return how many tokens, that all texts begin with, to read once; 0 where it saves nothing.

    Args:
      texts: of a batch, each from the same state.
      count: rows of the batch.
      few: rows of the smallest batch.
    """
    # What the first and the last of a sorted list begin with, all between them begin with too.
    pairs = zip(min(texts), max(texts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    longest = max(map(len, texts))
    once = few * bucket(shared) + count * (COPY + bucket(longest - shared))
    return shared if once < count * bucket(longest) else 0
