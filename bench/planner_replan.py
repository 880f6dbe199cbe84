"""Planner, part d: a new plan after a loss: seconds, bytes moved, the step before and after.

    .venv/bin/python bench/planner.py replan [--kinds 2 3] [--cards 64 1000] [--fresh]

The settings are those of part b (planner_scaling.py). Of each a node of the first kind is lost, a
node of it gained, or all its chips run at 0.7 of their speed. `--fresh` also plans from scratch on
the same chips: "÷ fresh" is the new plan's step over that of a plan that ignores what must move.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from planner_scaling import KINDS, MODELS, setting

from pluribus.hardware.cluster import Cluster
from pluribus.plan.replan import replan
from pluribus.plan.search import Search
from pluribus.predict.setting import Setting

POOL = f"site/{KINDS[0]}"
EVENTS: dict[str, dict] = {
    "a node lost": {"lost": (f"{POOL}/0",)},
    "a node gained": {"gained": {POOL: 1}},
    "chips at 0.7": {"slower": {POOL: 0.7}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--cards", type=int, nargs="+", default=[64, 1000])
    parser.add_argument("--models", nargs="+", default=["80 dense"], choices=list(MODELS))
    parser.add_argument("--fresh", action="store_true", help="compare with planning from scratch")
    arguments = parser.parse_args()
    print("| model, kinds, cards | event | CPU s | moved GiB | seconds to move | kept | step before"
          " | after | ÷ fresh |")  # fmt: skip
    print("|" + "---|" * 9)
    for name in arguments.models:
        for kinds in arguments.kinds:
            for cards in arguments.cards:
                _rows(name, setting(kinds, cards, MODELS[name]), arguments.fresh)


def _rows(name: str, where: Setting, fresh: bool) -> None:
    plan = Search(where).best()
    assert plan.prediction is not None
    before, pools = plan.prediction.step_seconds.mid, where.cluster.pools
    for event, change in EVENTS.items():
        begin = time.process_time()
        result = replan(plan, **change)
        seconds = time.process_time() - begin
        assert result.plan.prediction is not None
        after = result.plan.prediction.step_seconds.mid
        ratio = "–"
        if fresh and "slower" not in change:  # a lost node or one more: another number of nodes
            nodes = pools[0].nodes + (1 if "gained" in change else -1)
            if nodes:
                cluster = Cluster((replace(pools[0], nodes=nodes), *pools[1:]))
                anew = Search(replace(where, cluster=cluster)).best()
                assert anew.prediction is not None
                ratio = f"{after / anew.prediction.step_seconds.mid:.3f}"
        print(
            f"| {name}, {len(pools)}, {where.cluster.num_chips:,} | {event} | {seconds:.1f} | "
            f"{result.moved_bytes / 2**30:,.0f} | {result.move_seconds:.1f} | {result.kept} of "
            f"{len(plan.pipelines)} | {before:.2f} s | {after:.2f} s | {ratio} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
