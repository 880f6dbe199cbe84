"""How long predicting takes, in CPU time: many candidates at once, one plan, ten thousand chips.

.venv/bin/python bench/predict_speed.py [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np

from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.predict.predict import forecast
from pluribus.predict.regular import Layout, regular_terms
from pluribus.predict.regular_plan import regular_pipelines
from pluribus.predict.setting import Setting
from pluribus.predict.waves import waves
from pluribus.spec.job import DataSpec, Job, ModelSpec, TrainSpec
from pluribus.spec.plan import Plan

LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80,
    "vocab_size": 128256,
}  # fmt: skip
SEQUENCE = 4096
USUAL = Layout(tp=8, pp=8, dp=16, global_batch=16 * 64, recompute="full")
LARGE = Layout(tp=8, pp=16, dp=80, global_batch=80 * 64, recompute="full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = Model.from_config(LLAMA_70B)
    rows = {
        f"one of {options.candidates} candidates, 8 stages x 64 (waves)": bulk(
            model, options.candidates
        ),
        "a regular layout, closed form": closed(model),
    }
    for name, layout, apart in (
        ("8 stages x 64 x 16 pipelines, first", USUAL, True),
        (f"{LARGE.num_chips:,} chips in 80 pipelines, first", LARGE, True),
        (f"{LARGE.num_chips:,} chips as replicas in 16 stages, first", LARGE, False),
    ):
        first, again = whole(model, layout, apart)
        rows[name] = first
        rows[name.replace("first", "again")] = again
    assert "torch" not in sys.modules
    if options.json:
        print(json.dumps(rows))
        return
    for name, seconds in rows.items():
        print(f"{name:<52}{1e3 * seconds:10.3f} ms of CPU")


def pool_for(layout: Layout) -> Pool:
    return Pool(
        address="bench/pool", chip=find_chip("nvidia-h100-80g", where="bench"),
        nodes=-(-layout.num_chips // 8), chips_per_node=8, nic_gbps=400,
    )  # fmt: skip


def bulk(model: Model, candidates: int) -> float:
    """Seconds of each of many candidates, timed together."""
    (pipeline,) = regular_pipelines(model, pool_for(USUAL), USUAL)
    prepared = waves(pipeline)
    generator = np.random.default_rng(0)
    times = generator.uniform(1, 2, (candidates, len(prepared.kinds), USUAL.pp))
    return best(lambda: prepared.solve(times, 0.01)) / candidates


def closed(model: Model) -> float:
    pool = pool_for(USUAL)
    return best(lambda: regular_terms(model, pool, USUAL, SEQUENCE, "bf16").seconds())


def whole(model: Model, layout: Layout, apart: bool) -> tuple[float, float]:
    """Seconds of one forecast with its timeline: in a new setting, and again in it."""
    pool = pool_for(layout)
    train = TrainSpec(
        sequence_length=SEQUENCE, global_batch_tokens=SEQUENCE * layout.global_batch, steps=1
    )
    job = Job(model=ModelSpec(config=""), data=DataSpec(tokens=""), train=train)
    plan = Plan(
        pipelines=regular_pipelines(model, pool, layout, apart=apart), job={}, job_digest="",
        cluster={}, cluster_digest="", model_config={},
    )  # fmt: skip
    cluster = Cluster((pool,))
    setting = Setting(job, model, cluster)
    first = cpu(lambda: forecast(plan, setting, {}))
    return first, best(lambda: forecast(plan, setting, {}))


def cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def best(run: Callable[[], object], times: int = 5) -> float:
    """CPU seconds of the fastest of some runs."""
    return min(cpu(run) for _ in range(times))


if __name__ == "__main__":
    main()
