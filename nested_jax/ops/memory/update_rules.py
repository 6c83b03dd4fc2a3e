"""How one token's gradient moves one matrix of a memory: the definition of every rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nested_jax.types import Array


class TokenGates(NamedTuple):
    """The scalars of one token: eta, a, mu, epsilon. What the rule does not have is None."""

    rate: Array
    keep: Array | None
    momentum: Array | None
    erase: Array | None = None  # rate of erasing; None: eta


def retain_all(matrix_IO: Array, gates: TokenGates, direction_I: Array | None) -> Array:
    """W. Gradient descent forgets nothing."""
    del gates, direction_I
    return matrix_IO


def retain_scaled(matrix_IO: Array, gates: TokenGates, direction_I: Array | None) -> Array:
    """a W (Titans Eq. 13)."""
    del direction_I
    assert gates.keep is not None
    return gates.keep * matrix_IO


def retain_erased(matrix_IO: Array, gates: TokenGates, direction_I: Array | None) -> Array:
    """(a I - epsilon u u^T) W (NL Eq. 57, 88: epsilon = eta): what is stored along u goes.

    Without u only a W.
    """
    scaled_IO = retain_scaled(matrix_IO, gates, None)
    if direction_I is None:
        return scaled_IO
    erase = gates.rate if gates.erase is None else gates.erase
    return scaled_IO - erase * direction_I[:, None] * (direction_I @ matrix_IO)[None, :]


RETAIN: dict[str, Callable[[Array, TokenGates, Array | None], Array]] = {
    "gd": retain_all,
    "titans": retain_scaled,
    "dgd": retain_erased,
}


def increment(momentum_IO: Array | None, grad_IO: Array, gates: TokenGates) -> Array:
    """-eta g, or with momentum the surprise S_t = mu S_{t-1} - eta g (Titans Eq. 10)."""
    step_IO = -gates.rate * grad_IO
    if momentum_IO is None:
        return step_IO
    assert gates.momentum is not None
    return gates.momentum * momentum_IO + step_IO
