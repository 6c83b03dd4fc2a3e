"""The domain-token experiment, whole: ``python -m recipes.domain_tokens --quick --out DIR``.

Two models on the same text: one has a token for each product of digits, the other does not. Stages:
text, tokenizer, shards; then for each condition pretraining, HellaSwag at its checkpoints, export
with a check, fine-tuning on conversations, fine-tuning on GSM8K, with probes and GSM8K after each;
and the report (report.json, report.md, hellaswag.png). Every stage is resumable: the same command
goes on where it was killed.

    --quick              minutes on two CPU cores, on samples below --data-root or generated text
    --skip-data          the shards are there
    --skip-baseline, --skip-mul-tokens   without this condition
    --placebo            a third condition: the same spans, with wrong facts in their place

The full size wants FineWeb-Edu (from the Hub, or --download FOLDER, which fetches its files first),
--tokenizer (`python -m nested_jax.data vocabulary gpt2`), --tulu (JSON lines) and GSM8K below
--data-root. docs/gpt2.md has what it should reach. Exit status: 0 done, 2 bad input, 3 diverged,
143 or 130 stopped by a signal after saving.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.core.datasets import DataRoot
from eval.results.checkpoints import draw
from nested_jax.data.prepare.inject import CONDITIONS
from nested_jax.errors import raised_here, require
from nested_jax.files import write_bytes, write_json
from nested_jax.machine import quiet_libraries
from nested_jax.train.signals import Stopped
from nested_jax.train.stop_rules import Diverged
from recipes.domain_tokens.report import markdown, report
from recipes.domain_tokens.run import Experiment, stages_of
from recipes.domain_tokens.sizes import SIZES
from recipes.stages import check_space, run_stages


def main(arguments: list[str]) -> int:
    """Run the experiment; return its exit status."""
    quiet_libraries()
    try:
        return run(parse(arguments))
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and not raised_here(error):
            raise
        return failed(error, 2)
    except Diverged as error:
        return failed(error, 3)
    except Stopped as stop:
        return failed(stop, 128 + stop.number)


def run(flags: argparse.Namespace) -> int:
    size = SIZES["quick" if flags.quick else flags.size]
    conditions = ["mul_placebo"] if flags.placebo else []
    conditions = ["mul_tokens", *conditions] if not flags.skip_mul_tokens else conditions
    conditions = ["baseline", *conditions] if not flags.skip_baseline else conditions
    require(bool(conditions), "--skip-...", conditions, "leaves no condition to run")
    out = flags.out or Path("runs") / f"domain-tokens-{size.name}"
    if size.name == "full":
        want = "wants GPT-2's vocabulary (`python -m nested_jax.data vocabulary gpt2`)"
        require(Path(flags.tokenizer).is_file(), "--tokenizer", flags.tokenizer, want)
    if not flags.skip_data:
        check_space(out, size.bytes_needed)
    root = DataRoot(flags.data_root)
    experiment = Experiment(
        out, size, flags.rule, root, flags.tokenizer, flags.tulu, flags.download, flags.workers, say
    )
    settings = {"size": size.name, "rule": flags.rule, "tulu": flags.tulu}
    if flags.skip_data:
        want = "--skip-data wants the shards and the tokenizer of an earlier start"
        ready = all((out / "data" / name).is_dir() for name in ("tokenizer", *conditions))
        require(ready, "--out", str(out), want)
    stages = stages_of(experiment, conditions, data=not flags.skip_data)
    found = run_stages(stages, out, settings, say)
    conditions = [c for c in CONDITIONS if f"score gsm8k after gsm8k/{c}" in found]
    made = report(found, conditions, settings)
    write_json(out / "report.json", made)
    page = markdown(made, conditions)
    write_bytes(out / "report.md", page.encode())
    draw({c: made[c]["hellaswag"] for c in conditions}, out / "hellaswag.png", "tokens_seen")
    say(page)
    say(f"{out / 'report.json'}, {out / 'report.md'}, {out / 'hellaswag.png'}")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.domain_tokens",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="--quick wins")
    parser.add_argument("--skip-data", action="store_true")
    parser.add_argument("--skip-baseline", action="store_true")
    parser.add_argument("--skip-mul-tokens", action="store_true")
    parser.add_argument("--placebo", action="store_true")
    parser.add_argument("--out", type=Path, help="default: runs/domain-tokens-SIZE")
    parser.add_argument("--rule", choices=("bounded", "original"), default="bounded")
    parser.add_argument("--data-root", type=Path, help="of samples and evaluations")
    parser.add_argument("--tokenizer", default="", help="tokenizer.model of the full size")
    parser.add_argument("--tulu", default="", help="JSON lines of conversations, of the full size")
    parser.add_argument("--download", default="", help="folder for FineWeb-Edu's files")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    return parser.parse_args(arguments)


def say(message: str) -> None:
    print(message, flush=True)


def failed(error: object, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
