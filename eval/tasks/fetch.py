"""Files from the Hugging Face Hub: ``python -m eval fetch --tasks all``.

Writes the files that `python -m eval zeroshot --list-tasks` names below --data-root; those that are
there are left alone. Texts are fetched by name: ``--tasks wikitext2,wikitext103,pg19``. Of PG-19
they are the 50 and 100 held-out books, and the first --books books for training. Needs the Hub, or
copies of its repositories below --copies (FOLDER/OWNER/NAME), and `datasets` (``pip install
'nested-jax[hf]'``). Everything else reads the files, without network.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from eval.core.cli import Command
from eval.core.datasets import DEFAULTS
from eval.core.flags import choose, flag
from eval.core.texts import WIKITEXT, corpus_file
from eval.tasks.zeroshot_files import SETS, Row
from nested_jax.data.records import checked_row
from nested_jax.data.splits import SPLITS
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
    raw = {"ctx": row["ctx"], "endings": list(row["endings"])}  # of the completion protocol
    about = {"activity_label": row["activity_label"], "gold": int(row["label"])}
    return {"query": without_marks(query), "choices": choices, **about, **raw}


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


class Text(NamedTuple):
    """A corpus on the Hub; its splits are those of the Hub, `valid` apart."""

    repository: str
    config: str | None
    limited: bool = False  # of its train split, only --books rows are read, as a stream


TEXTS = {
    "wikitext2": Text("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext103": Text("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "pg19": Text("emozilla/pg19", None, limited=True),
}


def fetch(flags: argparse.Namespace) -> int:
    known = (*SETS, *TEXTS)
    names = list(SETS) if flags.tasks == "all" else choose(flags.tasks, known, "--tasks")
    for name in names:
        if name in TEXTS:
            fetch_text(name, flags)
            continue
        file = flags.data_root / SETS[name].file
        if file.is_file():
            print(f"{name}: {file} is there")
            continue
        rows = converted(name, load(name, file, flags.copies))
        write_rows(file, rows)
        print(f"{name}: {len(rows):,} rows in {file}")
    return 0


def fetch_text(name: str, flags: argparse.Namespace) -> None:
    """Write the splits of a corpus that are not there yet.

    Raises:
      ValueError: it cannot be reached, or its rows have no such text.
    """
    about = TEXTS[name]
    for split in SPLITS:
        file = flags.data_root / corpus_file(name, split)
        if file.is_file():
            print(f"{name}: {file} is there")
            continue
        hub = Source(
            about.repository, about.config, "validation" if split == "valid" else split, dict
        )
        limited = about.limited and split == "train"
        more = {"streaming": True} if limited else {}
        rows = load(name, file, flags.copies, hub, **more)
        texts = []
        for i, row in enumerate(itertools.islice(rows, flags.books if limited else None)):
            texts.append(checked_row(row, f"{about.repository}: row {i}", text=str)["text"])
        if name in WIKITEXT:  # rows are lines, and the Hub's empty ones have lost their line end
            whole = "".join(text or " \n" for text in texts)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, gzip.compress(whole.encode(), mtime=0))
        else:
            write_rows(file, [{"id": f"{split}-{i}", "text": t} for i, t in enumerate(texts)])
        print(f"{name}: {len(texts):,} rows in {file}")


def load(
    name: str, file: Path, copies: Path | None, source: Source | None = None, **how: bool
) -> Iterable[Row]:
    """Return the rows of a task's repository.

    Raises:
      ValueError: it can neither be reached nor is it in the local copies, or lacks what is wanted;
        where it was looked for, and what else can be done.
    """
    datasets: Any = import_extra("datasets", "hf")
    source = source or SOURCES[name]
    path = source.repository if copies is None else str(copies / source.repository)
    there = copies is None or Path(path).is_dir()
    require(there, "--copies", str(copies), f"{path} is missing, a copy of {source.repository}")
    try:
        return datasets.load_dataset(path, source.config, split=source.split, **how)
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
    flag("--tasks", "all", f"all (zero-shot), or a list; texts: {', '.join(TEXTS)}"),
    flag("--books", 500, "of PG-19's train split", least=1),
    flag("--data-root", DEFAULTS[0], "where files are made", makes="folder", type=Path),
    flag("--copies", None, "folder of copies of the Hub's repositories", type=Path),
)
HELP = "zero-shot files and texts from the Hugging Face Hub"
COMMAND = Command("fetch", HELP, __doc__, FLAGS, fetch)
