"""Models of Hugging Face: ``python -m nested_jax.hub COMMAND --help``.

    import FOLDER --workdir runs/NAME
        A folder with config.json, *.safetensors (one file, or those of an index) and a tokenizer,
        of GPT2LMHeadModel or LlamaForCausalLM, becomes a workdir with one checkpoint of step 0.
        `generate`, `export`, `python -m eval` and `train.init_from` read it as they read a run.

`python -m nested_jax.export` is the way back.

Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nested_jax.hub.imports import import_folder
from nested_jax.machine import quiet_libraries


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.hub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("import", description=run_import.__doc__)
    command.add_argument("folder", type=Path)
    command.add_argument("--workdir", required=True, type=Path)
    command.set_defaults(run=run_import)
    args = parser.parse_args(arguments)
    quiet_libraries()
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def run_import(args: argparse.Namespace) -> int:
    """Write a model of Hugging Face as a workdir."""
    count = import_folder(args.folder, args.workdir)
    print(f"{count:,} parameters in {args.workdir}, from {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
