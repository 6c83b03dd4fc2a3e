"""Whole commands on checkpoints: memorization, suites that go on, comparisons, training."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_root import untrained, write_root
from tiny import HOPE, ROOT, environment, read_lines, tiny_config, write_data

import eval.tasks
from eval.__main__ import main
from eval.core.cli import commands, evaluate
from eval.results import suite
from eval.results.compare import compare
from eval.tasks.evaluators import make_evaluators
from nested_jax.train.trainer import train

FEW = ("--max-samples", "4", "--batch-size", "4")
TASKS = ("--tasks", "piqa,winogrande,lambada")


class Place:
    """A data root and two checkpoints of one tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.root = write_root(folder / "root")
        data = write_data(folder / "data")
        self.hope = untrained(folder / "hope", data, HOPE)
        self.plain = untrained(folder / "plain", data)
        self.other = untrained(folder / "other", data, {"seed": 4})

    def run(self, task: str, checkpoint: Path, out: Path, *words: str) -> dict[str, Any]:
        """Run a command that succeeds, and return its result."""
        command = [task, "--checkpoint", str(checkpoint), "--out", str(out)]
        assert main([*command, "--data-root", str(self.root), *words]) == 0
        return json.loads(out.read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.slow
def test_memorizing_changes_hope_and_leaves_its_baseline(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    base = place.run("zeroshot", place.hope, out, *TASKS, *FEW, "--save-items")
    words = (*TASKS, *FEW, "--save-items", "--memorize", "--plots", str(tmp_path / "plots"))
    found = place.run("zeroshot", place.hope, out, *words)
    assert sum(found["memorize"]["writes"].values()) > 0
    assert min(found["memorize"]["change"].values()) > 0
    assert not found["memorize"]["leakage"]
    for before, row in zip(base["items"], found["items"], strict=True):
        assert row["logprobs"] == before["logprobs"]  # the baseline, to the last bit
        assert row["memorized"]["logprobs"] != before["logprobs"]
    for name, group in found["metrics"].items():
        assert {k: group[k] for k in base["metrics"][name]} == base["metrics"][name]
        assert group["delta"]["acc"] == group["memorized"]["acc"] - group["acc"]
    assert (tmp_path / "plots" / "zeroshot.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_transformer_differs_by_exactly_nothing(
    place: Place, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "a.json"
    zero = place.run("zeroshot", place.plain, out, *TASKS, *FEW, "--memorize")
    read = place.run("perplexity", place.plain, out, "--segments", "code,wikitext2", "--memorize")
    for found in (zero, read):
        for group in found["metrics"].values():
            assert set(group["delta"].values()) == {0.0}
        assert found["memorize"]["writes"] == {}
        assert "nothing to write" in found["memorize"]["note"]
    assert "nothing to write" in capsys.readouterr().out


def test_the_task_of_the_page_runs(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pasted from docs/evaluation.md into one file: the command, and the comparison."""
    text = (ROOT / "docs/evaluation.md").read_text().partition("## Adding a task")[2]
    (tmp_path / "surprise.py").write_text(text.split("```python\n")[1].split("```")[0])
    monkeypatch.setattr(eval.tasks, "__path__", [*eval.tasks.__path__, str(tmp_path)])
    commands.cache_clear()
    try:
        found = place.run("surprise", place.plain, tmp_path / "a.json", "--word", "index")
        assert found["metrics"]["all"]["loss"] > 0
        words = ["compare", "--checkpoint", str(place.plain), "--to", str(place.other)]
        assert main([*words, "--task", "surprise", "--out", str(tmp_path / "b.json")]) == 0
        (pair,) = json.loads((tmp_path / "b.json").read_text())["pairs"]
        assert pair["groups"]["all"]["n"] == 1
        assert pair["groups"]["all"]["p"] == 1.0
    finally:
        commands.cache_clear()
        sys.modules.pop("eval.tasks.surprise", None)


def test_a_model_may_have_more_ids_than_its_tokenizer(place: Place, tmp_path: Path) -> None:
    wide = untrained(tmp_path / "wide", place.root.parent / "data", {"model.vocab_size": 4000})
    words = ["--context-lengths", "160", "--samples-per-length", "2", "--haystack", "noise"]
    found = place.run("passkey", wide, tmp_path / "a.json", *words, "--save-items")
    assert found["metrics"]["passkey@160"]["n"] == 2
    assert all(item["text"] for item in found["items"])


def test_writes_that_did_not_come_end_with_1(place: Place, capsys: Any) -> None:
    words = ["--data-root", str(place.root), "--tasks", "piqa", *FEW, "--memorize"]
    command = ["zeroshot", "--checkpoint", str(place.hope), *words]
    assert main([*command, "--memorize-paths", "titan"]) == 1
    assert "nothing was written into cms_fast, cms_mid" in capsys.readouterr().err


def test_results_are_kept_in_the_workdir(place: Place, tmp_path: Path, capsys: Any) -> None:
    """Two in one second too; a folder of them is compared without a model."""
    folders = []
    for name in ("one", "two"):
        run = shutil.copytree(place.plain, tmp_path / name)
        folders.append(run / "eval")
        words = ["--data-root", str(place.root), "--segments", "code", "--max-tokens", "60"]
        for step in (run, *(run / "checkpoints").iterdir()):
            assert main(["perplexity", "--checkpoint", str(step), *words]) == 0
        said = capsys.readouterr().out
        kept = sorted((run / "eval").glob("perplexity-*.json"))
        assert len(kept) == 2
        assert all(f"kept in {file}" in said for file in kept)
        (item, *_) = json.loads(kept[0].read_text())["items"]
        assert set(item) == {"id", "group", "asked", "loss", "tokens"}
    out = tmp_path / "c.json"
    assert main(["compare", "--results", *map(str, folders), "--out", str(out)]) == 0
    (pair,) = json.loads(out.read_text())["tasks"]["perplexity"]["pairs"]
    assert pair["groups"]["code"]["difference"] == 0.0


def test_tasks_read_texts_of_the_users(place: Place, tmp_path: Path) -> None:
    """The same texts by the name of a corpus and as files, one of them with labels."""
    corpus, own = "code", f"mine={place.root}/lm/code"
    for task, part in (("perplexity", ""), ("books", " all")):
        base = ["--max-samples", "2", "--segments", f"{corpus},{own}", "--batch-size", "2"]
        found = place.run(task, place.plain, tmp_path / "a.json", *base)["metrics"]
        assert found[f"code{part}"] == found[f"mine{part}"]
    data = place.root / "continual" / "clinc150"
    words = ["--learners", "frozen", "--task-size", "2", "--tasks", "2", "--eval-per-label", "2"]
    mine = place.run(
        "classification", place.plain, tmp_path / "b.json", *words, "--segments", str(data)
    )
    assert (
        mine["metrics"]
        == place.run("classification", place.plain, tmp_path / "c.json", *words)["metrics"]
    )


@pytest.mark.slow
def test_what_the_answer_leaks_is_marked(place: Place, tmp_path: Path, capsys: Any) -> None:
    words = ("--tasks", "piqa", *FEW, "--memorize", "--memorize-use-correct-answer")
    found = place.run("zeroshot", place.hope, tmp_path / "a.json", *words, "--memorize-no-reset")
    assert found["memorize"]["leakage"]
    assert not found["memorize"]["reset"]
    assert "**Leakage" in capsys.readouterr().out


def test_a_suite_notices_that_its_texts_have_changed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A task's own file, and a text of the user's; a result that does not say is not trusted."""
    root, mine = tmp_path / "root", tmp_path / "mine.txt"
    shutil.copytree(place.root, root)
    mine.write_text("The first text that is read. " * 40)
    words = {"zeroshot": ["--tasks", "piqa"], "perplexity": ["--segments", str(mine)]}
    monkeypatch.setitem(suite.PRESETS, "tiny", words)
    folder = tmp_path / "eval"
    command = ["suite", "--checkpoint", str(place.plain), "--out-dir", str(folder)]
    command += ["--preset", "tiny", "--", "--data-root", str(root), "--split", "all", *FEW]

    def again() -> str:
        capsys.readouterr()
        assert main(command) == 0
        return capsys.readouterr().out

    again()
    assert "zeroshot: done before\nperplexity: done before\n" in again()
    mine.write_text("Another text in its place. " * 40)
    said = again()
    assert "zeroshot: done before\n" in said
    assert f"perplexity: run again, its texts have changed: {mine}\n" in said
    assert "perplexity: done before" in again()
    (file,) = root.glob("zero_shot/piqa/validation.jsonl*")
    data = file.read_bytes()
    read = gzip.decompress(data) if file.suffix == ".gz" else data
    lines = read.splitlines(keepends=True)
    changed = b"".join([*lines[1:], lines[0]])
    file.write_bytes(gzip.compress(changed) if file.suffix == ".gz" else changed)
    assert f"zeroshot: run again, its texts have changed: {file}\n" in again()
    result = json.loads((folder / "zeroshot.json").read_text())
    del result["files"]
    (folder / "zeroshot.json").write_text(json.dumps(result))
    assert "zeroshot: run again, its result does not say which texts it read\n" in again()


def test_a_suite_that_was_killed_goes_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What is done is not done again, half a file is no result, other flags are other results."""
    tiny = {"zeroshot": ["--tasks", "piqa"], "perplexity": ["--segments", "code"]}
    monkeypatch.setitem(suite.PRESETS, "tiny", tiny)
    folder, ran, kills = tmp_path / "eval", [], ["perplexity"]
    command = ["suite", "--checkpoint", str(place.plain), "--out-dir", str(folder)]
    command += ["--preset", "tiny", "--out", str(tmp_path / "all.json")]
    rest = ["--", "--data-root", str(place.root), *FEW]

    def run(task: Any, *inputs: Any) -> Any:
        if task.name in kills:
            kills.clear()
            raise KeyboardInterrupt
        ran.append(task.name)
        return evaluate(task, *inputs)

    monkeypatch.setattr(suite, "evaluate", run)
    with pytest.raises(KeyboardInterrupt):
        main([*command, *rest])
    assert ran == ["zeroshot"]
    first = (folder / "zeroshot.json").read_bytes()
    assert main([*command, *rest]) == 0
    assert ran == ["zeroshot", "perplexity"]
    assert "zeroshot: done before" in capsys.readouterr().out
    assert (folder / "zeroshot.json").read_bytes() == first
    second = folder / "perplexity.json"
    second.write_text(second.read_text()[:100])
    assert main([*command, *rest]) == 0
    assert ran[2:] == ["perplexity"]
    assert main([*command, *rest, "--seed", "1"]) == 0
    assert ran[3:] == ["zeroshot", "perplexity"]
    assert set(json.loads((tmp_path / "all.json").read_text())["metrics"]) == set(tiny)
    text = (folder / "summary.md").read_text()
    assert "## zeroshot: plain, step 0" in text
    assert "## perplexity: plain, step 0" in text
    capsys.readouterr()
    assert main(["summary", str(folder / "zeroshot.json"), str(second)]) == 0
    assert capsys.readouterr().out.strip() == text.strip()
    assert main(["summary", str(tmp_path / "all.json")]) == 2
    assert "is no result of a task" in capsys.readouterr().err


def test_two_suites_in_one_folder_do_not_mix(place: Place, tmp_path: Path, capsys: Any) -> None:
    """The second ends with 2 and names the first; so does a release of the same bundle."""
    words, rest = ["--checkpoint", str(place.plain)], ["--allow-missing", "all"]
    first = "import sys; from pathlib import Path; from nested_jax.files import hold, hold_folder\n"
    first += f"with hold_folder(Path({str(tmp_path / 'eval')!r})):\n"
    first += f"  with hold(Path({str(tmp_path / 'r.lock')!r}), 'r'):\n"
    first += "    print('held', flush=True); sys.stdin.read()"
    held = subprocess.Popen(
        [sys.executable, "-c", first], cwd=ROOT, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert held.stdout
    assert held.stdout.readline() == "held\n"
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ["suite", *words, "--out-dir", str(tmp_path / "eval")],
        ["release", *words, "--out", str(tmp_path / "r"), *rest],
    ):
        assert main(command) == 2
        assert f"is in use by process {held.pid} on " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    held.communicate("")
    assert main(["release", *words, "--out", str(tmp_path / "r"), *rest]) == 0


def test_flags_of_every_task_are_checked_before_the_first_runs(
    place: Place, tmp_path: Path, capsys: Any
) -> None:
    command = ["suite", "--checkpoint", str(place.plain), "--out-dir", str(tmp_path / "eval")]
    assert main([*command, "--", "--data-root", str(place.root), "--doc-tokens", "-1"]) == 2
    assert "--doc-tokens=-1: wants 0 or more" in capsys.readouterr().err
    assert main(["suite", "--checkpoint", str(tmp_path / "none")]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_suite_killed_with_sigkill_ends_in_the_same_results(place: Place, tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "eval", "suite", "--checkpoint", str(place.plain)]
        command += ["--out-dir", str(folder), "--preset", "smoke", "--tasks", "zeroshot,perplexity"]
        command += ["--", "--data-root", str(place.root), "--tasks", "piqa,lambada", *FEW]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
        )

    def results(folder: Path) -> dict[str, Any]:
        found = {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}
        return {n: {k: v for k, v in r.items() if k != "seconds"} for n, r in found.items()}

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole).wait(120) == 0
    process, first = start(cut), cut / "zeroshot.json"
    end = time.monotonic() + 120
    while not first.exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert list(results(cut)) == ["zeroshot.json"]
    written = first.stat().st_mtime_ns
    process = start(cut)
    said = process.communicate(timeout=120)[0].splitlines()
    assert process.returncode == 0
    assert said[0] == "zeroshot: done before"
    assert said[1].startswith("perplexity: ")
    assert first.stat().st_mtime_ns == written
    assert results(cut) == results(whole)
    summaries = [(folder / "summary.md").read_text() for folder in (cut, whole)]
    assert len({re.sub(r"[\d.]+ s\b", "", text) for text in summaries}) == 1


@pytest.mark.slow
def test_checkpoints_are_compared_item_by_item(place: Place, tmp_path: Path) -> None:
    def pair(task: str, to: Path, *words: str) -> dict[str, Any]:
        out = tmp_path / "compare.json"
        command = ["compare", "--checkpoint", str(place.plain), "--to", str(to), "--task", task]
        rest = ["--", "--data-root", str(place.root), "--batch-size", "4", *words]
        assert main([*command, "--out", str(out), *rest]) == 0
        (found,) = json.loads(out.read_text())["pairs"]
        return found["groups"]

    same = pair("zeroshot", place.plain, "--tasks", "piqa,lambada", "--max-samples", "4")
    for group in same.values():
        assert (group["difference"], group["p"], group["n"]) == (0.0, 1.0, 4)
    group = pair("perplexity", place.other, "--segments", "code")["code"]
    assert group["measure"] == "loss"
    assert group["difference"] == pytest.approx(group["b"] - group["a"])
    assert group["interval"][0] <= group["difference"] <= group["interval"][1]
    assert group["p"] in [k / 8 for k in range(1, 9)]  # three documents: eight choices of signs


def test_losses_by_different_tokenizers_are_not_compared() -> None:
    def result(tokenizer: str, **item: Any) -> dict[str, Any]:
        about = {"name": tokenizer, "step": 1, "tokenizer_sha256": tokenizer}
        items = [{"id": "1", "group": "g", "asked": "what", **item}]
        return {"task": "t", "subject": about, "items": items, "metrics": {}}

    (pair,) = compare([result("a", loss=1.0), result("a", loss=1.5)])["pairs"]
    assert pair["groups"]["g"]["difference"] == 0.5
    (pair,) = compare([result("a", correct=True), result("b", correct=False)])["pairs"]
    assert pair["groups"]["g"]["difference"] == -1.0
    with pytest.raises(ValueError, match="--to='b': has another tokenizer"):
        compare([result("a", loss=1.0), result("b", loss=1.5)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: {"asked": "z"}}, r"b@1'?: was asked other items than a@1 .*first: 0 asks something"),
        ({1: {"id": "1b"}}, r"other items .*first: 1 and 1b"),
        ({1: None}, r"other items .*first: 2 and 1 items"),
    ],
)
def test_other_items_are_not_compared(changes: dict[int, Any], message: str) -> None:
    """The same names can ask something else: rows of a task with another seed, say."""

    def result(name: str, changes: dict[int, Any]) -> dict[str, Any]:
        items = [
            {"id": str(i), "group": "g", "asked": f"{i}?", "correct": True} | changes.get(i, {})
            for i in range(2)
            if changes.get(i, {}) is not None
        ]
        about = {"name": name, "step": 1, "tokenizer_sha256": "t"}
        return {"task": "recall", "subject": about, "items": items, "metrics": {}}

    with pytest.raises(ValueError, match=message):
        compare([result("a", {}), result("b", changes)])
    a, b, c = (result(name, {}) for name in "abc")
    for found, order in ((a, "1" * 64), (b, "2" * 64)):
        found["subject"]["train_order_sha256"] = order
    assert compare([a, b, c])["training"] == [
        "b@1: trained on other rows, or in another order than a@1: train_order_sha256 "
        "222222222222 for 111111111111",
        "order of training not recorded: c@1",
    ]
    assert compare([result("a", {}), result("b", {})])["pairs"][0]["groups"]["g"]["n"] == 2


@pytest.mark.slow
def test_stages_of_checkpoints_make_a_matrix(place: Place, tmp_path: Path) -> None:
    names, plots = ["code", "dialogue_sgd"], tmp_path / "plots"
    words = ["--then", str(place.hope), "--then", str(place.hope), "--segments", ",".join(names)]
    words += ["--doc-tokens", "40", "--score-tokens", "80", "--plots", str(plots), "--memorize"]
    found = place.run("continual", place.hope, tmp_path / "a.json", *words)
    table = found["metrics"]["matrix"]
    assert table["stages"] == ["hope@0"] * 3
    assert table["segments"] == names
    rows = table["loss"]
    assert rows[0] == rows[1] == rows[2]
    assert table["memorized"]["loss"][0] != rows[0]
    assert found["metrics"]["mean"]["forgetting"] == 0.0
    assert found["memorize"]["writes"]["cms_fast"] > 0
    drawn = {p.name for p in plots.iterdir()}
    kinds = ("", "_memorized")
    assert drawn == {f"continual_{k}{e}.png" for k in ("forgetting", "matrix") for e in kinds}


@pytest.mark.slow
def test_segments_of_one_stream_make_a_matrix(place: Place, tmp_path: Path) -> None:
    words = ["--segments", "code,dialogue_sgd", "--doc-tokens", "40", "--score-tokens", "80"]
    words += ["--write-tokens", "90"]
    hope = place.run("continual", place.hope, tmp_path / "a.json", *words)
    rows = hope["metrics"]["matrix"]["loss"]
    assert hope["metrics"]["matrix"]["stages"] == ["before", "code", "dialogue_sgd"]
    assert rows[0] != rows[1] != rows[2]
    assert hope["memorize"]["writes"]["cms_fast"] >= 2 * (90 // 8)
    plain = place.run("continual", place.plain, tmp_path / "a.json", *words)
    rows = plain["metrics"]["matrix"]["loss"]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.slow
def test_a_run_scores_tasks_while_it_trains(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are those of the command on the checkpoint of the same step."""
    monkeypatch.setenv("NESTED_JAX_DATA", str(place.root))
    words = ["--segments", "code", "--max-tokens", "60"]
    asked = ["piqa", "lambada", " ".join(["perplexity", *words])]
    changes = {"train.eval_tasks": asked, "train.steps": 6, "train.save_every": 3}
    cfg = tiny_config(place.root.parent / "data", {**changes, "train.eval_every": 3})
    workdir = tmp_path / "run"
    summary = train(cfg, workdir, make_evaluators(cfg))
    lines = [line for line in read_lines(workdir) if "valid_loss" in line]
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        step = workdir / "checkpoints" / str(line["step"])
        found = place.run("zeroshot", step, tmp_path / "a.json", "--tasks", "piqa,lambada")
        for name, group in found["metrics"].items():
            assert line[f"{name}/acc"] == group["acc"]
            assert line[f"{name}/chance"] == group["chance"]
            assert line.get(f"{name}/acc_norm") == group.get("acc_norm")
        found = place.run("perplexity", step, tmp_path / "a.json", *words)
        assert line["perplexity/code/loss"] == found["metrics"]["code"]["loss"]
    for wrong, want in (("pika", "wants some of repeat"), ("books --nosuch", None)):
        with pytest.raises((ValueError, SystemExit), match=want):
            make_evaluators(tiny_config(place.root.parent / "data", {"train.eval_tasks": [wrong]}))
    assert summary.scores["piqa/acc"] == lines[-1]["piqa/acc"]
