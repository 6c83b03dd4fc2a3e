"""The names of splits, and which of them a file, a folder or a value stands for: the only list.

The words are those of Hugging Face `datasets` and a few more. A name stands for a split where one
of its words does: ``train-00000-of-00010.parquet``, ``wiki.valid.raw``, ``dev/part-3.jsonl``,
``"split": "validation_matched"``. Digits and punctuation end a word: ``testament.txt`` has none.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePath

SPLITS = ("train", "valid", "test")
HELD_OUT = 0.02  # share of the documents in each of valid and test, where the content decides
WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "validate", "validset", "val", "valset"), "valid"),
    **dict.fromkeys(("dev", "devel", "development", "devset"), "valid"),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evalset", "heldout", "holdout"), "test"),
}
WORD = re.compile(r"[^\W\d_]+")


def split_of_name(name: str) -> str | None:
    """Return the split that a name stands for; None where it stands for none.

    Raises:
      ValueError: it stands for two, as ``train-dev`` does.
    """
    words = WORD.findall(name.lower().replace("held-out", "heldout").replace("held_out", "heldout"))
    found = {WORDS[word] for word in words if word in WORDS}
    if len(found) > 1:
        raise ValueError(
            f"{name!r}: stands for the splits {' and '.join(sorted(found))}; name it after one"
        )
    return found.pop() if found else None


def split_of_path(path: PurePath) -> str | None:
    """Return the split that a path below its source stands for, by its folders and its name."""
    return split_of_name(path.as_posix())


def split_of_sha256(sha256: str, held_out: float = HELD_OUT) -> str:
    """Return the split of a document without one of its own, by the hash of its content.

    Args:
      held_out: share of the documents that each of valid and test gets.
    """
    place = int(sha256[:8], 16) / 2**32
    if place < 1 - 2 * held_out:
        return "train"
    return "valid" if place < 1 - held_out else "test"


def split_of_content(text: str, held_out: float = HELD_OUT) -> str:
    return split_of_sha256(hashlib.sha256(text.encode()).hexdigest(), held_out)
