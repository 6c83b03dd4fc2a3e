"""Slow float64 numpy twins of the outer optimizers: one [in, out] matrix, plain loops."""

from __future__ import annotations

import numpy as np

QUINTIC = (3.4445, -4.7750, 2.0315)


def newton_schulz(x: np.ndarray, steps: int = 5) -> np.ndarray:
    """Apply the polynomial to the singular values, from the SVD."""
    norm = np.linalg.norm(x)
    if norm == 0:
        return np.zeros_like(x)
    u, s, vt = np.linalg.svd(x / norm, full_matrices=False)
    a, b, c = QUINTIC
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ np.diag(s) @ vt


def adam(grads, b1=0.9, b2=0.95, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        yield (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def muon(grads, mu=0.95, nesterov=True):
    m = 0.0
    for g in grads:
        m = mu * m + (1 - mu) * g
        yield 0.2 * np.sqrt(max(g.shape)) * newton_schulz(mu * m + (1 - mu) * g if nesterov else m)


def m3_literal(grads, b1, b2, b3, alpha, period, eps):
    """NL Alg. 1 with its two nested loops; the sum of line 3 without its extra gradient."""
    m1 = m2 = v = 0.0
    done, taken = [], 0
    while taken < len(grads):
        slow_sum = sum(done, np.zeros_like(grads[0]))
        m2 = m2 + b3 * slow_sum
        o2 = newton_schulz(m2)
        done = []
        for g in grads[taken : taken + period]:
            m1 = m1 + b1 * g
            v = v + b2 * g**2
            yield (newton_schulz(m1) + alpha * o2) / (np.sqrt(v) + eps)
            done.append(g)
        taken += period


def m3_ema(grads, b1, b2, b3, alpha, period, eps):
    m1 = v = 0.0
    m2 = window = o2 = np.zeros_like(grads[0])
    for t, g in enumerate(grads, 1):
        m1, v = b1 * m1 + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        o1 = newton_schulz(m1)
        step = (o1 + alpha * o2) / (np.sqrt(v / (1 - b2**t)) + eps)
        yield 0.2 * np.sqrt(max(g.shape)) * step * np.linalg.norm(o1) / np.linalg.norm(step)
        window = window + g
        if t % period == 0:
            m2, window = b3 * m2 + (1 - b3) * window, np.zeros_like(g)
            o2 = newton_schulz(m2)


def delta_momentum(grads, alpha=0.9, unit=True):
    m = 0.0 * grads[0]
    for g in grads:
        if unit:
            g = g / np.linalg.norm(g)
        m = (alpha * np.eye(len(g)) - g @ g.T) @ m + g
        yield 0.2 * np.sqrt(g.size) * m if unit else m


def deep_momentum(grads, variant, beta=0.9, b2=0.95, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        v = b2 * v + (1 - b2) * g * g
        key = {
            "momentum": g / np.linalg.norm(g),
            "preconditioned": g / (np.sqrt(v / (1 - b2**t)) + eps),
            "feature": np.tanh(g / np.sqrt(np.mean(g * g))),
            "muon": g,
        }[variant]
        m = beta * m + (1 - beta) * key
        out = m / (1 - beta**t)
        yield {
            "momentum": 0.2 * np.sqrt(g.size) * out,
            "preconditioned": out,
            "feature": 0.2 * out,
            "muon": 0.2 * np.sqrt(max(g.shape)) * newton_schulz(out),
        }[variant]
