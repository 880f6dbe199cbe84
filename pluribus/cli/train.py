"""`pluribus train`: runs a plan and shows it running."""

from __future__ import annotations

import argparse
from pathlib import Path

from pluribus._api import train
from pluribus.cli.live import TrainView
from pluribus.cli.output import console, print_json, say
from pluribus.spec.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="the plan, e.g. plan.json")
    parser.add_argument("--folder", help="of the run (runs/NAME-OF-THE-PLAN'S-FOLDER)")
    parser.add_argument("--steps", type=int, help="stop after this many steps in this call")
    parser.add_argument("--fresh", action="store_true", help="ignore the folder's checkpoints")
    parser.add_argument(
        "--backend", choices=("gloo", "pluribus"), help="what ranks talk over (gloo)"
    )
    parser.add_argument(
        "--codec", default="none", help="of sums over slow hops, e.g. int8; with --backend pluribus"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    from pluribus.train.run import BACKEND, RunOptions

    plan = Plan.load(arguments.plan)
    default = Path("runs") / (Path(arguments.plan).absolute().parent.name or "run")
    folder = Path(arguments.folder) if arguments.folder else default
    options = RunOptions(
        steps=arguments.steps,
        resume=not arguments.fresh,
        backend=arguments.backend or BACKEND,
        codec=arguments.codec,
    )
    with TrainView(plan) as view:
        result = train(plan, folder, options=options, listener=view.listen, progress=say)
    last = result.steps[-1] if result.steps else None
    if arguments.json:
        print_json(
            {
                "folder": str(result.folder),
                "steps": len(result.steps),
                "loss": last.loss if last else None,
                "stopped": result.stopped,
                "checkpoint": str(result.checkpoint) if result.checkpoint else None,
            }
        )
        return 0
    if last:
        console.print(f"step {last.step}, loss {last.loss:.3f}")
    if result.stopped:
        console.print("stopped on request; the same command goes on from the checkpoint")
    if result.checkpoint:
        console.print(f"checkpoint: {result.checkpoint}")
    console.print(f"look at it: pluribus report {folder}")
    return 0
