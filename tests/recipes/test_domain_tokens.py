"""The domain-token experiment: its text, its report, and the whole chain, also killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT, environment

from eval.core.datasets import DataRoot
from eval.core.stats import mcnemar
from eval.tasks.probes import controls, probes
from nested_jax.data.chat.templates import messages_of
from recipes.domain_tokens import report, text
from recipes.domain_tokens.__main__ import main
from recipes.domain_tokens.run import RUNS

SHARED = ROOT.parent / "shared/data"


# --- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["nowhere", pytest.param(str(SHARED), id="samples")])
def test_text_of_samples_and_stand_ins(root: str, tmp_path: Path) -> None:
    if root != "nowhere" and not SHARED.is_dir():
        pytest.skip("wants ../shared/data")
    source = DataRoot(root if root != "nowhere" else tmp_path)
    documents = {s: [r["text"] for r in text.corpus(source, s, 30_000)] for s in ("train", "valid")}
    assert all(sum(map(len, d)) >= 30_000 for d in documents.values())
    assert not set(documents["train"]) & set(documents["valid"])
    chat = text.conversations(source, "train", 5, 200)
    assert chat == text.conversations(source, "train", 5, 200)
    assert len(chat) == 205
    for i, row in enumerate(chat):
        assert messages_of(row, f"x:{i}")[-1].content
    for row in text.problems(source, "train", 9):
        assert "#### " in row["answer"]
    said: list[str] = []
    made = DataRoot(text.small_root(source, tmp_path / "root", said.append))
    rows = list(made.rows("zero_shot/hellaswag/validation.jsonl.gz", query=str, gold=int))
    assert len(rows) > 100
    assert len(said) == (2 if root == "nowhere" else 0)


def test_arithmetic_conversations_are_right() -> None:
    rng = random.Random(0)
    for _ in range(300):
        question, answer = (turn["content"] for turn in text.arithmetic(rng))
        a, b = (int(x) for x in question.replace("?", " ").replace(".", " ").split() if x.isdigit())
        c = a + b if "plus" in question else a * b
        assert answer.rstrip(".").endswith(f" {c}")


# --- the report ----------------------------------------------------------------------------------


def item(group: str, correct: bool, number: int) -> dict[str, Any]:
    return {
        "id": str(number),
        "group": group,
        "question": "q",
        "gold": "1",
        "answer": None,
        "response": "r",
        "correct": correct,
        "tokens": 2,
        "domain_tokens": 1,
    }


def test_what_the_report_says_of_probes(tmp_path: Path) -> None:
    """Accuracies beside their controls, paired tests by category."""
    asked, found = probes(), {}
    for condition, right in (("baseline", 12), ("mul_tokens", 40)):
        items = [item(p.group, i < right, i) for i, p in enumerate(asked)]
        groups: dict[str, Any] = {}
        for name in ("all", *report.GROUPS):
            own = [x for x in items if name in ("all", x["group"])]
            hits = sum(x["correct"] for x in own)
            group = [p for p in asked if name in ("all", p.group)]
            groups[name] = {
                "accuracy": hits / len(own),
                "accuracy_interval": report.wilson(hits, len(own)),
                "digits": 0.0,
                "domain_tokens": len(own),
                "domain_tokens_per_answer": 1.0,
                "tokens_per_answer": 2.0,
                "n": len(own),
                **controls(group),
            }
        file = tmp_path / f"{condition}.json"
        file.write_text(json.dumps({"metrics": groups, "items": items}))
        found[f"score probes after gsm8k/{condition}"] = {"file": str(file)}
    numbers = {c: report.probe_numbers(found, "gsm8k", c) for c in ("baseline", "mul_tokens")}
    tables = {c: n["category_accuracies"]["mul_table"] for c, n in numbers.items()}
    assert (tables["baseline"]["correct"], tables["mul_tokens"]["correct"]) == (12, 40)
    assert not tables["baseline"]["above_controls"], "12 of 81 is about the copy control"
    assert tables["mul_tokens"]["above_controls"]
    assert numbers["mul_tokens"]["total_correct"] == 40
    pair = [report.result(found, "probes", "gsm8k", c) for c in ("baseline", "mul_tokens")]
    want = mcnemar([i < 12 for i in range(81)], [i < 40 for i in range(81)])
    assert report.paired(pair, "mul_table") == want < 0.05
    assert report.paired([pair[0], None]) is None
    assert report.probe_numbers(found, "tulu", "baseline") == {}


def test_bad_input(tmp_path: Path, capsys: Any) -> None:
    assert main(["--quick", "--skip-baseline", "--skip-mul-tokens", "--out", str(tmp_path)]) == 2
    assert "leaves no condition to run" in capsys.readouterr().err
    assert main(["--quick", "--skip-data", "--out", str(tmp_path)]) == 2
    assert "--skip-data wants the shards and the tokenizer" in capsys.readouterr().err
    assert main(["--out", str(tmp_path)]) == 2
    assert "--tokenizer='': wants GPT-2's vocabulary" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- the whole chain -----------------------------------------------------------------------------


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "recipes.domain_tokens", "--size", "tiny", "--out", str(out)]
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *words], cwd=ROOT, env=env, **pipes)  # type: ignore[call-overload]


def finished(out: Path, *words: str) -> dict[str, Any]:
    process = start(out, *words)
    said, _ = process.communicate()
    assert process.returncode == 0, said[-4000:]
    return json.loads((out / "report.json").read_text())


def numbers(made: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on the time or the folder."""
    found: dict[str, Any] = {}
    for c in ("baseline", "mul_tokens"):
        runs = made[c]["runs"]
        for stage in RUNS:
            found[f"{c} {stage}"] = [
                runs[stage][k] for k in ("step", "tokens", "train_loss", "valid_loss")
            ]
        found[f"{c} data"] = made[c]["data"]
        found[f"{c} hellaswag"] = made[c]["hellaswag"]
        found[f"{c} probes"] = made[c]["arithmetic"]
        found[f"{c} examples"] = made[c]["gsm8k"]["examples"]
    return found


@pytest.mark.slow
def test_the_whole_chain_and_killed_in_the_middle(tmp_path: Path) -> None:
    """Killed at random moments and started again, it ends with the numbers of a whole run."""
    made = finished(tmp_path / "whole", "--data-root", str(tmp_path / "none"))
    page = (tmp_path / "whole/report.md").read_text()
    assert "The times table is above both controls" in page
    assert (tmp_path / "whole/hellaswag.png").stat().st_size > 5000
    data = {c: made[c]["data"] for c in ("baseline", "mul_tokens")}
    assert data["baseline"]["domain_tokens"] == 0 < data["mul_tokens"]["domain_tokens"]
    assert all(d["unique_tokens"] >= 20_000 for d in data.values())
    assert {"gsm8k", "arithmetic", "arithmetic_by_category", "mul_token_usage"} == set(
        made["comparison"]
    )
    again = finished(tmp_path / "whole", "--data-root", str(tmp_path / "none"))
    assert numbers(again) == numbers(made)

    rng, kills = random.Random(7), 0
    while kills < 6:
        process = start(tmp_path / "cut", "--data-root", str(tmp_path / "none"))
        try:
            process.wait(rng.uniform(6, 25))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.1)
        else:
            break
    assert kills >= 2
    cut = finished(tmp_path / "cut", "--data-root", str(tmp_path / "none"))
    assert numbers(cut) == numbers(made)
