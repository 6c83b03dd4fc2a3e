"""What a page shows of a run: its log, configuration, results, an inspected text, and samples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.core.cli import Task, evaluate, result_file, subject_of, tasks, write_out
from eval.core.reader import Draw
from eval.core.subject import Subject
from eval.results.curves import METRICS, Run, read_run
from eval.results.summary import read_result
from nested_jax.data.records import read_object
from nested_jax.errors import require
from nested_jax.models.decode import Sampling
from nested_jax.train.workdir import CONFIG, SUMMARY, locate

DRAW = Draw(Sampling(temperature=0.8, top_k=0, top_p=0.95))


class Shown(NamedTuple):
    """One run of the page."""

    log: Run
    workdir: Path
    config: dict[str, Any]
    summary: dict[str, Any]  # {} of a run that has not ended
    results: dict[str, dict[str, Any]]  # the newest of each task
    samples: list[tuple[str, str]]  # prompts, and what was written after them

    @property
    def name(self) -> str:
        return self.log.name


def gather(text: str, flags: argparse.Namespace) -> Shown:
    """Read a run of the page, and ask its model for what no result has yet.

    Raises:
      ValueError: no log there, a result that is damaged, or one of another model.
    """
    log = read_run(text)
    given = Path(text.rpartition("=")[2] if "=" in text else text)
    workdir = given.parent if given.name == METRICS else given
    config = read_object(workdir / CONFIG)
    summary = read_object(workdir / SUMMARY) if (workdir / SUMMARY).is_file() else {}
    results = newest(workdir / "eval")
    samples: list[tuple[str, str]] = []
    if flags.model and config["data"].get("source") != "synthetic":
        task = tasks()["inspect"]
        words = ["--checkpoint", str(workdir), "--text", flags.text, "--max-tokens"]
        asked = task.parse([*words, str(flags.max_tokens), "--split", flags.split])
        subject = subject_of(asked)
        results["inspect"] = inspected(task, subject, asked, results.get("inspect"))
        samples = write_samples(subject, results["inspect"], flags.samples)
    return Shown(log, workdir, config, summary, results, samples)


def newest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the newest result of each task of a folder; {} where there is none."""
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
    found = [(file, read_result(file)) for file in files]
    return {result["task"]: {**result, "file": str(file)} for file, result in found}


def inspected(
    task: Task, subject: Subject, flags: argparse.Namespace, kept: dict[str, Any] | None
) -> dict[str, Any]:
    """Return an inspected text: the kept one of these parameters and flags, or a new one."""
    asked = json.loads(json.dumps({"text": flags.text, "max_tokens": flags.max_tokens}))
    if kept and kept["subject"].get("checkpoint_sha256") == subject.checkpoint_sha256:
        options = kept.get("options", {})
        if {key: options.get(key) for key in asked} == asked:
            return kept
    result = evaluate(task, subject, flags)
    assert subject.checkpoint is not None
    file = result_file(subject.checkpoint, task.name)
    write_out(file, result)
    return {**result, "file": str(file)}


def write_samples(subject: Subject, result: dict[str, Any], count: int) -> list[tuple[str, str]]:
    """Return what a model writes after beginnings of the inspected text."""
    ids, size = result["detail"]["tokens"]["id"], 32
    starts = [ids[at : at + size] for at in range(0, min(len(ids), 512 * count), 512)][:count]
    if not starts:
        return []
    written = subject.scorer.generate_until(starts, subject.tokenizer, [], 64, draw=DRAW)
    return [(subject.tokenizer.decode(s), text) for s, text in zip(starts, written, strict=True)]


def differing(shown: Sequence[Shown]) -> dict[str, list[Any]]:
    """Return the fields of the configurations that are not the same in all runs."""
    flat = [flatten(one.config) for one in shown]
    names = dict.fromkeys(name for fields in flat for name in fields)
    values = {name: [fields.get(name, "") for fields in flat] for name in names}
    return {name: row for name, row in values.items() if any(x != row[0] for x in row)}


def flatten(data: Any, before: str = "") -> dict[str, Any]:
    """Return nested data as dotted names."""
    if not isinstance(data, dict):
        return {before: data}
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flatten(value, f"{before}.{key}" if before else str(key))
    return found


def check_runs(texts: Sequence[str]) -> None:
    """Raise unless every RUN is the folder of a run."""
    for text in texts:
        place = Path(text.rpartition("=")[2] if "=" in text else text)
        folder, step = locate(place)
        require(not step, "RUN", text, f"wants the run, {folder}")
