"""Intervals and tests for what is counted and what is averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054


def wilson(hits: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); (0, 1) without trials."""
    if count == 0:
        return 0.0, 1.0
    p, square = hits / count, z * z
    center = (p + square / (2 * count)) / (1 + square / count)
    spread = z * math.sqrt(p * (1 - p) / count + square / (4 * count * count))
    half = spread / (1 + square / count)
    # Rounding must not put 0 of n, or n of n, outside its own interval.
    return (center - half if hits else 0.0), (center + half if hits < count else 1.0)


def mean_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (sample deviation / sqrt n); 0 for one value."""
    x = np.asarray(values, np.float64)
    error = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else 0.0
    return float(x.mean()), error


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the exact two-sided p of McNemar's test on paired right / wrong answers."""
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    tail = sum(math.exp(x - n * math.log(2)) for x in logs)
    return min(1.0, 2 * tail)


def sign_flip(differences: Sequence[float], seed: int = 0, rounds: int = 10_000) -> float:
    """Return the two-sided p of a paired randomization test of a mean of 0 (Fisher 1935).

    Signs are flipped at random `rounds` times; all of them where there are at most 2^12.
    """
    x = np.asarray(differences, np.float64)
    if len(x) == 0 or not x.any():
        return 1.0
    if len(x) <= 12:
        bits = np.arange(1 << len(x))[:, None] >> np.arange(len(x))[None, :] & 1
        sums = (1 - 2 * bits) @ x
        return float(np.mean(np.abs(sums) >= abs(x.sum()) * (1 - 1e-12)))
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(rounds):
        signs = rng.integers(0, 2, len(x)) * 2 - 1
        extreme += abs(signs @ x) >= abs(x.sum()) * (1 - 1e-12)
    return (extreme + 1) / (rounds + 1)


def bootstrap(values: Sequence[float], seed: int = 0, rounds: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean under resampling of the items."""
    x = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [x[rng.integers(0, len(x), len(x))].mean() for _ in range(rounds)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
