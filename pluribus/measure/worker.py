"""A measuring rank: ``python -m pluribus.measure.worker``, one per chip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch

from pluribus.comm.fabric import Fabric
from pluribus.comm.rank import RankLine, rank_main
from pluribus.core.schema import from_table
from pluribus.measure.device import open_device
from pluribus.measure.fit import spread
from pluribus.measure.layers import Bench
from pluribus.measure.links import time_links
from pluribus.measure.rates import copy_bytes_per_s, matmul_rates
from pluribus.measure.tasks import ProfileTask, RatesTask, World
from pluribus.nn.config import DecoderConfig
from pluribus.predict.collectives import ALL_REDUCE, POINT_TO_POINT

# A rank waits this long for one that still works on its last entry.
PATIENCE_S = 900.0

# From one packet to far beyond every buffer on the way.
_PROBE_BYTES = (64, 2**16, 2**20, 2**24)
_PROBE_REPEATS = 12
_MESSAGE_REPEATS = 4  # a message is short: per repeat of a layer


def work(line: RankLine) -> None:
    """Does the one task of the rank's configuration."""
    if "rates" in line.config:
        _rates(line, from_table(RatesTask, line.config["rates"], file="launcher"))
    else:
        _profile(line, from_table(ProfileTask, line.config["profile"], file="launcher"))


def _rates(line: RankLine, task: RatesTask) -> None:
    if task.look:
        line.report("accelerators", found=_accelerators())
    device = open_device(task.device)
    with _fabric(line, task.world, device) as fabric:
        if task.dtypes:
            if fabric is not None:
                fabric.barrier()  # the chips are to be measured at the same time
            rates = matmul_rates(device, task.dtypes)
            copied = copy_bytes_per_s(device) if task.memory else None
            line.report("rates", matmul=rates, copy=copied)
        if fabric is not None:
            operations = {POINT_TO_POINT: (_PROBE_BYTES, _PROBE_REPEATS)}
            for link in time_links(fabric, operations, typical=min):
                line.report("link", **link._asdict())


def _accelerators() -> list[dict[str, Any]]:
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator().type
    module = torch.get_device_module(kind)
    found = []
    for index in range(torch.accelerator.device_count()):
        if hasattr(module, "get_device_properties"):
            properties = module.get_device_properties(index)
            name, memory = properties.name, properties.total_memory
            # Only NVIDIA's driver takes the identifier torch shows in a list of visible devices.
            unique = str(properties.uuid) if kind == "cuda" and not torch.version.hip else ""
        else:  # Apple's GPU shares the host's memory and has no properties
            name, memory, unique = kind, module.recommended_max_memory(), ""
        found.append({"device": kind, "name": name, "memory_bytes": memory, "uuid": unique})
    return found


def _profile(line: RankLine, task: ProfileTask) -> None:
    device = open_device(task.device)
    config = DecoderConfig.from_hf(task.model, task.model_file)
    with _fabric(line, task.world, device) as fabric:
        bench = Bench(
            config,
            {layer.index: layer.count for layer in task.layers},
            task.optimizer_layer,
            task.micro_batches,
            task.sequence_length,
            task.precision,
            device,
        )
        _time_layers(line, task, bench, fabric)
        if fabric is not None:
            operations = {
                POINT_TO_POINT: (task.message_bytes, _MESSAGE_REPEATS * task.repeats),
                ALL_REDUCE: (task.sum_bytes, task.repeats),
            }
            for link in time_links(fabric, operations, typical=median):
                line.report("link", **link._asdict())


def _time_layers(line: RankLine, task: ProfileTask, bench: Bench, fabric: Fabric | None) -> None:
    steps = (task.repeats + 1) * bench.num_steps  # one round warms up
    slowest = float if fabric is None else fabric.largest
    for done, _ in enumerate(bench.rounds(task.repeats, slowest), start=1):
        line.report("step", done=done, of=steps)
    layers = []
    for layer in task.layers:
        for size in task.micro_batches:
            samples = np.array(bench.layer_samples[layer.index, size])
            forward, backward = np.median(samples, axis=0).tolist()
            noise = spread(samples.sum(axis=1))
            layers.append([layer.signature, size, forward, backward, noise])
    updates = bench.optimizer_samples
    line.report("times", layers=layers, optimizer=[float(np.median(updates)), spread(updates)])


@contextmanager
def _fabric(line: RankLine, world: World | None, device: torch.device) -> Iterator[Fabric | None]:
    if world is None:
        yield None
        return
    fabric = Fabric(line.config["rank"], world.devices, device, world.port, PATIENCE_S)
    yield fabric
    fabric.close()


if __name__ == "__main__":
    rank_main(work)
