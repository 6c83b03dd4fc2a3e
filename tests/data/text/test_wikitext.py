"""WikiText: one document per article, by a file made by hand and by counts of the real one."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from eval.core.datasets import DataRoot
from eval.core.texts import documents

BLANK = " \n"
ARTICLES = [
    BLANK + " = Constant k filter = \n" + BLANK + " First words .\n"
    " = 1 <unk> / s and a nominal <unk> k = \n 1 <unk> . A formula .\n" + BLANK
    + " = = Uses = = \n" + BLANK + " More words .\n" + BLANK
    + " = = = A = B = = = \n" + BLANK + " Words of a part of a part .\n" + BLANK,
    " = E = mc2 ( song ) = \n" + BLANK + " Q \n = <unk> for the next round \n q = \n A legend .\n"
    + " NR \n = National record \n" + BLANK
    + " = De <unk> : interviews with persons = \n <unk> . ISBN <unk> . \n" + BLANK,
    " = The last = \n" + BLANK + " = Words that begin so = and go on .\n",
]  # fmt: skip


def read(text: str, folder: Path) -> list[tuple[str, str]]:
    file = folder / "lm/wikitext2/test.txt.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()))
    return list(documents(DataRoot(folder), "wikitext2", "test"))


def test_articles_of_a_file_made_by_hand(tmp_path: Path) -> None:
    want = [(f"wikitext2-{i}", text) for i, text in enumerate(ARTICLES)]
    assert read("".join(ARTICLES), tmp_path) == want
    assert read("".join(ARTICLES)[len(BLANK) :], tmp_path)[0][1] == ARTICLES[0][len(BLANK) :]


def test_text_before_the_first_title_is_a_document(tmp_path: Path) -> None:
    got = read(" Words .\n" + "".join(ARTICLES), tmp_path)
    first = ARTICLES[0].removeprefix(BLANK)  # the line before a title belongs to what is before it
    assert [text for _, text in got] == [" Words .\n" + BLANK, first, *ARTICLES[1:]]


def test_an_empty_file_has_none(tmp_path: Path) -> None:
    assert read(BLANK * 3, tmp_path) == []


@pytest.mark.parametrize(("split", "count"), [("train", 600), ("valid", 60), ("test", 60)])
def test_counts_of_wikitext2(split: str, count: int) -> None:
    root = DataRoot()
    if not root.has(f"lm/wikitext2/{split}.txt.gz"):
        pytest.skip("WikiText-2 is not there (docs/evaluation.md)")
    found = [text for _, text in documents(root, "wikitext2", split)]
    assert len(found) == count
    assert "".join(found) == "".join(root.lines(f"lm/wikitext2/{split}.txt.gz"))
