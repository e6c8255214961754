"""The command `jaxdiff`: `jaxdiff train` and `jaxdiff sample`."""

import importlib
import os
import sys

from jaxdiff import __version__
from jaxdiff.registry import suggest

_COMMANDS = {"train": "train a model, or go on with a run", "sample": "draw samples from a run, and other tasks"}

USAGE = f"""\
usage: jaxdiff COMMAND --FLAG=VALUE ...

commands:
  train    {_COMMANDS["train"]}
  sample   {_COMMANDS["sample"]}

jaxdiff COMMAND --help lists the flags of a command; jaxdiff --version prints the version.

    jaxdiff train --config=digits --workdir=runs/digits
    jaxdiff sample --workdir=runs/digits --out=digits.png

exit codes: 0 done, 1 failed, 2 refused (a mistake in what was given), 130 and 143 stopped by Ctrl-C or SIGTERM"""


def main() -> None:
    """Run the command that the first argument names."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h", "help"):
        print(USAGE)
    elif command == "--version":
        print(f"jaxdiff {__version__}")
    elif command in _COMMANDS:
        sys.argv = [f"jaxdiff {command}", *arguments]
        sys.path.append(os.getcwd())  # for names of the user's own modules; last, so that it hides no other module
        importlib.import_module(f"jaxdiff.cli.{command}").main()  # after --help and --version, as it takes a second
    else:
        print(f"error: {command!r} is not a command{suggest(command, _COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
