"""Processor seconds of a training step over gloo and over our own backend, and over int8 hops.

    python bench/backends.py [--steps 60] [--tokens 2048]

One model on two chips made of this machine, as two pipelines (every gradient crosses) and as two
stages (activations do). The ranks of one run have all backends and take another with every step:
whatever else the machine does meets all of them alike. A step costs what all threads of both ranks
took; the ratio to gloo is the median over turns, in each of which every backend has one step.
Processor seconds, because wall seconds of a busy machine say little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from pluribus.cli.demo import MODEL_CONFIG, VOCAB_SIZE  # noqa: E402
from pluribus.comm.launch import Ranks  # noqa: E402
from pluribus.core.io import write_json  # noqa: E402
from pluribus.hardware.chip import Chip  # noqa: E402
from pluribus.hardware.cluster import Cluster, LinkSpec, Pool  # noqa: E402
from pluribus.model.model import Model  # noqa: E402
from pluribus.spec.job import Job  # noqa: E402
from pluribus.spec.plan import Pipeline, Plan, Stage  # noqa: E402
from pluribus.store.tokenizer import encode_files, standard_library_text, train_bpe  # noqa: E402
from pluribus.train import run  # noqa: E402
from pluribus.train.run import RunOptions  # noqa: E402

SEQUENCE = 128
WARM = 3  # steps of every backend that do not count


def job_in(folder: Path, tokens: int) -> Job:
    files = standard_library_text(500_000, seed=0)
    encode_files(train_bpe(files, VOCAB_SIZE, max_bytes=300_000), files, folder / "tokens.bin")
    write_json(folder / "config.json", MODEL_CONFIG)
    table = {
        "model": {"config": "config.json"},
        "data": {"tokens": "tokens.bin"},
        "train": {
            "sequence_length": SEQUENCE, "global_batch_tokens": tokens, "steps": 1000,
            "precision": "fp32",
        },
    }  # fmt: skip
    return Job.from_table(table, file="bench", directory=str(folder))


def plans(job: Job) -> dict[str, Plan]:
    pools = tuple(
        Pool(
            address=f"here/p{i}",
            chip=Chip(key=f"core-{i}", vendor="bench", name=f"core {i}", device="cpu",
                      memory_gib=8.0, memory_gbytes_per_s=10.0, peak_tflops={"fp32": 0.05},
                      source="bench"),
            nodes=1, chips_per_node=1, nic_gbps=10.0, environment={"OMP_NUM_THREADS": "1"},
        )
        for i in range(2)
    )  # fmt: skip
    machine = Cluster(pools, (LinkSpec(("here/p0", "here/p1"), 10.0, 50.0),))
    model = Model.from_config(job.resolve(job.model.config))
    layers, batch = len(model.layers), job.train.global_batch
    chips = ("here/p0/0/0", "here/p1/0/0")
    two = [
        Pipeline(stages=(Stage(chips=(chip,), layers=(0, layers)),), micro_batch_size=1,
                 micro_batches=batch // 2)
        for chip in chips
    ]  # fmt: skip
    cut = [
        Pipeline(stages=tuple(Stage(chips=(chip,), layers=ends) for chip, ends in
                              zip(chips, ((0, layers // 2), (layers // 2, layers)), strict=True)),
                 micro_batch_size=1, micro_batches=batch)
    ]  # fmt: skip
    return {
        name: Plan(
            pipelines=tuple(pipelines), job=job.to_table(), job_digest=job.digest,
            cluster=machine.to_table(), cluster_digest=machine.digest,
            model_config=dict(model.config), directory=job.directory,
        )
        for name, pipelines in (("two pipelines", two), ("two stages", cut))
    }  # fmt: skip


def processor_seconds(plan: Plan, folder: Path, steps: int) -> dict[str, list[float]]:
    """Per backend, of every step."""
    options = RunOptions(
        steps=steps, checkpoints=False, resume=False, timeline_every=10**9, backend="gloo"
    )
    os.environ["BACKENDS_FOLDER"] = str(folder)
    os.environ["PYTHONPATH"] = str(ROOT / "bench")
    with patch.object(run, "Ranks", lambda _, *given: Ranks("backends_rank", *given)):
        run.train(plan, folder / "run", options=options)
    each = [json.loads(path.read_text()) for path in sorted(folder.glob("spent-*.json"))]
    return {
        way: [sum(both) for both in zip(*(one[way] for one in each), strict=True)]
        for way in each[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of every backend")
    parser.add_argument("--tokens", type=int, default=2048, help="global batch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, plan in plans(job_in(folder, given.tokens)).items():
            spent = processor_seconds(plan, folder, 3 * (WARM + given.steps))
            for way, each in spent.items():
                steps = each[WARM:]
                ratios = [own / gloo for own, gloo in zip(steps, spent["gloo"][WARM:], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                deviation = statistics.stdev(ratios) / len(ratios) ** 0.5
                print(f"{case}: {way:9}{1e3 * statistics.median(steps):8.1f} ms per step, ÷ gloo "
                      f"{middle:.3f} (quartiles {low:.3f} {high:.3f}, mean "
                      f"{statistics.mean(ratios):.3f} ± {deviation:.3f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
