"""How far the planner's plans are from the best there are, on settings small enough to know.

    .venv/bin/python bench/planner_optimality.py [--cases 200] [--seed 0]

Each case is a random setting of one to three kinds of chip and at most twelve chips; `every_plan`
finds the best of all its plans, scored as the planner scores its own. Reported: the share of cases
without a gap, the largest gap, and whether the planner's proven bound was ever above the truth.
A case whose plans are too many to go through is counted as undecided, not left out silently.
"""

from __future__ import annotations

import argparse
import json
import random
import time

from every_plan import TooManyError, best_of_all

from pluribus.core.errors import PlanError
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.plan.search import Search
from pluribus.predict.setting import Setting
from pluribus.spec.job import DataSpec, Job, ModelSpec, PlanSpec, TrainSpec
from pluribus.spec.plan import Plan

MOST_CHIPS = 12
EQUAL = 1e-6  # steps nearer than this are the same plan timed in another order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=3000, help="plans timed per case (3000)")
    parser.add_argument("--verbose", action="store_true", help="a line per case")
    arguments = parser.parse_args()
    gaps: list[float] = []
    worst: list[tuple[float, int]] = []
    none = undecided = above = bounded = 0
    seed, planning, proving = arguments.seed, 0.0, 0.0
    while len(gaps) + undecided < arguments.cases:
        setting = small_setting(seed)
        begin = time.process_time()
        try:
            plan = Search(setting).best()
        except PlanError:
            plan = None
        middle = time.process_time()
        planning += middle - begin
        known = seconds_of(plan) if plan else float("inf")
        try:
            truth = best_of_all(setting, known, most=arguments.most)
        except TooManyError:
            undecided += 1
            told = "undecided"
        else:
            if plan is None:
                # No plan, and none was missed; or the planner gave up too early.
                missed = truth.plan is not None
                none += 1
                told = "MISSED a plan" if missed else "no plan"
                if missed:
                    gaps.append(float("inf"))
            else:
                gap = known / truth.seconds - 1
                gaps.append(gap if gap > EQUAL else 0.0)
                bound = plan.lower_bound_seconds
                told = f"gap {gaps[-1]:.3%}, {truth.timed} timed, {truth.columns} columns"
                if bound is not None:
                    bounded += 1
                    above += bound > truth.seconds * (1 + EQUAL)
                    told += f", bound {bound / truth.seconds - 1:+.2%}"
                worst.append((gaps[-1], seed))
        proving += time.process_time() - middle
        if arguments.verbose:
            print(f"seed {seed}: {told}", flush=True)
        seed += 1
    exact = sum(gap == 0 for gap in gaps)
    worst.sort(reverse=True)
    print(
        json.dumps(
            {
                "cases": len(gaps), "without_gap": round(exact / len(gaps), 4),
                "largest_gap": round(max(gaps), 5), "above_2_percent": sum(g > 0.02 for g in gaps),
                "undecided": undecided, "no_plan": none, "bounds": bounded,
                "bounds_above_the_truth": above,
                "worst": [(s, round(g, 5)) for g, s in worst[:8]],
                "planning_cpu_s": round(planning, 1), "proving_cpu_s": round(proving, 1),
            }
        )
    )  # fmt: skip


def seconds_of(plan: Plan) -> float:
    assert plan.prediction is not None
    return plan.prediction.step_seconds.mid


def small_setting(seed: int) -> Setting:
    """One to three kinds of chip, at most twelve, and a model of three to six layers.

    Chips differ up to fourfold; adapters of 25 to 400 Gbit/s and sequences of 512 to 2048 tokens
    make sums and messages matter without drowning the compute; a third has little memory.
    """
    rng = random.Random(seed)
    while True:
        kinds = rng.choice([1, 2, 2, 2, 3, 3])
        pools = []
        for name in "abc"[:kinds]:
            rate = rng.choice([25.0, 40.0, 60.0, 100.0])
            pools.append(
                Pool(
                    address=f"here/{name}",
                    chip=Chip(
                        key=f"chip-{name}", vendor="own", name=name, device="cuda",
                        memory_gib=rng.choice([2.4, 2.8, 16, 16]), memory_gbytes_per_s=800,
                        peak_tflops={"bf16": rate}, measured_tflops={"bf16": rate}, source="bench",
                    ),
                    nodes=rng.choice([1, 1, 2, 2, 3]), chips_per_node=rng.choice([1, 2, 2, 4]),
                    nic_gbps=rng.choice([25, 100, 400]), price_per_chip_hour=rng.choice([1, 2, 3]),
                )
            )  # fmt: skip
        if 2 <= sum(pool.num_chips for pool in pools) <= MOST_CHIPS:
            break
    hidden = rng.choice([512, 1024])
    model = Model.from_config(
        {
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": 3 * hidden,
            "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": rng.choice([1, 2, 3, 4]), "vocab_size": rng.choice([1000, 8000]),
            "max_position_embeddings": 4096, "tie_word_embeddings": rng.random() < 0.3,
        }
    )  # fmt: skip
    sequence = rng.choice([512, 1024, 2048])
    job = Job(
        model=ModelSpec(config="config.json"),
        data=DataSpec(tokens="*.bin"),
        train=TrainSpec(
            sequence_length=sequence, global_batch_tokens=rng.choice([4, 6, 8, 12, 16]) * sequence,
            steps=100,
        ),
        plan=PlanSpec(micro_batch_sizes=rng.choice([(1,), (1, 2), (2,)])),
    )  # fmt: skip
    return Setting(job, model, Cluster(tuple(pools)))


if __name__ == "__main__":
    main()
