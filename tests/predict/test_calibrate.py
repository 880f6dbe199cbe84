"""Calibration and matrix products: what measured facts do to the formulas."""

from __future__ import annotations

from pluribus.hardware.catalogue import find_chip
from pluribus.predict.calibrate import MeasuredRun, calibrate
from pluribus.predict.gemm import gemm_seconds
from pluribus.spec.calibration import IDENTITY, Calibration

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
