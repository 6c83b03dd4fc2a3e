"""Token by token: the numbers are those of the tasks, and what is said to be written was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_root import untrained
from tiny import HOPE, synthetic_text, write_data

from eval.__main__ import main
from eval.core.memorize.options import MemorizeOptions
from eval.core.memorize.write import Memorizer
from eval.core.subject import load_subject
from eval.tasks.inspect import inspect, never_written

TITANS = {"model.block": "titans_lmm", "model.memory.chunk": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("inspect") / "data")


@pytest.mark.slow
def test_it_says_what_reading_and_learning_cost(data: Path, tmp_path: Path) -> None:
    """77 tokens, which no chunk divides; losses are those of `perplexity --memorize`."""
    subject = load_subject(untrained(tmp_path / "run", data, HOPE))
    text = "".join(synthetic_text(i) for i in range(9)) + "ä"
    tokens = [*subject.tokenizer.encode(text)[:75], *subject.tokenizer.encode("ä")[-2:]]
    found = inspect(subject, tokens)
    columns = {key: np.asarray(value) for key, value in found["tokens"].items() if key != "text"}
    memorizer, prefix = Memorizer(subject, MemorizeOptions(on=True)), subject.tokenizer.eos_id
    (learned,) = memorizer.rolling([tokens], prefix, subject.scorer)
    (plain,) = subject.scorer.rolling([tokens], prefix)
    np.testing.assert_allclose(columns["loss_without"], plain, atol=2e-5)
    np.testing.assert_allclose(columns["loss"], learned, atol=2e-5)
    np.testing.assert_allclose(columns["gain"], plain - learned, atol=4e-5)
    assert np.abs(columns["gain"][8:]).min() > 0
    assert (columns["gain"][:7] == 0).all()  # the prefix is one of the first chunk's 8
    assert "".join(found["tokens"]["text"]) == subject.tokenizer.decode(tokens)
    assert {key: len(value) for key, value in columns.items()} == dict.fromkeys(
        columns, len(tokens)
    )
    assert columns["surprise"].min() > 0
    report = memorizer.report()
    rows = [chunk["memories"] for chunk in found["chunks"]]
    for name in ("cms_fast", "cms_mid"):
        assert sum(row[name]["writes"] for row in rows) == report["writes"][name]
        assert rows[-1][name]["change"] == pytest.approx(report["change"][name], abs=1e-5)
        assert all((row[name]["norm"] > 0) == (row[name]["writes"] > 0) for row in rows)


@pytest.mark.slow
def test_a_neural_memory_is_compared_with_its_start(data: Path, tmp_path: Path) -> None:
    subject = load_subject(untrained(tmp_path / "run", data, TITANS))
    tokens = subject.tokenizer.encode(synthetic_text(5) * 3)[:70]
    found = inspect(subject, tokens)
    (frozen,) = never_written(subject).rolling([tokens], subject.tokenizer.eos_id)
    (plain,) = subject.scorer.rolling([tokens], subject.tokenizer.eos_id)
    np.testing.assert_allclose(found["tokens"]["loss_without"], frozen, atol=2e-5)
    np.testing.assert_allclose(found["tokens"]["loss"], plain, atol=2e-5)
    assert np.abs(plain - frozen).max() > 1e-4
    changes = [chunk["memories"]["titan"]["change"] for chunk in found["chunks"]]
    assert changes[0] > 0
    assert "surprise" not in found["tokens"]


def test_a_transformer_gains_exactly_nothing(data: Path, tmp_path: Path, capsys: Any) -> None:
    run = untrained(tmp_path / "run", data)
    (tmp_path / "own.txt").write_text(synthetic_text(3))
    words = ["inspect", "--checkpoint", str(run), "--max-tokens", "30", "--text"]
    assert main([*words, f"{tmp_path}/own.txt"]) == 0
    (file,) = (run / "eval").glob("inspect-*.json")
    detail = json.loads(file.read_text())["detail"]
    assert set(detail["tokens"]["gain"]) == {0.0}
    assert (detail["memories"], detail["chunks"]) == ([], [])
    assert main([*words, "nosuch.txt"]) == 2
    assert "nosuch.txt" in capsys.readouterr().err
