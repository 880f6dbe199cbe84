"""What the launcher asks of a measuring rank, as the JSON line that starts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class World:
    """How the ranks meet.

    Attributes:
        port: of the launcher's store.
        devices: torch device type of every rank.
    """

    port: int
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RatesTask:
    """For `probe`: what a chip does per second, and what lies between the chips.

    Attributes:
        device: torch device type.
        dtypes: to multiply matrices in, the reference first; none leaves the rates out.
        memory: also measure the bandwidth of the chip's memory.
        look: also list this machine's accelerators.
        world: the ranks to measure links with; None for a rank on its own.
    """

    device: str
    dtypes: tuple[str, ...] = ()
    memory: bool = True
    look: bool = False
    world: World | None = None


@dataclass(frozen=True, kw_only=True)
class LayerTask:
    """A layer to time: its index in the model's list, the signature it stands for, and how many
    layers of the model have that signature."""

    index: int
    signature: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ProfileTask:
    """For `profile`: the layers of a job on one chip, and the job's messages.

    Attributes:
        device: torch device type.
        model: the model's config.json.
        model_file: where that came from, for messages.
        layers: one per distinct signature.
        optimizer_layer: index of the layer whose parameters the optimiser is timed on.
        micro_batches: sizes to time each layer at, in sequences.
        sequence_length: tokens per sequence.
        precision: of the matrix products.
        repeats: timings of each entry, at least.
        message_bytes: sizes of point-to-point messages.
        sum_bytes: sizes of summed buffers.
        world: the ranks; None where there is only one.
    """

    device: str
    model: dict[str, Any]
    model_file: str
    layers: tuple[LayerTask, ...]
    optimizer_layer: int
    micro_batches: tuple[int, ...]
    sequence_length: int
    precision: str
    repeats: int
    message_bytes: tuple[int, ...]
    sum_bytes: tuple[int, ...]
    world: World | None = None
