"""Comparisons and counts that the tests share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params


def relative_error(got: Any, want: Any) -> float:
    """Relative L2 error of one leaf; the scale is floored so that two zeros agree."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    scale = max(float(np.linalg.norm(want.ravel())), 1e-30)
    return float(np.linalg.norm((got - want).ravel())) / scale


def assert_close(got: Any, want: Any, rtol: float, atol: float = 0.0) -> None:
    """Every leaf within `rtol` relative L2 error, or `atol` everywhere; names the worst leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    worst, where = 0.0, ""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert np.shape(a) == np.shape(b), (
            f"{jax.tree_util.keystr(path)}: {np.shape(a)} {np.shape(b)}"
        )
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), f"{jax.tree_util.keystr(path)}: not finite"
        if np.size(a) and np.max(np.abs(a - b)) > atol:
            error = relative_error(a, b)
            if error > worst:
                worst, where = error, jax.tree_util.keystr(path)
    assert worst <= rtol, f"relative error {worst:.3e} > {rtol:.0e} at {where or 'the leaf'}"


def assert_equal(got: Any, want: Any) -> None:
    """Every leaf bit-identical."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path)
        )


def products(function: Any, *args: Any) -> int:
    """Return how many matrix products a program has; those in the body of a loop count once."""

    def count(jaxpr: Any) -> int:
        own = sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)
        return own + sum(count(sub) for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params))

    return count(jax.make_jaxpr(function)(*args).jaxpr)


def largest(function: Any, *args: Any) -> int:
    """Return the size of the largest array of floating-point numbers that a program makes."""

    def sizes(jaxpr: Any) -> Any:
        for eqn in jaxpr.eqns:
            yield from (
                x.aval.size for x in eqn.outvars if jnp.issubdtype(x.aval.dtype, jnp.inexact)
            )
            for sub in jaxprs_in_params(eqn.params):
                yield from sizes(sub)

    return max(sizes(jax.make_jaxpr(function)(*args).jaxpr))
