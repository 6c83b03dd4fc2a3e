"""What tests cost in processor time, so that the split into default and slow rests on numbers.

Processor time, that of subprocesses included, depends little on what else the machine does; the
time on the clock does.

    pytest ... --durations-to=FILE           write what the tests cost
    pytest ... --sample N                    run N tests: of every file the cheapest, then the next
    python tests/durations.py OLD NEW        compare two records; 1 if NEW is far above OLD

``tests/durations.json`` is the record of the default suite, written by ``.ci/run``.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

RECORD = Path(__file__).resolve().parent / "durations.json"
SLOWEST = 10
LISTED = 0.5  # seconds; cheaper tests are in the sum of their file only
# A slower processor, or one that others use as well, costs up to twice as much: no failure.
MOST = 3.0  # times the recorded total
COST = "cpu_s"  # name of the property of a report


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Costs(config), "costs")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--durations-to", metavar="FILE", help="write what the tests cost")
    parser.addoption("--sample", type=int, metavar="N", help="run the N cheapest, of every file")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    count = config.getoption("--sample")
    if count is not None:
        chosen = sample([item.nodeid for item in items], count)
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in chosen])
        items[:] = [item for item in items if item.nodeid in chosen]


def sample(names: list[str], count: int) -> set[str]:
    """Return the cheapest test of every file, the second of every file, and so on to `count`."""
    costs = read(RECORD)["tests"] if RECORD.exists() else {}
    files: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=lambda name: costs.get(name, 0.0)):
        files[name.partition("::")[0]].append(name)
    ranked = sorted(
        (costs.get(name, 0.0) >= LISTED, rank, name)
        for tests in files.values()
        for rank, name in enumerate(tests)
    )
    return {name for _, _, name in ranked[:count]}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Take the time of set-up, call and tear-down together, with that between tests."""
    item.stash[BEGAN] = processor_seconds()
    return (yield)


BEGAN = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    if report.when == "teardown":
        report.user_properties.append((COST, processor_seconds() - item.stash[BEGAN]))
    return report


class Costs:
    """The costs of a session, collected where reports arrive: in the controller, with xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.costs = config, dict[str, float]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == COST and report.when == "teardown":
                self.costs[report.nodeid] = float(str(value))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        file = self.config.getoption("--durations-to")
        if not file or not self.costs:
            return
        write(Path(file), self.costs, self.config)
        terminalreporter.section("processor time")
        for line in described(read(Path(file))):
            terminalreporter.line(line)


def write(file: Path, costs: dict[str, float], config: pytest.Config) -> None:
    """Write what made the numbers, their sums by file, and every test that costs much."""
    files: dict[str, float] = defaultdict(float)
    for name, cost in costs.items():
        files[name.partition("::")[0]] += cost
    arguments = [a for a in config.invocation_params.args if not a.startswith("--durations")]
    record = {
        "command": shlex.join(["pytest", *arguments]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy", "pytest")},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "unit": "seconds of processor time",
        "count": len(costs),
        "total": round(sum(costs.values())),
        "files": {name: round(files[name], 1) for name in sorted(files)},
        "tests": {name: round(costs[name], 1) for name in sorted(costs) if costs[name] >= LISTED},
    }
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def described(record: dict[str, Any]) -> list[str]:
    """Return lines with the total of a record and its slowest tests."""
    costs = record["tests"]
    slowest = sorted(costs, key=costs.__getitem__, reverse=True)[:SLOWEST]
    total = f"{record['total']} s of processor time in {record['count']} tests, the slowest:"
    return [total, *(f"{costs[name]:8.1f} s {name}" for name in slowest)]


def main(old: Path, new: Path) -> int:
    before, now = read(old), read(new)
    write_line = lambda line: sys.stdout.write(f"{line}\n")  # noqa: E731
    write_line(f"recorded: {before['total']} s in {before['count']} tests ({before['machine']})")
    for line in described(now):
        write_line(line)
    if now["total"] > MOST * before["total"]:
        write_line(f"more than {MOST:.0f} times the record: move tests to slow, or record anew")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
