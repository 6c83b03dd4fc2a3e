"""Prepared data that another process is writing: refused by name, and left as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from small_data import synthetic_source

from nested_jax.data.__main__ import main
from nested_jax.files import hold, hold_folder

COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "filter": lambda out: ["--output-path", str(out / "kept.jsonl")],
    "tokenizer": lambda out: ["--output-dir", str(out), "--vocab-size", "400"],
    "sample": lambda out: ["--out", str(out)],
}


def source(folder: Path) -> Path:
    file = folder / "corpus.jsonl"
    rows = ({"text": synthetic_source(i)} for i in range(20))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_start_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = [command, *COMMANDS[command](out)]
    if command != "sample":
        arguments += ["--dataset", str(source(tmp_path))]
    locks = {
        "filter": lambda: hold(out / "kept.jsonl.lock", str(out / "kept.jsonl")),
        "tokenizer": lambda: hold(out / "tokenizer.model.lock", str(out / "tokenizer.model")),
        "sample": lambda: hold_folder(out),
    }
    with locks[command]():
        before = sorted(p.name for p in out.iterdir())
        assert main(arguments) == 2
        assert sorted(p.name for p in out.iterdir()) == before
    said = capsys.readouterr().err
    assert f"is in use by process {os.getpid()} on " in said
    assert said.count("\n") == 1
