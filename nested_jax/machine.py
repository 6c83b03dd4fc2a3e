"""What a run is executed with: versions, the commit, the device, its peak and its memory."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import resource
import sys
import threading
from pathlib import Path

import jax

from nested_jax import files
from nested_jax.errors import raised_here

git_commit = files.git_commit  # said of every run and result
PACKAGES = ("nested-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets (without sparsity); matched in
# order against the device's name, so a longer name stands before the one that it contains.
PEAK_FLOPS = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 197e12),
    ("TPU v4", 275e12),
)


def versions() -> dict[str, str]:
    """Return the version of Python and of every package that decides numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"  # run from a checkout that pip does not know
    return found


def device_name() -> str:
    """Return the devices of all processes, as in ``8 x NVIDIA H100 80GB HBM3``."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def peak_flops(kind: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of one device of this kind, None where unknown."""
    return next((peak for name, peak in PEAK_FLOPS if name.lower() in kind.lower()), None)


def peak_memory() -> int:
    """Return the most bytes in use so far, of the fullest local device or of the process on CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [
        found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found
    ]
    if peaks:
        return max(peaks)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_limit() -> int | None:
    """Return the bytes that one local device may use, None where the device does not say."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def human_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def host_memory() -> int:
    """Return the bytes of memory that this process may have: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # cgroup v2; "max" is no limit
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(total, int(text)) if text.isdigit() else total


THREAD_HOOK = threading.excepthook  # Python's own


def quiet_libraries() -> None:
    """Keep libraries from printing what they also raise, for programs with messages of their own.

    Orbax logs a traceback for every failure, from each of its threads, and warns of every read-only
    folder; tensorstore prints one from a thread where the event loop of a failed save has ended.
    """
    for noisy in ("absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if sys.unraisablehook is not sys.__unraisablehook__ or threading.excepthook is not THREAD_HOOK:
        return  # somebody else, or an earlier call, looks after them
    shown, thread_shown = sys.unraisablehook, threading.excepthook

    def hook(found: sys.UnraisableHookArgs) -> None:
        if found.object is not None or (found.exc_value and raised_here(found.exc_value)):
            shown(found)

    def thread_hook(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is not None and raised_here(found.exc_value):
            thread_shown(found)

    sys.unraisablehook, threading.excepthook = hook, thread_hook
