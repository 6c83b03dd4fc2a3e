"""Trained models in, and memories for them: ``python -m nested_jax.hub COMMAND --help``.

    import       a model of Hugging Face becomes a workdir
    retrofit     give a trained Transformer memories that it writes while it reads
    calibrate    find the rates of its writes on a text

`python -m nested_jax.export` is the way back to Hugging Face.

Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nested_jax.errors import raised_here
from nested_jax.hub import calibrate, imports, retrofit
from nested_jax.machine import quiet_libraries

COMMANDS = {"import": imports, "retrofit": retrofit, "calibrate": calibrate}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m nested_jax.hub", description=__doc__, formatter_class=form
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        about = module.__doc__ or ""
        command = commands.add_parser(
            name, help=about.splitlines()[0], description=about, formatter_class=form
        )
        module.add_flags(command)
    flags = parser.parse_args(arguments)
    quiet_libraries()
    try:
        COMMANDS[flags.command].run(flags)
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) and not raised_here(error):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
