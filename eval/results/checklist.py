"""What a release must have: each item is looked for, and one that is missing has to be named."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from eval.core.bundle import checkpoint_hash
from eval.core.flags import choose
from eval.core.plots import figure
from eval.core.subject import Subject
from eval.results.curves import check_text, draw, read_run
from eval.results.suite import PRESETS
from nested_jax.data.records import read_object
from nested_jax.errors import require
from nested_jax.hub.export import export, load_exported
from nested_jax.hub.tensors import import_safetensors
from nested_jax.train.workdir import METRICS

ITEMS = {
    "validation": "report of `python -m nested_jax.data validate` on the training data",
    "coverage": "report of `python -m nested_jax.data coverage` on its tokenizer",
    "data_commit": "commit of the code that prepared the data, in its mixture.json",
    "tasks": "a result of every task of the preset, of these parameters",
    "plots": "learning curves",
    "checkpoint": "the hash of the parameters on disk is that of the manifest",
    "export": "the parameters as safetensors, read back, are the same to the last bit",
}
REPORTS = {"validation": "content_overlap", "coverage": "avg_tokens_per_word"}  # a key of each


class Checked(NamedTuple):
    """One item of the list."""

    holds: bool
    said: str


def look(
    subject: Subject, results: Mapping[str, Any], reports: Sequence[Path], preset: str, draft: Path
) -> dict[str, Checked]:
    """Look for every item; reports and plots are copied and drawn into `draft`."""
    assert subject.checkpoint is not None
    source = Path(subject.cfg.data.source).expanduser()
    beside = [source.parent / f"{name}.json" for name in REPORTS] if source.is_file() else []
    found = find_reports([*reports, *(file for file in beside if file.is_file())])
    checks = {}
    for name in REPORTS:
        file = found.get(name)
        checks[name] = Checked(file is not None, file.name if file else "give it with --reports")
        if file:
            (draft / "data").mkdir(exist_ok=True)
            (draft / "data" / f"{name}.json").write_bytes(file.read_bytes())
    mixture = source.is_file() and source.suffix == ".json"
    commit = read_object(source).get("git_commit") if mixture else None
    checks["data_commit"] = Checked(bool(commit), str(commit or f"{source} says none"))
    have = {result["task"] for result in results.values()}
    absent = [task for task in PRESETS[preset] if task not in have]
    without = f", without {', '.join(absent)}" if absent else ""
    checks["tasks"] = Checked(not absent, f"preset {preset}{without}")
    checks["plots"] = plots(subject, draft)
    same = checkpoint_hash(subject.checkpoint) == subject.checkpoint_sha256
    checks["checkpoint"] = Checked(same, str(subject.checkpoint_sha256))
    checks["export"] = exported(subject)
    return {name: checks[name] for name in ITEMS}


def enforce(checks: Mapping[str, Checked], allowed: str) -> list[str]:
    """Return the items that are left out.

    Raises:
      ValueError: one that --allow-missing does not name, or a name of no item.
    """
    named = choose(allowed, ITEMS, "--allow-missing") if allowed else []
    missing = [name for name, check in checks.items() if not check.holds]
    wanted = [name for name in missing if name not in named]
    said = "; ".join(f"{name} ({ITEMS[name]}): {checks[name].said}" for name in wanted)
    want = f"the release lacks {said}. Make it (docs/release.md), or name what is left out"
    require(not wanted, "--allow-missing", allowed, want)
    return missing


def find_reports(files: Sequence[Path]) -> dict[str, Path]:
    """Return reports by what they are of.

    Raises:
      ValueError: a file that is none of them.
    """
    found: dict[str, Path] = {}
    for file in files:
        data = read_object(file)
        kinds = [name for name, key in REPORTS.items() if key in data]
        require(
            len(kinds) == 1, "--reports", str(file), "is no report of data validate or coverage"
        )
        found.setdefault(kinds[0], file)
    return found


def plots(subject: Subject, draft: Path) -> Checked:
    """Draw the learning curves into the bundle."""
    assert subject.checkpoint is not None
    workdir = subject.checkpoint.parent.parent
    if not (workdir / METRICS).is_file() or not (workdir / METRICS).stat().st_size:
        return Checked(False, f"{workdir} has no {METRICS}")
    try:
        figure()
    except ValueError as error:
        return Checked(False, str(error))
    run = read_run(str(workdir))
    check_text([run])
    draw([run], draft / "plots" / "curves.png", "step", 1)
    return Checked(True, "plots/curves.png")


def exported(subject: Subject) -> Checked:
    """Export the parameters, read them back, and compare."""
    try:
        import_safetensors()
    except ValueError as error:
        return Checked(False, str(error))
    assert subject.checkpoint is not None
    with tempfile.TemporaryDirectory() as folder:
        opened = export(subject.checkpoint, Path(folder) / "native", "native")
        params, cfg = load_exported(Path(folder) / "native")
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(opened.params), strict=True)
        same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    return Checked(same and cfg == opened.cfg, "native layout")


def listed(checks: Mapping[str, Checked]) -> str:
    """Return the list as Markdown."""
    rows = [f"- [{'x' if check.holds else ' '}] {name}: {ITEMS[name]} ({check.said})"
            for name, check in checks.items()]  # fmt: skip
    return "\n".join(rows)


def as_json(checks: Mapping[str, Checked]) -> dict[str, Any]:
    return json.loads(json.dumps({name: check._asdict() for name, check in checks.items()}))
