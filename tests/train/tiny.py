"""Tiny jobs on chips of this machine, for tests that start real ranks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Cluster, LinkSpec, Pool
from pluribus.model.model import Model
from pluribus.spec.job import Job
from pluribus.spec.plan import Pipeline, Plan, Stage
from pluribus.store.tokens import write_shard

VOCAB = 97
SEQUENCE = 16
NUM_LAYERS = 6  # embedding, four blocks, head


def config(*, tied: bool = True) -> dict:
    return {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": NUM_LAYERS - 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
    }


def cluster(num_pools: int) -> Cluster:
    """Pools of one CPU chip each, unpinned, so that tests run beside each other."""
    pools = tuple(
        Pool(
            address=f"here/p{i}",
            chip=Chip(
                key=f"core-{i}", vendor="test", name=f"core {i}", device="cpu", memory_gib=4.0,
                memory_gbytes_per_s=10.0, peak_tflops={"fp32": 0.05}, source="test",
            ),
            nodes=1,
            chips_per_node=1,
            nic_gbps=10.0,
            environment={"OMP_NUM_THREADS": "1"},
        )
        for i in range(num_pools)
    )  # fmt: skip
    links = tuple(
        LinkSpec((a.address, b.address), 10.0, 50.0)
        for i, a in enumerate(pools)
        for b in pools[i + 1 :]
    )
    return Cluster(pools, links)


def write_job(
    folder: Path, *, sequences: int, steps: int = 3, tied: bool = True, checkpoint_every: int = 0
) -> Job:
    """A job.toml's content with random tokens beside it."""
    (folder / "config.json").write_text(json.dumps(config(tied=tied)))
    rng = np.random.default_rng(0)
    write_shard(folder / "tokens.bin", rng.integers(0, VOCAB, 4000), VOCAB)
    table = {
        "model": {"config": "config.json"},
        "data": {"tokens": "tokens.bin"},
        "train": {
            "sequence_length": SEQUENCE,
            "global_batch_tokens": sequences * SEQUENCE,
            "steps": steps,
            "precision": "fp32",
            "learning_rate": 1e-3,
        },
        "store": {"checkpoint_every_steps": checkpoint_every},
    }
    return Job.from_table(table, file="job.toml", directory=str(folder))


def make_plan(job: Job, pipelines: Sequence[dict]) -> Plan:
    """A plan by hand: each pipeline a dict of splits (stage ends), size, count, and the like."""
    made, chip = [], 0
    for pipeline in pipelines:
        ends = [0, *pipeline["ends"]]
        stages = []
        for first, end in itertools.pairwise(ends):
            stages.append(
                Stage(
                    chips=(f"here/p{chip}/0/0",),
                    layers=(first, end),
                    recompute=pipeline.get("recompute", "none"),
                )
            )
            chip += 1
        made.append(
            Pipeline(
                stages=tuple(stages),
                micro_batch_size=pipeline.get("size", 1),
                micro_batches=pipeline["count"],
                schedule=pipeline.get("schedule", "1f1b"),
            )
        )
    machine = cluster(chip)
    model = Model.from_config(job.resolve(job.model.config))
    return Plan(
        pipelines=tuple(made),
        job=job.to_table(),
        job_digest=job.digest,
        cluster=machine.to_table(),
        cluster_digest=machine.digest,
        model_config=dict(model.config),
        directory=job.directory,
    )
