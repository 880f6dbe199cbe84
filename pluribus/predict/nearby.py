"""A layer's time between the sizes it was measured at.

A measured layer says more of its neighbours than any formula does: what a formula is wrong by
at micro-batches of 2 and 4 it is wrong by, nearly, at 3. The formula's ratios between sizes are
kept; its level comes from the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pluribus.predict.regression import LocalRegression
from pluribus.predict.stage_time import StageTime
from pluribus.spec.profile import LayerTime

Shape = tuple[int, int, int]  # micro-batch, sequence length, tensor-parallel degree

# Relative half-width that a doubling away from the nearest measurement adds; a typical figure:
# what the formula's ratio between neighbouring sizes is wrong by.
PER_DOUBLING = 0.05


class Level:
    """The level on which measurements of a layer lie above or below its formula.

    Args:
        measured: one layer on one chip in one precision, at least one time.
        formula: forward and backward seconds of the formula at each of them.
    """

    def __init__(
        self, measured: Sequence[LayerTime], formula: Sequence[tuple[float, float]]
    ) -> None:
        self._measured = measured
        self._places = np.log2(
            [(t.micro_batch, t.sequence_length, t.tensor_parallel) for t in measured]
        )
        forward = [_log(t.forward, guess[0]) for t, guess in zip(measured, formula, strict=True)]
        backward = [_log(t.backward, guess[1]) for t, guess in zip(measured, formula, strict=True)]
        self._forward = LocalRegression(self._places, np.array(forward))
        self._backward = LocalRegression(self._places, np.array(backward))

    def correct(self, formula: StageTime, sums: float, shape: Shape) -> StageTime:
        """The layer at a shape that was not measured.

        Args:
            formula: without communication.
            sums: seconds of the tensor-parallel sums of one direction. Measurements of one chip
                alone say nothing of them.
        """
        place = np.log2(shape)
        away = np.abs(self._places - place).sum(axis=1)
        nearest = self._measured[int(away.argmin())]
        forward = math.exp(self._forward(place).value)
        backward = math.exp(self._backward(place).value)
        alone = nearest.tensor_parallel == 1
        spread = math.hypot(nearest.spread, PER_DOUBLING * float(away.min()))
        return StageTime(
            formula.forward * forward + sums * (1.0 if alone else forward),
            formula.backward * backward + sums * (1.0 if alone else backward),
            min(formula.spread, spread),
            formula.weight_gradient * backward,
        )


def _log(measured: float, guess: float) -> float:
    # An embedding's backward is too short to be timed on some chips.
    return math.log(measured / guess) if measured > 0 and guess > 0 else 0.0
