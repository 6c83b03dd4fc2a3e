"""Presets of the suite: their flags exist, and lengths that a model cannot hold are named."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.results.suite import PRESETS, fit_lengths, plan, task_flags


def subject(limit: int | None) -> Any:
    return SimpleNamespace(name="run", reader=SimpleNamespace(limit=limit))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_flags_of_its_tasks(preset: str, tmp_path: Path) -> None:
    found = task_flags(plan(preset, "all"), tmp_path, [])
    assert set(found) == set(PRESETS[preset])


def test_presets_reach_as_far_as_they_say() -> None:
    last = {name: PRESETS[name]["niah"][1].split(",")[-1] for name in PRESETS}
    assert last == {"smoke": "256", "pilot": "8192", "mid": "32768", "target": "65536"}
    assert all(PRESETS[n]["perplexity"][:2] == ["--max-tokens", "0"] for n in ("mid", "target"))


def test_lengths_that_full_attention_cannot_hold_are_left_out_and_named() -> None:
    flags = Namespace(context_lengths="512,2048,4096")
    assert fit_lengths("niah", flags, subject(None)) == []
    (said,) = fit_lengths("niah", flags, subject(2100))
    assert said.startswith("niah: lengths 4096 are left out: full attention of run holds 2100")
    assert flags.context_lengths == "512,2048"
    with pytest.raises(ValueError, match=r"--context-lengths='512,2048': full attention of run"):
        fit_lengths("niah", flags, subject(520))
    books = Namespace(context_tokens=32768)
    assert fit_lengths("books", books, subject(4096)) == [
        "books: 4096 tokens of each text, not 32768"
    ]
    assert books.context_tokens == 4096
