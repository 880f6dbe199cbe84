"""Bytes on the fullest chip of a regular layout."""

from __future__ import annotations

from pluribus.hardware.cluster import Pool
from pluribus.model.model import Model
from pluribus.predict.degrees import Parameters
from pluribus.predict.memory import chip_memory
from pluribus.predict.regular import Layout, stage_layers, tied_copy
from pluribus.predict.schedule import Structure, in_flight
from pluribus.predict.software import PLURIBUS, Software
from pluribus.spec.prediction import ChipMemory


def regular_memory(
    model: Model,
    pool: Pool,
    layout: Layout,
    sequence_length: int,
    precision: str,
    software: Software = PLURIBUS,
) -> ChipMemory:
    """Bytes at the fullest moment of the chip that needs most."""
    share = layout.share(sequence_length, precision, software)
    structure = Structure(
        layout.schedule, layout.pp, layout.micro_batches, layout.chunks, (1, 1, 1, 0)
    )
    stages = [
        chip_memory(
            layers,
            Parameters.of(layers, layout.degrees, tied_copy(model, layers, layout)),
            layout.degrees,
            share,
            precision,
            pool.chip,
            in_flight=in_flight(structure, index),
            schedule=layout.schedule,
            neighbours=layout.pp > 1,
            vocab_size=model.vocab_size,
            software=software,
        )
        for index, layers in enumerate(stage_layers(model, layout))
        # Stages between differ by what they hold in flight only: the first of them holds most.
        if index in (0, 1, layout.pp - 1)
    ]
    return max(stages, key=lambda memory: memory.total)
