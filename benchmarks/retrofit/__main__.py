"""What writing is worth to Transformers that never learned to write, text by text.

    python -m benchmarks.retrofit run --workdir FOLDER --data-root ROOT [--seeds 0,1,2]
    python -m benchmarks.retrofit tables

`run` trains for each seed and each number of --steps a Transformer, and gives it memories (one
level of period 64 in its last block). ROOT has lm/SEGMENT/{valid,test}.jsonl.gz of five corpora
that nothing is trained on. Rows of each are read without writes, with the safe default, with what
`hub calibrate` finds on rows of the valid split in --seconds, and with ten times the default rate.
Then they are trained for --further steps on the same rows: the Transformer, the reader's rates
alone, and all of the reader; the same texts are read again. --sweep also reads with plain gradients
(`sgd`) and with shares of the norm (`unit`) at several rates, unbounded.

The memory file: the first half of a document is read, all but what was learned is cleared, and its
second half is scored with that memory, with another document's, and with none. At the end come
`eval repeat` and, of the longest trained base, the zero-shot tasks, --questions of each (0: none).

One JSON line for each corpus, and one for the tasks, is added to --out. What is there already is
not measured again, and models that are in --workdir are not trained again. Of a model that was
killed while it trained, the training goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.retrofit.measure import TASKS, measure
from benchmarks.retrofit.models import ROOT, Models
from benchmarks.retrofit.tables import tables

RECORDS = ROOT / "benchmarks" / "results" / "retrofit-cpu.jsonl"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrofit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["run", "tables"])
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2))
    parser.add_argument("--steps", type=numbers, default=(120, 2000), help="of the bases")
    parser.add_argument("--further", type=int, default=200, help="steps of training on")
    parser.add_argument("--rows", type=int, default=4, help="of each corpus and split")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--seconds", type=float, default=60, help="of each calibration")
    parser.add_argument("--questions", type=int, default=20, help="of each zero-shot task")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path, default=RECORDS)
    flags = parser.parse_args(arguments)
    if flags.what == "run":
        run(flags)
    else:
        print(tables([json.loads(line) for line in flags.out.read_text().splitlines()]))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def run(flags: argparse.Namespace) -> None:
    for flag in ("workdir", "data_root"):
        if getattr(flags, flag) is None:
            raise SystemExit(f"error: --{flag.replace('_', '-')}: run wants it")
    flags.data_root, flags.workdir = flags.data_root.resolve(), flags.workdir.resolve()
    for seed in flags.seeds:
        for steps in flags.steps:
            models = Models(flags.workdir, steps, seed, flags.further)
            for record in measure(models, flags, done(flags.out, models)):
                with flags.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps(record), flush=True)


def done(out: Path, models: Models) -> set[str]:
    """Return the corpora of these models that have a record, and `TASKS` if they have one."""
    records = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    mine = (r for r in records if (r["base"], r["seed"]) == (models.name, models.seed))
    return {r.get("corpus", TASKS) for r in mine}


if __name__ == "__main__":
    main(sys.argv[1:])
