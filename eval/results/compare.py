"""Compare results on the same items: ``python -m eval compare --checkpoint A --to B --task piqa``.

Every checkpoint runs the task with the same flags, seeds and items. Differences are paired: the
exact McNemar test where an item is right or wrong, sign flips where it has a loss; with the 95 %
bootstrap interval of the mean difference. Checkpoints that were not trained on the same rows in
the same order are named. Flags after ``--`` go to the task.

``python -m eval compare --results A B ...`` compares what was measured before: files of results, or
folders of them, of which the newest of each task counts. No model is loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.core.cli import Command, Task, evaluate, subject_of, tasks, write_out
from eval.core.flags import OUT, flag
from eval.core.items import first_difference, items_sha256
from eval.core.report import group_table
from eval.core.same_text import Named, training_lines
from eval.core.stats import bootstrap, mcnemar, sign_flip
from eval.results.summary import read_result, result_files
from nested_jax.errors import require


def act(flags: argparse.Namespace) -> int:
    found = kept(flags) if flags.results else [(flags.task, measured(flags))]
    compared = {task: compare(results) for task, results in found}
    for task, result in compared.items():
        for pair in result["pairs"]:
            print(f"## {task}: {pair['b']} minus {pair['a']}\n\n{group_table(pair['groups'])}\n")
        for line in result["training"]:
            print(f"note: {line}")
    several = {"task": "compare", "of": list(compared), "tasks": compared}
    write_out(flags.out, several if flags.results else compared[flags.task])
    return 0


def measured(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the task on every checkpoint."""
    known = tasks()
    require(flags.task in known, "--task", flags.task, f"wants one of {', '.join(known)}")
    given = flags.checkpoint is not None and bool(flags.to)
    require(given, "--checkpoint", flags.checkpoint, "wants it and --to, or --results")
    for path in (flags.checkpoint, *flags.to):  # before the first is evaluated
        require(path.is_dir(), "checkpoint", str(path), "wants the folder of a run or of a step")
    return [run(known[flags.task], path, flags.rest) for path in (flags.checkpoint, *flags.to)]


def kept(flags: argparse.Namespace) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return, for each task that all of --results have, the newest result of each.

    Raises:
      ValueError: one place alone, no task in common, results without their items.
    """
    require(len(flags.results) > 1, "--results", str(flags.results[0]), "wants two or more")
    places: list[dict[str, dict[str, Any]]] = []
    for path in flags.results:
        files = sorted(result_files([path], "--results"), key=lambda file: file.stat().st_mtime)
        results = [(file, read_result(file)) for file in files]
        for file, result in results:
            require("items" in result, "--results", str(file), "has no items; run the task again")
        places.append({result["task"]: result for _, result in results})
    common = [task for task in places[0] if all(task in place for place in places)]
    have = " and ".join(f"{path} has {', '.join(place)}" for path, place in
                        zip(flags.results, places, strict=True))  # fmt: skip
    require(bool(common), "--results", str(flags.results[1]), f"no task in common: {have}")
    return [(task, [place[task] for place in places]) for task in common]


def run(task: Task, checkpoint: Path, rest: Sequence[str]) -> dict[str, Any]:
    flags = task.parse(["--checkpoint", str(checkpoint), *rest])
    return evaluate(task, subject_of(flags), flags)


def compare(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the paired differences of every later result from the first.

    Raises:
      ValueError: results of different items, or losses by different tokenizers.
    """
    first, pairs = results[0], []
    for other in results[1:]:
        a = {item["id"]: item for item in first["items"]}
        b = {item["id"]: item for item in other["items"]}
        require_same_items(first, other)
        same = len({r["subject"]["tokenizer_sha256"] for r in (first, other)}) == 1
        comparable = same or all("correct" in item for item in first["items"])
        wanted = "has another tokenizer: its losses per token do not compare"
        require(comparable, "--to", other["subject"]["name"], wanted)
        groups = {}
        for group in dict.fromkeys(item["group"] for item in first["items"]):
            ids = [i for i, item in a.items() if item["group"] == group]
            groups[group] = paired([a[i] for i in ids], [b[i] for i in ids])
        pairs.append({"a": label(first), "b": label(other), "groups": groups})
    subjects = [r["subject"] for r in results]
    return {"task": "compare", "of": first["task"], "subjects": subjects, "pairs": pairs,
            "training": training_lines([Named(label(r), r["subject"]) for r in results]),
            "metrics": [r["metrics"] for r in results]}  # fmt: skip


def require_same_items(first: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise unless both were asked the same, in the same order."""
    hashes = [items_sha256(result["items"]) for result in (first, other)]
    names = [[item["id"] for item in result["items"]] for result in (first, other)]
    require(
        hashes[0] == hashes[1] and names[0] == names[1],
        "--to",
        label(other),
        f"was asked other items than {label(first)} (items_sha256 {hashes[1][:12]} for "
        f"{hashes[0][:12]}; first: {first_difference(first['items'], other['items'])}); wants the "
        "same data, flags and, where texts are cut by tokens, tokenizer",
    )


def label(result: dict[str, Any]) -> str:
    return f"{result['subject']['name']}@{result['subject']['step']}"


def paired(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return means, their difference, its interval, and p of no difference."""
    key = "correct" if "correct" in a[0] else "loss"
    x, y = ([float(item[key]) for item in items] for items in (a, b))
    differences = [after - before for before, after in zip(x, y, strict=True)]
    if key == "correct":
        p = mcnemar([v > 0 for v in x], [v > 0 for v in y])
    else:
        p = sign_flip(differences)
    return {
        "measure": key,
        "a": sum(x) / len(x),
        "b": sum(y) / len(y),
        "difference": sum(differences) / len(x),
        "interval": bootstrap(differences),
        "p": p,
        "n": len(x),
    }


FLAGS = (
    flag("--checkpoint", None, "the first of the pair", type=Path),
    flag("--to", [], "repeatable", type=Path, action="append"),
    flag("--results", [], "of tasks that have run: files, or folders", type=Path, nargs="+"),
    flag("--task", "zeroshot", "what is measured"),
    OUT,
)
HELP = "checkpoints on the same items, paired significance"
COMMAND = Command("compare", HELP, __doc__, FLAGS, act, takes_rest=True)
