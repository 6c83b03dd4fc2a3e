"""What the pages print: the example runs as pasted, and every command runs at test size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_commands import LEFT_OUT, at_test_size, blocks, commands, left_out, run, workspace
from quick_compile import ROOT
from tiny import environment

PAGES = [page for page in ("README.md", "docs/guide.md") if (ROOT / page).exists()]


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=() if p == "README.md" else pytest.mark.slow) for p in PAGES]
)
def test_the_examples_run_as_pasted(page: str, tmp_path: Path) -> None:
    examples = [b for b in blocks((ROOT / page).read_text(), ("python",)) if "import" in b]
    assert examples or page != "README.md"
    workspace(tmp_path)
    for example in examples:
        ended = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path,
            env=environment(1),
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs_at_test_size(page: str, tmp_path: Path) -> None:
    """In the order of the page, in one folder: a command may use what an earlier one has made."""
    folder, failed = workspace(tmp_path), []
    first = run("python launch.py --config configs/pilot.py:test", folder)
    assert first.returncode == 0, first.stderr
    for command in commands((ROOT / page).read_text()):
        if not left_out(command):
            ended = run(at_test_size(command), folder)
            if ended.returncode:
                failed.append(f"{at_test_size(command)}: {ended.returncode}\n{ended.stderr[-600:]}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.slow
def test_a_folder_of_texts_becomes_a_forgetting_matrix_and_a_report(tmp_path: Path) -> None:
    """The commands of the guide's section, in a folder that has the user's raw texts alone."""
    _, found, rest = (ROOT / "docs/guide.md").read_text().partition("## Your own texts")
    folder, made = workspace(tmp_path), []
    for command in commands(found + rest.partition("\n## ")[0]):
        if not left_out(command):
            ended = run(at_test_size(command), folder)
            assert ended.returncode == 0, f"{command}\n{ended.stderr[-900:]}"
            made.append(command)
    assert len(made) >= 6
    (file,) = (folder / "runs/base/eval").glob("continual-*.json")
    matrix = json.loads(file.read_text())["metrics"]["matrix"]
    assert matrix["segments"] == ["letters", "notes"]
    assert len(matrix["loss"]) == 3
    if "report" in made[-1]:
        page = (folder / "report.html").read_text()
        assert all(part in page for part in ('id="forgetting"', 'class="text"', 'id="bits"'))
        assert "letters number" in re.sub("<[^>]+>", "", page)  # a token stands in each mark


def test_commands_are_found_and_made_small() -> None:
    page = (
        "Text `python x`.\n\n```bash\n"
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python launch.py --config "
        "configs/pilot.py:smoke\n"
        "python -m eval niah --checkpoint runs/a \\\n    --memorize   # asks\n"
        "ls\n```\n\n```\nstep 1\n```\n\n```python\nimport a\n```\n"
    )
    found = list(commands(page))
    assert [command for command in found if not left_out(command)] == [
        ".venv/bin/python launch.py --config configs/pilot.py:smoke",
        "python -m eval niah --checkpoint runs/a --memorize",
    ]
    assert blocks(page, ("python",)) == ["import a\n"]
    small = {
        "python launch.py --config configs/pilot.py": "configs/pilot.py:test",
        "python launch.py --config configs/mid.py --workdir a": "configs/mid.py:test --workdir a",
        "python launch.py --config configs/pilot.py:smoke,block=hope": "pilot.py:test,block=hope",
        "python launch.py --config configs/pilot.py:block=hope": "pilot.py:test,block=hope",
    }
    for command, end in small.items():
        assert at_test_size(command).endswith(end)
    assert left_out("python -m eval proof --quick") in LEFT_OUT.values()
