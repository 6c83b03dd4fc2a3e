"""A passkey in a long text: ``python -m eval passkey --checkpoint runs/NAME``.

A five-digit key stands at a depth spread evenly over the samples, in noise text; the prompt has
exactly the stated tokens. Numbers as in the needle suite (python -m eval niah --help).
"""

from __future__ import annotations

import argparse

from eval.core.cli import Findings, Task, run_task
from eval.core.subject import Subject
from eval.tasks.niah import add_length_flags, find_needles


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    return find_needles(subject, flags, ["passkey"])


def main(arguments: list[str]) -> int:
    return run_task(TASK, arguments)


TASK = Task("passkey", __doc__, add_length_flags, evaluate)
