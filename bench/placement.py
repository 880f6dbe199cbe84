"""How near placement comes to the best arrangement there is, and what ten thousand chips take.

    .venv/bin/python bench/placement.py [--cases 300] [--seed 0]

Random pipelines in one small pool; every arrangement of their fragments in its nodes is costed by
placement's own cost and timed by the predictor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from planner_optimality import small_setting

from pluribus.hardware.pool import Pool
from pluribus.plan.layout import Layout, fragments_of, on_nodes
from pluribus.plan.placement import place, unplaced
from pluribus.plan.placement_cost import Traffic, neighbours
from pluribus.predict.predict import forecast
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Plan, Stage

MOST_FRAGMENTS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    own, real = [], []
    while len(own) < arguments.cases:
        setting, pipelines = random_case(rng)
        if pipelines:
            by_cost, by_time = against_all(setting, pipelines)
            own.append(by_cost)
            real.append(by_time)
    near = {}
    for name, values in (("by_cost", own), ("by_predicted_step", real)):
        array = np.array(values)
        near[name] = {
            "best": round(float((array < 1e-6).mean()), 4),
            "p99": round(float(np.quantile(array, 0.99)), 4),
            "worst": round(float(array.max()), 4),
        }
    print(json.dumps({"cases": len(own), **near, "cpu_s_for_10000_chips": large()}))


def random_case(rng: random.Random) -> tuple[Setting, list[Pipeline]]:
    """A pool of two or three nodes, and pipelines of one or two shapes that fit it."""
    setting = small_setting(rng.randrange(2**30))
    pool = replace(
        setting.cluster.pools[0], nodes=rng.choice([2, 3]), chips_per_node=rng.choice([2, 3, 4])
    )
    setting = replace(
        setting, cluster=replace(setting.cluster, pools=(pool,)), _pools={}, _stage_times={}
    )
    layers = len(setting.model.layers)
    shapes = [random_shape(rng, pool, layers) for _ in range(rng.choice([1, 1, 2]))]
    pipelines, chips, fragments = [], 0, 0
    for i in range(rng.randint(1, 6)):
        shape = shapes[i % len(shapes)]
        chips, fragments = chips + shape.num_chips, fragments + len(shape.stages)
        if chips > pool.num_chips or fragments > MOST_FRAGMENTS:
            break
        pipelines.append(shape)
    return setting, pipelines


def random_shape(rng: random.Random, pool: Pool, layers: int) -> Pipeline:
    depth = rng.randint(1, min(4, layers))
    ends = [0, *sorted(rng.sample(range(1, layers), depth - 1)), layers]
    degrees = [tp for tp in (1, 2) if pool.chips_per_node % tp == 0]
    stages = []
    for first, end in itertools.pairwise(ends):
        tp = rng.choice(degrees)
        chips = unplaced(pool.address, tp)
        stages.append(Stage(chips=chips, layers=(first, end), tensor_parallel=tp))
    return Pipeline(stages=tuple(stages), micro_batch_size=1, micro_batches=rng.choice([2, 4, 8]))


def against_all(setting: Setting, pipelines: Sequence[Pipeline]) -> tuple[float, float]:
    """How far the chosen arrangement is above the best, by cost and by predicted step."""
    pool = setting.cluster.pools[0]
    traffic, fragments = Traffic(setting, pipelines), fragments_of(pipelines, pool)
    depth = max(len(pipeline.stages) for pipeline in pipelines)

    def cost(layout: Layout) -> float:
        near = neighbours(fragments, layout, np.zeros((len(pipelines), depth), dtype=bool))
        slowest = max(traffic.pipeline_seconds(p, rows, near) for p, rows in traffic.columns)
        return slowest + traffic.gradient_seconds(fragments, layout)

    def placed(layout: Layout) -> list[Pipeline]:
        result = []
        lanes = zip(fragments.pipeline.tolist(), fragments.stage.tolist(), strict=True)
        chips = {lane: fragments.chips(layout, i) for i, lane in enumerate(lanes)}
        for p, pipeline in enumerate(pipelines):
            stages = [replace(s, chips=chips[p, i]) for i, s in enumerate(pipeline.stages)]
            result.append(replace(pipeline, stages=tuple(stages)))
        return result

    def step(pipelines: Sequence[Pipeline]) -> float:
        plan = Plan(
            pipelines=tuple(pipelines), job=setting.job.to_table(), job_digest="",
            cluster=setting.cluster.to_table(), cluster_digest="", model_config={},
        )  # fmt: skip
        return forecast(plan, setting, {}).prediction.step_seconds.mid

    chosen = place(pipelines, setting, polish=True)
    nodes = np.array(
        [
            int(chosen[p].stages[s].chips[0].split("/")[2])
            for p, s in zip(fragments.pipeline.tolist(), fragments.stage.tolist(), strict=True)
        ]
    )
    every = [on_nodes(fragments, nodes) for nodes in arrangements(fragments.size.tolist(), pool)]
    costs, steps = min(map(cost, every)), min(step(placed(layout)) for layout in every)
    return cost(on_nodes(fragments, nodes)) / costs - 1, step(chosen) / steps - 1


def arrangements(sizes: Sequence[int], pool: Pool) -> Iterator[np.ndarray]:
    """Every way to put fragments into like nodes, empty nodes taken in order."""

    def rest(index: int, free: list[int], chosen: list[int]) -> Iterator[np.ndarray]:
        if index == len(sizes):
            yield np.array(chosen)
            return
        for node, room in enumerate(free):
            if room >= sizes[index]:
                left = [*free]
                left[node] -= sizes[index]
                yield from rest(index + 1, left, [*chosen, node])
            if room == pool.chips_per_node:
                break

    yield from rest(0, [pool.chips_per_node] * pool.nodes, [])


def large() -> dict[str, float]:
    """CPU seconds of placing 10,000 chips in nodes of eight, by tensor-parallel degree."""
    setting = small_setting(0)
    pool = replace(setting.cluster.pools[0], nodes=1250, chips_per_node=8, rails=8)
    setting = replace(
        setting, cluster=replace(setting.cluster, pools=(pool,)), _pools={}, _stage_times={}
    )
    result = {}
    for tp in (1, 2, 4):
        ends = [0, 1, 2, len(setting.model.layers)]
        stages = tuple(
            Stage(chips=unplaced(pool.address, tp), layers=run, tensor_parallel=tp)
            for run in itertools.pairwise(ends)
        )
        pipeline = Pipeline(stages=stages, micro_batch_size=1, micro_batches=32)
        begin = time.process_time()
        place([pipeline] * (pool.num_chips // pipeline.num_chips), setting)
        result[f"tp{tp}"] = round(time.process_time() - begin, 2)
    return result


if __name__ == "__main__":
    main()
