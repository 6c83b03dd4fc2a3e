"""Stages are done once; a killed experiment goes on; a folder holds one experiment."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.stages import Stage, check_space, run_stages


class Experiment:
    """Three stages that count how often they run; one may break."""

    def __init__(self, out: Path, breaks: str = "") -> None:
        self.out, self.breaks, self.ran = out, breaks, list[str]()
        self.said: list[str] = []

    def stage(self, name: str) -> Stage:
        def run() -> dict[str, Any]:
            self.ran.append(name)
            if name == self.breaks:
                raise KeyboardInterrupt
            return {"value": name}

        return Stage(name, 1, run)

    def go(self, **settings: Any) -> dict[str, Any]:
        stages = [self.stage(name) for name in ("a", "b", "c")]
        return run_stages(stages, self.out, {"size": 1, **settings}, self.said.append)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = Experiment(tmp_path / "x", breaks="b")
    with pytest.raises(KeyboardInterrupt):
        first.go()
    second = Experiment(tmp_path / "x")
    assert second.go() == {name: {"value": name} for name in ("a", "b", "c")}
    assert (first.ran, second.ran) == (["a", "b"], ["b", "c"])
    assert second.said[0] == "[1/3] a: done before"
    assert second.said[2].startswith("[3/3] c (")
    third = Experiment(tmp_path / "x")
    third.go()
    assert third.ran == []


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    Experiment(tmp_path / "x").go()
    with pytest.raises(ValueError, match="holds an experiment of other settings"):
        Experiment(tmp_path / "x").go(rule="original")


def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 30))
    check_space(tmp_path / "new" / "folder", 5 << 30)
    with pytest.raises(ValueError, match="has 5 GiB free, the experiment needs 6 GiB"):
        check_space(tmp_path, 6 << 30)
