"""How the members of a group find each other: who is where, and paths between all of them."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath

import torch.distributed as dist

from pluribus.comm.algorithms import aggregated
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.errors import Aborted, PeerDied
from pluribus.comm.health import reason
from pluribus.comm.mesh import Mesh
from pluribus.comm.options import Options
from pluribus.comm.porter import Porter
from pluribus.comm.pulse import Watched
from pluribus.comm.transports import carriers, shared
from pluribus.comm.transports.aggregated import connect
from pluribus.comm.transports.base import ABORT, Header, Meeting, Path, PeerGone, TransportError
from pluribus.comm.transports.flow import FlowOptions
from pluribus.comm.transports.shared import SharedMemory
from pluribus.comm.transports.tcp import Tcp
from pluribus.comm.transports.udp import UdpTransport


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is.

    Attributes:
        host: equal for processes that can share memory.
        island: name of its island.
        library: of its chip's vendor, for collectives among chips that have the same; may be empty.
        chip: tells chips apart.
        door: `Porter.where` of its process.
    """

    host: str
    island: str
    library: str = ""
    chip: str = ""
    door: str = ""


def host_identity() -> str:
    """Equal for processes of one boot of one machine in one network namespace."""
    try:
        boot = FilePath("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return socket.gethostname()


def own_address(store: dist.Store) -> str:
    """The address of this host that routes to the store's; loopback where that cannot be told."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    host = getattr(store, "host", "127.0.0.1")
    family = socket.AF_INET
    try:
        family, _, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def meet(
    store: Watched,
    rank: int,
    size: int,
    epoch: int,
    options: Options,
    address: str,
    timeout: float,
    porter: Porter,
    library: str = "",
    chip: str = "",
) -> tuple[Mesh, list[Place]]:
    """Connects a rank to all others; every member calls it.

    Args:
        store: keys of this group and epoch only; it watches all of whom it hears.
        porter: of this process.

    Returns:
        The paths, and every rank's place.

    Raises:
        PeerGone: a peer died meanwhile, or did not come in time.
    """
    host = host_identity()
    own = Place(host, options.island or host, library, chip, porter.where)
    store.set(f"place/{rank}", json.dumps(asdict(own)))
    if rank == 0:
        store.set("token", secrets.token_hex(16))
    token = store.get("token")
    porter.admit(token)
    places = []
    for other in range(size):
        places.append(Place(**json.loads(store.get(f"place/{other}"))))
        if other != rank:
            store.watch(other, places[other].door)
    made: dict[str, Mapping[int, Sequence[Path]]] = {}
    try:
        mesh = _connect(store, token, rank, places, epoch, options, address, timeout, made)
    except BaseException as error:
        if isinstance(error, PeerGone):
            store.tell(error)
        _give_up(made, epoch, error)
        raise
    return mesh, places


def _give_up(
    made: Mapping[str, Mapping[int, Sequence[Path]]], epoch: int, error: BaseException
) -> None:
    """Closes what there is; those whom this rank has met learn why."""
    peer = error.peer if isinstance(error, TransportError) else -1
    said = reason(PeerDied(str(error), [peer]) if peer >= 0 else Aborted(str(error)))
    for paths in made.get("control", {}).values():
        paths[0].queue(Header(ABORT, epoch, 0, 0, len(said)), memoryview(said))
        paths[0].flush()
    for path in (path for known in made.values() for paths in known.values() for path in paths):
        path.close()


def _connect(
    store: Watched, token: bytes, rank: int, places: Sequence[Place], epoch: int, options: Options,
    address: str, timeout: float, made: dict[str, Mapping[int, Sequence[Path]]],
) -> Mesh:  # fmt: skip
    """The paths; ``made`` gets those of each kind as soon as they are there."""
    size, own = len(places), places[rank]
    near = [r for r in range(size) if r != rank and _shares(options, own, places[r])]
    far = [r for r in range(size) if r != rank and r not in near]

    doors = {peer: place.door for peer, place in enumerate(places) if peer != rank}
    via: dict[int, int] = {}

    def meeting(name: str, peers: Sequence[int]) -> Meeting:
        return Meeting(
            store=store.under(name), rank=rank, peers=tuple(peers), epoch=epoch,
            address=address, token=token, timeout=timeout, check=store.check,
            doors=doors, via=via,
        )  # fmt: skip

    others = [*near, *far]
    lanes = options.streams
    control = made["control"] = Tcp(1, "").connect(meeting("control", sorted(others)))
    if near:
        made["shared"] = SharedMemory(lanes + 1).connect(meeting("shared", near))
    by_udp = carriers.udp_peers(
        meeting("carriers", far), options.transport, options.congestion,
        [place.island for place in places], control,
    ) - via.keys()  # fmt: skip
    if by_udp:
        flow = FlowOptions(parity_every=options.fec, silence_seconds=float("inf"))
        made["udp"] = UdpTransport(flow, lanes + 1).connect(meeting("udp", sorted(by_udp)))
    by_tcp = [peer for peer in far if peer not in by_udp]
    if by_tcp:
        tcp = Tcp(lanes + 1, options.congestion, options.checked)
        made["tcp"] = tcp.connect(meeting("tcp", by_tcp))
    paths = {p: known for kind in made.values() if kind is not control for p, known in kind.items()}
    data = {peer: known[:lanes] for peer, known in paths.items()}
    if options.aggregator and size > 1:
        streams = aggregated.streams(Layout.of([place.island for place in places]))
        everybody = meeting("aggregator", sorted(others))
        known = connect(everybody, options.aggregator, options.aggregator_token,
                        options.congestion, streams)  # fmt: skip
        data |= {size + number: [path] for number, path in known.items()}
    return Mesh(
        epoch,
        data,
        {peer: known[lanes] for peer, known in paths.items()},
        {peer: known[0] for peer, known in control.items()},
        via,
    )


def _shares(options: Options, one: Place, other: Place) -> bool:
    return options.shared_memory and shared.available() and one.host == other.host
