"""Calibration and matrix products: what measured facts do to the formulas."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from pluribus.hardware.catalogue import find_chip
from pluribus.predict.calibrate import MeasuredRun, calibrate, interval
from pluribus.predict.gemm import gemm_seconds
from pluribus.spec.calibration import FACTORS, IDENTITY, PRIOR, Calibration

# Seconds in matrix products and in traffic between nodes, of eight runs of one cluster.
RUNS = [
    (1.0, 0.1),
    (2.0, 0.1),
    (4.0, 0.2),
    (1.0, 1.0),
    (2.0, 2.0),
    (0.5, 2.0),
    (3.0, 0.5),
    (1.0, 3),
]


def runs(truth: Calibration, *, outlier: float = 1.0) -> list[MeasuredRun]:
    """Runs that took what `truth` says, the first of them ``outlier`` times as long."""

    def made(compute: float, traffic: float, wrong: float) -> MeasuredRun:
        def predict(factors: Calibration) -> float:
            return factors.overhead * (factors.matmul * compute + factors.inter * traffic)

        return MeasuredRun(predict, predict(truth) * wrong)

    return [made(*run, outlier if i == 0 else 1.0) for i, run in enumerate(RUNS)]


def worst(found: Calibration, truth: Calibration) -> float:
    pairs = zip(runs(truth), RUNS, strict=True)
    return max(abs(run.predict(found) / run.seconds - 1) for run, _ in pairs)


def test_without_runs_nothing_changes() -> None:
    assert calibrate([]) == IDENTITY


def test_planted_factors_explain_the_runs() -> None:
    truth = Calibration(matmul=1.2, inter=1.5)
    found = calibrate(runs(truth))
    assert worst(found, truth) < 0.02 < worst(IDENTITY, truth)
    assert found.spread is not None
    assert found.runs == len(RUNS)


def test_one_run_three_times_too_slow_does_not_decide() -> None:
    truth = Calibration(matmul=1.2, inter=1.5)
    assert worst(calibrate(runs(truth, outlier=3.0)), truth) < 0.04


def test_a_width_that_misses_the_tiles_is_slow() -> None:
    """BLOOM prequel: hidden 14400 → 13824 raised the rate from 94 to 120 TFLOP/s."""
    chip = find_chip("nvidia-a100-80g", where="test")

    def rate(hidden: int) -> float:
        part = 4 * hidden // 8  # one of eight tensor-parallel ranks
        return 2 * 2048 * hidden * part / gemm_seconds(2048, part, hidden, 1, chip, "fp16")

    assert rate(13824) > 1.1 * rate(14400)


def test_the_last_wave_of_tiles_takes_as_long_as_a_full_one() -> None:
    chip = find_chip("nvidia-a100-80g", where="test")
    full = gemm_seconds(128 * 108, 128, 4096, 1, chip, "bf16")
    more = gemm_seconds(128 * 109, 128, 4096, 1, chip, "bf16")
    assert more / full > 1.1


def test_calibrated_intervals_cover_about_what_they_claim() -> None:
    """Clusters drawn from the priors, with runs that scatter by 6 %: 80 % of new runs inside."""
    draw = random.Random(0)

    def predicted(shares: Sequence[float]) -> Callable[[Calibration], float]:
        def predict(factors: Calibration) -> float:
            terms = zip(FACTORS[:-1], shares, strict=True)
            return factors.overhead * sum(getattr(factors, name) * s for name, s in terms)

        return predict

    inside = []
    for _ in range(60):
        truth = Calibration(**{name: math.exp(draw.gauss(0, PRIOR[name])) for name in FACTORS})
        made = []
        for _ in range(16):
            predict = predicted([draw.expovariate(1) for _ in FACTORS[1:]])
            made.append(MeasuredRun(predict, predict(truth) * math.exp(draw.gauss(0, 0.06))))
        found = calibrate(made[:8])
        for run in made[8:]:
            range_ = interval(run.predict, found)
            inside.append(range_.low <= run.seconds <= range_.high)
    assert 0.74 < sum(inside) / len(inside) < 0.92


def test_far_from_the_measured_runs_the_interval_is_wider() -> None:
    """Every measured run is bound by products; a new one by the network is less certain."""
    truth = Calibration(matmul=1.1)
    near, far = (lambda f: f.matmul * 3.0), (lambda f: f.inter * 3.0)
    found = calibrate([MeasuredRun(near, near(truth))] * 6)
    wide, narrow = interval(far, found), interval(near, found)
    assert wide.high / wide.mid > 1.5 * (narrow.high / narrow.mid - 1) + 1
