"""TCP: several connections to each peer, each with the congestion control asked for."""

from __future__ import annotations

import socket
from typing import ClassVar

from pluribus.comm.transports import congestion as control
from pluribus.comm.transports.base import Meeting, Path, Transport
from pluribus.comm.transports.connections import meet
from pluribus.comm.transports.stream import TcpPath


class Tcp(Transport):
    """Connections between all pairs; the higher rank calls the lower.

    Args:
        streams: connections to each peer.
        congestion: congestion control to ask the kernel for, where it has it ("bbr" keeps its
            rate under loss; "auto" takes what suits the link once that is known; "" leaves the
            host's default).
        checked: whether frames carry checksums and are sent again if they come with other bits.
    """

    name: ClassVar[str] = "tcp"

    def __init__(
        self, streams: int = 1, congestion: str = control.AUTO, checked: bool = True
    ) -> None:
        self.streams = streams
        self.congestion = congestion
        self.checked = checked

    def connect(self, meeting: Meeting) -> dict[int, list[Path]]:
        connections = meet(meeting, self.streams, self._prepare)
        kind = AdaptingTcpPath if self.congestion == control.AUTO else TcpPath
        return {
            peer: [kind(peer, connection, self.checked, repeats=True) for connection in lanes]
            for peer, lanes in connections.items()
        }

    def _prepare(self, connection: socket.socket) -> None:
        prepare(connection, self.congestion)


class AdaptingTcpPath(TcpPath):
    """Goes over to the congestion control that suits its link."""

    def adapt(self, latency_s: float, bytes_per_s: float, loss: float) -> None:
        try:
            resent, sent = self.packets
        except OSError:  # closed
            return
        own = resent / sent if sent else 0.0  # the link may have become worse since
        control.ask(self._socket, control.suitable(latency_s, bytes_per_s, max(loss, own)))


def prepare(connection: socket.socket, congestion: str, dead_milliseconds: int = 0) -> None:
    """Sets a connection up for frames.

    Args:
        congestion: control to ask for; empty leaves the host's default.
        dead_milliseconds: without an acknowledgement, after which it is gone; 0: the host's.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if dead_milliseconds and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead_milliseconds)
    control.ask(connection, congestion)
