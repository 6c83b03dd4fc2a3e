"""Say what this machine can run: ``python -m nested_jax.doctor [--json]``.

Versions, devices and their memory, whether fused attention works, where caches are, and which of
the configurations fit. A run's exact need is printed when its step has been compiled.
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
from nested_jax.config import Config, load_config
from nested_jax.data.cache import cache_root
from nested_jax.models.flops import count_parameters
from nested_jax.models.lm import build_model

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SIZES = ("pilot.py:smoke", "pilot.py", "mid.py", "target.py")
COPIES = 4  # float32 trees as large as the parameters: they, their gradient, two Adam moments


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
        "host_memory_bytes": host_memory(),
        "device_memory_bytes": limit,
        "peak_bfloat16_flops": peak,
        "cudnn_attention": cudnn_attention(),
        "data_cache": str(cache_root()),
        "data_cache_bytes": folder_bytes(cache_root()),
        "compilation_cache": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR",
            "off (JAX_COMPILATION_CACHE_DIR=FOLDER makes every start but the first faster)",
        ),
        "configs": {name: fit(name, limit or host_memory()) for name in SIZES if exists(name)},
    }


def exists(name: str) -> bool:
    return (CONFIGS / name.partition(":")[0]).is_file()


def fit(name: str, limit: int) -> str:
    """Return how large the training state of a config is, and over how many devices it fits."""
    cfg = load_config(str(CONFIGS / name))
    parameters = count_parameters(build_model(cfg.model).param_info())
    state, rows = 4 * COPIES * parameters, fast_bytes(cfg)
    # A fifth of the device is left for activations, which depend on batch and remat.
    room = int(0.8 * limit) - rows
    words = (
        f"{parameters / 1e6:,.1f} M parameters, state {machine.human_bytes(state)}, "
        f"fast weights {machine.human_bytes(rows)} a row"
    )
    if room <= 0:
        return f"{words}: one row does not fit a device; lower model.cms.fast_layers"
    parts = -(-state // room)
    return f"{words}: " + ("fits one device" if parts <= 1 else f"wants mesh.fsdp >= {parts}")


def fast_bytes(cfg: Config) -> int:
    """Return the bytes of what one row carries while it is trained: fast weights, inner state."""
    model = build_model(cfg.model)

    def state() -> Any:
        params = model.init(jax.random.key(0))
        return model.init_state(params, 1, capacity=cfg.data.seq_len)

    leaves = jax.tree.leaves(jax.eval_shape(state).fast)
    return sum(x.size * x.dtype.itemsize for x in leaves)


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


def host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
