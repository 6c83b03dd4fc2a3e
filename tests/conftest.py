"""One environment for every test: 8 virtual CPU devices, strict promotion, warnings are errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: unoptimised machine code saves a quarter of their time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `from helpers import ...`
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # launch, configs, eval

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def float64() -> Iterator[None]:
    """Run one test in double precision."""
    with jax.enable_x64(True):
        yield
