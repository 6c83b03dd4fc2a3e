"""GPUs that XLA can compile for without one at hand, and their numbers for estimates.

The compiler wants a description of the card. Memory, cores and clocks are those that the vendor
publishes and that the driver of such a card reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from nested_jax.errors import import_extra, require

RESERVED = 0.06  # share of the card's memory that driver, context and allocator take


@dataclass(frozen=True)
class GPU:
    """One card. Rates are what large kernels reach in practice, not the data sheet's peaks."""

    name: str  # as the driver reports it
    memory_bytes: int  # in all
    bandwidth: float  # bytes/s between memory and cores, data sheet
    cores: int  # streaming multiprocessors
    units_per_core: int  # float32 lanes
    clock_ghz: float
    l2_bytes: int
    shared_per_core: int  # bytes
    shared_per_block: int  # bytes, at most
    capability: tuple[int, int]
    features: str  # NONE, or ACCELERATED_FEATURES from Hopper on
    peak_bf16: float  # FLOP/s, dense, data sheet: what MFU is measured against
    link: float  # bytes/s to other cards of the host, one direction

    @property
    def usable_bytes(self) -> int:
        """Return the bytes that a program can have."""
        return int(self.memory_bytes * (1 - RESERVED))


GPUS = {
    "a100": GPU(
        "NVIDIA A100-SXM4-80GB",
        memory_bytes=85_100_068_864,
        bandwidth=2.039e12,
        cores=108,
        units_per_core=64,
        clock_ghz=1.41,
        l2_bytes=41_943_040,
        shared_per_core=167_936,
        shared_per_block=166_912,
        capability=(8, 0),
        features="NONE",
        peak_bf16=312e12,
        link=240e9,
    ),
    "h100": GPU(
        "NVIDIA H100 80GB HBM3",
        memory_bytes=84_942_979_072,
        bandwidth=3.352e12,
        cores=132,
        units_per_core=128,
        clock_ghz=1.98,
        l2_bytes=52_428_800,
        shared_per_core=233_472,
        shared_per_block=232_448,
        capability=(9, 0),
        features="ACCELERATED_FEATURES",
        peak_bf16=989e12,
        link=350e9,
    ),
    "h200": GPU(
        "NVIDIA H200",
        memory_bytes=151_397_597_184,
        bandwidth=4.8e12,
        cores=132,
        units_per_core=128,
        clock_ghz=1.98,
        l2_bytes=52_428_800,
        shared_per_core=233_472,
        shared_per_block=232_448,
        capability=(9, 0),
        features="ACCELERATED_FEATURES",
        peak_bf16=989e12,
        link=350e9,
    ),
    "b200": GPU(
        "NVIDIA B200",
        memory_bytes=191_514_411_008,
        bandwidth=7.672e12,
        cores=148,
        units_per_core=128,
        clock_ghz=1.965,
        l2_bytes=132_644_864,
        shared_per_core=233_472,
        shared_per_block=232_448,
        capability=(10, 0),
        features="ACCELERATED_FEATURES",
        peak_bf16=2250e12,
        link=700e9,
    ),
}


def gpu_named(name: str) -> GPU:
    """Return the card of this name.

    Raises:
      ValueError: an unknown name, with the known ones.
    """
    require(name in GPUS, "--gpu", name, f"wants one of {', '.join(GPUS)}")
    return GPUS[name]


def absent_devices(gpu: GPU, devices: int, hosts: int) -> Sequence[Any]:
    """Return descriptions of `devices` cards over `hosts` hosts, to compile for.

    Nothing can run on them. The process computes on its CPU from here on: looked for beside it, a
    GPU that is missing would keep the compiler from being loaded.

    Raises:
      ValueError: the extra that brings the compiler for GPUs is missing; sizes that do not divide.
    """
    require(devices >= 1, "--devices", devices, "wants 1 or more")
    require(
        hosts >= 1 and devices % hosts == 0,
        "--hosts",
        hosts,
        f"wants a divisor of --devices={devices}",
    )
    import_extra("jax_cuda13_plugin", "cuda13", "to compile for a GPU that is not here")
    config: Any = jax.config
    if not config.jax_platforms:
        config.update("jax_platforms", "cpu")
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        target_config=target_config(gpu),
        topology=f"1x{hosts}x{devices // hosts}",
    )
    return described.devices


def target_config(gpu: GPU) -> str:
    """Return the card as a `GpuTargetConfigProto` in text form."""
    major, minor = gpu.capability
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": gpu.shared_per_core,
        "threads_per_core_limit": 2048,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.units_per_core,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(gpu.bandwidth),
        "l2_cache_size": gpu.l2_bytes,
        "clock_rate_ghz": gpu.clock_ghz,
        "device_memory_size": gpu.memory_bytes,
        "shared_memory_per_block_optin": gpu.shared_per_block,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "name": f'"{gpu.name}"',
        "device_vendor": '"NVIDIA Corporation"',
        "runtime_version": '"13.0.0"',
    }
    lines = [f"  {name}: {value}" for name, value in fields.items()]
    capability = f"major: {major} minor: {minor} feature_extension: {gpu.features}"
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            f"  cuda_compute_capability {{ {capability} }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 patch: 0 }",
            f'device_description_str: "{gpu.name}"',
        ]
    )
