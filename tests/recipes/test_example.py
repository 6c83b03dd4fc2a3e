"""The example checkpoint of the repository: whole, small, and its memories can be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.core.bundle import verify
from eval.core.subject import load_subject
from eval.results.checklist import ITEMS
from eval.tasks.inspect import inspect
from recipes.example import MOST_BYTES

BUNDLE = Path(__file__).resolve().parents[2] / "examples" / "checkpoint"
TEXT = "def main(argv):\n    return parse(argv)\n\n\n" * 6


def test_the_example_is_whole_and_small() -> None:
    made = verify(BUNDLE)
    assert sum(file.stat().st_size for file in BUNDLE.rglob("*") if file.is_file()) < MOST_BYTES
    assert made["block"] == "hope_attention"
    assert set(made["checklist"]) == set(ITEMS)
    assert all(made["checklist"][name]["holds"] for name in ("plots", "checkpoint", "export"))
    summary = json.loads((BUNDLE / "summary.json").read_text())
    assert summary["valid_bits_per_byte"] < 2  # a byte trigram model of the same text: 2.74


@pytest.mark.slow
def test_its_first_write_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = load_subject(BUNDLE)
    found = inspect(subject, subject.tokenizer.encode(TEXT))
    writes = [chunk["memories"]["cms_fast"]["writes"] for chunk in found["chunks"]]
    assert writes[0] == 1
    assert sum(found["tokens"]["gain"]) > 0
    (tmp_path / "a.txt").write_text(TEXT)
    words = ["--text", str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.json")]
    assert main(["inspect", "--checkpoint", str(BUNDLE), *words]) == 0
    assert "## inspect: example, step 300" in capsys.readouterr().out
