"""Evaluate checkpoints: ``python -m eval TASK --checkpoint runs/NAME [--out FILE]``.

Every TASK explains its flags with --help. Exit status: 0 done, 1 memory was to be written and was
not, 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eval.core.cli import commands
from nested_jax.errors import NotWrittenError, raised_here
from nested_jax.machine import quiet_libraries


def main(arguments: Sequence[str]) -> int:
    """Run one task or command; return its exit status.

    What is wrong with the input is said without a trace. An error that was not raised by this code
    is a defect, and keeps its traceback.
    """
    known = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = (f"  {name:15} {command.help}" for name, command in known.items())
        print(f"{__doc__}\nusage: python -m eval TASK [flags]\n", *lines, sep="\n")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in known:
        return failed(f"task {name!r}: wants one of {', '.join(known)}", 2)
    quiet_libraries()
    try:
        return known[name].run(rest)
    except SystemExit as ended:  # of argparse
        return int(ended.code or 0)
    except NotWrittenError as error:
        return failed(error, 1)
    except OSError as error:
        return failed(error, 2)
    except ValueError as error:
        if not raised_here(error):
            raise
        return failed(error, 2)


def failed(error: Exception | str, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
