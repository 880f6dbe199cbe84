"""Does training end where it would, when the gradient crosses a slow hop in fewer bits?

    .venv/bin/python bench/convergence.py [--seeds 4] [--steps 300]

Two data-parallel ranks, each with half of every batch. Each rank's gradient is coded as on a hop
between two centres (one residual per rank), and both ranks apply the same decoded sum, so their
weights are equal to the bit and one copy of them stands for both. The model is a small one of the
demo's family, the text this Python's own library as bytes. Printed: the mean loss of the last
tenth of the steps, its difference to fp32 over seeds (the same seed starts from the same weights
and sees the same text), and how far fp32 itself moves from seed to seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from pluribus.cli.demo import MODEL_CONFIG
from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.registry import codec
from pluribus.nn.config import DecoderConfig
from pluribus.nn.stage import build_stage

CONFIG = MODEL_CONFIG | {
    "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 256,
}  # fmt: skip
SEQUENCES, TOKENS, PEAK = 4, 64, 3e-3  # per rank
RANKS = 2
CASES = ("none", "bf16", "int8", "int8 without feedback", "int4", "top-k", "power-sgd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ends: dict[str, list[float]] = {}
    for case in CASES:
        ends[case] = [train(case, seed, arguments.steps) for seed in range(arguments.seeds)]
        print(case, report(ends["none"], ends[case]), flush=True)
    spread = statistics.stdev(ends["none"])
    print(json.dumps({"ends": ends, "fp32 from seed to seed": round(spread, 4)}))


def report(base: Sequence[float], other: Sequence[float]) -> str:
    gaps = [b - a for a, b in zip(base, other, strict=True)]
    worst = max(gaps, key=abs)
    return f"ends at {statistics.mean(other):.4f}, fp32 {statistics.mean(gaps):+.4f} ({worst:+.4f})"


def train(case: str, seed: int, steps: int) -> float:
    """Mean loss per token over the last tenth of the steps."""
    chosen, feeds_back = codec(case.split()[0]), "without" not in case
    config = DecoderConfig.from_hf(CONFIG, "bench")
    model = build_stage(
        config, (0, config.num_stage_layers), seed=seed, device="cpu", dtype=torch.float32
    )
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK, fused=True)
    size = sum(p.numel() for p in parameters)
    residuals = [torch.zeros(size) if chosen.feeds_back and feeds_back else None] * RANKS
    residuals = [None if r is None else r.clone() for r in residuals]
    source, chance = text(), torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        total, loss = torch.zeros(size), 0.0
        for rank in range(RANKS):
            starts = torch.randint(len(source) - TOKENS - 1, (SEQUENCES,), generator=chance)
            ids = torch.stack([source[s : s + TOKENS + 1] for s in starts.tolist()]).long()
            part = model.loss(ids[:, :-1], ids[:, 1:]) / (RANKS * SEQUENCES * TOKENS)
            gradients = torch.autograd.grad(part, parameters)
            flat = torch.cat([g.reshape(-1) for g in gradients])
            over_the_hop(chosen, flat, residuals[rank], total)
            loss += part.item()
        start = 0
        for p in parameters:
            p.grad = total[start : start + p.numel()].view_as(p)
            start += p.numel()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = PEAK * min(1.0, (step + 1) / 10) * (1 - step / steps)
        optimizer.step()
        losses.append(loss)
    return statistics.mean(losses[-max(1, steps // 10) :])


def over_the_hop(
    chosen: Codec, flat: torch.Tensor, residual: torch.Tensor | None, total: torch.Tensor
) -> None:
    coded = torch.empty(chosen.num_bytes(flat.numel()), dtype=torch.uint8)
    chosen.encode(flat, coded, residual)
    chosen.decode(coded, total, add=True)


def text() -> torch.Tensor:
    """Bytes of some modules of the standard library."""
    folder = Path(argparse.__file__).parent
    joined = b"".join((folder / name).read_bytes() for name in ("argparse.py", "inspect.py"))
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


if __name__ == "__main__":
    main()
