"""GSM8K, probes and the completion protocol on a checkpoint: numbers, controls, going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_root import untrained, write_root, write_rows
from tiny import write_data

import eval.core.scoring
from eval.__main__ import main
from eval.core import answers, partial
from eval.core.subject import load_subject
from eval.tasks import gsm8k
from nested_jax.data.chat.templates import TEMPLATES

FEW = ("--max-tokens", "12", "--batch-size", "8")


class Place:
    def __init__(self, folder: Path) -> None:
        self.root = write_root(folder / "root")
        rows = [
            {"question": f"{i} eggs and {i}?", "answer": f"<<{i}+{i}={2 * i}>>\n#### {2 * i}"}
            for i in range(20)
        ]
        write_rows(self.root / "gsm8k/test.jsonl.gz", rows)
        self.run = untrained(folder / "run", write_data(folder / "data"))

    def score(self, task: str, out: Path, *words: str) -> dict[str, Any]:
        command = [task, "--checkpoint", str(self.run), "--out", str(out)]
        assert main([*command, "--data-root", str(self.root), *words]) == 0
        return json.loads(out.read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("arithmetic"))


def test_gsm8k_and_going_on(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "CHUNK", 8)
    monkeypatch.setattr(gsm8k, "in_parts", lambda *a: partial.in_parts(*a, chunk=8))
    whole = place.score("gsm8k", tmp_path / "whole.json", *FEW, "--save-items")
    assert not list(tmp_path.glob("*.partial")), "it goes when the result is written"
    numbers = whole["metrics"]["gsm8k"]
    assert numbers["n"] == 20
    assert numbers["hit_limit"] == np.mean([item["hit_limit"] for item in whole["items"]])
    assert numbers["tokens_per_answer"] <= 12
    assert [item["gold"] for item in whole["items"]] == [str(2 * i) for i in range(20)]

    calls: list[int] = []
    real = eval.core.scoring.Scorer.generate

    def breaks(self: Any, prompts: Any, *args: Any, **how: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, prompts, *args, **how)

    monkeypatch.setattr(eval.core.scoring.Scorer, "generate", breaks)
    out = tmp_path / "cut.json"
    with pytest.raises(KeyboardInterrupt):
        place.score("gsm8k", out, *FEW, "--save-items")
    kept = out.with_name("cut.json.partial")
    kept.write_bytes(kept.read_bytes() + b'{"half')
    found = place.score("gsm8k", out, *FEW, "--save-items")
    assert calls == [8, 8, 4, 4]
    assert found["items"] == whole["items"]
    calls.clear()
    calls.append(0)
    with pytest.raises(KeyboardInterrupt):
        place.score("gsm8k", out, *FEW)
    calls[:] = [0] * 9
    place.score("gsm8k", out, *FEW, "--template", "question")
    assert calls[9:] == [8, 8, 4], "other flags begin anew"


def test_rows_that_are_kept(tmp_path: Path) -> None:
    """A half line costs itself alone; rows of another evaluation are not taken."""
    file, head = tmp_path / "a.json.partial", {"options": 1}
    partial.append(file, head, {"a": 1})
    with open(file, "ab") as out:
        out.write(b'{"b": ')
    assert partial.read(file, head) == {"a": 1}
    partial.append(file, head, {"c": 3})
    assert partial.read(file, head) == {"a": 1, "c": 3}
    assert partial.read(file, {"options": 2}) == {}
    partial.append(file, {"options": 2}, {"d": 4})
    assert partial.read(file, {"options": 2}) == {"d": 4}


def test_the_calculator_follows_each_equals_sign(place: Place, tmp_path: Path) -> None:
    """What is forced is in the text, and the model goes on after it."""
    subject = load_subject(place.run)
    tokenizer = subject.tokenizer
    prompt = tokenizer.encode("User: 2 eggs\nAssistant: <<2+3=")
    follow = tokenizer.encode("5>>")
    asked: list[int] = []

    def force(tokens: np.ndarray) -> list[int]:
        asked.append(len(tokens))
        return follow if len(tokens) == 2 else []

    (found,) = subject.scorer.generate([prompt], tokenizer, (), 9, force=force)
    (plain,) = subject.scorer.generate([prompt], tokenizer, (), 9)
    assert found.tokens[:2] == plain.tokens[:2]
    assert list(found.tokens[2 : 2 + len(follow)]) == follow
    forced = [*prompt, *found.tokens[: 2 + len(follow)]]
    (after,) = subject.scorer.generate([forced], tokenizer, (), 9 - 2 - len(follow))
    assert found.tokens[2 + len(follow) :] == after.tokens
    assert answers.calculator(tokenizer)(np.asarray(prompt)) == follow
    numbers = place.score("gsm8k", tmp_path / "a.json", *FEW, "--annotations", "calculator")
    assert numbers["metrics"]["gsm8k"]["n"] == 20


def test_probes(place: Place, tmp_path: Path) -> None:
    found = place.score("probes", tmp_path / "a.json", "--max-tokens", "6", "--save-items")
    groups = found["metrics"]
    sizes = {name: group["n"] for name, group in groups.items()}
    assert sizes == {"all": 281, "mul_table": 81, "mul_multidigit": 100, "addition": 100}
    assert groups["mul_table"]["copy"] == 9 / 81
    assert groups["mul_table"]["constant"] == 4 / 81
    assert groups["all"]["accuracy"] == np.mean([item["correct"] for item in found["items"]])


def test_too_long_for_the_model(place: Place, tmp_path: Path, capsys: Any) -> None:
    words = ["gsm8k", "--checkpoint", str(place.run), "--data-root", str(place.root)]
    assert main([*words, "--out", str(tmp_path / "a.json"), "--max-tokens", "4000"]) == 2
    assert "full attention of this checkpoint holds 2048 tokens" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_answer_without_a_number(place: Place, tmp_path: Path, capsys: Any) -> None:
    write_rows(tmp_path / "gsm8k/test.jsonl.gz", [{"question": "a", "answer": "b"}])
    words = ["gsm8k", "--checkpoint", str(place.run), "--data-root", str(tmp_path)]
    assert main(words) == 2
    assert "test.jsonl:1: answer='b': wants #### NUMBER" in capsys.readouterr().err


# --- the completion protocol ---------------------------------------------------------------------

HELLASWAG = "zero_shot/hellaswag/validation.jsonl.gz"


def test_completion(place: Place, tmp_path: Path) -> None:
    """Raw text, parts tokenized apart, acc_norm by tokens, against sums made one by one."""
    rows = [
        {
            "query": f"Roof: A man {i} sits. He",
            "choices": ["runs on.", f"sits {i}.", "is"],
            "gold": i % 3,
            "activity_label": "Roof",
            **(
                {"ctx": f"A man {i} sits. [step] he", "endings": ["runs [x]", f"{i}", "is"]}
                if i % 2
                else {}
            ),
        }
        for i in range(6)
    ]
    write_rows(tmp_path / HELLASWAG, rows)
    place_root, place.root = place.root, tmp_path
    words = ("--tasks", "hellaswag", "--protocol", "completion", "--save-items")
    found = place.score("zeroshot", tmp_path / "a.json", *words)
    place.root = place_root
    assert found["metrics"]["hellaswag"]["raw"] == 0.5
    subject = load_subject(place.run)
    encode = subject.tokenizer.encode
    norm = 0
    for row, item in zip(rows, found["items"], strict=True):
        context = row.get("ctx", str(row["query"]).removeprefix("Roof: "))
        endings = [encode(f" {e}") for e in row.get("endings", row["choices"])]  # type: ignore[union-attr]
        start = encode(str(context))
        nats = [subject.scorer.rolling([[*start[1:], *e]], start[0])[0][-len(e) :] for e in endings]
        single = [-float(n.sum()) for n in nats]
        assert np.allclose(item["logprobs"], single, rtol=1e-5)
        norm += (
            int(np.argmax([s / len(e) for s, e in zip(single, endings, strict=True)]))
            == row["gold"]
        )
    assert found["metrics"]["hellaswag"]["acc_norm"] == norm / 6


def test_completion_is_for_choices(place: Place, capsys: Any) -> None:
    words = ["zeroshot", "--checkpoint", str(place.run), "--data-root", str(place.root)]
    assert main([*words, "--tasks", "lambada", "--protocol", "completion"]) == 2
    assert "lambada is scored by word" in capsys.readouterr().err


def test_a_prompt_ends_where_an_answer_begins() -> None:
    for template in TEMPLATES.values():
        assert not template.prompt("x").endswith(" ")
