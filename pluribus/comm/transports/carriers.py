"""What carries frames between two islands: TCP, or UDP where TCP would be slow.

TCP with BBR keeps its rate on long and lossy ways for a sixth of the processor time of our UDP
(bench/comm.py --cases wan). Where a kernel has only loss-based control, such ways are for UDP. The
first ranks of two islands look at the link between them and tell all others through the store, so
that both ends of every pair agree.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping, Sequence

from pluribus.comm.transports.base import Meeting, Path
from pluribus.comm.transports.congestion import usable
from pluribus.comm.transports.stream import TcpPath

# Loss-based TCP that has halved its window needs hundreds of round trips to fill such a way again.
FAR_SECONDS = 5e-3
STEADY = ("bbr", "bbr1", "bbr2", "bbr3")  # controls that loss alone does not slow down
LOSSY = 2  # of the train's datagrams; a clean link loses none
TRAIN = 400
TRAIN_SECONDS = 0.2  # 2 Mbit/s: no queue overflows by it
LAST_SECONDS = 0.1  # for the last to come
_CAR = struct.Struct("<32sI")


def udp_peers(
    meeting: Meeting,
    transport: str,
    congestion: str,
    islands: Sequence[str],
    control: Mapping[int, Sequence[Path]],
) -> set[int]:
    """Which peers are to be reached by UDP; every member calls it.

    Args:
        meeting: its peers are those that are not reached by shared memory.
        transport: "tcp", "udp" or "auto".
        congestion: the control that TCP connections ask for.
        islands: name of every rank's island.
        control: a TCP connection to each peer.
    """
    if transport == "tcp":
        return set()
    if transport == "udp":
        return set(meeting.peers)
    first: dict[str, int] = {}
    for rank, island in enumerate(islands):
        first.setdefault(island, rank)
    names, own = list(first), islands[meeting.rank]
    if first[own] == meeting.rank:
        here = names.index(own)
        later, earlier = names[here + 1 :], names[:here]
        listening = {first[name]: _listen(meeting, first[name]) for name in later}
        steady = usable(congestion) in STEADY
        meeting.store.set(f"steady/{meeting.rank}", str(int(steady)))
        for name in earlier:
            if not (steady and _is_steady(meeting, first[name])):
                _send_train(meeting, first[name])
        for peer, sock in listening.items():
            with sock:
                needless = steady and _is_steady(meeting, peer)
                came = 0 if needless else _count(meeting, peer, sock)
            path = control.get(peer, [None])[0]
            far = isinstance(path, TcpPath) and path.round_trip >= FAR_SECONDS
            # Where hardly anything came, UDP is not let through.
            by_udp = came > TRAIN / 2 and (far or TRAIN - came >= LOSSY)
            meeting.store.set(f"{meeting.rank}/{peer}", "udp" if by_udp else "tcp")
    found = set()
    for peer in meeting.peers:
        if islands[peer] != own:
            one, other = sorted((first[own], first[islands[peer]]))
            if meeting.store.get(f"{one}/{other}") == b"udp":
                found.add(peer)
    return found


def _listen(meeting: Meeting, peer: int) -> socket.socket:
    sock = socket.socket(_family(meeting.address), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((meeting.address, 0))
    where = f"{meeting.address} {sock.getsockname()[1]}"
    meeting.store.set(f"train/{meeting.rank}/{peer}", where)
    return sock


def _is_steady(meeting: Meeting, rank: int) -> bool:
    return meeting.store.get(f"steady/{rank}") == b"1"


def _send_train(meeting: Meeting, peer: int) -> None:
    address, port = meeting.store.get(f"train/{peer}/{meeting.rank}").decode().split()
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        for number in range(TRAIN):
            sock.sendto(_CAR.pack(meeting.token, number), (address, int(port)))
            time.sleep(TRAIN_SECONDS / TRAIN)
    meeting.store.set(f"sent/{meeting.rank}/{peer}", "")


def _count(meeting: Meeting, peer: int, sock: socket.socket) -> int:
    """How many of a train came."""
    meeting.store.get(f"sent/{peer}/{meeting.rank}")
    sock.settimeout(LAST_SECONDS)
    seen: set[int] = set()
    while len(seen) < TRAIN:
        try:
            data = sock.recv(2048)
        except TimeoutError:
            break
        if len(data) == _CAR.size:
            token, number = _CAR.unpack(data)
            if token == meeting.token.ljust(32, b"\0"):
                seen.add(number)
    return len(seen)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
