"""The commands of README.md and docs/guide.md, and how each is run at test size."""

from __future__ import annotations

import importlib.util
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from quick_compile import ROOT
from tiny import environment

# Runs that stand for those of the docs: every folder below runs/ that no command has made.
STANDS_FOR = "runs/pilot-test"
# What makes a command small, in turn: the size of its configuration, fewer steps, fewer examples.
CONFIGS = r"(configs/(?:pilot|transformer|titan_baseline|mid|target|test)\.py)"
SIZES = r"(?:smoke|pilot|mid|target|test)"
SMALLER = [
    (rf"{CONFIGS}(?::{SIZES})?(?=[\s,]|$)", r"\1:test"),
    (rf"{CONFIGS}:(?!test\b)", r"\1:test,"),  # fields without a size
    (r"(configs/synthetic\.py:\S+)", r"\1,steps=3,rows=64,test_rows=8,batch=4"),
    (r"(configs/real_text\.py:)(?:text|test)\b", r"\1test"),
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
    """Return a command that does the same on a small configuration."""
    for what, small in SMALLER:
        command = re.sub(what, small, command)
    for what, flags in MORE_FLAGS.items():
        if re.search(what, command):
            command = f"{command} {flags}"
    return command


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
    """Run a command in a workspace; runs that are not there are those of `STANDS_FOR`."""
    words = shlex.split(command)
    environ = environment(1)
    while re.match(r"\w+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        environ[name] = value
    words[0] = sys.executable
    made = {"--workdir", "--out", "--report"}  # a folder or file that the command makes
    for i, word in enumerate(words[1:], 1):
        name, _, value = word.partition("=")
        path = value if name.startswith("--") and value else word
        makes = name in made or words[i - 1] in made
        if path.startswith("runs/") and not makes and not (folder / path).exists():
            words[i] = word.replace(path, STANDS_FOR)
    return subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True)
