"""The baseline that a language model of this text has to beat: an interpolated byte trigram."""

from __future__ import annotations

import numpy as np


def trigram_bits_per_byte(train: bytes, valid: bytes) -> float:
    """Return the bits per byte of `valid` under a byte trigram model of `train`.

    Witten-Bell interpolation (Witten and Bell, 1991, method C) of the orders 3, 2, 1 and uniform:
    ``p(c | h) = (n(h c) + d(h) p(c | h')) / (n(h) + d(h))`` with d(h) the number of different bytes
    seen after h and h' the history without its oldest byte.

    Raises:
      ValueError: less than 3 bytes of either.
    """
    if min(len(train), len(valid)) < 3:
        raise ValueError(f"{len(train)=}, {len(valid)=}: wants at least 3 bytes of each")
    probability = np.full(len(valid), 1 / 256)
    for order in (1, 2, 3):
        counts = np.bincount(codes(train, order), minlength=256**order)
        followed = counts.reshape(-1, 256)
        total, distinct = followed.sum(1), (followed > 0).sum(1)
        code = codes(valid, order)
        history = code >> 8
        mass = (total + distinct)[history]
        mixed = counts[code] + distinct[history] * probability[order - 1 :]
        # A history that was never seen leaves the lower order as it is.
        probability[order - 1 :] = np.where(
            mass > 0, mixed / np.maximum(mass, 1), probability[order - 1 :]
        )
    return float(-np.log2(probability).mean())


def codes(text: bytes, order: int) -> np.ndarray:
    """Return the big-endian integer of every run of `order` bytes."""
    data = np.frombuffer(text, np.uint8).astype(np.int64)
    size = len(data) - order + 1
    return sum(data[i : i + size] << (8 * (order - 1 - i)) for i in range(order))  # type: ignore[return-value]
