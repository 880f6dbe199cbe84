"""Settings of a group: given to `init_process_group` or `new_group`, or from the environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from pluribus.core.errors import ConfigError
from pluribus.core.units import MIB

_PREFIX = "PLURIBUS_COMM_"
TRANSPORTS = ("tcp", "udp", "auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a group communicates. All ranks must agree but on `island`, `address` and
    `device`.

    Attributes:
        island: name of what this rank is near to; ranks of one name form an island. Empty: its
            host.
        address: IP address to listen on and to tell the peers; empty: the one that routes to the
            store, which is loopback when the store is on loopback.
        codec: for sums of floats between islands: "none", "bf16", "int8", "int4" …; where links
            were measured, for those that it makes quicker.
        gather_codec: for all-gathers of floats between islands (of weights, say), likewise; nothing
            makes up for what it loses.
        algorithm: name of one to use wherever it fits; empty lets the tuner choose.
        transport: between hosts: "tcp", "udp" or "auto", which takes UDP between islands that
            are far from each other or lose packets.
        fec: datagrams over which UDP sends one more that repairs any of them without asking; 0:
            none.
        aggregator: "host:port" of a `pluribus aggregator` that may sum for this group; empty: none.
        aggregator_token: that it wants to hear.
        streams: connections to each peer.
        congestion: TCP congestion control where the kernel has it; "auto": BBR, or CUBIC on links
            that are short, slow and clean; empty: the host's default.
        shared_memory: whether ranks of one host use it.
        checked: whether frames between hosts carry a checksum.
        chunk_bytes: of one frame; 0 lets the tuner choose.
        stall_seconds: a peer that answers nothing for so long, while something is pending, has
            stalled; 0: by the slowest link (`health.stall_deadline`).
        verify: compare a checksum of every all-reduce's result across ranks.
        probe: measure links when a group is made that spans hosts of which nothing is known yet.
        device: "fake-a" or "fake-a@2.5" takes the tensors of this rank for those of a made-up chip
            with copies at so many GB/s; for tests. Ranks may differ in it.
    """

    island: str = ""
    address: str = ""
    codec: str = "none"
    gather_codec: str = "none"
    algorithm: str = ""
    transport: str = "tcp"
    fec: int = 0
    aggregator: str = ""
    aggregator_token: str = field(default="", repr=False)
    streams: int = 1
    congestion: str = "auto"
    shared_memory: bool = True
    checked: bool = True
    chunk_bytes: int = 0
    stall_seconds: float = 0.0
    verify: bool = False
    probe: bool = True
    device: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.chunk_bytes <= MIB:
            raise ConfigError(
                f"chunk_bytes = {self.chunk_bytes} is not between 0 and {MIB}", where="comm options"
            )
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f"transport = {self.transport!r} is not one of {', '.join(TRANSPORTS)}",
                where="comm options",
            )
        host, _, port = self.aggregator.rpartition(":")
        if self.aggregator and not (host and port.isdecimal() and int(port) < 1 << 16):
            raise ConfigError(
                f"aggregator = {self.aggregator!r} is no address",
                where="comm options",
                do="Give host:port, as `pluribus aggregator` prints them.",
            )
        if self.fec < 0:
            raise ConfigError(f"fec = {self.fec} is negative", where="comm options")
        if self.streams < 1 or self.stall_seconds < 0:
            raise ConfigError(
                "streams must be positive, stall_seconds not negative", where="comm options"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Options:
        """From variables such as ``PLURIBUS_COMM_ISLAND``.

        Raises:
            ConfigError: a variable of that prefix is no option, or its value does not fit.
        """
        given = {}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key, text in environment.items():
            if not key.startswith(_PREFIX):
                continue
            name = key.removeprefix(_PREFIX).lower()
            if name not in fields:
                known = ", ".join(_PREFIX + name.upper() for name in fields)
                raise ConfigError(f"{key} is no option", do=f"Known: {known}.")
            kind = type(fields[name].default)
            try:
                given[name] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
            except ValueError:
                raise ConfigError(f"{key}={text} is not a {kind.__name__}") from None
        return cls(**given)
