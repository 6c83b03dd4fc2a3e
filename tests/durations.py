"""What every test costs in processor time, written to a file on demand.

Processor time, that of subprocesses included, hardly depends on what else the machine does;
the time on the clock does. ``pytest --durations-to FILE`` writes the file; ``.ci/run`` does.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

SLOWEST = 10
COST = "cpu_s"  # name of the property of a report


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--durations-to", metavar="FILE", help="write what every test costs")


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
                self.costs[report.nodeid] = round(float(str(value)), 2)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        file = self.config.getoption("--durations-to")
        if not file or not self.costs:
            return
        write(Path(file), self.costs, self.config)
        terminalreporter.section("processor time")
        terminalreporter.line(f"{sum(self.costs.values()):.0f} s in {len(self.costs)} tests")
        for name in sorted(self.costs, key=self.costs.__getitem__, reverse=True)[:SLOWEST]:
            terminalreporter.line(f"{self.costs[name]:8.1f} s {name}")


def write(file: Path, costs: dict[str, float], config: pytest.Config) -> None:
    """Write what made the numbers, their sums by file, and every test."""
    files: dict[str, float] = defaultdict(float)
    for name, cost in costs.items():
        files[name.partition("::")[0]] += cost
    record = {
        "command": " ".join(["pytest", *config.invocation_params.args]),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "numpy", "pytest")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "unit": "seconds of processor time",
        "total": round(sum(costs.values())),
        "files": {name: round(cost, 1) for name, cost in sorted(files.items())},
        "tests": dict(sorted(costs.items())),
    }
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Costs(config), "costs")


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def quickest(file: Path, count: int) -> list[str]:
    """Return the tests of a record that cost least, in its order."""
    costs = read(file)["tests"]
    chosen = set(sorted(costs, key=costs.__getitem__)[:count])
    return [name for name in costs if name in chosen]


if __name__ == "__main__":
    sys.stdout.write("\n".join(quickest(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
