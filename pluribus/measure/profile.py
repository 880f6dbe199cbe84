"""profile: times a job's layers on the chips of this machine, and the links between them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from pluribus.comm.launch import RankProcess, Ranks
from pluribus.core.errors import MeasureError
from pluribus.core.schema import to_table
from pluribus.core.units import DTYPE_BYTES, MIB
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.measure.tasks import LayerTask, ProfileTask, World
from pluribus.model.model import Model
from pluribus.nn.config import DecoderConfig
from pluribus.spec.job import Job
from pluribus.spec.profile import LayerTime, LinkTime, OptimizerTime, Profile

_MODULE = "pluribus.measure.worker"
_TIMEOUT_S = 900.0  # one entry of a large model on a slow chip
_LARGEST_SUM_BYTES = 256 * MIB  # beyond, time grows in proportion
_LAYERS_SHARE = 0.9  # of the progress; the links are the rest


def profile(
    cluster: Cluster,
    job: Job,
    model: Model,
    *,
    micro_batch_sizes: Sequence[int] | None = None,
    progress: Callable[[str, float], None] = lambda *_: None,
    repeats: int = 5,
    log_folder: Path,
) -> Profile:
    """Measures what a job needs to know of a cluster whose pools are all on this machine.

    One chip of every pool works at the same time as the others do, because chips of one machine
    share its memory bandwidth and power, and will in training. Pools whose chip lacks the job's
    precision are left out, as they are in planning.

    Args:
        cluster: whose pools this machine has.
        job: gives sequence length and precision.
        model: the job's.
        micro_batch_sizes: to time each layer at; the job's when None.
        progress: told what is being done and the share done, in [0, 1].
        repeats: timings of each entry, at least.
        log_folder: gets the ranks' logs.

    Returns:
        Times of every distinct layer at every micro-batch size, of the optimiser, and of each
        pair of pools' messages and sums.

    Raises:
        MeasureError: a pool is not on this machine, or a chip's memory is too small.
        UnsupportedModelError: a model whose training is not written.
        RankError: a rank died or reported an error.
    """
    start = time.perf_counter()
    for pool in cluster.pools:
        _check_here(pool)
    precision = job.train.precision
    pools = [pool for pool in cluster.pools if pool.chip.supports(precision)]
    if not pools:
        raise MeasureError(
            f"no chip of the cluster supports {precision}",
            where="job [train.precision]",
            do='Write precision = "fp32".',
        )
    file = str(job.resolve(job.model.config))
    DecoderConfig.from_hf(model.config, file)
    sizes = tuple(sorted(set(micro_batch_sizes or job.plan.micro_batch_sizes)))
    first_by_signature: dict[str, int] = {}
    for index, layer in enumerate(model.layers):
        first_by_signature.setdefault(layer.signature, index)
    counts = Counter(layer.signature for layer in model.layers)
    store, world = _meeting(pools)
    processes = [
        RankProcess(
            rank=rank,
            chip=pool.chip_addresses()[0],
            environment=pool.environment,
            cores=pool.cores,
            config={
                "profile": to_table(
                    ProfileTask(
                        device=pool.chip.device,
                        model=dict(model.config),
                        model_file=file,
                        layers=tuple(
                            LayerTask(index=index, signature=signature, count=counts[signature])
                            for signature, index in first_by_signature.items()
                        ),
                        optimizer_layer=1,  # the first block; layer 0 is the embedding
                        micro_batches=sizes,
                        sequence_length=job.train.sequence_length,
                        precision=precision,
                        repeats=repeats,
                        message_bytes=message_bytes(job, model, sizes),
                        sum_bytes=sum_bytes(model),
                        world=world,
                    )
                )
            },
        )
        for rank, pool in enumerate(pools)
    ]
    progress(f"starting {len(pools)} ranks", 0.0)
    with Ranks(_MODULE, processes, log_folder) as ranks:
        times, links = _listen(ranks, len(pools), progress)
    del store  # it had to live as long as the ranks
    progress("measured", 1.0)
    chips = [pool.chip.key for pool in pools]
    return Profile(
        cluster_digest=cluster.digest,
        layers=_layer_times(chips, times, job),
        optimizers=_optimizer_times(chips, times),
        links=tuple(
            LinkTime(
                between=(pools[link["ranks"][0]].address, pools[link["ranks"][1]].address),
                operation=link["operation"],
                latency_s=link["latency_s"],
                bytes_per_s=link["bytes_per_s"],
                spread=link["spread"],
            )
            for link in links
        ),
        seconds=time.perf_counter() - start,
    )


def message_bytes(job: Job, model: Model, sizes: Sequence[int]) -> tuple[int, ...]:
    """Three sizes around those of the hidden states between stages."""
    element = DTYPE_BYTES[job.train.precision]
    one = int(job.train.sequence_length * model.hidden_size * element)
    return one * min(sizes) // 4, one * min(sizes), one * max(sizes) * (1 + (len(sizes) == 1))


def sum_bytes(model: Model) -> tuple[int, ...]:
    """Three sizes from a part of the model's fp32 gradient to all of it, within limits."""
    largest = min(4 * model.num_parameters, _LARGEST_SUM_BYTES)
    return largest // 16, largest // 4, largest


def _check_here(pool: Pool) -> None:
    """Raises MeasureError unless this machine has the pool's chips and cores."""
    device = pool.chip.device
    do = f"Profile '{pool.address}' on a machine that has it, or leave it out of the cluster file."
    if pool.nodes > 1:
        raise MeasureError(
            f"pool '{pool.address}' has {pool.nodes} nodes; one machine is one node", do=do
        )
    missing = sorted(set(pool.cores) - set(range(os.cpu_count() or 1)))
    if missing:
        raise MeasureError(
            f"pool '{pool.address}' is on cores {missing}, which this machine lacks", do=do
        )
    if device == "cpu":
        return
    import torch  # takes seconds, and CPU pools need no look

    found = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if found and found.type == device else 0
    if count < pool.chips_per_node:
        raise MeasureError(
            f"pool '{pool.address}' has {pool.chips_per_node} × {pool.chip.name} as device "
            f"'{device}'; PyTorch sees {count} here",
            do=do,
        )


def _meeting(pools: Sequence[Pool]) -> tuple[object, World | None]:
    """A store the ranks meet at, to be kept as long as they live, and how they find it."""
    if len(pools) == 1:
        return None, None
    from pluribus.comm.fabric import host_store  # imports torch

    store, port = host_store(_TIMEOUT_S)
    return store, World(port=port, devices=tuple(pool.chip.device for pool in pools))


def _listen(
    ranks: Ranks, count: int, progress: Callable[[str, float], None]
) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """Times by rank, and links, as the ranks report them."""
    shares = dict.fromkeys(range(count), 0.0)
    times: dict[int, dict[str, Any]] = {}
    links: list[dict[str, Any]] = []
    for rank, event in ranks.events(_TIMEOUT_S):
        match event["event"]:
            case "step":
                shares[rank] = event["done"] / event["of"]
                progress("timing layers", _LAYERS_SHARE * min(shares.values()))
            case "times":
                times[rank] = event
                progress("timing links", _LAYERS_SHARE)
            case "link":
                links.append(event)
    return times, links


def _layer_times(
    chips: Sequence[str], times: Mapping[int, Mapping[str, Any]], job: Job
) -> tuple[LayerTime, ...]:
    rows = [
        (chips[rank], signature, size, numbers)
        for rank, event in times.items()
        for signature, size, *numbers in event["layers"]
    ]
    return tuple(
        LayerTime(
            chip=chip,
            layer=signature,
            micro_batch=size,
            sequence_length=job.train.sequence_length,
            precision=job.train.precision,
            forward=mean(numbers[0] for numbers in group),
            backward=mean(numbers[1] for numbers in group),
            spread=max(numbers[2] for numbers in group),
        )
        for (chip, signature, size), group in _by_key(rows)
    )


def _optimizer_times(
    chips: Sequence[str], times: Mapping[int, Mapping[str, Any]]
) -> tuple[OptimizerTime, ...]:
    rows = [(chips[rank], event["optimizer"]) for rank, event in times.items()]
    return tuple(
        OptimizerTime(
            chip=chip,
            seconds_per_parameter=mean(numbers[0] for numbers in group),
            spread=max(numbers[1] for numbers in group),
        )
        for (chip,), group in _by_key(rows)
    )


def _by_key(rows: Iterable[tuple]) -> list[tuple[tuple, list[list[float]]]]:
    """Rows grouped by all but their last entry: pools of one chip kind are one kind."""
    ordered = sorted(rows, key=lambda row: row[:-1])
    return [
        (key, [row[-1] for row in group]) for key, group in groupby(ordered, lambda row: row[:-1])
    ]
