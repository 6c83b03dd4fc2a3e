"""Recall at several lengths: chance without training, and answers that are counted right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_root import save_untrained

from eval.__main__ import main
from eval.core.stats import wilson
from eval.tasks import recall
from nested_jax.config import from_config_dict
from nested_jax.data.synthetic.rows import task_of
from nested_jax.train.task_scores import Answers

SPEC = "needle,vocab=34,tokens=24,value_tokens=2"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields: dict[str, Any] = {
        "model": {
            "vocab_size": 34,
            "dim": 16,
            "layers": 1,
            "heads": 2,
            "mlp_hidden": 24,
            "max_len": 96,
        },
        "data": {"source": "synthetic", "task": {"train": [SPEC]}, "seq_len": 24},
    }
    return save_untrained(from_config_dict(fields), tmp_path_factory.mktemp("recall") / "run")


def test_an_untrained_model_is_at_chance_at_every_length(checkpoint: Path, tmp_path: Path) -> None:
    out, plots = tmp_path / "recall.json", tmp_path / "plots"
    words = ["--lengths", "24,48,96", "--samples", "64", "--save-items"]
    command = ["recall", "--checkpoint", str(checkpoint), "--out", str(out), *words]
    assert main([*command, "--plots", str(plots)]) == 0
    result = json.loads(out.read_text())
    assert [g["times"] for g in result["metrics"].values()] == [1.0, 2.0, 4.0]
    for group in result["metrics"].values():
        low, high = wilson(group["accuracy"] * 64, 64, 3.3)
        assert low <= group["chance"] == 1 / 64 <= high
        assert group["loss"] == pytest.approx(np.log(34), abs=0.7)
    assert (plots / "recall.png").stat().st_size > 5000
    assert main([*command, "--batch-size", "7"]) == 0
    assert json.loads(out.read_text())["items_sha256"] == result["items_sha256"]
    assert len(result["items_sha256"]) == 64
    again = json.loads(out.read_text())["items"]
    assert [r["correct"] for r in again] == [r["correct"] for r in result["items"]]
    losses = [[r["loss"] for r in rows] for rows in (again, result["items"])]
    np.testing.assert_allclose(*losses, atol=1e-5)


def test_right_answers_are_counted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that copies scores 100; one that has half of the answers right scores 0."""
    from eval.core.subject import load_subject

    subject = load_subject(checkpoint)
    flags = recall.TASK.parser().parse_args(["--samples", "9", "--lengths", "24"])
    for wrong, accuracy, token in ((0, 1.0, 1.0), (1, 0.0, 0.5)):

        def copies(model: Any, params: Any, batch: Any, wrong: int = wrong, **_: Any) -> Answers:
            last = np.zeros(batch.targets_BT.shape, np.int32)
            last[:, -1] = wrong
            return Answers(batch.targets_BT + last, batch.weights_BT)

        monkeypatch.setattr(recall, "answer", copies)
        (group,) = recall.evaluate(subject, flags).metrics.values()
        assert (group["accuracy"], group["token"]) == (accuracy, token)
    assert recall.summarize([{"correct": True, "token": 1.0, "loss": 0.0}], task_of(SPEC))["n"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recall", "--lengths", "4"], "tokens=4: wants 7 or more"),
        (["recall", "--lengths", "97"], "holds 96 tokens"),
        (["recall", "--lengths", "x"], "--lengths='x'"),
        (["recall", "--spec", "copy"], "wants a task with tokens"),
        (["recall", "--spec", "needle"], "wants at most 34 symbols"),
        (["perplexity", "--segments", "code"], "python -m eval recall scores it"),
    ],
)
def test_what_cannot_be_scored_says_why(
    checkpoint: Path, words: list[str], said: str, capsys: Any, tmp_path: Path
) -> None:
    file = tmp_path / "lm" / "code" / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"text": "x = 1"}\n')
    command = [*words, "--checkpoint", str(checkpoint), "--data-root", str(tmp_path)]
    assert main(command) == 2
    assert said in capsys.readouterr().err
