"""Which algorithm runs: the cheapest by `costs`, on links that were measured or are typical.

All ranks must choose alike, so all are given one pair of links: rank 0's, through the store.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS
from pluribus.comm.costs import LinkCost, Links, candidates
from pluribus.core.units import KIB, MIB
from pluribus.predict.algorithms import Algorithm

# Typical until measured: shared memory and TCP of this library on a 2-core x86 host, November 2026.
TYPICAL = Links(near=LinkCost(150e-6, 2e9), far=LinkCost(250e-6, 1.2e8))
_PROBE_BYTES = 2 * MIB
_ROUNDS = 5
_MOST_SCRATCH = 256 * MIB
_ONE_SHOT_BYTES = 256 * KIB  # beyond it everybody's everything is too much memory traffic


class Tuner:
    """Chooses for one group.

    Args:
        links: the same on every rank.
        chunk_bytes: of the engine's frames.
        aggregated: whether there is an aggregator.
    """

    def __init__(
        self, layout: Layout, links: Links, chunk_bytes: int, aggregated: bool = False
    ) -> None:
        self.links = links
        self.aggregated = aggregated
        self._layout = layout
        self._chunk = chunk_bytes
        self._known: dict[str, list[Algorithm]] = {}

    def choose(self, operation: str, num_bytes: int, addable: bool = False) -> str:
        """Name of the cheapest algorithm for a buffer of this size.

        Args:
            addable: whether an aggregator can do this operation on this dtype.
        """
        if len(ALGORITHMS[operation]) == 1:
            return next(iter(ALGORITHMS[operation]))
        if operation not in self._known:
            self._known[operation] = candidates(
                operation, self._layout, self.links, self._chunk, self.aggregated
            )
        allowed = [
            algorithm
            for algorithm in self._known[operation]
            if self._fits(operation, algorithm.name, num_bytes)
            and (addable or not ALGORITHMS[operation][algorithm.name].aggregated)
        ]
        return min(allowed, key=lambda algorithm: algorithm.seconds(num_bytes)).name

    def _fits(self, operation: str, name: str, num_bytes: int) -> bool:
        if name == "one_shot" and num_bytes > _ONE_SHOT_BYTES:
            return False
        return ALGORITHMS[operation][name].scratch(self._layout.size) * num_bytes < _MOST_SCRATCH


def probe(group: dist.ProcessGroup, layout: Layout) -> Links:
    """Measures both kinds of link with messages; every member calls it. Takes well under 2 s on
    links of 100 Mbit/s and more.

    One pair of ranks per kind of link is timed, one kind after the other: the first two ranks of
    the first island that has two, and the first ranks of the first two islands.
    """
    pair = next((members[:2] for members in layout.islands if len(members) > 1), None)
    near = _ping(group, *pair) if pair else None
    far = None
    if len(layout.islands) > 1:
        far = _ping(group, layout.islands[0][0], layout.islands[1][0])
    found = near or far or TYPICAL.near, far or near or TYPICAL.far
    # The rank that timed a pair tells all; bytes of the numbers, so that all hold the same.
    shared = torch.tensor(
        [value for link in found for value in (link.latency_s, link.bytes_per_s)],
        dtype=torch.float64,
    )
    for start, root in ((0, pair[0] if pair else layout.islands[0][0]), (2, layout.islands[0][0])):
        options = dist.BroadcastOptions()
        options.rootRank = root
        group.broadcast([shared[start : start + 2]], options).wait()
    values = shared.tolist()
    return Links(LinkCost(*values[:2]), LinkCost(*values[2:]))


def _ping(group: dist.ProcessGroup, one: int, other: int) -> LinkCost | None:
    """Timed by ``one``; None on ranks that only look on."""
    rank = group.rank()
    if rank not in (one, other):
        return None
    seconds = {}
    for size in (64, _PROBE_BYTES):
        data = torch.zeros(size, dtype=torch.uint8)
        taken = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            if rank == one:
                group.send([data], other, 0).wait()
                group.recv([data[:1]], other, 0).wait()
            else:
                group.recv([data], one, 0).wait()
                group.send([data[:1]], one, 0).wait()
            taken.append(time.perf_counter() - start)
        seconds[size] = min(taken)  # whatever disturbs a message makes it slower
    small, large = seconds[64], seconds[_PROBE_BYTES]
    # If even the best small message was disturbed, it says nothing of what the large one took.
    return LinkCost(small / 2, _PROBE_BYTES / (large - small if 2 * small < large else large))


def digest(layout: Layout, hosts: list[str]) -> str:
    """Of a topology: equal for a later group on the same hosts in the same islands."""
    said = json.dumps([layout.islands, hosts])
    return hashlib.sha256(said.encode()).hexdigest()[:20]


def save(links: Links, folder: Path, name: str) -> None:
    """Keeps measured links for later groups."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    made = path.with_suffix(f".{time.monotonic_ns()}")
    made.write_text(json.dumps(asdict(links)))
    made.replace(path)


def load(folder: Path, name: str) -> Links | None:
    """What was kept, or None if there is nothing that can be read."""
    try:
        return Links.from_json(json.loads((folder / f"{name}.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def cache_folder() -> Path:
    """Where measured links are kept."""
    return Path.home() / ".cache" / "pluribus" / "comm"
