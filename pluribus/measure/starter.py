"""What a user needs beside an imported profile to plan with it: cluster, model and job files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pluribus.core.errors import ConfigError
from pluribus.core.units import GBPS_TO_BYTES, GIB
from pluribus.hardware.catalogue import load_catalogue
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.measure.foreign import ForeignProfile
from pluribus.spec.profile import LayerTime, Profile, indices

_LARGE = 256e6  # bytes of a message that shows a link's bandwidth


def starter_config(profile: Profile, first: ForeignProfile) -> dict[str, Any]:
    """A config.json of the model as far as the profile knows it.

    Raises:
        ConfigError: the profile has no sizes of its layers.
    """
    parameters = parameters_by_layer(profile)
    known = first.hidden_size and first.vocab_size
    if len(parameters) < first.num_layers or not known:
        raise ConfigError(
            "does not say how large the layers are", where=first.file,
            do="Import it with a job file, whose model has a config.json, or add the sizes "
            "(params_floats, act_mem_floats, act_output_floats) of every layer.",
        )  # fmt: skip
    return {
        "model_type": "profiled",
        "_name_or_path": first.model,
        "hidden_size": first.hidden_size,
        "vocab_size": first.vocab_size,
        "max_position_embeddings": first.sequence_length,
        "tensor_parallel_degrees": sorted({time.tensor_parallel for time in profile.layers}),
        "layer_parameters": [parameters[i] for i in range(first.num_layers)],
    }


def parameters_by_layer(profile: Profile) -> dict[int, int]:
    """Parameters of each whole layer, from the smallest degree it was measured at."""
    found: dict[int, tuple[int, int]] = {}
    for size in profile.sizes:
        for index in indices(size.layer) or ():
            whole = (size.tensor_parallel, size.parameters * size.tensor_parallel)
            found[index] = min(found.get(index, whole), whole)
    return {index: parameters for index, (_, parameters) in found.items()}


def starter_cluster(profile: Profile, first: ForeignProfile, nodes: int = 2) -> Cluster:
    """One pool of each measured chip, at the first site that links are known of; the user says
    how many nodes there are."""
    sites = [end.partition("/")[0] for c in profile.curves for end in c.between if "/" in end]
    site = sites[0] if sites else "here"
    pools = []
    for key in dict.fromkeys(time.chip for time in profile.layers):
        per_node = max(t.tensor_parallel for t in profile.layers if t.chip == key)
        place = (f"{site}/{key}", key)
        pools.append(
            Pool(
                address=f"{site}/{re.sub(r'[^A-Za-z0-9._-]', '-', key)}",
                chip=chip_of(key, profile, first), nodes=nodes, chips_per_node=per_node,
                nic_gbps=_written(_rate(profile, place, per_node, False) / GBPS_TO_BYTES),
                intra_gbytes_per_s=_written(_rate(profile, place, per_node, True) / 1e9) or None,
            )
        )  # fmt: skip
    return Cluster(tuple(pools))


def starter_job(first: ForeignProfile) -> str:
    """A job.toml to plan with."""
    batch = 1024 * first.sequence_length
    return f"""\
# Imported: {first.source}. Say here what you would train, and in cluster.toml on how many nodes.
[model]
config = "config.json"

[data]
tokens = "corpus/*.bin"    # not needed to plan

[train]
sequence_length = {first.sequence_length}    # as it was measured
global_batch_tokens = {batch}
steps = 1000
precision = "{first.precision}"

[plan]
micro_batch_sizes = [1, 2, 4, 8]
recompute = "none"
"""


def chip_of(key: str, profile: Profile, first: ForeignProfile) -> Chip:
    """A chip of the catalogue, with the rate it reached where its entry lacks the precision; or
    one with what its measurements show of it: rates, and the memory that its name says or that
    its largest shape must have had."""
    times = [time for time in profile.layers if time.chip == key]
    parameters = parameters_by_layer(profile)
    flops = _best(times, parameters, first)
    reached = {first.precision: round(max(flops / 1e12, 0.1), 2)}
    known = load_catalogue().get(key)
    if known is not None:
        if known.supports(first.precision):
            return known
        lacked = tuple(d for d in known.unsupported_dtypes if d != first.precision)
        return replace(
            known, measured_tflops={**known.measured_tflops, **reached}, unsupported_dtypes=lacked,
            note=f"{first.precision} from the imported times: reached at least. {known.note}",
        )  # fmt: skip
    updates = [
        28 * parameters[i] / time.tensor_parallel / time.update
        for time in times
        for i in indices(time.layer) or ()
        if time.update and i in parameters
    ]
    stated = re.search(r"[-_ ](\d+)(?:g|gb|gib)?$", key.lower())
    gib = float(stated[1]) if stated and 4 <= int(stated[1]) <= 512 else _held(times, profile)
    return Chip(
        key=key, vendor="own", name=key, device="cuda", collective_library="nccl",
        memory_gib=round(gib, 1), memory_gbytes_per_s=round(max([1e11, *updates]) / 1e9, 1),
        measured_tflops=reached,
        source=first.source,
        note="from the imported times: the rates it reached at least, and the memory that its "
        "name or its largest shape tells; correct them if you know better",
    )  # fmt: skip


def _best(times: Sequence[LayerTime], parameters: dict[int, int], first: ForeignProfile) -> float:
    """FLOP/s of the fastest block: three products of every parameter with every token."""
    best = 0.0
    for time in times:
        for i in indices(time.layer) or ():
            if i in parameters and 0 < i < first.num_layers - 1:
                tokens = time.micro_batch * time.sequence_length
                work = 6 * parameters[i] / time.tensor_parallel * tokens
                best = max(best, work / (time.forward + time.backward))
    return best


def _held(times: Sequence[LayerTime], profile: Profile) -> float:
    """GiB that one block's weights, gradients, moments and activations took where it was timed,
    or 16 where nothing is known."""
    held = [
        (size.parameters * 16 + size.kept_bytes * time.micro_batch / size.micro_batch) / GIB
        for time in times
        for size in profile.sizes
        if size.tensor_parallel == time.tensor_parallel and size.layer == time.layer
    ]
    return max([16.0, *held])


def _rate(profile: Profile, place: tuple[str, ...], chips: int, inside: bool) -> float:
    """Bytes/s of one chip's share of a link that was measured; 100 Gbit/s where none was between
    nodes, 0 where none was inside."""
    curves = profile.curve(place, place, inside)
    if not curves:
        return 0.0 if inside else 100 * GBPS_TO_BYTES
    nearest = min(curves, key=lambda curve: abs(curve.chips - chips))
    return nearest.bytes_per_s(_LARGE) / max(chips, nearest.chips)


def _written(rate: float) -> float:
    """As the cluster file says it; the slowest link is still one."""
    return max(round(rate, 3), 0.001) if rate else 0.0
