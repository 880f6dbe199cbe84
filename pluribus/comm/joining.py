"""A rank takes its place in a group: paths, layout, tuner, and the library of its island."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pluribus.comm import meeting, tuner
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.collectives import CHUNK_BYTES, Collectives
from pluribus.comm.corrections import Corrections
from pluribus.comm.costs import TYPICAL
from pluribus.comm.devices.base import Adapter, Library
from pluribus.comm.devices.copies import Staging
from pluribus.comm.devices.island import Island
from pluribus.comm.devices.registry import Devices
from pluribus.comm.engine import Engine
from pluribus.comm.health import stall_deadline
from pluribus.comm.meeting import Place
from pluribus.comm.options import Options
from pluribus.comm.porter import Porter
from pluribus.comm.pulse import Watched
from pluribus.comm.tuner import Tuner


class Joined(NamedTuple):
    """A rank's place in one epoch of a group.

    Attributes:
        topology: digest of who is where.
        whole: the vendor's library, if all ranks are one island of its chips.
        unknown: whether it spans hosts between which nothing was measured yet.
        doors: `Porter.where` of every rank.
    """

    collectives: Collectives
    layout: Layout
    topology: str
    whole: Library | None
    unknown: bool
    doors: tuple[str, ...]


class Chips:
    """The chips of a group's tensors: their adapters and their ways to the engine."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self._devices = Devices(options.device)
        self._engine = engine
        self._stagings: dict[Adapter, Staging] = {}
        self._whole_only = options.verify  # checksums read results in host memory

    def staging(self, tensor: torch.Tensor) -> Staging | None:
        """Of the tensor's chip; None where it is the host's, or passes through the host whole."""
        if self._whole_only:
            return None
        adapter = self._devices.of(tensor.device)
        return None if adapter is None else self.staging_of(adapter)

    def staging_of(self, adapter: Adapter) -> Staging:
        if adapter not in self._stagings:
            self._stagings[adapter] = Staging(adapter, self._engine.call)
        return self._stagings[adapter]

    def own(self) -> Adapter | None:
        return None if self._whole_only else self._devices.own()

    def close(self) -> None:
        for staging in self._stagings.values():
            staging.close()
        self._devices.close()


def join(
    store: dist.Store,
    rank: int,
    size: int,
    epoch: int,
    options: Options,
    address: str,
    timeout: float,
    engine: Engine,
    chips: Chips,
    porter: Porter,
    doors: Sequence[str],
    reached: set[str],
) -> Joined:
    """Connects; every member calls it.

    Args:
        store: keys of this group and epoch only.
        porter: this process's own.
        doors: of every rank, where they have met before.
        reached: those that this process has ever reached; more are added.

    Raises:
        PeerGone: a peer died meanwhile, or did not come in time.
    """
    own = chips.own()
    library, chip = (own.library_name, own.identity) if own else ("", "")
    watched = Watched(store, timeout, reached)
    with contextlib.closing(watched):
        for peer, door in enumerate(doors):
            if peer != rank:
                watched.watch(peer, door)
        mesh, places = meeting.meet(
            watched, rank, size, epoch, options, address, timeout, porter, library, chip
        )  # fmt: skip
        engine.connect(mesh)
        layout = Layout.of([place.island for place in places])
        topology = tuner.digest(layout, [place.host for place in places])
        if rank == 0:  # all must choose alike, so one rank's links are everybody's
            known = tuner.load(tuner.cache_folder(), topology)
            watched.set("links", json.dumps(known or {}))
        said = json.loads(watched.get("links"))
    links, corrections = tuner.from_json(said) if said else (TYPICAL, Corrections())
    engine.expect(options.stall_seconds or stall_deadline(links if said else None))
    layout = replace(layout, rates=tuner.rates_from_json(said, size))
    aggregated = max(mesh.data, default=0) >= len(places)
    chunk = options.chunk_bytes or CHUNK_BYTES
    chooser = Tuner(layout, links, chunk, corrections, aggregated)
    made = Collectives(engine, chooser, layout, rank, timeout, options)
    made.adapt()
    several_hosts = len({place.host for place in places}) > 1
    native = [_has_library([places[member] for member in members]) for members in layout.islands]
    made.relays = len(native) > 1 and any(native)
    home = layout.island_of(rank)
    whole = None
    if native[home] and own is not None:
        members = layout.islands[home]

        def library_of(stage: str) -> Library | None:
            keys = dist.PrefixStore(f"island{home}/{stage}", store)
            return own.library(keys, members.index(rank), len(members), timeout)

        before = library_of("before")
        after = library_of("after") if len(native) > 1 else None
        if len(native) == 1:
            whole = before
        elif before is not None and after is not None:
            made.island = Island(chips.staging_of(own), before, after, layout, rank)
    doors = tuple(place.door for place in places)
    return Joined(made, layout, topology, whole, several_hosts and not said, doors)


def _has_library(places: Sequence[Place]) -> bool:
    """Whether an island's members all have one vendor's library, and a chip each."""
    libraries = {place.library for place in places}
    chips = {(place.host, place.chip) for place in places}
    return (
        len(places) > 1
        and len(libraries) == 1
        and "" not in libraries
        and len(chips) == len(places)
    )


def by_library(method: Callable) -> Callable:
    """A collective of `Group` that the vendor's library does where all ranks are its chips."""
    name = _BACKEND_NAMES.get(method.__name__, method.__name__)

    def start(self: Any, *given: Any, **more: Any) -> Any:
        library = self._whole
        if library is None or not self._suits(library, given):
            return method(self, *given, **more)
        work = getattr(library.backend, name)(*[x for x in given if x is not None], **more)
        return self._begun(work)

    start.__name__, start.__doc__ = method.__name__, method.__doc__
    return start


_BACKEND_NAMES = {
    "all_gather_single": "_allgather_base",
    "reduce_scatter_single": "_reduce_scatter_base",
    "all_to_all_single": "alltoall_base",
}
