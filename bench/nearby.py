"""How far off a layer is predicted at a micro-batch size that was not measured.

    .venv/bin/pluribus profile job.toml --operators
    .venv/bin/python bench/nearby.py job.toml [--cluster cluster.toml] [--profile profile.json]

Each measured size in turn is taken out of the profile and predicted (a) by formula alone, (b) from
the profile's operator tables, (c) from the other sizes, (d) from both. Mean absolute error of
forward + backward over the blocks and the head, per chip.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from pluribus.hardware.cluster import Cluster
from pluribus.model.model import Model
from pluribus.predict.compute import layer_time
from pluribus.spec.job import Job
from pluribus.spec.profile import Profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job")
    parser.add_argument("--cluster")
    parser.add_argument("--profile")
    arguments = parser.parse_args()
    folder = Path(arguments.job).parent
    job = Job.load(arguments.job)
    model = Model.from_config(job.resolve(job.model.config))
    cluster = Cluster.load(arguments.cluster or folder / "cluster.toml")
    profile = Profile.load(arguments.profile or folder / "profile.json")
    layers = {layer.signature: layer for layer in model.layers}
    print(f"{'chip':20} {'times':>6} {'(a) %':>7} {'(b) %':>7} {'(c) %':>7} {'(d) %':>7}")
    for pool in {pool.chip.key: pool for pool in cluster.pools}.values():
        rows = []
        for time in profile.layers:
            layer = layers.get(time.layer)
            if time.chip != pool.chip.key or layer is None or layer.kind == "embedding":
                continue
            others = tuple(t for t in profile.layers if t.micro_batch != time.micro_batch)
            kinds = (
                None,
                replace(profile, layers=()),
                replace(profile, layers=others, operators=()),
                replace(profile, layers=others),
            )
            size, length, tp = time.micro_batch, time.sequence_length, time.tensor_parallel
            truth = time.forward + time.backward
            guesses = (
                layer_time(layer, pool, size, length, tp, time.precision, kind).total
                for kind in kinds
            )
            rows.append([abs(guess / truth - 1) for guess in guesses])
        means = [100 * statistics.fmean(column) for column in zip(*rows, strict=True)]
        print(f"{pool.chip.key:20} {len(rows):6} " + " ".join(f"{mean:7.1f}" for mean in means))


if __name__ == "__main__":
    main()
