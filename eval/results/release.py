"""A release in one folder: ``python -m eval release --checkpoint runs/NAME --out BUNDLE``.

The bundle holds config.json, tokenizer.model, the checkpoint (its parameters; with --resumable all
of it), the training's metrics, --results of the tasks, report.md, and manifest.json with the
SHA-256 of each file. Its folder is a --checkpoint for every task, checked before it is loaded: a
changed byte is an error that names the file.

A release has a checklist (docs/release.md): data validation and tokenizer coverage, the commit that
prepared the data, a result of every task of --preset, plots, the hash of the parameters, an export
that reads back the same. What it lacks ends with 2, unless --allow-missing names it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core.bundle import checkpoint_hash, verify, write_manifest
from eval.core.cli import Command
from eval.core.flags import flag
from eval.core.report import markdown, table
from eval.core.subject import Subject, load_subject
from eval.results import checklist
from eval.results.suite import PRESETS
from eval.results.summary import read_result, result_files
from nested_jax import machine
from nested_jax.errors import require
from nested_jax.files import hold, write_json
from nested_jax.train.workdir import CHECKPOINTS

TRAINING = ("config.json", "tokenizer.model", "summary.json", "metrics.jsonl")
OPTIMIZER = ("opt", "carry")  # items of a checkpoint that only training needs


def make(flags: argparse.Namespace) -> int:
    exists = flags.out.exists()
    require(not exists, "--out", str(flags.out), "exists; wants the path of a new folder")
    subject = load_subject(flags.checkpoint)
    results = load_results(flags.results, subject)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    with hold(flags.out.with_name(f"{flags.out.name}.lock"), str(flags.out)):
        manifest = release(subject, results, flags)
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(
        f"{flags.out}: {len(manifest['files'])} files, {machine.human_bytes(size)}, parameters "
        f"{manifest['checkpoint_sha256'][:12]}"
    )
    return 0


def load_results(paths: Sequence[Path], subject: Subject) -> dict[str, dict[str, Any]]:
    """Return results by name.

    Raises:
      ValueError: a file that is no result, or one of another checkpoint.
    """
    results: dict[str, dict[str, Any]] = {}
    for file in result_files(paths, "--results"):
        result = read_result(file)
        found_hash = result["subject"].get("checkpoint_sha256")
        require(
            found_hash == subject.checkpoint_sha256,
            "--results",
            str(file),
            f"is of {result['subject'].get('name')}, parameters {str(found_hash)[:12]}; this "
            f"checkpoint is {str(subject.checkpoint_sha256)[:12]}",
        )
        require(file.stem not in results, "--results", str(file), "two files have this name")
        results[file.stem] = result
    return results


def release(
    subject: Subject, results: dict[str, dict[str, Any]], flags: argparse.Namespace
) -> dict[str, Any]:
    """Make the bundle, whole or not at all; return its manifest.

    Raises:
      ValueError: an item of the checklist is missing, and is not named.
    """
    assert subject.checkpoint is not None
    out, resumable = flags.out, flags.resumable
    run = subject.checkpoint.parent.parent
    draft = out.with_name(f"{out.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        checks = checklist.look(subject, results, flags.reports, flags.preset, draft)
        missing = checklist.enforce(checks, flags.allow_missing)
    except ValueError:
        shutil.rmtree(draft)
        raise
    step = Path(CHECKPOINTS) / str(subject.step)
    kept = shutil.ignore_patterns(*(() if resumable else OPTIMIZER))
    shutil.copytree(subject.checkpoint, draft / step, ignore=kept)
    for file in TRAINING:
        if (run / file).is_file():
            shutil.copyfile(run / file, draft / file)
    (draft / "results").mkdir()
    for key, result in results.items():
        placed = {**result, "subject": {**result["subject"], "checkpoint": step.as_posix()}}
        write_json(draft / "results" / f"{key}.json", placed)
    about = {
        "name": flags.name or subject.name,
        "step": subject.step,
        "block": subject.cfg.model.block,
        "parameters": subject.parameters,
        "checkpoint_sha256": checkpoint_hash(draft / step),
        "tokenizer_sha256": subject.tokenizer.hash,
        "resumable": resumable,
        "missing": missing,
        "checklist": checklist.as_json(checks),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
    }
    (draft / "report.md").write_text(report(about, run, results), encoding="utf-8")
    manifest = write_manifest(draft, about)
    verify(draft)
    draft.rename(out)
    return manifest


def report(about: dict[str, Any], run: Path, results: dict[str, dict[str, Any]]) -> str:
    """Return report.md: what this is, how it was trained, what was measured."""
    rows = [[k, str(v)] for k, v in about.items() if k not in ("versions", "checklist")]
    rows += [[f"version of {key}", value] for key, value in about["versions"].items()]
    parts = [
        f"# {about['name']}",
        f"{about['block']}, {about['parameters']:,} parameters, step {about['step']}. Load with\n"
        "`python -m eval TASK --checkpoint FOLDER`, which checks every file against manifest.json.",
        table(["", ""], rows),
        "## Checklist",
        checklist.listed({k: checklist.Checked(**v) for k, v in about["checklist"].items()}),
    ]
    if (run / "summary.json").is_file():
        summary = json.loads((run / "summary.json").read_text("utf-8"))
        plain = {k: v for k, v in summary.items() if isinstance(v, (int, float, str))}
        parts += ["## Training", table(["", ""], [[k, str(v)] for k, v in plain.items()])]
    parts += [markdown(result) for result in results.values()]
    if not results:
        parts.append("No results were given.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


FLAGS = (
    flag("--checkpoint", None, "a workdir, or a step of it", type=Path, required=True),
    flag("--results", [], "--out of tasks, or folders of them", type=Path, nargs="+"),
    flag("--out", None, "the folder that is made", type=Path, required=True),
    flag("--name", "", "of the release (default: the workdir's)"),
    flag("--resumable", False, "keep the optimizer's state"),
    flag("--preset", "smoke", "whose tasks it must have", choices=tuple(PRESETS)),
    flag("--reports", [], "of data validate and data coverage", type=Path, nargs="+"),
    flag("--allow-missing", "", f"all, or some of {', '.join(checklist.ITEMS)}"),
)
HELP = "config, checkpoint, metrics, report, hashes: one folder"
COMMAND = Command("release", HELP, __doc__, FLAGS, make)
