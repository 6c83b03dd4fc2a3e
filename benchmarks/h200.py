"""Compile every recipe for 1, 2 and 8 H200s that are not here; write the plans and their tables.

    python benchmarks/h200.py                      all cases, an hour or two of one CPU core
    python benchmarks/h200.py --config configs/pilot.py --devices 1 2
    python benchmarks/h200.py --tables             only the tables of docs/h200.md
    python benchmarks/h200.py --check --config configs/pilot.py --devices 2
        compile training steps and compare their memory with the committed lines; write nothing

Wants the extra `cuda13` and no GPU. A case that is compiled again takes the place of its line in
benchmarks/results/h200-plan.jsonl. Memory is the compiler's count; times are estimates by a model
of the card (nested_jax/fit/cost.py). Lines of commit 60459f5 are the state before: the files as
they were then, by the same compiler.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax

from nested_jax.config import load_config
from nested_jax.errors import require
from nested_jax.fit.gpus import GPUS, absent_devices
from nested_jax.fit.plan import compile_fit, keep_moments_on_host
from nested_jax.fit.report import as_json
from nested_jax.sharding import make_mesh
from nested_jax.train.layout import Layout, lay_out
from nested_jax.train.memory import peak_bytes

ROOT = Path(__file__).resolve().parent.parent
PLANS = ROOT / "benchmarks" / "results" / "h200-plan.jsonl"
PAGE = ROOT / "docs" / "h200.md"
BEFORE = "60459f5"
OFFLOAD = {"mesh.offload": True}
H200 = GPUS["h200"]
TOLERANCE = 0.1  # of a step's memory, in --check
GIB = 2**30
Case = tuple[str, int, dict[str, Any]]
# Config, H200s, overrides: the most asked for first.
CASES: tuple[Case, ...] = (
    ("configs/pilot.py", 1, {}),
    ("configs/pilot.py", 8, {}),
    ("configs/mid.py", 8, {}),
    ("configs/target.py", 2, {}),
    ("configs/target.py", 8, {}),
    ("configs/pilot.py", 2, {}),
    ("configs/pilot.py:smoke", 2, {}),
    ("configs/mid.py:smoke", 2, {}),
    ("configs/mid.py", 2, {}),
    ("configs/mid.py", 1, {}),
    ("configs/target.py", 1, {}),
    ("configs/target.py", 1, OFFLOAD),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="", help="only this one, as configs/pilot.py:smoke")
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 2, 8])
    parser.add_argument("--missing", action="store_true", help="leave out what has a line already")
    parser.add_argument("--check", action="store_true", help="exit 1 where memory has changed")
    parser.add_argument("--tables", action="store_true", help="compile nothing")
    flags = parser.parse_args(arguments)
    lines = read(PLANS)
    known = {key(line): line for line in lines if not before(line)}
    wanted = [c for c in CASES if flags.config in ("", c[0]) and c[1] in flags.devices]
    require(bool(wanted), "--config", flags.config, f"wants one of {sorted({c[0] for c in CASES})}")
    if flags.check:
        changed = [case for case in wanted if not same_memory(case, known)]
        return 1 if changed else 0
    for case in () if flags.tables else wanted:
        if flags.missing and key(as_line(case)) in known:
            continue
        line = as_json(case[0], compile_fit(layout_of(case), H200)) | as_line(case)
        known[key(line)] = line
        lines = [old for old in lines if before(old)] + sorted(known.values(), key=place)
        PLANS.write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(summary(line), flush=True)
    PAGE.write_text(with_tables(PAGE.read_text(), lines))
    return 0


def as_line(case: Case) -> dict[str, Any]:
    return dict(zip(("config", "devices", "overrides"), case, strict=True))


def layout_of(case: Case) -> Layout:
    """Lay a case out over cards that are not here."""
    spec, devices, overrides = case
    cfg = load_config(str(ROOT / spec), overrides)
    return lay_out(cfg, make_mesh(cfg.mesh, absent_devices(H200, devices, 1)))


def same_memory(case: Case, known: dict[Any, dict[str, Any]]) -> bool:
    """Compile the training step of a case, and say whether its memory is what its line says."""
    line = known.get(key(as_line(case)))
    if line is None:
        print(
            f"{name_of(as_line(case))}: no plan is committed, nothing to compare with", flush=True
        )
        return True
    if line["versions"]["jax"] != jax.__version__:
        made = line["versions"]["jax"]
        print(f"{name_of(line)}: planned with jax {made}, this is {jax.__version__}: not compared")
        return True
    layout = layout_of(case)
    with jax.set_mesh(layout.mesh):
        found = peak_bytes(
            keep_moments_on_host(layout.lower_train(), layout).compile().memory_analysis()
        )
    change = found / line["train"]["peak_bytes"] - 1
    words = "as committed" if abs(change) <= TOLERANCE else "NOT as committed"
    print(f"{name_of(line)}: {found / GIB:.2f} GiB, {100 * change:+.1f} %, {words}", flush=True)
    return abs(change) <= TOLERANCE


def key(line: dict[str, Any]) -> tuple[str, int, str]:
    return line["config"], line["devices"], json.dumps(line.get("overrides", {}), sort_keys=True)


def before(line: dict[str, Any]) -> bool:
    return str(line["git_commit"]).startswith(BEFORE)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def summary(line: dict[str, Any]) -> str:
    share, mfu = 100 * line["memory_share"], 100 * line["estimated_mfu"]
    return f"{name_of(line)}: {share:.0f} % of usable memory, estimated MFU {mfu:.1f} %"


# --- tables ---------------------------------------------------------------------------------------

FILES = ("configs/pilot.py", "configs/mid.py", "configs/target.py", "configs/gpt2.py")
HEADS = {
    "memory": (
        "config, H200s | rows at once per device, microbatches | peak per device "
        f"| of what is usable | peak at {BEFORE}"
    ),
    "time": (
        f"config, H200s | estimated step | floor | MFU | MFU at {BEFORE} | kernels "
        "| collectives per step | times the parameters, per microbatch | compilation"
    ),
}


def with_tables(page: str, lines: list[dict[str, Any]]) -> str:
    """Return the page with its tables written anew from the plans."""
    old = {key(line): line for line in lines if before(line)}
    new = sorted((line for line in lines if not before(line)), key=place)
    rows = {
        "memory": [memory_row(line, old.get(key(line))) for line in new],
        "time": [time_row(line, old.get(key(line))) for line in new],
    }
    for name, head in HEADS.items():
        rule = "|" + "---|" * len(head.split("|"))
        table = "\n".join([f"| {head} |", rule, *(f"| {text} |" for text in rows[name])])
        mark = rf"(<!-- {name}: written by benchmarks/h200.py -->\n).*?(<!-- end -->)"
        page = re.sub(mark, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", page, flags=re.DOTALL)
    return page


def place(line: dict[str, Any]) -> tuple[int, str, int, str]:
    """Return where a plan stands in the tables: by file, size, devices and overrides."""
    return FILES.index(line["config"].partition(":")[0]), *key(line)


def name_of(line: dict[str, Any]) -> str:
    given = "".join(f", `{name}={value}`" for name, value in line.get("overrides", {}).items())
    return f"`{line['config']}`{given}, {line['devices']}"


def memory_row(line: dict[str, Any], old: dict[str, Any] | None) -> str:
    peak = max(line["train"]["peak_bytes"], line["evaluation"]["peak_bytes"]) / GIB
    rows = line.get("device_rows") or line["rows"] // line["grad_accum"] // line["devices"]
    cells = [
        name_of(line),
        f"{rows} x {line['seq_len']:,}, {line['grad_accum']}",
        f"{peak:.1f} GiB",
        f"{100 * line['memory_share']:.0f} %",
        f"{old['peak_gib']} GiB" if old else "-",
    ]
    return " | ".join(cells)


def time_row(line: dict[str, Any], old: dict[str, Any] | None) -> str:
    moved = sum(found["bytes"] for found in line["train"]["collectives"].values())
    times = moved / (4 * line["parameters"] * line["grad_accum"])
    mfu = (
        f"{100 * old['floor_s'] / old['estimated_step_s']:.1f} %"
        if old and "floor_s" in old
        else "-"
    )
    cells = [
        name_of(line),
        f"{line['estimated_step_s']:.2f} s",
        f"{line['floor_s']:.3f} s",
        f"{100 * line['estimated_mfu']:.1f} %",
        mfu,
        f"{line['train']['kernels']:,}",
        f"{moved / 1e9:.1f} GB" if moved else "-",
        f"{times:.1f}" if moved else "-",
        f"{line['train']['compile_s']:.0f} s",
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
