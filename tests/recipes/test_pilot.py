"""HOPE against Titans: equal parameters, and the whole recipe at test size."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tiny import environment, write_data

from recipes import pilot
from recipes.variants import Comparison

VEGA = importlib.util.find_spec("vl_convert") is not None


def parameters(comparison: Comparison, variant: str, more: list[str]) -> int:
    config, flags = comparison.words(variant)
    return pilot.count(config, [*more, *flags])


@pytest.mark.slow
def test_the_models_have_equal_parameters() -> None:
    more = ["--config.data.source=stdlib"]
    found = pilot.matched("test", more)
    counts = {variant: parameters(found, variant, more) for variant in pilot.MODELS}
    target = counts[pilot.REFERENCE]
    assert max(abs(n - target) for n in counts.values()) <= 0.02 * target
    assert set(counts) == set(pilot.MODELS)


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ("--seeds 0", "--seeds=0: wants 1 or more"),
        ("--data nosuch.json", "--data='nosuch.json': no such file"),
        ("--jobs 0", "--jobs=0: wants 1 or more"),
        ("--size huge --data stdlib", "size='huge'"),
        ("--data stdlib -- --config.optim.learning_rat=1", "learning_rat"),
    ],
)
def test_what_cannot_be(
    words: str, want: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, _, extra = words.partition(" -- ")
    given = [*own.split(), "--out", f"{tmp_path}/o", *(["--", *extra.split()] if extra else [])]
    assert pilot.main(given) == 2
    assert want in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.skipif(not VEGA, reason="wants the extra eval")
def test_the_recipe_at_test_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(1).items():
        monkeypatch.setenv(name, value)
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    monkeypatch.setitem(
        pilot.TASKS, "quick", ("perplexity --segments run --split valid --memorize",)
    )
    words = ["--quick", "--size", "test", "--seeds", "2", "--data", str(data), "--out", str(out)]
    more = [
        "--",
        "--config.train.steps=4",
        "--config.train.eval_every=4",
        "--config.optim.warmup_steps=1",
    ]
    assert pilot.main([*words, *more]) == 0
    found = json.loads((out / "comparison.json").read_text())
    assert len(found["settings"]) == 4
    assert all(row["interval"] for row in found["settings"])
    counts = found["parameters"].values()
    assert max(counts) - min(counts) <= 0.04 * max(counts)
    text = (out / "comparison.md").read_text()
    assert all(f"| {name}" in text.replace("**", "") for name in pilot.MODELS)
    assert (out / "bundle" / "manifest.json").is_file()
    assert 'id="bits"' in (out / "report.html").read_text()
    before = (out / "report.html").stat().st_mtime_ns
    assert pilot.main([*words, *more]) == 0  # nothing is done twice
    assert (out / "report.html").stat().st_mtime_ns == before
