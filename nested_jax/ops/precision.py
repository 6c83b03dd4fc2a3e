"""Matrix products of memories at the precision of their numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


def full_precision(function: Callable[ParamsT, ResultT]) -> Callable[ParamsT, ResultT]:
    """Trace `function` so that its float32 products are products of float32 numbers.

    Accelerators multiply float32 matrices with 10 bits of mantissa unless told otherwise. A fast
    weight sums thousands of writes, and a triangular solve feeds errors back: both need all 23.
    """

    @functools.wraps(function)
    def traced(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return traced
