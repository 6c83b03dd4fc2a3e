"""Hold a finished smoke run to what the README promises: ``check_smoke.py WORKDIR``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

BITS_PER_BYTE = 2.5  # a byte-trigram model of the same text has about 3


def main(workdir: Path) -> int:
    summary = json.loads((workdir / "summary.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    failures = []
    if not summary["valid_bits_per_byte"] < BITS_PER_BYTE:
        reached = summary["valid_bits_per_byte"]
        failures.append(f"valid_bits_per_byte={reached}, wants < {BITS_PER_BYTE}")
    if not summary["writes"] or any(count <= 0 for count in writes(summary)):
        failures.append(f"writes={summary['writes']}, wants every level above 0")
    steps = [line["step"] for line in lines if "loss" in line]
    if steps != sorted(set(steps)):
        failures.append(f"metrics.jsonl: steps are lost or doubled: {steps}")
    for failure in failures:
        sys.stderr.write(f"smoke: {failure}\n")
    return 1 if failures else 0


def writes(summary: dict) -> list[float]:
    counts = summary["writes"]
    return list(counts.values()) if isinstance(counts, dict) else list(counts)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
