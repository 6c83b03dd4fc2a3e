"""Say what a plan needs: lines for people, one JSON object for programs."""

from __future__ import annotations

from typing import Any

from nested_jax import machine
from nested_jax.fit.plan import Fit, Need
from nested_jax.fit.reading import ReadingFit
from nested_jax.train.memory import advice

TOP = 8  # source lines and buffers that are printed


def as_json(spec: str, fit: Fit) -> dict[str, Any]:
    """Return a plan as plain data."""
    cfg = fit.cfg
    return {
        "config": spec,
        "gpu": fit.gpu.name,
        "devices": fit.devices,
        "rows": cfg.train.batch_size,
        "grad_accum": cfg.train.grad_accum,
        "attention": fit.attention,
        "device_rows": cfg.train.batch_size // cfg.train.grad_accum // fit.parts,
        "mesh": fit.mesh,
        "seq_len": cfg.data.seq_len,
        "parameters": fit.parameters,
        "fits": fit.fits,
        "memory_share": round(fit.share, 4),
        "usable_bytes": fit.gpu.usable_bytes,
        "estimated_step_s": round(fit.train.estimate.seconds, 4),
        "estimated_tokens_per_s": round(fit.tokens_per_s),
        "estimated_mfu": round(fit.mfu, 4),
        "floor_s": round(fit.flops / (fit.gpu.peak_bf16 * fit.devices), 4),
        "train": need_json(fit.train),
        "evaluation": need_json(fit.evaluation),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
    }


def need_json(need: Need) -> dict[str, Any]:
    cost = need.estimate
    return {
        "peak_bytes": need.peak_bytes,
        "state_bytes": need.state_bytes,
        "temporary_bytes": need.temporary_bytes,
        "compile_s": round(need.compile_s, 1),
        "kernels": cost.kernels,
        "bound": cost.bound,
        "memory_s": round(cost.memory_s, 4),
        "products_s": round(cost.compute_s, 4),
        "launches_s": round(cost.launch_s, 4),
        "collectives_s": round(cost.collective_s, 4),
        "collectives": {
            name: {"bytes": round(found.bytes), "count": found.count}
            for name, found in sorted(cost.collectives.items())
        },
        "buffers": need.buffers,
    }


def as_text(spec: str, fit: Fit) -> str:
    """Return a plan as lines to read."""
    cfg = fit.cfg
    size = machine.human_bytes
    train, cost = fit.train, fit.train.estimate
    verdict = "fits" if fit.fits else "does NOT fit"
    peak = max(train.peak_bytes, fit.evaluation.peak_bytes)
    micro = cfg.train.batch_size // cfg.train.grad_accum
    lines = [
        f"{spec} on {fit.devices} x {fit.gpu.name}: {verdict}; {size(peak)} of "
        f"{size(fit.gpu.usable_bytes)} usable per device ({100 * fit.share:.0f} %)",
        f"  {fit.parameters / 1e6:,.1f} M parameters; {cfg.train.batch_size} rows of "
        f"{cfg.data.seq_len} tokens per step, {micro} at once; {fit.attention}",
        f"  training step: peak {size(train.peak_bytes)}; state and batch "
        f"{size(train.state_bytes)}, temporary {size(train.temporary_bytes)}",
        f"  evaluation step: peak {size(fit.evaluation.peak_bytes)}",
        f"  compiled in {train.compile_s:.0f} s and {fit.evaluation.compile_s:.0f} s",
        f"  estimated, a model of the card and no measurement: {cost.seconds:.3f} s per step, "
        f"{fit.tokens_per_s:,.0f} tokens/s, MFU {100 * fit.mfu:.1f} %, {cost.kernels:,} kernels, "
        f"bound by {cost.bound}",
        f"  of it memory {cost.memory_s:.3f} s, products {cost.compute_s:.3f} s, launches "
        f"{cost.launch_s:.3f} s, collectives {cost.collective_s:.3f} s",
    ]
    lines += [
        f"  {name}: {found.count:,} per step, {size(found.bytes)} per device"
        for name, found in sorted(cost.collectives.items())
    ]
    lines.append("  where the time goes (source line of the kernel, seconds, kernels):")
    slowest = sorted(cost.rows.items(), key=lambda item: -item[1].seconds)[:TOP]
    lines += [f"    {row.seconds:8.4f} s {row.kernels:8,}  {name}" for name, row in slowest]
    lines.append("  largest results (bytes, shape, places, source line):")
    lines += [
        f"    {size(b['bytes']):>9}  {b['shape']} x {b['places']}  {b['source']}"
        for b in train.buffers[:TOP]
    ]
    if not fit.fits:
        lines.append("  what would make it fit: " + "; ".join(advice(cfg)))
    return "\n".join(lines)


def reading_json(spec: str, fit: ReadingFit) -> dict[str, Any]:
    """Return what reading needs as plain data."""
    return {
        "config": spec,
        "gpu": fit.gpu.name,
        "readers": fit.readers,
        "tokens_at_once": fit.tokens,
        "attention": fit.attention,
        "parameters": fit.parameters,
        "parameter_bytes": fit.parameter_bytes,
        "memory_bytes_per_reader": fit.memory_bytes,
        "state_bytes_per_reader": fit.state_bytes,
        "fits": fit.fits,
        "memory_share": round(fit.share, 4),
        "usable_bytes": fit.gpu.usable_bytes,
        "estimated_us_per_token": {
            "writing": round(1e6 * fit.per_token(fit.writing), 4),
            "silent": round(1e6 * fit.per_token(fit.silent), 4),
        },
        "writing": need_json(fit.writing),
        "silent": need_json(fit.silent),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
    }


def reading_text(spec: str, fit: ReadingFit) -> str:
    """Return what reading needs as lines to read."""
    size = machine.human_bytes
    verdict = "fits" if fit.fits else "does NOT fit"
    lines = [
        f"{spec}, {fit.readers} reader(s) on one {fit.gpu.name}: {verdict}; "
        f"{size(fit.writing.peak_bytes)} of {size(fit.gpu.usable_bytes)} usable "
        f"({100 * fit.share:.0f} %)",
        f"  {fit.parameters / 1e6:,.1f} M parameters, {size(fit.parameter_bytes)}; {fit.tokens:,} "
        f"tokens of each reader at once; {fit.attention}",
        f"  memory of a reader {size(fit.memory_bytes)}; with its context {size(fit.state_bytes)}",
    ]
    for name, one in (("with writes", fit.writing), ("without", fit.silent)):
        cost = one.estimate
        lines.append(
            f"  {name}: peak {size(one.peak_bytes)}; estimated, a model of the card and no "
            f"measurement: {1e6 * fit.per_token(one):.2f} us per token, {cost.kernels:,} kernels, "
            f"bound by {cost.bound}; compiled in {one.compile_s:.0f} s"
        )
    return "\n".join(lines)
