"""TCP: several connections to each peer, each with the congestion control asked for."""

from __future__ import annotations

import contextlib
import socket
from typing import ClassVar

from pluribus.comm.transports.base import Meeting, Path, Transport
from pluribus.comm.transports.connections import meet
from pluribus.comm.transports.stream import TcpPath


class Tcp(Transport):
    """Connections between all pairs; the higher rank calls the lower.

    Args:
        streams: connections to each peer.
        congestion: congestion control to ask the kernel for, where it has it ("bbr" keeps its
            rate under loss; "" leaves the host's default).
        checked: whether frames carry a checksum.
    """

    name: ClassVar[str] = "tcp"

    def __init__(self, streams: int = 1, congestion: str = "bbr", checked: bool = True) -> None:
        self.streams = streams
        self.congestion = congestion
        self.checked = checked

    def connect(self, meeting: Meeting) -> dict[int, list[Path]]:
        connections = meet(meeting, self.streams, self._prepare)
        return {
            peer: [TcpPath(peer, connection, self.checked) for connection in lanes]
            for peer, lanes in connections.items()
        }

    def _prepare(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        choose = getattr(socket, "TCP_CONGESTION", None)
        if self.congestion and choose is not None:
            with contextlib.suppress(OSError):  # this kernel has no such control
                connection.setsockopt(socket.IPPROTO_TCP, choose, self.congestion.encode())


def usable(congestion: str) -> str:
    """The congestion control a connection gets that asks for this one; empty if unknown."""
    choose = getattr(socket, "TCP_CONGESTION", None)
    if choose is None:
        return ""
    with socket.socket() as trial:
        if congestion:
            with contextlib.suppress(OSError):
                trial.setsockopt(socket.IPPROTO_TCP, choose, congestion.encode())
        return trial.getsockopt(socket.IPPROTO_TCP, choose, 16).rstrip(b"\0").decode()
