"""The zero-shot tasks: files, prompts and choices, in the forms of the common harness.

A question has choices, each a pair (context, continuation). CommonsenseQA and SocialIQA are asked
in cloze form, the answer's text after ``Answer:`` or ``A:``; small models cannot read letters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from eval.core.datasets import DataRoot
from nested_jax.errors import require

Row = dict[str, Any]


class Question(NamedTuple):
    """A question with its choices; LAMBADA has one, which is to be the likeliest continuation."""

    id: str
    pairs: list[tuple[str, str]]
    lengths: list[int]  # characters of each choice without the space before it, for acc_norm
    gold: int
    raw: bool = True  # the pairs are the text of the set itself, where that was asked for


@dataclass(frozen=True)
class ZeroShot:
    """A task: its file and columns, how a row becomes contexts and choices, what acc means."""

    file: str
    columns: dict[str, Any]  # and their types
    pairs: Callable[[Row], list[tuple[str, str]]]
    form: str  # as --list-tasks shows it
    kind: str = "choice"  # choice | partial (one continuation, several contexts) | word

    def questions(self, root: DataRoot, limit: int = 0, raw: bool = False) -> Iterator[Question]:
        """Yield the first `limit` questions of the file (0: all), as the set has them if `raw`."""
        rows = root.rows(self.file, **self.columns)
        for i, (where, row) in enumerate(itertools.islice(rows, limit or None)):
            pairs = raw_pairs(row, self.pairs) if raw else self.pairs(row)
            gold = row["gold"] if self.kind != "word" else 0
            several = self.kind == "word" or len(pairs) > 1
            require(several, f"{where}: choices", row.get("choices"), "wants two or more")
            require(0 <= gold < len(pairs), f"{where}: gold", gold, "is none of the choices")
            whole = all(answer.strip() for _, answer in pairs)
            require(whole, f"{where}: choices", [a for _, a in pairs], "wants some text in each")
            lengths = [len(answer.lstrip(" ")) for _, answer in pairs]
            own = not labelled(row) or "ctx" in row
            yield Question(str(row.get("id", i)), pairs, lengths, gold, own)


def after(form: str) -> Callable[[Row], list[tuple[str, str]]]:
    """Return choices after one prompt, each after a space."""

    def pairs(row: Row) -> list[tuple[str, str]]:
        prompt = form.format(**row)
        return [(prompt, f" {choice}") for choice in row["choices"]]

    return pairs


def labelled(row: Row) -> bool:
    """Whether a prompt was made from a label and a context, as HellaSwag's."""
    return isinstance(row.get("activity_label"), str)


def raw_pairs(row: Row, pairs: Callable[[Row], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Return contexts and endings as a set has them; of a prompt with a label, what follows it."""
    if "ctx" in row and "endings" in row:
        return [(row["ctx"], f" {ending}") for ending in row["endings"]]
    label = f"{row['activity_label']}: " if labelled(row) else ""
    return [(before.removeprefix(label), choice) for before, choice in pairs(row)]


def partial_pairs(row: Row) -> list[tuple[str, str]]:
    """Score what follows the blank, after the sentence filled with either option (WinoGrande)."""
    before, _, rest = row["sentence"].partition("_")
    return [(before + row[option], f" {rest.strip()}") for option in ("option1", "option2")]


def word_pairs(row: Row) -> list[tuple[str, str]]:
    return [(row["context"], f" {row['target']}")]


def question_answer(file: str) -> ZeroShot:
    form = "Question: {query}\nAnswer:"
    return choices(file, form, "query")


def choices(file: str, form: str, *columns: str) -> ZeroShot:
    types = dict.fromkeys(columns, str) | {"choices": list[str], "gold": int}
    return ZeroShot(file, types, after(form), form)


FOLDER = "zero_shot"
SETS: dict[str, ZeroShot] = {
    "piqa": question_answer(f"{FOLDER}/piqa/validation.jsonl.gz"),
    "hellaswag": choices(f"{FOLDER}/hellaswag/validation.jsonl.gz", "{query}", "query"),
    "winogrande": ZeroShot(
        f"{FOLDER}/winogrande/validation.jsonl.gz",
        dict.fromkeys(("sentence", "option1", "option2"), str) | {"gold": int},
        partial_pairs,
        "{sentence to the blank}{option}",
        kind="partial",
    ),
    "arc_easy": question_answer(f"{FOLDER}/arc_easy/test.jsonl.gz"),
    "arc_challenge": question_answer(f"{FOLDER}/arc_challenge/test.jsonl.gz"),
    "boolq": choices(
        f"{FOLDER}/boolq/validation.jsonl.gz",
        "{passage}\nQuestion: {question}?\nAnswer:",
        "passage",
        "question",
    ),
    "siqa": choices(
        f"{FOLDER}/social_iqa/validation.jsonl.gz",
        "Q: {context} {question}\nA:",
        "context",
        "question",
    ),
    "commonsenseqa": question_answer(f"{FOLDER}/commonsense_qa/validation.jsonl.gz"),
    "openbookqa": choices(f"{FOLDER}/openbookqa/test.jsonl.gz", "{query}", "query"),
    "lambada": ZeroShot(
        f"{FOLDER}/lambada_openai/test.jsonl.gz",
        {"context": str, "target": str},
        word_pairs,
        "{context}",
        kind="word",
    ),
}
