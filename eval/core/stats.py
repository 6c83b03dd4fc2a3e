"""Intervals and tests for what is counted and what is averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

Z95 = 1.959963984540054
ROUNDS = 9999  # of random signs; all of them where there are fewer
RESAMPLES = 2000


def wilson(hits: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); (0, 1) without trials.

    `hits` may be a fraction, where several answers share a rank (scipy's wants whole numbers).
    """
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
    apart = [x for x, y in zip(a, b, strict=True) if x != y]
    return float(stats.binomtest(sum(apart), len(apart)).pvalue) if apart else 1.0


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Return the two-sided p of a paired randomization test of a mean of 0 (Fisher 1935)."""
    x = np.asarray(differences, np.float64)
    if len(x) < 2 or not x.any():
        return 1.0
    how = {"permutation_type": "samples", "n_resamples": ROUNDS, "batch": 100}
    return float(stats.permutation_test((x,), np.mean, rng=seed, **how).pvalue)


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean under resampling of the items."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x[0]), float(x[0])
    how = {"method": "percentile", "n_resamples": RESAMPLES, "batch": 100}
    interval = stats.bootstrap((x,), np.mean, rng=seed, **how).confidence_interval
    return float(interval.low), float(interval.high)
