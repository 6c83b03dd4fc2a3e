"""The commands of README.md and docs/guide.md, and how each is run at test size."""

from __future__ import annotations

import importlib.util
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from quick_compile import ROOT
from tiny import environment

from launch import default_workdir

LIMIT = 600  # seconds for one command: the longest took 100 on a busy machine
# Flags that name what a command makes, and those that name what it reads even without a slash.
MAKES = {"--workdir", "--out", "--report"}
READS = {"--checkpoint", "--then", "--run", "--manifest", "--config.data.source"}
READS |= {"--config.train.init_from", "--data"}
# What makes a command small, in turn: the size of its configuration, fewer steps, fewer examples.
CONFIGS = r"(configs/(?:pilot|transformer|titan_baseline|mid|target|test)\.py)"
SIZES = r"(?:smoke|pilot|mid|target|test)"
SMALLER = [
    (rf"{CONFIGS}(?::{SIZES})?(?=[\s,]|$)", r"\1:test"),
    (rf"{CONFIGS}:(?!test\b)", r"\1:test,"),  # fields without a size
    (r"(configs/synthetic\.py:\S+)", r"\1,steps=3,rows=64,test_rows=8,batch=4"),
    (r"(configs/real_text\.py:)(?:text|test)\b", r"\1test"),
    (r"(--over \S+?=[^,\s]+,[^,\s]+)\S* --over \S+ --seeds 3", r"\1 --seeds 1"),
]
MORE_FLAGS = {
    r"-m eval (niah|passkey|babi|books|classification|zeroshot)\b": "--max-samples 2",
    r"-m eval continual\b": "--doc-tokens 32 --score-tokens 256",
    r"-m nested_jax\.generate\b": "--max-tokens 4",
}
# Commands that no test runs, and why.
CHARTS = importlib.util.find_spec("vl_convert") is not None
LEFT_OUT = {
    **({} if CHARTS else {r"-m eval report\b": "wants vl_convert"}),
    r"\bpip install\b|-m venv\b": "installs",
    r"-m pytest\b": "is this suite",
    r"-m eval proof\b": "trains for minutes at its smallest; tests/eval/proof",
    r"-m recipes\.pilot\b": "trains for minutes at its smallest; tests/recipes",
    r"^(srun|sbatch|kubectl|docker|git|cd|export|cat|tail|less)\b": "is no command of ours",
}


def blocks(text: str, languages: tuple[str, ...]) -> list[str]:
    """Return the fenced blocks of a page in these languages."""
    found = re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands(text: str) -> Iterator[str]:
    """Yield the commands of a page that start a Python, one a line, without their comments."""
    for block in blocks(text, ("bash", "sh", "shell", "console")):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            plain = line.strip().removeprefix("$ ")
            for part in re.split(r"\s&&\s", re.sub(r"\s#\s.*", "", plain)):
                if re.match(r"(\w+=\S+ )*(\.venv/bin/)?python3? ", part):
                    yield part.strip()


def left_out(command: str) -> str:
    """Return why no test runs a command, or nothing."""
    return next((why for what, why in LEFT_OUT.items() if re.search(what, command)), "")


def at_test_size(command: str) -> str:
    """Return a command that does the same on a small configuration, in the same folders."""
    made = makes(command) if "launch.py" in command and "--workdir" not in command else set()
    for what, small in SMALLER:
        command = re.sub(what, small, command)
    for what, flags in MORE_FLAGS.items():
        if re.search(what, command):
            command = f"{command} {flags}"
    return " ".join([command, *(f"--workdir {folder}" for folder in made)])


def paths(command: str) -> Iterator[tuple[str, str]]:
    """Yield the relative paths of a command, each with the flag before it."""
    flag = ""
    for word in shlex.split(command)[1:]:
        name, _, value = word.partition("=")
        if word.startswith("-") and not value:
            flag = word
            continue
        found = (name, value) if word.startswith("-") else (flag, word)
        if re.fullmatch(r"[\w.=-]+(/[\w.=-]+)*", found[1].partition(":")[0]):
            yield found[0], found[1].partition(":")[0] if "/" in found[1] else found[1]
        flag = ""


def makes(command: str) -> set[str]:
    """Return the files and folders that a command makes."""
    found = {path for flag, path in paths(command) if flag in MAKES}
    config = re.search(r"launch\.py.* --config[ =](\S+)", command)
    if config and "--workdir" not in command:
        found.add(str(default_workdir(config[1])))
    return found


def reads(command: str) -> set[str]:
    """Return the files and folders that a command reads."""
    return {
        path
        for flag, path in paths(command)
        if flag not in MAKES and (flag in READS or ("/" in path and path != command.split()[0]))
    }


def makers(page: Iterable[str], there: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return which earlier commands each command of a page needs, and what it reads of nobody's.

    `there` is the folder in which a reader begins.
    """
    maker: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    missing = []
    for command in page:
        needs.setdefault(command, [])
        for path in sorted(reads(command)):
            parents = [path, *map(str, Path(path).parents)][:-1]
            made = next((maker[part] for part in parents if part in maker), None)
            if made is not None and made != command:
                needs[command].append(made)
            elif made is None and not (there / path).exists():
                missing.append(f"{path}, of {command}")
        for path in makes(command):
            maker.setdefault(path, command)
    return needs, missing


def workspace(folder: Path) -> Path:
    """Make a folder in which the commands of a page find what a checkout has."""
    for name in ("launch.py", "configs", "nested_jax", "eval", "recipes", "benchmarks", "infra"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    rng = random.Random(5)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 8))) for _ in range(900)]
    for segment, own in (("letters", words[:600]), ("notes", words[300:])):  # of the guide's user
        (folder / "my_texts" / segment).mkdir(parents=True)
        for i in range(120):
            text = f"{segment} number {i}: {' '.join(rng.choices(own, k=80))}.\n"
            (folder / "my_texts" / segment / f"{i}.txt").write_text(text)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a workspace."""
    words = shlex.split(command)
    environ = environment(1)
    while re.match(r"\w+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        environ[name] = value
    words[0] = sys.executable
    return subprocess.run(
        words, cwd=folder, env=environ, capture_output=True, text=True, timeout=LIMIT
    )
