"""Training with eight-bit gradients over the hop ends where fp32 ends; `bench/convergence.py`."""

from __future__ import annotations

import statistics

import torch

from bench.convergence import train

SEEDS, STEPS = range(3), 60


def test_int8_with_feedback_ends_within_the_noise_of_fp32() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exact = [train("none", seed, STEPS) for seed in SEEDS]
        coded = [train("int8", seed, STEPS) for seed in SEEDS]
    finally:
        torch.set_num_threads(before)
    noise = statistics.stdev(exact)
    gaps = [b - a for a, b in zip(exact, coded, strict=True)]
    assert max(exact) < 4.0  # it learnt: untrained it is ln 256 = 5.55
    assert coded != exact  # the hop was really coded
    assert abs(statistics.mean(gaps)) < noise / 2
