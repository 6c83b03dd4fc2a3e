"""The library that stands between a program and its files: built, armed, its log read."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")
NORMAL = [  # what differs from run to run in a name, in turn
    (r"[0-9a-f]{32}", "HASH"),
    (r"set-aside-[\dT:-]+", "set-aside-DATE"),
    (r"(?<=/|\.)\d+(?=/|\.|$)", "N"),
    (r"(?<=_)\d+", "N"),
    (r"orbax-checkpoint-tmp[-.\w]*", "orbax-checkpoint-tmp"),
]
ROLES = [  # files that one line of code writes, copies or deletes alike
    (r"(?<=/)(params|opt|carry)(?=/|\.orbax|$)", "ARRAYS"),
    (r"(?<=/)(data|meta)(?=/|\.orbax|$)", "JSON"),
    (r"(?<=^/mirror/checkpoints/N/).*?(?=(\.N\.partial)?$)", "FILE"),
    (r"(?<=^/mirror/)[^/]+?\.(json|jsonl|model)(?=(\.N\.partial)?$)", "RECORD"),
    (r"(?<=^/run/checkpoints/\.N\.deleted/).*", "FILE"),
    (r"(?<=^/run/)(config|summary|tokenizer|starts)\.(jsonl?|model)(?=(\.N\.partial)?$)", "RECORD"),
    (r"(?<=^/shards/)(index\.json|tokenizer\.model)", "FILE"),
]


class Operation(NamedTuple):
    """One operation that changed a file, as the log has it."""

    number: int  # from 1
    what: str  # open, write, fsync, truncate, rename, link, unlink, mkdir, rmdir
    path: str  # below the folder that is watched
    offset: int  # of a write; -1 at the end of a file that is appended to
    size: int  # of a write, or what a file is cut to

    @property
    def kind(self) -> str:
        """The operation without what differs from run to run."""
        return f"{self.what} {replaced(self.path, NORMAL)}"

    @property
    def role(self) -> str:
        """The class of the operation: its kind, and one name for files that are treated alike."""
        return f"{self.what} {replaced(replaced(self.path, NORMAL), ROLES)}"


def replaced(path: str, patterns: list[tuple[str, str]]) -> str:
    for pattern, name in patterns:
        path = re.sub(pattern, name, path)
    return path


def build(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


def read_log(file: Path) -> list[Operation]:
    rows = [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []
    return [Operation(int(n), what, path, int(o), int(s)) for n, what, path, o, s in rows]


def arm(root: Path, log: Path, number: int, error: int, copies: Path | None = None) -> None:
    """Watch a folder from now on, in a process that has the library; number 0 fails nothing.

    Args:
      copies: where a copy goes before each operation; None makes none.
    """
    library = ctypes.CDLL(None)
    to = os.fsencode(copies) if copies is not None else None
    at = ctypes.c_long(1), ctypes.c_long(number)
    library.faults_arm(os.fsencode(root), os.fsencode(log), to, *at, ctypes.c_int(error))
