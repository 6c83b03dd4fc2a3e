"""Which items a result is of: a hash of what was asked, in order, whatever was answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ASKED = "asked"  # of an item: the hash of its text, its choices and its right answer
DIGITS = 16


def item_hash(*what: Any) -> str:
    """Return the hash of what an item asks: texts, token ids, and lists of them."""
    return hashlib.sha256(json.dumps(what, default=list).encode()).hexdigest()[:DIGITS]


def items_sha256(items: Iterable[Mapping[str, Any]]) -> str:
    """Return the hash of what items ask, in their order."""
    return hashlib.sha256("\n".join(item[ASKED] for item in items).encode()).hexdigest()


def first_difference(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> str:
    """Return where two lists of items begin to differ."""
    for x, y in zip(a, b, strict=False):
        if (x["id"], x[ASKED]) != (y["id"], y[ASKED]):
            same = x["id"] == y["id"]
            return f"{x['id']} asks something else" if same else f"{x['id']} and {y['id']}"
    return f"{len(a)} and {len(b)} items"
