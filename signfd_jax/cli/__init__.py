"""The command `signfd`: run, compare, paper, leaderboard, plot, show, list, completion.

Light to import: each command imports what it needs, so that the message about a missing
extra, and the help, come at once.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Sequence

from signfd_jax import __version__
from signfd_jax.cli._commands import COMMANDS
from signfd_jax.cli._options import Compare, Paper, Run
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._processes.signals import Terminated, heeded_interrupts

__all__ = ["Compare", "Paper", "Run", "main"]

_EXTRA = ("flax", "matplotlib", "pooch", "rich", "sklearn", "tqdm", "tyro")

USAGE = """\
usage: signfd run [PRESET] [--field value ...]        train once, or go on
       signfd run --from RUN [--field value ...]      repeat the run of that folder
       signfd compare [PRESET] [--option value ...]   decoders x attacks x attackers
       signfd paper FIGURE [--option value ...]       the paper's findings, and a report
       signfd leaderboard list|run|page               enter a decoder, verify a row
       signfd plot FOLDER ... [--format pdf ...]      draw runs and grids again
       signfd show RUN                                what was run, and what came out
       signfd list [KIND ...]                         every name that there is
       signfd completion bash|zsh                     the tab key's script, to source
       signfd --version

A configuration's JSON file can stand for a PRESET. `signfd run --help`, `signfd
compare --help` and `signfd paper --help` list the options. KIND is presets, datasets,
models, splits, decoders, attacks, memberships, workers, optimizers or schedules.
FIGURE is one of inversion, flip-probability, initial-phase, estimation, gaussian,
batch-sizes, invariance, quirks, or all."""


_HELP = {
    "show": """\
usage: signfd show RUN

Show what the folder of a run holds: the fields of its configuration that
differ from the defaults, its result, and for each worker its last weight (the
mean over coordinates where they differ), whether its votes are read as sent,
negated or not counted, and the verdict on it with its evidence. Where the
output is no terminal, each row is one line with tabs between its fields, and
begins with the name of its table.""",
    "leaderboard": """\
usage: signfd leaderboard list [--folder FOLDER]
       signfd leaderboard run NAME [--decoder DECODER] [--option value ...]
       signfd leaderboard page [--output FILE] [--folder FOLDER]

List the challenges; run a decoder in one, which enters it, or compares it with
its row if it was entered; write the page from all rows. Without a decoder, `run`
compares all that were entered. It ends with 1 where a row does not come out
again. `signfd leaderboard run --help` lists its options.""",
    "completion": """\
usage: signfd completion bash|zsh

Print what completes commands, options and names in a shell. For bash and zsh:
    source <(signfd completion bash)
    source <(signfd completion zsh)
in the shell's start file. Names that plugins add are there when it is printed.""",
    "list": """\
usage: signfd list [KIND ...]

List what can be named, with the options of each name and the package that added
it. KIND is presets, datasets, models, splits, decoders, attacks, memberships,
workers, optimizers or schedules; without one, all are listed. Where the output
is no terminal, each name is one line of five fields with tabs between them:
kind, name, options, package and description.""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows `signfd`; None: `sys.argv`.

    Returns:
        The exit code: 0; 1 for a row of the leaderboard that does not come out again; 2
        for bad input, with one line on stderr; 4 for a run that halted, as its
        `stop_below` says; 130 for Ctrl-C, 143 for SIGTERM. What cannot be printed or
        drawn changes none of them.

    Examples:
        >>> main(["compute"])
        2
    """
    with _without_windows(), console.steady():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


@contextlib.contextmanager
def _without_windows():
    """Only files are drawn: that needs no window, for which there may be no library."""
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        del os.environ["MPLBACKEND"]
        if before is not None:
            os.environ["MPLBACKEND"] = before


def _main(arguments):
    if arguments[:1] in (["--version"], ["-V"]):
        print("signfd", __version__)
        return 0
    if missing := [name for name in _EXTRA if not importlib.util.find_spec(name)]:
        return _complain(
            f"{', '.join(missing)} not found; the command line needs the extra "
            "'experiments': pip install 'signfd-jax[experiments]'"
        )
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        if arguments[0] not in COMMANDS:
            raise ValueError(
                f"unknown command {arguments[0]!r}; known are {', '.join(COMMANDS)}"
            )
        asked = {"-h", "--help"} & set(arguments)
        if asked and arguments[0] in _HELP and arguments[1] != "run":
            print(_HELP[arguments[0]])
            return 0
        with heeded_interrupts():
            return COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        return _complain(error)
    except Terminated:
        return _complain("terminated; the same command goes on from here", 143)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on from here", 130)


def _complain(message, code=2):
    console.warn(message)
    return code
