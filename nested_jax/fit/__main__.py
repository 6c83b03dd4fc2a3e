"""Compile a run for GPUs that are not here, and say what it needs of them.

    python -m nested_jax.fit --config configs/pilot.py --gpu h200 --devices 8

    --config FILE.py[:ARG]     the experiment
    --config.FIELD=VALUE       override a field
    --gpu a100|b200|h100|h200  compile for such cards (extra `cuda13`); without it for the devices
                               of this machine
    --devices N --hosts M      cards in all, and machines that they are in
    --search                   find the largest microbatch that fits
    --readers N                instead of training, what `python -m nested_jax.read` runs for N
                               readers on one card: memory, and time per token with and without
                               writes; --config is then config.json of a retrofitted workdir
    --json                     one JSON object per plan instead of lines

Memory is XLA's own count. Times are estimates by a model of the card. Exit status: 0 it fits, 1 it
does not, 2 bad input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

import jax

from nested_jax.config import Config, load_config, parse_overrides
from nested_jax.errors import raised_here, require
from nested_jax.fit.gpus import GPU, GPUS, absent_devices, gpu_named
from nested_jax.fit.plan import Fit, compile_fit
from nested_jax.fit.reading import compile_reading
from nested_jax.fit.report import as_json, as_text, reading_json, reading_text
from nested_jax.machine import quiet_libraries
from nested_jax.sharding import check_rows, make_mesh
from nested_jax.train.layout import lay_out


def main(arguments: list[str]) -> int:
    """Print the plan of one run; return the exit status."""
    quiet_libraries()
    try:
        flags, overrides = parse(arguments)
        cfg = load_config(flags.config, parse_overrides(overrides))
        gpu, devices = cards(flags)
        if flags.readers is not None:
            return reading(flags, cfg, gpu, devices)
        if flags.search:
            fit = search(cfg, gpu, devices)
        else:
            fit = compile_fit(lay_out(cfg, make_mesh(cfg.mesh, devices)), gpu)
    except ValueError as error:
        if not raised_here(error):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 2
    text = json.dumps(as_json(flags.config, fit)) if flags.json else as_text(flags.config, fit)
    sys.stdout.write(text + "\n")
    return 0 if fit.fits else 1


def reading(flags: argparse.Namespace, cfg: Config, gpu: GPU, devices: Any) -> int:
    require(not flags.search, "--search", "given", "is of training; leave --readers out")
    fit = compile_reading(cfg, gpu, make_mesh(cfg.mesh, devices), flags.readers)
    said = json.dumps(reading_json(flags.config, fit)) if flags.json else None
    sys.stdout.write((said or reading_text(flags.config, fit)) + "\n")
    return 0 if fit.fits else 1


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--gpu")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--readers", type=int)
    parser.add_argument("--json", action="store_true")
    return parser.parse_known_args(arguments)


def cards(flags: argparse.Namespace) -> tuple[GPU, Any]:
    """Return the card, and the devices to compile for."""
    if flags.gpu:
        gpu = gpu_named(flags.gpu)
        return gpu, absent_devices(gpu, flags.devices, flags.hosts)
    kind = jax.devices()[0].device_kind
    known = [gpu for name, gpu in GPUS.items() if name in kind.lower()]
    require(
        bool(known),
        "--gpu",
        None,
        f"this machine has {kind}, whose speed is not known here; wants one of {', '.join(GPUS)}",
    )
    require(
        flags.devices <= jax.device_count(),
        "--devices",
        flags.devices,
        f"this machine has {jax.device_count()}; --gpu compiles for others",
    )
    return known[0], jax.devices()[: flags.devices]


def search(cfg: Config, gpu: GPU, devices: Any) -> Fit:
    """Return the plan with the fewest microbatches that fits, by halving rows at once.

    Raises:
      ValueError: not even one row per device fits.
    """
    mesh = make_mesh(cfg.mesh, devices)
    rows = cfg.train.batch_size // check_rows(mesh, "train.batch_size", cfg.train.batch_size)
    for at_once in sorted((n for n in range(1, rows + 1) if rows % n == 0), reverse=True):
        train = dataclasses.replace(cfg.train, grad_accum=1, device_rows=at_once, eval_batch_size=0)
        fit = compile_fit(lay_out(dataclasses.replace(cfg, train=train), mesh), gpu)
        sys.stderr.write(f"{at_once} rows at once: {100 * fit.share:.0f} % of usable memory\n")
        if fit.fits:
            return fit
    require(
        False,
        "train.device_rows",
        1,
        f"one row per device does not fit {len(devices)} x {gpu.name}; wants more devices with "
        "mesh.fsdp, a shorter data.seq_len, or a smaller model",
    )
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
