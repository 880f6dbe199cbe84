"""Whatever the plan, the loss and every gradient are those of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pluribus.comm.fabric import BACKENDS, host_store
from pluribus.comm.launch import RankProcess, Ranks
from pluribus.core.schema import to_table
from pluribus.nn.config import DecoderConfig
from pluribus.nn.stage import build_stage
from pluribus.spec.job import Job
from pluribus.spec.plan import Plan
from pluribus.store.order import sample_indices
from pluribus.store.tokens import TokenDataset

from .tiny import NUM_LAYERS, SEQUENCE, make_plan, write_job

RELATIVE = 1e-6

CASES = {
    "one stage, one micro-batch": [{"ends": [6], "count": 1, "size": 4}],
    "one stage, many micro-batches": [{"ends": [6], "count": 5}],
    "unequal layers, more micro-batches than stages": [{"ends": [2, 6], "count": 5}],
    "three stages, fewer micro-batches than stages": [{"ends": [1, 5, 6], "count": 2}],
    "gpipe": [{"ends": [3, 6], "count": 3, "schedule": "gpipe"}],
    "recompute": [{"ends": [3, 6], "count": 3, "recompute": "full"}],
    "unequal micro-batches": [{"ends": [6], "count": 5}, {"ends": [6], "count": 1}],
    "unlike sizes and counts": [
        {"ends": [6], "count": 3, "size": 2},
        {"ends": [6], "count": 1, "size": 1},
    ],
    "unlike depths": [{"ends": [4, 6], "count": 3}, {"ends": [6], "count": 2}],
    "unlike borders": [{"ends": [2, 6], "count": 3}, {"ends": [4, 6], "count": 2}],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "tied"), [*((name, True) for name in CASES), ("unlike borders", False)]
)
def test_loss_and_gradients_equal_one_process(
    name: str, tied: bool, backend: str, tmp_path: Path
) -> None:
    pipelines = CASES[name]
    sequences = sum(p["count"] * p.get("size", 1) for p in pipelines)
    job = write_job(tmp_path, sequences=sequences, tied=tied)
    plan = make_plan(job, pipelines)

    loss, norm = _run(plan, tmp_path, backend)

    reference, reference_loss = _one_process(job, plan)
    assert loss == pytest.approx(reference_loss, rel=RELATIVE)
    squares = sum(g.double().square().sum().item() for g in reference.values())
    assert norm == pytest.approx(squares**0.5, rel=RELATIVE)
    seen = set()
    for rank in range(len(plan.chips)):
        for key, gradient in load_file(tmp_path / f"gradients-{rank}.safetensors").items():
            expected = reference[key]
            error = (gradient - expected).norm() / expected.norm()
            assert error <= RELATIVE, f"rank {rank}, {key}: {error:.1e}"
            seen.add(key)
    assert seen == set(reference)


def _one_process(job: Job, plan: Plan) -> tuple[dict[str, torch.Tensor], float]:
    """The whole global batch through the whole model at once."""
    data = TokenDataset(str(job.resolve("tokens.bin")))
    order = sample_indices(0, job.train.global_batch, data.num_sequences(SEQUENCE), job.train.seed)
    ids = torch.from_numpy(np.stack([data.sequence(int(i), SEQUENCE) for i in order]))
    decoder = DecoderConfig.from_hf(plan.model_config, "test")
    model = build_stage(
        decoder, (0, NUM_LAYERS), seed=job.train.seed, device="cpu", dtype=torch.float32
    )
    loss = model.loss(ids[:, :-1], ids[:, 1:]) / job.train.global_batch_tokens
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, loss.item()


def _run(plan: Plan, folder: Path, backend: str) -> tuple[float, float]:
    store, port = host_store(timeout=60)
    config = {
        "plan": to_table(plan),
        "port": port,
        "timeout": 60,
        "shards": str(folder / "tokens.bin"),
        "start_from": None,
        "start_step": 0,
        "folder": str(folder),
        "backend": backend,
        "codec": "none",
        "islands": [""] * len(plan.chips),
        "residuals": False,
    }
    processes = [
        RankProcess(rank=rank, chip=chip, environment={"OMP_NUM_THREADS": "1"}, config=config)
        for rank, chip in enumerate(plan.chips)
    ]
    with Ranks("tests.train.gradient_worker", processes, folder) as ranks:
        found = [e for _, e in ranks.events(timeout=120) if e["event"] == "gradients"]
    del store
    assert len({(e["loss"], e["norm"]) for e in found}) == 1, "ranks disagree"
    return found[0]["loss"], found[0]["norm"]
