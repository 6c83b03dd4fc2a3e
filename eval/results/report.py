"""A page to look at: ``python -m eval report RUN [RUN ...] --out report.html``.

One file that needs no network: loss and bits per byte by step, writes of every level, a held-out
text colored token by token by what memory gained there, loss by position, samples, and the needles
and forgetting that were measured (eval/ of the workdir has the newest result of each task);
configuration with what differs, device, versions, commands. Every chart has its numbers as a table,
which is open where there is no JavaScript.

The text is inspected and samples are written by each run's newest checkpoint, and kept;
--no-model shows what is there. RUN is a workdir, or NAME=RUN. Wants the extra `eval`.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from eval.core.cli import Command
from eval.core.flags import flag
from eval.core.texts import SPLIT_FLAG
from eval.page.gather import check_runs, gather
from eval.page.html import page
from nested_jax.errors import import_extra, require
from nested_jax.files import write_bytes
from nested_jax.machine import human_bytes


def act(flags: argparse.Namespace) -> int:
    right = flags.out.suffix in (".html", ".htm")
    require(right, "--out", str(flags.out), "wants a name that ends with .html")
    flags.model = not flags.no_model
    import_extra("vl_convert", "eval", "to draw charts")
    check_runs(flags.runs)
    shown = [gather(text, flags) for text in flags.runs]
    names = [run.name for run in shown]
    require(len(set(names)) == len(names), "RUN", names, "wants different names, NAME=RUN")
    command = shlex.join(["python", "-m", "eval", "report", *flags.runs, "--out", str(flags.out)])
    made = page(shown, command).encode()
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(flags.out, made)
    print(f"{flags.out}: {len(shown)} runs, {human_bytes(len(made))}")
    return 0


FLAGS = (
    flag("runs", None, "runs: workdirs, or NAME=RUN", nargs="+", metavar="RUN"),
    flag("--out", None, "the page", makes="file", type=Path, required=True),
    flag("--text", "run", "what is inspected: a file, or another word of --segments"),
    SPLIT_FLAG._replace(default="valid"),
    flag("--max-tokens", 1024, "of it that are read", least=2),
    flag("--samples", 2, "that each model writes", least=0),
    flag("--no-model", False, "load no checkpoint"),
)
HELP = "runs as one page: curves, what memory did at every token, needles, forgetting"
COMMAND = Command("report", HELP, __doc__, FLAGS, act)
