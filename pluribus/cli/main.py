"""`pluribus COMMAND`: finds the command and turns a `PluribusError` into one message."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from pluribus._version import __version__
from pluribus.core.errors import PluribusError

# Only the command that is asked for is imported: `pluribus --help` must answer at once.
COMMANDS = {
    "demo": "train one model on two unlike chips made of this machine, from nothing",
    "probe": "look at this machine and write cluster.toml",
    "profile": "measure layers and links, and write profile.json",
    "plan": "find the best plan for a job on a cluster, and write plan.json",
    "predict": "say what a plan will take",
    "replan": "plan anew after chips were lost, gained or found slower",
    "calibrate": "fit the predictions to measured runs, and write calibration.json",
    "train": "run a plan",
    "report": "draw a run as one HTML page",
    "comm": "measure the links between ranks, and the collectives over them",
    "aggregator": "sum chunks of several ranks in the middle of the network",
}

_TRAIN_PACKAGES = ("torch", "tokenizers", "safetensors")  # the extra `train`

_DESCRIPTION = """\
Out of many unlike chips, one machine that trains large language models.

  pluribus demo                 the whole way once, on this machine
  pluribus probe                what is here           -> cluster.toml
  pluribus profile job.toml     how fast it is         -> profile.json
  pluribus plan job.toml        who does what          -> plan.json
  pluribus predict plan.json    what it will take
  pluribus replan plan.json     after a loss           -> replan.json
  pluribus calibrate runs/…     learn from what it took -> calibration.json
  pluribus train plan.json      do it                  -> runs/…
  pluribus report runs/…        look at it             -> report.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code (2: a mistake the user can mend)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser, module = _parser(argv)
    arguments = parser.parse_args(argv)
    try:
        return module.run(arguments) if module else 0
    except PluribusError as error:
        print(f"pluribus: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAIN_PACKAGES:
            raise
        print(
            f"pluribus: this command needs {package}, which is not installed\n"
            '  pip install "pluribus[train]"',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("pluribus: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        sys.stderr.close()
        return 0


def _parser(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    parser = argparse.ArgumentParser(
        prog="pluribus",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pluribus {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((word for word in argv if word in COMMANDS), None)
    module = None
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name == wanted:
            module = importlib.import_module(f"pluribus.cli.{name}")
            module.add_arguments(command)
    return parser, module


if __name__ == "__main__":
    sys.exit(main())
