"""`pluribus replan`: a new plan after chips were lost, gained or found slower."""

from __future__ import annotations

import argparse
from pathlib import Path

from pluribus.cli.output import console, print_json, print_plan
from pluribus.core.errors import PlanError
from pluribus.core.units import GIB, format_seconds
from pluribus.plan.replan import LASTING_STEPS, replan
from pluribus.spec.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="plan.json")
    parser.add_argument("--lost", nargs="+", default=[], metavar="site/pool/node[/chip]")
    parser.add_argument("--gained", nargs="+", default=[], metavar="site/pool=NODES")
    parser.add_argument("--slower", nargs="+", default=[], metavar="site/pool=SPEED")
    parser.add_argument(
        "--lasting-steps", type=int, default=LASTING_STEPS,
        help=f"steps over which moving has to pay off ({LASTING_STEPS})",
    )  # fmt: skip
    parser.add_argument("--out", help="file to write (replan.json beside the plan)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    result = replan(
        Plan.load(arguments.plan),
        lost=arguments.lost,
        gained={k: int(v) for k, v in _pairs("--gained", arguments.gained)},
        slower=dict(_pairs("--slower", arguments.slower)),
        lasting_steps=max(arguments.lasting_steps, 1),
    )
    out = Path(arguments.out or Path(arguments.plan).with_name("replan.json"))
    result.plan.save(out)
    prediction = result.plan.prediction
    assert prediction is not None
    if arguments.json:
        print_json(
            {
                "plan": str(out),
                "step_seconds": prediction.step_seconds.mid,
                "moved_bytes": result.moved_bytes,
                "move_seconds": result.move_seconds,
                "kept_pipelines": result.kept,
            }
        )
        return 0
    print_plan(result.plan)
    console.print(
        f"{result.kept} of {len(result.plan.pipelines)} pipelines stay where they are; "
        f"{result.moved_bytes / GIB:,.1f} GiB move, {format_seconds(result.move_seconds)} for the "
        "chip that receives most"
    )
    console.print(f"wrote {out}")
    return 0


def _pairs(option: str, words: list[str]) -> list[tuple[str, float]]:
    """``name=number`` words.

    Raises:
        PlanError: a word that is not one.
    """
    pairs = []
    for word in words:
        name, _, number = word.partition("=")
        try:
            pairs.append((name, float(number)))
        except ValueError:
            raise PlanError(
                f"'{word}' is not site/pool=NUMBER", where=option, do=f"Write {option} here/a=1."
            ) from None
    return pairs
