"""Processor seconds of a training step over gloo and over our own backend, and over int8 hops.

    python bench/backends.py [--steps 6] [--repeats 3] [--tokens 2048]

One model on two chips made of this machine, as two pipelines (every gradient crosses) and as two
stages (activations do). Runs of few and of more steps are started in turn with each backend; the
difference of their ranks' processor time, by the kernel's count, is that of the steps alone.
Processor seconds, because wall seconds of a busy machine say little.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from pluribus.cli.demo import MODEL_CONFIG, VOCAB_SIZE  # noqa: E402
from pluribus.core.io import write_json  # noqa: E402
from pluribus.hardware.chip import Chip  # noqa: E402
from pluribus.hardware.cluster import Cluster, LinkSpec, Pool  # noqa: E402
from pluribus.model.model import Model  # noqa: E402
from pluribus.spec.job import Job  # noqa: E402
from pluribus.spec.plan import Pipeline, Plan, Stage  # noqa: E402
from pluribus.store.tokenizer import encode_files, standard_library_text, train_bpe  # noqa: E402
from pluribus.train.run import RunOptions, train  # noqa: E402

SEQUENCE = 128
WAYS = {"gloo": ("gloo", "none"), "pluribus": ("pluribus", "none"), "int8": ("pluribus", "int8")}


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


def processor_seconds(plan: Plan, folder: Path, steps: int, way: str) -> float:
    backend, codec = WAYS[way]
    options = RunOptions(
        steps=steps, checkpoints=False, resume=False, timeline_every=10**9, backend=backend,
        codec=codec,
    )  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    train(plan, folder, options=options)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048, help="global batch")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, plan in plans(job_in(folder, given.tokens)).items():
            spent: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(given.repeats):
                for way in WAYS:
                    few, many = (
                        processor_seconds(plan, folder / "run", steps, way)
                        for steps in (1, 1 + given.steps)
                    )
                    spent[way].append((many - few) / given.steps)
            middle = {way: statistics.median(each) for way, each in spent.items()}
            ratios = {way: round(middle[way] / middle["gloo"], 3) for way in WAYS}
            print(f"{case}: processor seconds per step {json.dumps(spent)}")
            print(f"{case}: ÷ gloo {json.dumps(ratios)}", flush=True)


if __name__ == "__main__":
    main()
