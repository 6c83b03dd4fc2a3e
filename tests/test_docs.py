"""What the pages print: the example runs as pasted, and every command runs at test size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_commands import (
    LEFT_OUT,
    at_test_size,
    blocks,
    commands,
    left_out,
    makers,
    run,
    workspace,
)
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


class Page:
    """The commands of a page: each runs once, after those that make the folders that it reads."""

    def __init__(self, page: str, folder: Path, ended: dict[str, str]) -> None:
        self.needs, self.missing = makers(commands((ROOT / page).read_text()), folder)
        self.folder = folder
        self.ended = ended  # what each command has printed as it failed, or nothing

    def run(self, command: str) -> None:
        for earlier in self.needs[command]:
            self.run(earlier)
        small = at_test_size(command).removeprefix(".venv/bin/")
        if small not in self.ended and not left_out(command):
            ended = run(small, self.folder)
            failed = f"{ended.returncode}\n{ended.stderr[-900:]}" if ended.returncode else ""
            self.ended[small] = failed
        assert not self.ended.get(small), f"{small}: {self.ended[small]}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """The pages, in one folder: what both of them run is run once."""
    folder, ended = workspace(tmp_path_factory.mktemp("pages")), dict[str, str]()
    return {page: Page(page, folder, ended) for page in PAGES}


OF_PAGES = [
    pytest.param(page, command, id=f"{page}-{' '.join(command.split()[1:])[:60]}")
    for page in PAGES
    for command in dict.fromkeys(commands((ROOT / page).read_text()))
    if not left_out(command)
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), OF_PAGES)
def test_every_command_runs_at_test_size(pages: dict[str, Page], page: str, command: str) -> None:
    pages[page].run(command)


@pytest.mark.parametrize("page", PAGES)
def test_a_command_reads_what_an_earlier_one_has_made(pages: dict[str, Page], page: str) -> None:
    assert pages[page].missing == []
    assert sum(bool(earlier) for earlier in pages[page].needs.values()) >= 3


def test_a_folder_that_nobody_makes_is_found(tmp_path: Path) -> None:
    train = "python launch.py --config configs/pilot.py:smoke"
    ask = "python -m eval niah --checkpoint runs/pilot-smoke"
    assert makers([train, ask], workspace(tmp_path)) == ({train: [], ask: [train]}, [])
    for page, missing in {
        (ask, train): "runs/pilot-smoke",
        (train, "python -m eval report runs/pilot-smoke runs/b --out c.html"): "runs/b",
        ("python launch.py --config configs/pilot.py --config.data.source=a/b.json",): "a/b.json",
        ("python -m nested_jax.data sample --manifest texts --out a",): "texts",
        ("python -m eval curves runs/a --out runs/a",): "runs/a",
    }.items():
        assert [text.partition(",")[0] for text in makers(page, tmp_path)[1]] == [missing]


@pytest.mark.slow
def test_a_folder_of_texts_becomes_a_forgetting_matrix_and_a_report(
    pages: dict[str, Page],
) -> None:
    """The commands of the guide's section, from the user's raw texts."""
    page = pages["docs/guide.md"]
    _, found, rest = (ROOT / "docs/guide.md").read_text().partition("## Your own texts")
    made = list(commands(found + rest.partition("\n#")[0]))
    assert len(made) >= 6
    for command in made:
        page.run(command)
    (file,) = (page.folder / "runs/base/eval").glob("continual-*.json")
    matrix = json.loads(file.read_text())["metrics"]["matrix"]
    assert matrix["segments"] == ["letters", "notes"]
    assert len(matrix["loss"]) == 3
    if not left_out(made[-1]):
        report = (page.folder / "report.html").read_text()
        assert all(part in report for part in ('id="forgetting"', 'class="text"', 'id="bits"'))
        assert "letters number" in re.sub("<[^>]+>", "", report)  # a token stands in each mark


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
        "python launch.py --config configs/pilot.py": "configs/pilot.py:test --workdir runs/pilot",
        "python launch.py --config configs/mid.py --workdir a": "configs/mid.py:test --workdir a",
        "python launch.py --config configs/pilot.py:smoke,block=hope --workdir a": (
            "pilot.py:test,block=hope --workdir a"
        ),
        "python launch.py --config configs/pilot.py:block=hope": (
            "pilot.py:test,block=hope --workdir runs/pilot-block=hope"
        ),
    }
    for command, end in small.items():
        assert at_test_size(command).endswith(end)
    assert left_out("python -m eval proof --quick") in LEFT_OUT.values()
