"""What the timeline of a pipeline costs to predict, and the bubbles of each schedule.

    .venv/bin/python bench/timeline.py [--stages 64] [--micro-batches 512] [--candidates 1000]

Milliseconds of `waves` for one candidate and for many, of its preparation (once per structure),
and of `simulate`. Then the bubble rates that Qi et al. 2023 (arXiv 2401.10241) print in table 5
beside ours, from the pass times of their table 6.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from pluribus.predict.schedule import Structure, passes, pipeline_actions
from pluribus.predict.timeline import Durations, simulate
from pluribus.predict.waves import make_waves, waves
from pluribus.spec.plan import PassTimes, Pipeline, Stage

# Table 6 (f, b, w and a message in ms) and table 5 by model: stages, micro-batches, chunks of
# 1F1B-I, then 1F1B, 1F1B-I, ZB-H1 (ZB-1p is the same), ZB-H2, ZB-2p.
PUBLISHED: list[tuple[str, int, int, int, PassTimes, tuple[float, ...]]] = [
    ("1.5B", 8, 24, 3, (18.522, 18.086, 9.337, 0.601), (0.2431, 0.1055, 0.1585, 0.1083, 0.0433)),
    ("1.5B", 8, 32, 3, (18.513, 18.086, 9.331, 0.626), (0.1985, 0.0818, 0.1242, 0.0837, 0.0039)),
    ("1.5B", 8, 64, 3, (18.546, 18.097, 9.321, 0.762), (0.1240, 0.0443, 0.0674, 0.0444, 0.0026)),
    ("6.2B", 8, 24, 4, (29.718, 29.444, 19.927, 0.527), (0.2347, 0.0808, 0.1323, 0.0698, 0.0029)),
    ("6.2B", 8, 32, 4, (29.802, 29.428, 19.530, 0.577), (0.1898, 0.0628, 0.1045, 0.0559, 0.0022)),
    ("6.2B", 8, 64, 4, (29.935, 29.621, 19.388, 0.535), (0.1091, 0.0320, 0.0554, 0.0294, 0.0010)),
    ("14.6B", 16, 48, 3, (11.347, 11.248, 8.132, 0.377), (0.2552, 0.1104, 0.1397, 0.0672, 0.0066)),
    ("14.6B", 16, 64, 3, (11.307, 11.254, 8.101, 0.379), (0.2082, 0.0852, 0.1088, 0.0516, 0.0054)),
    ("14.6B", 16, 128, 3, (11.325, 11.308, 8.109, 0.378), (0.1251, 0.0445, 0.0576, 0.0266, 0.0028)),
    ("28.3B", 32, 96, 2, (10.419, 10.207, 7.715, 0.408), (0.2646, 0.1493, 0.1421, 0.0641, 0.0038)),
    ("28.3B", 32, 128, 2, (10.408, 10.204, 7.703, 0.408), (0.2168, 0.1164, 0.1106, 0.0490, 0.0029)),
    ("28.3B", 32, 256, 2, (10.402, 10.248, 7.698, 0.460), (0.1352, 0.0624, 0.0594, 0.0257, 0.0018)),
]
NAMES = ("1F1B", "1F1B-I", "ZB-H1", "ZB-H2", "ZB-2p")
EVEN = (1.0, 1.0, 1.0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, default=64)
    parser.add_argument("--micro-batches", type=int, default=512)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size = options.stages, options.micro_batches
    schedules = [("1f1b", 1), ("gpipe", 1), ("interleaved", 2), ("zb-h1", 1), ("zbv", 2)]
    speed = [
        {"schedule": name, **seconds(pipeline(name, *size, chunks), options.candidates)}
        for name, chunks in schedules
    ]
    rates = [bubble_rates(*row) for row in PUBLISHED]
    if options.json:
        print(json.dumps({"seconds": speed, "bubble_rates": rates}))
        return
    print(f"{size[0]} stages, {size[1]} micro-batches, milliseconds (best of some runs)")
    print(f"{'schedule':12}{'prepare':>10}{'one':>8}{'one of many, 8 × 64':>22}{'simulate':>10}")
    for row in speed:
        print(
            f"{row['schedule']:12}{row['prepare'] * 1e3:10.0f}{row['one'] * 1e3:8.2f}"
            f"{row['each_small'] * 1e3:22.4f}{row['simulate'] * 1e3:10.0f}"
        )
    print("\nbubble rates: ours, published")
    print(f"{'model':7}{'S':>3}{'M':>5}" + "".join(f"{name:>17}" for name in NAMES))
    for row in rates:
        cells = "".join(f"{ours:9.4f} {theirs:7.4f}" for ours, theirs in row["rates"].values())
        print(f"{row['model']:7}{row['stages']:3}{row['micro_batches']:5}{cells}")


def pipeline(
    schedule: str, stages: int, micro_batches: int, chunks: int, pass_times: PassTimes = EVEN
) -> Pipeline:
    """One layer in every chunk."""
    place = Structure(schedule, stages, micro_batches, chunks, pass_times).placement
    rows = []
    for s in range(stages):
        ranges = tuple((u, u + 1) for u in (place.virtual(s, c) for c in range(chunks)))
        parts = ranges if chunks > 1 else ()
        rows.append(Stage(chips=(f"bench/pool/0/{s}",), layers=ranges[0], chunks=parts))
    return Pipeline(
        stages=tuple(rows), micro_batch_size=1, micro_batches=micro_batches, schedule=schedule,
        virtual_stages=chunks, pass_times=pass_times,
    )  # fmt: skip


def seconds(large: Pipeline, candidates: int) -> dict[str, float]:
    """Of preparing, solving and simulating; `each_small` is one of many of 8 stages × 64."""
    structure = Structure.of(large)
    shape = structure.placement
    generator = np.random.default_rng(0)
    prepared = make_waves(passes(structure), shape, large.micro_batches)
    kinds = prepared.kinds
    one = generator.uniform(1, 2, (1, len(kinds), shape.num_virtual))
    small = waves(pipeline(large.schedule, 8, 64, shape.chunks))
    many = generator.uniform(1, 2, (candidates, len(kinds), small.placement.num_virtual))
    actions = {(0, s): listed for s, listed in enumerate(pipeline_actions(large))}
    compute = {
        ((0, s), kind): tuple(one[0, k, shape.virtual(s, c)] for c in range(shape.chunks))
        for s in range(shape.num_stages)
        for k, kind in enumerate(kinds)
    }
    durations = Durations(compute, lambda a, b: 0.01, ())
    return {
        "prepare": best(lambda: make_waves(passes(structure), shape, large.micro_batches), 1),
        "one": best(lambda: prepared.solve(one, 0.01)),
        "each_small": best(lambda: small.solve(many, 0.01)) / candidates,
        "simulate": best(lambda: simulate(actions, durations), 1),
    }


def best(run: Callable[[], object], times: int = 20) -> float:
    """Seconds of the fastest of some runs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def bubble_rates(
    model: str,
    stages: int,
    micro_batches: int,
    chunks: int,
    times: PassTimes,
    published: tuple[float, ...],
) -> dict:
    """(ours, published) of each schedule."""
    candidates = [
        pipeline("1f1b", stages, micro_batches, 1),
        pipeline("interleaved", stages, micro_batches, chunks),
        pipeline("zb-h1", stages, micro_batches, 1),
        pipeline("zb-h2", stages, micro_batches, 1),
        pipeline("zb-h2", stages, micro_batches, 1, times),
    ]
    forward, backward, weight, message = times
    rates = {}
    for name, candidate, theirs in zip(NAMES, candidates, published, strict=True):
        prepared = waves(candidate)
        whole = [forward, backward + weight]
        passes_of = whole if len(prepared.kinds) == 2 else [forward, backward, weight]
        parts = np.array(passes_of) / candidate.virtual_stages
        compute = np.repeat(parts[None, :, None], prepared.placement.num_virtual, axis=2)
        rates[name] = float(prepared.solve(compute, message).bubble_rate[0]), theirs
    return {"model": model, "stages": stages, "micro_batches": micro_batches, "rates": rates}


if __name__ == "__main__":
    main()
