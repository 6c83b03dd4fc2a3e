"""The axis-letter legend, and the few types that every layer of the package shares. No logic.

Arrays carry their shape in their name: ``x_BTD`` has axes B, T, D in that order.

    B  sequences in a batch          L  layers of a stack
    T  tokens of a sequence          M  memory levels (CMS)
    N  chunks of a sequence          S  symbols (vocabulary)
    C  tokens of a chunk (T = N*C)   U  a second token axis (the keys of attention)
    D  model width                   W  attention window
    H  heads                         G  query heads that share a key head (GQA)
    K  key and query width per head  P  persistent tokens
    V  value width per head          R  rank of a low-rank fast weight
    F  hidden width of an MLP or of a memory

A suffix of one lower-case word instead of letters (``fast``, ``state``, ``params``) is a pytree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any


class Batch(NamedTuple):
    """One batch of packed token rows, as the data pipeline yields it and ``loss_fn`` reads it.

    ``segments_BT`` numbers the documents of a row from 1; 0 marks padding. Sequence state is reset
    where the number changes, and no token sees another document. In a stream document 1 is the one
    that the row before ended in: a row that begins with a document of its own numbers it 2.
    """

    tokens_BT: Array  # int32
    targets_BT: Array  # int32, the next token of the same document
    weights_BT: Array  # float32, 0 where there is no target (padding, last token of a document)
    segments_BT: Array  # int32


@dataclass(frozen=True)
class ParamInfo:
    """What one parameter is, recorded where it is made; every other tree is derived from this."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  # logical axes, one per dimension; see sharding.RULES
    kind: str  # matrix | embed | head | vector | conv | fast0
    level: int = 0  # outer level: 0 is stepped every step, CMS level l is level l (1-based)
