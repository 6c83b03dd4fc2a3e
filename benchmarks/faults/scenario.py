"""One scenario, in a process that has the shim: see `benchmarks.faults`.

    python -m benchmarks.faults.scenario train|shard FOLDER OUT EVERY ERRORS ALL

The scenario runs once, watched, with a copy of its folder before every operation. Then each copy
is what a kill has left, and the scenario runs on it again: before and after the last operation of
each class (`Operation.role`), or around every operation. All runs but the failing ones share
this process, where programs are compiled once; a run that fails has a process of its own, forked
before JAX has started, because a save that fails leaves threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import launch
from benchmarks.faults import runs, shim
from benchmarks.faults.shim import Operation
from nested_jax.data.__main__ import main as data_command
from nested_jax.data.pipeline import prepare
from nested_jax.files import folder_sha256

ERRORS = (errno.ENOSPC, errno.EIO)
FAILING = ("open", "write", "fsync", "rename", "link", "mkdir", "truncate")
MOST_SECONDS = 180  # of a run with a fault; one that takes longer hangs


class Scenario(NamedTuple):
    """What is run below a folder, again after a fault, and what is left at its end."""

    run: Callable[[Path], int]  # the command, with its exit status
    again: Callable[[Path], None]  # the same, cheaply, in this process
    outcome: Callable[[Path], dict[str, Any]]


def train(folder: Path) -> Scenario:
    def values(root: Path) -> dict[str, Any]:
        return runs.fields(folder, 4, str(root / "mirror"))

    def run(root: Path) -> int:
        return launch.main(runs.arguments(values(root), root / "run"))

    def outcome(root: Path) -> dict[str, Any]:
        return runs.outcome(root / "run") | {"mirror": runs.outcome(root / "mirror")}

    return Scenario(run, lambda root: runs.train_again(values(root), root / "run"), outcome)


def shard(folder: Path) -> Scenario:
    prepare(runs.configuration(runs.fields(folder, 4)).data, lambda _: None)
    tokenizer = next((folder / "cache").rglob("tokenizer.model"))

    def arguments(root: Path) -> list[str]:
        text = str(folder / "text" / "train.txt")
        flags = ["shard", "--dataset", text, "--tokenizer-path", str(tokenizer), "--name", "text"]
        return [*flags, "--output-dir", str(root / "shards"), "--workers", "1"]

    def again(root: Path) -> None:
        status = data_command(arguments(root))
        if status:
            raise RuntimeError(f"exit status {status}")

    def outcome(root: Path) -> dict[str, Any]:
        names = sorted(p.name for p in (root / "shards").rglob("*") if p.is_file())
        return {"names": names, "bytes": folder_sha256(root / "shards")}

    return Scenario(lambda root: data_command(arguments(root)), again, outcome)


# --- faults --------------------------------------------------------------------------------------


class Sweep:
    """The faults of one scenario, and what came of them."""

    def __init__(self, name: str, scenario: Scenario, folder: Path, every: int, all_: bool) -> None:
        self.name, self.scenario, self.folder = name, scenario, folder
        self.every, self.all = every, all_
        self.root = folder / name / "root"
        self.root.mkdir(parents=True)
        self.copies = folder / name / "copies"
        self.copies.mkdir()
        self.want: dict[str, Any] = {}
        self.listed: list[Operation] = []
        self.known: dict[str, str] = {}  # what came of a tree of files, by its hash

    def fork(
        self, root: Path, log: Path, number: int = 0, error: int = 0, copies: Path | None = None
    ) -> tuple[int, str]:
        """Run the command watched, in a process of its own; return its status and last words."""
        said = log.with_suffix(".said")
        child = os.fork()
        if child == 0:
            status = 70
            try:
                descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                shim.arm(root, log, number, error, copies)
                status = self.scenario.run(root)
            except SystemExit as left:
                status = int(left.code or 0)
            except BaseException:  # noqa: BLE001  (shown, and told by the status)
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        ends = time.monotonic() + MOST_SECONDS
        while time.monotonic() < ends:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                words = said.read_text(errors="replace").strip().splitlines() or [""]
                return os.waitstatus_to_exitcode(status), words[-1]
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return -9, "hung"

    def watch(self) -> None:
        """Run undisturbed, with a copy before each operation."""
        log = self.folder / self.name / "log"
        status, said = self.fork(self.root, log, copies=self.copies)
        if status:
            raise RuntimeError(f"{self.name}: {status}: {said}")
        self.listed = shim.read_log(log)
        shutil.copytree(self.root, self.copies / f"{len(self.listed) + 1:06d}", symlinks=True)

    def ready(self) -> None:
        self.want = self.scenario.outcome(self.root)

    def recover(self, source: Path, change: Callable[[Path], None] | None = None) -> str:
        """Run again on a copy of what a fault has left; return what is lost, "" for nothing."""
        root = self.root
        shutil.rmtree(root)
        shutil.copytree(source, root, symlinks=True)
        if change is not None:
            change(root)
        tree = hashlib.sha256(json.dumps(sorted(map(str, root.rglob("*")))).encode())
        tree.update(folder_sha256(root).encode())
        if tree.hexdigest() not in self.known:
            begun = time.monotonic()
            found = self.again()
            self.known[tree.hexdigest()] = found
            took = f"{time.monotonic() - begun:.1f} s"
            sys.stderr.write(f"{self.name} {len(self.known)}: {took} {found}\n")
        return self.known[tree.hexdigest()]

    def again(self) -> str:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                self.scenario.again(self.root)
            except Exception as error:  # noqa: BLE001  (it is the finding)
                return f"{type(error).__name__}: {error}"
        return runs.differences(lambda: self.scenario.outcome(self.root), self.want)

    def row(self, fault: str, found: list[tuple[str, str]]) -> dict[str, Any]:
        lost = [(where, what) for where, what in found if what]
        return {
            "scenario": f"{self.name}, every operation" if self.all else self.name,
            "fault": fault,
            "operations": len(self.listed),
            "classes": len({operation.role for operation in self.listed}),
            "faults": len(found),
            "recovered": len(found) - len(lost),
            "lost": len(lost),
            "what": lost[:20],
        }

    # --- the kinds of fault ---

    def chosen(self, *what: str) -> list[Operation]:
        """Return the last operation of every class; of these kinds, if any are named."""
        classes = {(o.number if self.all else o.role): o for o in self.listed}
        return [o for o in list(classes.values())[:: self.every] if not what or o.what in what]

    def moments(self) -> Iterator[tuple[str, Path]]:
        """Yield the moments before and after each chosen operation, and what a kill leaves then."""
        for operation in self.chosen():
            for when, number in (("before", operation.number), ("after", operation.number + 1)):
                yield f"{when} {operation.kind}", self.copies / f"{number:06d}"

    def kills(self) -> list[tuple[str, str]]:
        return [(kind, self.recover(copy)) for kind, copy in self.moments()]

    def lost_machines(self) -> list[tuple[str, str]]:
        def lose(root: Path) -> None:
            shutil.rmtree(root / "run", ignore_errors=True)

        return [(kind, self.recover(copy, lose)) for kind, copy in self.moments()]

    def torn(self) -> list[tuple[str, str]]:
        """Cut each write in half: what a loss of power may leave of what was not synchronized."""
        found = []
        for operation in self.chosen("write"):
            copy = self.copies / f"{operation.number + 1:06d}"

            def cut(root: Path, operation: Operation = operation) -> None:
                file = root / operation.path.lstrip("/")
                if file.is_file():
                    os.truncate(file, max(0, file.stat().st_size - (operation.size + 1) // 2))

            found.append((operation.kind, self.recover(copy, cut)))
        return found

    def failed(self, error: int) -> list[tuple[Path, str, int, str]]:
        """Let one operation after another fail; return what each run has left and said."""
        left = []
        for operation in self.chosen(*FAILING):
            root, log = self.folder / self.name / "f" / "root", self.folder / self.name / "f.log"
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            log.unlink(missing_ok=True)
            status, said = self.fork(root, log, operation.number, error)
            seen = shim.read_log(log)
            kind = (
                seen[operation.number - 1].kind if len(seen) >= operation.number else "not reached"
            )
            kept = self.folder / self.name / f"failed-{error}-{operation.number}"
            shutil.move(root, kept)
            left.append((kept, kind, status, said))
        return left

    def judge(self, left: list[tuple[Path, str, int, str]]) -> list[tuple[str, str]]:
        """Return what was lost: a run that fails ends at once, with status 2, and says why."""
        found = []
        for kept, kind, status, said in left:
            wrong = "" if status in (0, 2) else f"status {status}: {said}"
            if status == 0:
                wrong = runs.differences(lambda kept=kept: self.scenario.outcome(kept), self.want)
            found.append((kind, wrong or self.recover(kept)))
        return found


def main(arguments: list[str]) -> int:
    name, folder, out, every, errors, all_ = arguments
    scenario = {"train": train, "shard": shard}[name](Path(folder))
    sweep = Sweep(name, scenario, Path(folder), int(every), bool(int(all_)))
    sweep.watch()
    left = {e: sweep.failed(e) for e in ERRORS} if errors != "no" else {}
    # From here on JAX runs in this process, and it does not fork any more.
    runs.compile_once()
    sweep.ready()
    kinds = {"torn write": sweep.torn, "kill": sweep.kills} if errors != "only" else {}
    if kinds and name == "train":
        kinds["machine lost"] = sweep.lost_machines
    for error, ended in left.items():
        kinds[errno.errorcode[error]] = partial(sweep.judge, ended)
    with open(out, "a") as file:
        for fault, find in kinds.items():
            file.write(json.dumps(sweep.row(fault, find())) + "\n")
            file.flush()
    counts = Counter(operation.what for operation in sweep.listed)
    sys.stderr.write(f"{name}: {dict(counts)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
