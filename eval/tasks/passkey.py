"""A passkey in a long text: ``python -m eval passkey --checkpoint runs/NAME``.

A five-digit key stands at a depth spread evenly over the samples, in noise text; the prompt has
exactly the stated tokens. Numbers as in the needle suite (python -m eval niah --help).
"""

from __future__ import annotations

import argparse
from functools import partial

from eval.core.cli import Findings, Task
from eval.core.subject import Subject
from eval.tasks.niah import LENGTH_FLAGS, draw, find_needles


def evaluate(subject: Subject, flags: argparse.Namespace) -> Findings:
    return find_needles(subject, flags, ["passkey"])


HELP = "a passkey at a known depth of a long text"
TASK = Task("passkey", HELP, __doc__, LENGTH_FLAGS, evaluate, partial(draw, "passkey"))
