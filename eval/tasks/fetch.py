"""Zero-shot files from the Hugging Face Hub: ``python -m eval fetch --tasks all``.

Writes the files that `python -m eval zeroshot --list-tasks` names below --data-root; those that are
there are left alone. Needs the Hub, or copies of its repositories below --copies
(FOLDER/OWNER/NAME), and `datasets` (``pip install 'nested-jax[hf]'``). Everything else reads the
files, without network.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from eval.core.cli import Command
from eval.core.datasets import DEFAULTS
from eval.core.flags import choose, flag
from eval.tasks.zeroshot_files import SETS, Row
from nested_jax.errors import import_extra, require
from nested_jax.files import write_bytes


class Source(NamedTuple):
    """Where a task is on the Hub, and how its rows become ours."""

    repository: str
    config: str | None
    split: str
    convert: Callable[[Row], Row]


def lettered(question: str) -> Callable[[Row], Row]:
    """Convert rows with ``choices: {text, label}`` and an ``answerKey``; ARC has digits too."""

    def convert(row: Row) -> Row:
        choices = row["choices"]
        return {
            "id": row.get("id"),
            "query": row[question],
            "choices": list(choices["text"]),
            "gold": list(choices["label"]).index(row["answerKey"].strip()),
        }

    return convert


def piqa(row: Row) -> Row:
    choices = [row["sol1"], row["sol2"]]
    return {"query": row["goal"], "choices": choices, "gold": int(row["label"])}


def hellaswag(row: Row) -> Row:
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = [without_marks(ending) for ending in row["endings"]]
    return {"query": without_marks(query), "choices": choices, "gold": int(row["label"])}


def without_marks(text: str) -> str:
    """Take away what WikiHow's markup left in HellaSwag, as the common harness does."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def winogrande(row: Row) -> Row:
    kept = {key: row[key] for key in ("sentence", "option1", "option2")}
    return {**kept, "gold": int(row["answer"]) - 1}


def boolq(row: Row) -> Row:
    kept = {key: row[key] for key in ("passage", "question")}
    return {**kept, "choices": ["no", "yes"], "gold": int(row["answer"])}


def siqa(row: Row) -> Row:
    choices = [row["answerA"], row["answerB"], row["answerC"]]
    kept = {key: row[key] for key in ("context", "question")}
    return {**kept, "choices": choices, "gold": int(row["label"]) - 1}


def lambada(row: Row) -> Row:
    context, _, target = row["text"].rpartition(" ")
    return {"context": context, "target": target}


SOURCES: dict[str, Source] = {
    "piqa": Source("baber/piqa", None, "validation", piqa),
    "hellaswag": Source("Rowan/hellaswag", None, "validation", hellaswag),
    "winogrande": Source("allenai/winogrande", "winogrande_xl", "validation", winogrande),
    "arc_easy": Source("allenai/ai2_arc", "ARC-Easy", "test", lettered("question")),
    "arc_challenge": Source("allenai/ai2_arc", "ARC-Challenge", "test", lettered("question")),
    "boolq": Source("google/boolq", None, "validation", boolq),
    "siqa": Source("lighteval/siqa", None, "validation", siqa),
    "commonsenseqa": Source("tau/commonsense_qa", None, "validation", lettered("question")),
    "openbookqa": Source("allenai/openbookqa", "main", "test", lettered("question_stem")),
    "lambada": Source("EleutherAI/lambada_openai", "default", "test", lambada),
}


def fetch(flags: argparse.Namespace) -> int:
    for name in choose(flags.tasks, SETS, "--tasks"):
        file = flags.data_root / SETS[name].file
        if file.is_file():
            print(f"{name}: {file} is there")
            continue
        rows = converted(name, load(name, file, flags.copies))
        write_rows(file, rows)
        print(f"{name}: {len(rows):,} rows in {file}")
    return 0


def load(name: str, file: Path, copies: Path | None) -> Iterable[Row]:
    """Return the rows of a task's repository.

    Raises:
      ValueError: it can neither be reached nor is it in the local copies, or lacks what is wanted;
        where it was looked for, and what else can be done.
    """
    datasets: Any = import_extra("datasets", "hf")
    source = SOURCES[name]
    path = source.repository if copies is None else str(copies / source.repository)
    there = copies is None or Path(path).is_dir()
    require(there, "--copies", str(copies), f"{path} is missing, a copy of {source.repository}")
    try:
        return datasets.load_dataset(path, source.config, split=source.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        where = "from the Hugging Face Hub" if copies is None else "as a copy of its repository"
        raise ValueError(
            f"task {name!r}: {path} (config {source.config}, split {source.split}) cannot be "
            f"loaded {where}: {type(error).__name__}: {first[:200]}. Take a machine that reaches "
            f"huggingface.co, give --copies (a whole copy), or put {file} there by hand "
            "(docs/evaluation.md, Data)"
        ) from error


def converted(name: str, rows: Iterable[Row]) -> list[Row]:
    """Return our rows of a repository's.

    Raises:
      ValueError: a row that lacks a column, or whose answer is none of its choices.
    """
    source, found = SOURCES[name], []
    for i, row in enumerate(rows):
        try:
            found.append(source.convert(row))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"task {name!r}: row {i} of {source.repository} is not as expected: "
                f"{type(error).__name__}: {error}; its columns are {', '.join(row)}"
            ) from error
    return found


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write JSON lines, whole or not at all; the same rows give the same bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, gzip.compress(text.encode(), mtime=0))


FLAGS = (
    flag("--tasks", "all", "all, or a comma-separated list"),
    flag("--data-root", DEFAULTS[0], "where files are made", makes="folder", type=Path),
    flag("--copies", None, "folder of copies of the Hub's repositories", type=Path),
)
HELP = "zero-shot files from the Hugging Face Hub"
COMMAND = Command("fetch", HELP, __doc__, FLAGS, fetch)
