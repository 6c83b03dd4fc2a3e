"""How tests compile: much, once, and without optimization. No jax here: it reads the flags."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 2 << 30  # of the cache; above it a session starts a new one


def xla_flags() -> str:
    """Return flags for code that runs a few times only.

    Unoptimized code takes half of the time to compile; without the fusion emitters, which jaxlib
    0.10 can do without, it takes a quarter. Numbers differ from optimized code in last bits.
    """
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


def machine() -> str:
    """Return a name of what compiled code depends on and jax's keys leave out: the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def cache_folder() -> Path:
    """Return the folder of compiled code that workers, subprocesses and later sessions share."""
    folder = ROOT / ".pytest_cache" / "xla" / machine()
    begins = "PYTEST_XDIST_WORKER" not in os.environ and folder.is_dir()
    if begins and sum(file.stat().st_size for file in folder.iterdir()) > MOST_BYTES:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def quick_environment() -> dict[str, str]:
    """Return what jax reads when it is imported; what is set already stays."""
    wanted = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(),
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return wanted | {name: os.environ[name] for name in wanted if name in os.environ}
