"""Golden files: the numbers of three training steps, and the configurations of all config files.

`golden/steps.json` holds losses, gradient norms and logits of every case in `golden_cases.py`, and
the machine that they were made on. Any machine must agree within the tolerances below. With
GOLDEN_BITS=1 the numbers must be equal to the last bit; that wants the versions, the processor and
the compiler flags of the file, and is meant for changes that only move code.

`golden/configs.json` holds the defaults of all fields, and what each documented command changes.

    python -m pytest tests/test_golden.py -m "not slow"     a case for each family of blocks
    python -m pytest tests/test_golden.py                   all cases, four minutes of one core
    GOLDEN_WRITE=1 python -m pytest tests/test_golden.py    write both files anew
    XLA_FLAGS=--xla_backend_optimization_level=0 GOLDEN_BITS=1 python -m pytest tests/test_golden.py
                                                            all cases, to the last bit

Compilation takes most of the time. JAX_COMPILATION_CACHE_DIR=FOLDER keeps what was compiled, and
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 all of it: programs that did not change cost nothing in
the next run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_cases import CASES, COMMANDS, QUICK, Numbers, defaults, machine, resolve, run_case

from nested_jax.config import BLOCKS

STEPS = Path(__file__).parent / "golden" / "steps.json"
CONFIGS = Path(__file__).parent / "golden" / "configs.json"
WRITE = os.environ.get("GOLDEN_WRITE") == "1"
BITS = os.environ.get("GOLDEN_BITS") == "1"
RENEW = "GOLDEN_WRITE=1 python -m pytest tests/test_golden.py"
NUMERICS = (
    "If you did not mean to change numerics, something is wrong. If you did, run\n"
    f"    {RENEW}\nand add a line under Numerics in CHANGELOG.md."
)
FIELDS = (
    "If you did not mean to change a configuration, something is wrong. If you did, run\n"
    f"    {RENEW}\nand say so in CHANGELOG.md."
)
# Relative tolerance of each kind of number on another machine. That of `logits_sum` is relative to
# the sum of the absolute values, because its terms cancel.
TOLERANCE = {
    "loss": 1e-5,
    "grad_norm": 1e-4,
    "logits": 1e-4,
    "logits_sum": 1e-5,
    "logits_abs_sum": 1e-5,
}
SMALLEST_LOGIT = 0.1  # a smaller logit may differ as much as one of this size

cases = pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
reads_configs = pytest.mark.skipif(WRITE, reason="the file is being written")
commands = pytest.mark.parametrize("command", COMMANDS)


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def save(file: Path, data: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


@pytest.fixture(scope="module", autouse=True)
def written() -> Iterator[dict[str, Numbers]]:
    """Collect the numbers of all cases, and write both files at the end if asked to."""
    found: dict[str, Numbers] = {}
    yield found
    if not WRITE:
        return
    if found.keys() != CASES.keys():
        raise ValueError(f"wants all cases in one process: {RENEW}")
    save(STEPS, {"machine": machine(), "cases": found})
    usual = defaults()
    changed = {command: differing(usual, resolve(command)) for command in COMMANDS}
    save(CONFIGS, {"defaults": usual, "changes": changed})


def differing(usual: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if value != usual.get(name)}


def test_every_block_kind_has_a_case() -> None:
    assert set(BLOCKS) <= set(CASES)


@cases
def test_three_steps(name: str, written: dict[str, Numbers]) -> None:
    got = run_case(name)
    assert all(np.isfinite(values).all() for values in got.values())
    if WRITE:
        written[name] = got
        return
    golden = load(STEPS)
    want, here = golden["cases"][name], machine()
    other = [f"{k}: {v} -> {here.get(k)}" for k, v in golden["machine"].items() if v != here.get(k)]
    if BITS and other:
        pytest.fail("\n".join(["golden/steps.json was made under other conditions:", *other]))
    wrong = list(differences(got, want, exact=BITS))
    assert not wrong, "\n".join([f"{name}:", *wrong, NUMERICS])
    if not other:
        unequal = list(differences(got, want, exact=True))
        print("\n".join(unequal) or "equal to the last bit")  # noqa: T201  (pytest -rP shows it)


def differences(got: Numbers, want: Numbers, exact: bool) -> Iterator[str]:
    """Yield a line for every number that is not the golden one: within tolerance, or exactly."""
    assert got.keys() == want.keys()
    floor = {"logits": SMALLEST_LOGIT, "logits_sum": want["logits_abs_sum"][0]}
    for kind, values in want.items():
        for i, (a, b) in enumerate(zip(got[kind], values, strict=True)):
            error = abs(a - b) / max(abs(b), floor.get(kind, 0.0), 1e-30)
            if a != b if exact else error > TOLERANCE[kind]:
                allowed = 0 if exact else TOLERANCE[kind]
                yield f"  {kind}[{i}]: {b!r} -> {a!r}, off by {error:.1e}, allowed {allowed:.0e}"


@reads_configs
def test_commands_are_those_of_the_file() -> None:
    assert set(COMMANDS) == set(load(CONFIGS)["changes"]), FIELDS


@reads_configs
def test_default_configuration() -> None:
    assert_same_fields("Config()", defaults(), load(CONFIGS)["defaults"])


@commands
@reads_configs
def test_configuration(command: str) -> None:
    golden = load(CONFIGS)
    want = golden["defaults"] | golden["changes"][command]
    assert_same_fields(command, resolve(command), want)


def assert_same_fields(title: str, got: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    """Fail with one line for every field that differs."""
    missing = "(no such field)"
    lines = [
        f"  {name}: {want.get(name, missing)!r} -> {got.get(name, missing)!r}"
        for name in sorted({*got, *want})
        if got.get(name, missing) != want.get(name, missing)
    ]
    assert not lines, "\n".join([f"{title}:", *lines, FIELDS])
