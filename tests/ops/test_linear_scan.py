"""Two algorithms for one recurrence: values and gradients, forwards and backwards."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

from nested_jax.ops.linear_scan import linear_scan_associative, linear_scan_sequential


@pytest.mark.parametrize("given", [True, False], ids=["initial", "zero"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_associative_equals_sequential(reverse: bool, given: bool, float64: None) -> None:
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.uniform(-1.0, 1.0, (2, 7, 3))) for _ in range(2))
    a = a.at[1, 3].set(0.0)  # a closed gate forgets, and has a gradient
    initial = jnp.asarray(rng.normal(size=(2, 3))) if given else None

    def run(scan: Any, a: Any, b: Any, initial: Any) -> Any:
        h = scan(a, b, initial, axis=1, reverse=reverse)
        return jnp.sum(jnp.sin(h)), h

    arguments = (0, 1, 2) if given else (0, 1)
    got, want = (
        jax.jit(jax.value_and_grad(partial(run, scan), argnums=arguments, has_aux=True))(
            a, b, initial
        )
        for scan in (linear_scan_associative, linear_scan_sequential)
    )
    assert_close(got, want, 1e-12)


def test_sequential_is_the_recurrence() -> None:
    a, b = jnp.array([0.5, 2.0, 0.0]), jnp.array([1.0, 1.0, 4.0])
    assert linear_scan_sequential(a, b, jnp.asarray(2.0)).tolist() == [2.0, 5.0, 4.0]
    assert linear_scan_sequential(a, b, jnp.asarray(2.0), reverse=True).tolist() == [5.5, 9.0, 4.0]
