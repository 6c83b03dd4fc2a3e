"""Say what this machine can run: ``python -m nested_jax.doctor [--json]``.

Versions, devices and their memory, whether fused attention works, where caches are, and which of
the configurations cannot fit. Whether one does fit, `python -m nested_jax.fit` says.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from nested_jax import machine
from nested_jax.config import MeshConfig, load_config
from nested_jax.data.cache import cache_root
from nested_jax.sharding import make_mesh
from nested_jax.train.layout import lay_out
from nested_jax.train.memory import available, lower_bound

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SIZES = ("pilot.py:smoke", "pilot.py", "mid.py", "target.py")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m nested_jax.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    flags = parser.parse_args(arguments)
    found = examine()
    if flags.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        for name, value in found.items():
            sys.stdout.write(f"{name.replace('_', ' ')}: {show(value)}\n")
    return 0


def examine() -> dict[str, Any]:
    """Return what there is to know, as plain data."""
    device = jax.devices()[0]
    limit = machine.memory_limit()
    peak = machine.peak_flops(device.device_kind)
    return {
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
        "devices": machine.device_name(),
        "backend": device.platform,
        "processes": jax.process_count(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "host_memory_bytes": machine.host_memory(),
        "device_memory_bytes": limit,
        "peak_bfloat16_flops": peak,
        "cudnn_attention": cudnn_attention(),
        "data_cache": str(cache_root()),
        "data_cache_bytes": folder_bytes(cache_root()),
        "compilation_cache": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR",
            "off (JAX_COMPILATION_CACHE_DIR=FOLDER makes every start but the first faster)",
        ),
        "configs": {name: fit(name) for name in SIZES if exists(name)},
    }


def exists(name: str) -> bool:
    return (CONFIGS / name.partition(":")[0]).is_file()


def fit(name: str) -> str:
    """Return how large a config is, and whether it cannot fit; that it fits only a plan says."""
    layout = lay_out(load_config(str(CONFIGS / name)), make_mesh(MeshConfig(), jax.devices()[:1]))
    words = (
        f"{layout.parameters / 1e6:,.1f} M parameters, at least "
        f"{machine.human_bytes(lower_bound(layout))} on one device"
    )
    found = available()
    if found is not None and lower_bound(layout) > found[0]:
        return f"{words}: more than the {machine.human_bytes(found[0])} {found[1]}"
    return f"{words}; `python -m nested_jax.fit --config configs/{name}` compiles a plan"


def cudnn_attention() -> str:
    """Return whether ``model.attention="cudnn"`` runs here."""
    if jax.default_backend() != "gpu":
        return f"no: it wants an NVIDIA GPU, this is {jax.default_backend()}"
    q_BTHK = jnp.ones((1, 128, 2, 64), jnp.bfloat16)
    try:
        y = jax.nn.dot_product_attention(
            q_BTHK, q_BTHK, q_BTHK, is_causal=True, implementation="cudnn"
        )
        return "yes" if bool(jnp.isfinite(y.astype(jnp.float32)).all()) else "no: not finite"
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"no: {str(error).splitlines()[0]}"


def folder_bytes(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def show(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(f"\n  {name}: {item}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
