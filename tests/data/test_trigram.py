"""The byte-trigram baseline against a dictionary-based twin."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from small_data import synthetic_source

from nested_jax.data.trigram import trigram_bits_per_byte


def slow_bits(train: bytes, valid: bytes) -> float:
    counts: dict[bytes, Counter[int]] = defaultdict(Counter)
    for order in range(3):
        for i in range(order, len(train)):
            counts[train[i - order : i]][train[i]] += 1

    def probability(history: bytes, byte: int) -> float:
        lower = 1 / 256 if not history else probability(history[1:], byte)
        if not history:
            seen = counts[b""]
            return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen))
        if history not in counts:
            return lower
        seen = counts[history]
        return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen))

    bits = [-math.log2(probability(valid[max(0, i - 2) : i], valid[i])) for i in range(len(valid))]
    return sum(bits) / len(bits)


def test_equals_the_slow_twin() -> None:
    train = "".join(synthetic_source(i) for i in range(9)).encode()
    valid = synthetic_source(50).encode() + b"\xff\x00unseen"
    assert trigram_bits_per_byte(train, valid) == pytest.approx(slow_bits(train, valid), rel=1e-12)


def test_known_limits() -> None:
    assert trigram_bits_per_byte(b"ab" * 5000, b"ab" * 500) < 0.02
    assert trigram_bits_per_byte(b"ab" * 500, b"\x07" * 300) > 8


def test_too_short() -> None:
    with pytest.raises(ValueError, match="at least 3 bytes"):
        trigram_bits_per_byte(b"ab", b"abc")
