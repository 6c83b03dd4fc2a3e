"""One environment for every test: 8 virtual CPU devices, strict promotion, warnings are errors."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

from quick_compile import quick_environment

os.environ.update(quick_environment())

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


pytest_plugins = ["durations"]

MAPS = Path("/proc/self/maps")
MOST_MAPS = 16_384  # a quarter of the 65,530 that Linux grants a process


COSTLY = Path(__file__).resolve().parent / "costly.txt"  # one test per line, by what it costs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `COSTLY` as slow, before the marks are chosen from."""
    costly = set(COSTLY.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in costly:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def few_maps() -> Iterator[None]:
    """XLA's CPU backend maps memory for every executable that it keeps; out of maps it crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def float64() -> Iterator[None]:
    """Run one test in double precision."""
    with jax.enable_x64(True):
        yield
