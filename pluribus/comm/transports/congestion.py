"""Which congestion control a TCP connection has.

BBR keeps its rate where packets are lost, but every ten seconds it all but stops for 200 ms to see
the shortest round trip, which a long sum over a slow link feels. A control that goes by loss keeps
a link full as long as it can grow again before the next loss. So connections begin with BBR, and
those over links that turn out short, slow and clean go on with CUBIC.
"""

from __future__ import annotations

import contextlib
import math
import socket

AUTO = "auto"
FIRST, SHORT = "bbr", "cubic"

_SEGMENT_BYTES = 1448
_LEAST_LOSS = 1e-3  # a probe of a slow link sends about a thousand packets
_MARGIN = 2.0


def suitable(latency_s: float, bytes_per_s: float, loss: float) -> str:
    """The control for a link.

    CUBIC is at least as fast as Reno, which gets (segment ÷ round trip) · √(3/2 ÷ loss) (Mathis et
    al. 1997, eq. 3): it is for links that have half of that at most.

    Args:
        latency_s: of a small message, one way.
        bytes_per_s: of the link.
        loss: share of packets sent again, as far as was seen.
    """
    reno = _SEGMENT_BYTES / (2 * latency_s) * math.sqrt(1.5 / max(loss, _LEAST_LOSS))
    return SHORT if _MARGIN * bytes_per_s <= reno else FIRST


def ask(connection: socket.socket, congestion: str) -> None:
    """Asks the kernel for a control; without it, or with "", the host's stays."""
    choose = getattr(socket, "TCP_CONGESTION", None)
    name = FIRST if congestion == AUTO else congestion
    if name and choose is not None:
        with contextlib.suppress(OSError):  # this kernel has no such control, or it is closed
            connection.setsockopt(socket.IPPROTO_TCP, choose, name.encode())


def used(connection: socket.socket) -> str:
    """The control a connection has; empty if unknown."""
    choose = getattr(socket, "TCP_CONGESTION", None)
    if choose is None:
        return ""
    return connection.getsockopt(socket.IPPROTO_TCP, choose, 16).rstrip(b"\0").decode()


def usable(congestion: str) -> str:
    """The control that a connection gets which asks for this one; empty if unknown."""
    with socket.socket() as trial:
        ask(trial, congestion)
        return used(trial)
