"""Seconds of what a step does to weights: the optimiser's update, and gradients cut anew."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pluribus.hardware.chip import Chip
from pluribus.model.layer import Layer
from pluribus.predict.grid import read_share
from pluribus.predict.operators import ELEMENTWISE_EFFICIENCY, Work
from pluribus.predict.software import PLURIBUS, Software
from pluribus.spec.calibration import IDENTITY, Calibration
from pluribus.spec.profile import Profile


def optimizer_seconds(
    parameters: float,
    chip: Chip,
    profile: Profile | None,
    calibration: Calibration = IDENTITY,
    software: Software = PLURIBUS,
) -> float:
    """Seconds of one AdamW update of this many parameters on one chip: measured, or
    `update_work`."""
    measured = profile and profile.optimizer(chip.key)
    if measured:
        return parameters * measured.seconds_per_parameter
    return update_work(parameters, chip, software).seconds(calibration)


def update_seconds(
    layers: Sequence[Layer],
    parameters: float,
    chip: Chip,
    tp: int,
    sequence_length: int,
    precision: str,
    profile: Profile | None,
    calibration: Calibration = IDENTITY,
    software: Software = PLURIBUS,
) -> float:
    """Seconds of the optimiser for some layers: layer by layer where that was measured, else by
    the number of parameters on the chip."""
    total = 0.0
    for layer in layers:
        grid = (
            profile.layer_grid(chip.key, layer.signature, sequence_length, precision)
            if profile
            else {}
        )
        # An update does not know of micro-batches: the median over those it was timed with.
        row = {
            degree: statistics.median(updates)
            for degree, times in grid.items()
            if (updates := [time.update for time in times.values() if time.update is not None])
        }
        if not row:
            return optimizer_seconds(parameters, chip, profile, calibration, software)
        total += read_share(row, tp)
    return total


def update_work(parameters: float, chip: Chip, software: Software = PLURIBUS) -> Work:
    """Memory traffic of one fused AdamW update, `Software.update_bytes` per parameter."""
    rate = chip.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY
    return Work(memory=parameters * software.update_bytes / rate)


def relayout_work(parameters: float, chip: Chip) -> Work:
    """Gradients cut anew for ranks that divide matrices otherwise, and back: each is read and
    written twice, in fp32."""
    return Work(memory=parameters * 16 / (chip.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY))
