"""Odd input to every command: exit status 2 and a message that names it, never a traceback.

`main` lets an error through that is a defect, and the test fails with it.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_root import untrained, write_root
from tiny import write_data

from eval.__main__ import main


class Place(NamedTuple):
    """A data root, a checkpoint, and a folder with odd files."""

    root: Path
    run: Path
    odd: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("odd")
    root = write_root(folder / "root")
    run = untrained(folder / "run", write_data(folder / "data"))
    odd = folder / "odd"
    odd.mkdir()
    (odd / "file").write_text("text")
    (odd / "empty").mkdir()
    (odd / "empty.json").write_text("")
    (odd / "cut.json").write_text('{"task": "zeroshot", "subj')
    (odd / "list.json").write_text("[1, 2]")
    (odd / "other.json").write_text('{"task": "suite", "metrics": {}}')
    (odd / "latin.json").write_bytes('{"task": "caf\u00e9"}'.encode("latin-1"))
    (odd / "types.json").write_text(json.dumps(RESULT | {"subject": "me"}))
    (odd / "subject.json").write_text(json.dumps(RESULT))
    subject = {"name": "n", "step": 1, "block": "b", "parameters": 2}
    groups = RESULT | {"subject": subject, "metrics": {"piqa": 3}}
    (odd / "groups.json").write_text(json.dumps(groups))
    return Place(root, run, odd)


RESULT = {"task": "t", "subject": {}, "metrics": {}, "seconds": 1.0, "device": "cpu"}


def said(words: str, place: Place, capsys: Any) -> str:
    """Run a command that must end with 2, and return what it said."""
    names = {"ROOT": place.root, "RUN": place.run, "ODD": place.odd}
    for name, path in names.items():
        words = words.replace(name, str(path))
    assert main(words.split(" ")) == 2
    return capsys.readouterr().err


COMMANDS = [
    ("nosuch", "task 'nosuch': wants one of babi, books"),
    ("zeroshot", "--checkpoint=None: wants a workdir"),
    ("zeroshot --checkpoint ODD/missing", "missing"),
    ("zeroshot --checkpoint ODD/file", "file"),
    ("zeroshot --checkpoint ODD/empty", "wants a workdir with checkpoints"),
    ("zeroshot --checkpoint RUN/checkpoints/7", "7"),
    ("zeroshot --checkpoint RUN --out ODD/empty", "--out='{odd}/empty': is a folder"),
    ("zeroshot --checkpoint RUN --out ODD/file/a.json", "file"),
    ("zeroshot --checkpoint RUN --plots ODD/file", "--plots='{odd}/file': is a file"),
    ("zeroshot --checkpoint RUN --data-root ODD/file", "{odd}/file"),
    ("zeroshot --checkpoint RUN --data-root ODD/empty", "not found in {odd}/empty"),
    ("zeroshot --checkpoint RUN --tasks pika", "--tasks='pika': wants all, or some of piqa"),
    ("zeroshot --checkpoint RUN --tasks ,", "--tasks=',': wants all, or some of piqa"),
    ("zeroshot --checkpoint RUN --max-samples -1", "--max-samples=-1: wants 0 or more"),
    ("zeroshot --checkpoint RUN --max-samples many", "--max-samples: invalid int value: 'many'"),
    ("zeroshot --checkpoint RUN --batch-size 0", "--batch-size=0: wants 1 or more"),
    ("zeroshot --checkpoint RUN --seed -1", "--seed=-1: wants 0 or more"),
    ("zeroshot --checkpoint RUN --mesh 1,1", "--mesh='1,1': wants DATA,FSDP,MODEL"),
    ("zeroshot --checkpoint RUN --mesh 0,1,1", "mesh"),
    ("zeroshot --checkpoint RUN --mesh 1,--1,1", "--mesh='1,--1,1'"),
    ("zeroshot --checkpoint RUN --mesh 9,9,9", "mesh"),
    ("zeroshot --checkpoint RUN --memorize-steps 2", "--memorize=False: other --memorize flags"),
    ("zeroshot --checkpoint RUN --memorize --memorize-steps 0", "--memorize-steps=0: wants 1"),
    (
        "zeroshot --checkpoint RUN --data-root ROOT --memorize --memorize-paths titen",
        "--memorize-paths='titen': wants all, or some of titan",
    ),
    (
        "zeroshot --checkpoint RUN --data-root ROOT --memorize --memorize-layers 9",
        "--memorize-layers='9': wants all, last, or indices below 2",
    ),
    (
        "zeroshot --checkpoint RUN --memorize --memorize-surprise-threshold nan",
        "--memorize-surprise-threshold=nan: wants a finite number",
    ),
    ("niah --checkpoint RUN --context-lengths 0", "--context-lengths='0': wants tokens"),
    ("niah --checkpoint RUN --context-lengths 1e3", "--context-lengths='1e3': wants tokens"),
    ("niah --checkpoint RUN --context-lengths 9 --data-root ROOT --haystack noise", "tokens at l"),
    ("niah --checkpoint RUN --context-lengths 99999", "context length=99999: full attention"),
    ("niah --checkpoint RUN --variants s9", "--variants='s9': wants all, or some of s1"),
    ("niah --checkpoint RUN --haystack hay", "--haystack: invalid choice: 'hay'"),
    ("niah --checkpoint RUN --max-new-tokens -1", "--max-new-tokens=-1: wants 0 or more"),
    ("passkey --checkpoint RUN --samples-per-length 0", "--samples-per-length=0: wants 1 or more"),
    ("perplexity --checkpoint RUN --segments poems", "--segments='poems': wants all, or some"),
    ("perplexity --checkpoint RUN --data-root ROOT --split valid", "valid"),
    ("books --checkpoint RUN --context-tokens 99999", "--context-tokens=99999: full attention"),
    ("books --checkpoint RUN --segments poems", "--segments='poems': wants all, or some"),
    ("babi --checkpoint RUN --tasks qa6", "--tasks='qa6': wants all, or some of qa1"),
    ("babi --checkpoint RUN --data-root ROOT --stories file", "long_context/babi/en_test"),
    ("recall --checkpoint RUN", "wants a checkpoint of configs/synthetic.py"),
    ("recall --checkpoint RUN --spec nosuch", "nosuch"),
    ("recall --checkpoint RUN --spec mqar,tokens=64 --lengths 9", "wants at most 320 symbols"),
    ("continual --checkpoint RUN --then ODD/missing", "missing"),
    ("continual --checkpoint RUN --then ODD/file", "file"),
    ("classification --checkpoint RUN --learners none", "--learners='none': wants all, or some"),
    (
        "classification --checkpoint RUN --data-root ROOT --dataset banking77 --increments domains",
        "--increments='domains': only clinc150 and --segments have domains",
    ),
    ("harness --checkpoint RUN --num-fewshot -1", "--num-fewshot=-1: wants 0 or more"),
    ("harness --checkpoint RUN --tasks nosuch", "--tasks='nosuch': wants all, or some of piqa"),
    ("compare --checkpoint RUN --to ODD/missing", "checkpoint='{odd}/missing': wants the folder"),
    ("compare --checkpoint RUN --to ODD/file", "checkpoint='{odd}/file': wants the folder"),
    ("compare --checkpoint RUN --to RUN --task pika", "--task='pika': wants one of babi"),
    ("compare --checkpoint RUN --to RUN --out ODD/empty", "--out='{odd}/empty': is a folder"),
    ("compare --checkpoint RUN --to RUN -- --nosuch 1", "unrecognized arguments: --nosuch"),
    ("suite --checkpoint RUN --preset huge", "--preset='huge': wants one of smoke"),
    ("suite --checkpoint RUN --tasks pika", "--tasks='pika': wants all, or some of zeroshot"),
    ("suite --checkpoint RUN --out-dir ODD/file", "--out-dir='{odd}/file': is a file"),
    ("suite --checkpoint ODD/missing", "checkpoint='{odd}/missing'"),
    (
        "suite --checkpoint RUN -- --nosuch 1",
        "--='--nosuch': none of zeroshot, perplexity",
    ),
    ("suite --checkpoint RUN -- seven", "arguments after --='seven': wants flags"),
    ("summary ODD/missing.json", "no such file"),
    ("summary ODD/empty", "file='{odd}/empty': a folder without .json files"),
    ("compare --checkpoint RUN", "wants it and --to, or --results"),
    ("compare --results ODD/empty", "--results='{odd}/empty': wants two or more"),
    ("compare --results ODD/empty ODD/empty", "--results='{odd}/empty': a folder without"),
    ("compare --results ODD/list.json ODD/empty", "is no result of a task"),
    ("perplexity --checkpoint RUN --segments ODD/empty", "no text there"),
    ("perplexity --checkpoint RUN --segments ODD/nosuch.txt", "nosuch.txt': wants all, or some"),
    (
        "perplexity --checkpoint RUN --segments ODD/empty.json",
        "--segments='{odd}/empty.json': no text in 1 file(s)",
    ),
    (
        "inspect --checkpoint RUN --text ODD/empty.json",
        "--text='{odd}/empty.json': no text in 1 file(s)",
    ),
    ("perplexity --checkpoint RUN --segments ODD/file --held-out 0.7", "--held-out=0.7: wants"),
    ("classification --checkpoint RUN --segments ODD/empty", "no text there"),
    ("summary ODD/empty.json", "empty.json: not JSON"),
    ("summary ODD/cut.json", "cut.json: not JSON"),
    ("summary ODD/latin.json", "latin.json: not JSON"),
    ("summary ODD/list.json", "is no result of a task"),
    ("summary ODD/other.json", "lacks subject, seconds, device"),
    ("summary ODD/types.json", "types.json: subject: is a JSON str; wants an object"),
    ("summary ODD/subject.json", "subject.json: subject: lacks name, step, block"),
    ("summary ODD/groups.json", "groups.json: metrics: piqa=3: wants dict"),
    ("release --checkpoint RUN --out ODD/empty", "--out='{odd}/empty': exists"),
    ("release --checkpoint RUN --out ODD/r --results ODD/empty", "a folder without .json files"),
    ("release --checkpoint RUN --out ODD/r --results ODD/cut.json", "cut.json: not JSON"),
    ("release --checkpoint ODD/empty --out ODD/r", "wants a workdir with checkpoints"),
    ("release --checkpoint RUN --out ODD/file/r", "{odd}/file"),
    ("fetch --tasks pika", "--tasks='pika': wants all"),
    ("fetch --data-root ODD/file", "--data-root='{odd}/file': is a file"),
    ("curves ODD/empty --out ODD/a.png", "RUN='{odd}/empty': no"),
    ("curves ODD/file --out ODD/a.png", "RUN='{odd}/file': no"),
    ("curves RUN --out ODD/empty", "--out='{odd}/empty': is a folder"),
    ("curves RUN --out ODD/a.xyz", "--out='{odd}/a.xyz': wants a name that ends with .png or"),
    ("curves RUN --out ODD/a.png --smooth -1", "--smooth=-1: wants 1 or more"),
    ("proof --suite nosuch", "--suite: invalid choice: 'nosuch'"),
    ("proof --quick --full", "--quick=True: wants one of --quick, --full"),
    ("proof --jobs -1", "--jobs=-1: wants 0 or more"),
    ("proof --list --rate nan", "--rate=nan: wants a finite number"),
    ("proof --list --seed -1", "--seed=-1: wants 0 or more"),
    ("proof --list --suite text --text ODD/file", "--text='{odd}/file': wants a folder"),
    (
        "proof --suite text --quick --tables --report ODD/empty",
        "--report='{odd}/empty': is a",
    ),
    ("proof --suite text --quick --tables --records ODD/file", "--records='{odd}/file': is a file"),
    ("proof --suite text --quick --tables --out ODD/file", "--out='{odd}/file': is a file"),
]


@pytest.mark.parametrize(("words", "want"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_a_command_line_that_cannot_be(words: str, want: str, place: Place, capsys: Any) -> None:
    assert want.format(odd=place.odd) in said(words, place, capsys)


PIQA = "zero_shot/piqa/validation.jsonl"
CLINC = "continual/clinc150/test.jsonl"
BABI = "long_context/babi/en_test.jsonl"
CODE = "lm/code/test.jsonl"
QUESTION = {"query": "Why?", "choices": ["a", "b"], "gold": 1}
STORY = {
    "task": 1, "context": ["Mary went to the office."], "line_no": [1],
    "question": "Where is Mary?", "answer": "office", "supporting": [1],
}  # fmt: skip
ZERO = "zeroshot --checkpoint RUN --tasks piqa"
STORIES = "babi --checkpoint RUN --stories file --tasks qa1 --haystack noise"
INTENTS = "classification --checkpoint RUN"


def row(base: dict[str, Any], **changes: Any) -> str:
    """Return a good row and, below it, one with changes; a change to None takes a column away."""
    changed = {k: v for k, v in {**base, **changes}.items() if v is not None}
    return f"{json.dumps(base)}\n{json.dumps(changed)}\n"


FILES: list[tuple[str, str, Any, str]] = [
    (ZERO, PIQA, "", "piqa/validation.jsonl: is empty"),
    (ZERO, PIQA, "\n\n", "piqa/validation.jsonl: is empty"),
    (ZERO, PIQA, row(QUESTION)[:-9], "validation.jsonl:2: is not JSON"),
    (ZERO, PIQA, row(QUESTION, query="caf\u00e9").encode("utf-16"), "text in UTF-16"),
    (ZERO, PIQA, '{"query": "caf\u00e9"}\n'.encode("latin-1"), "jsonl:1: is not UTF-8"),
    (ZERO, PIQA, "[1, 2]", "jsonl:1: is a JSON int; wants an object"),
    (ZERO, PIQA, '"Why?"\n', "jsonl:1: is a JSON str; wants an object"),
    (ZERO, PIQA, row(QUESTION, choices="ab"), "jsonl:2: choices='ab': wants list"),
    (ZERO, PIQA, row(QUESTION, choices=[1, 2]), "jsonl:2: choices=[1, 2]: wants a list of str"),
    (ZERO, PIQA, row(QUESTION, choices=[]), "jsonl:2: choices=[]: wants a list of str"),
    (ZERO, PIQA, row(QUESTION, choices=["a"], gold=0), "jsonl:2: choices=['a']: wants two"),
    (ZERO, PIQA, row(QUESTION, choices=["a", " "]), "jsonl:2: choices"),
    (ZERO, PIQA, row(QUESTION, query=7), "jsonl:2: query=7: wants str"),
    (ZERO, PIQA, row(QUESTION, query=None), "jsonl:2: lacks query"),
    (ZERO, PIQA, row(QUESTION, gold="1"), "jsonl:2: gold='1': wants int"),
    (ZERO, PIQA, row(QUESTION, gold=True), "jsonl:2: gold=True: wants int"),
    (ZERO, PIQA, row(QUESTION, gold=2), "jsonl:2: gold=2: is none of the choices"),
    (ZERO, PIQA, row(QUESTION, gold=-1), "jsonl:2: gold=-1: is none of the choices"),
    (STORIES, BABI, row(STORY, task=21), "jsonl:2: task=21: wants 1 to 20"),
    (STORIES, BABI, row(STORY, supporting=[5]), "jsonl:2: supporting=[5]: wants some of line_no"),
    (STORIES, BABI, row(STORY, line_no=[1, 2]), "jsonl:2: line_no=[1, 2]: wants 1"),
    (STORIES, BABI, row(STORY, context="Mary"), "jsonl:2: context='Mary': wants list"),
    (STORIES, BABI, row(STORY | {"task": 2}), "--tasks='qa1':"),
    (INTENTS, CLINC, row({"text": "pay", "intent": "pay_bill"}), "test examples of='open_account"),
    (INTENTS, CLINC, row({"text": "pay", "intent": "oos"}), "has no label but oos"),
    (INTENTS, CLINC, row({"text": "pay", "intent": "x"}, intent=3), "jsonl:2: intent=3: wants str"),
    (INTENTS, CLINC, row({"text": "a", "intent": "x"}, domain=3), "jsonl:2: domain=3: wants str"),
    ("perplexity --checkpoint RUN --segments code", CODE, row({"text": "a"}, text=1), "2: text=1"),
    ("perplexity --checkpoint RUN --segments code", CODE, row({"text": ""}), "tokens in the texts"),
    ("books --checkpoint RUN --segments code", CODE, row({"text": ""}), "tokens in the texts"),
    (
        "niah --checkpoint RUN --haystack noise --context-lengths 300",
        "long_context/english_words.txt",
        "\n12\n",
        "english_words.txt': has 0 words",
    ),
    (
        "niah --checkpoint RUN --variants s2 --context-lengths 300",
        "lm/literary_novels/test.jsonl",
        row({"text": " "}),
        "--haystack='essay': has no sentence",
    ),
]


@pytest.mark.parametrize(("words", "name", "content", "want"), FILES)
def test_a_data_file_that_cannot_be(
    words: str, name: str, content: Any, want: str, place: Place, tmp_path: Path, capsys: Any
) -> None:
    """Each says the file, the line and the column."""
    file = damaged(place, tmp_path, name)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert want in said(f"{words} --data-root {tmp_path / 'root'}", place, capsys)


def damaged(place: Place, tmp_path: Path, name: str) -> Path:
    """Return the path of a file in a copy of the data root, for another content."""
    shutil.copytree(place.root, tmp_path / "root")
    file = tmp_path / "root" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    return file


def test_a_compressed_file_that_is_cut(place: Place, tmp_path: Path, capsys: Any) -> None:
    file = damaged(place, tmp_path, PIQA)
    packed = gzip.compress(row(QUESTION).encode() * 99)
    file.with_name("validation.jsonl.gz").write_bytes(packed[:-20])
    text = said(f"{ZERO} --data-root {tmp_path / 'root'}", place, capsys)
    assert "validation.jsonl.gz" in text
    assert "truncated or damaged" in text


LINE = {"step": 1, "tokens": 8, "loss": 2.0, "ppl": 7.4, "step_s": 0.1}
LOGS: list[tuple[str, str]] = [
    ("", "has no training lines"),
    (f"{json.dumps(LINE)}\n{{'st", "metrics.jsonl:2: is not JSON"),
    ("[1]\n", "metrics.jsonl:1: is a JSON int; wants an object"),
    ("3\n", "metrics.jsonl:1: is a JSON int; wants an object"),
    (json.dumps(LINE | {"step": "one"}), "metrics.jsonl:1: step='one': wants int"),
    (json.dumps({"step_s": 0.1}), "metrics.jsonl:1: lacks step"),
    (json.dumps(LINE | {"loss": "low"}), "metrics.jsonl:1: loss='low': wants a number"),
    (json.dumps(LINE) + '\n{"step": 1, "valid_loss": [2]}', "metrics.jsonl:2: valid_loss=[2]"),
]


@pytest.mark.parametrize(("text", "want"), LOGS)
def test_a_log_that_cannot_be(
    text: str, want: str, place: Place, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert want in said(f"curves {tmp_path} --out {tmp_path}/a.png", place, capsys)


def test_there_are_many_of_them() -> None:
    """The list above is what was tried; it is not to become shorter by accident."""
    assert len(COMMANDS) + len(FILES) + len(LOGS) >= 120
    commands: Callable[[str], str] = lambda words: words.split()[0]  # noqa: E731
    assert len({commands(words) for words, _ in COMMANDS}) == 19
