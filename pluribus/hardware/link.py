"""Link: what a message between two chips costs. LinkSpec: a [[link]] the user wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pluribus.core.errors import ConfigError
from pluribus.core.units import GBPS_TO_BYTES
from pluribus.hardware.checks import check_not_negative, check_positive

Scope = Literal["self", "node", "pool", "pools", "sites"]


@dataclass(frozen=True)
class Link:
    """The path between two chips, uncontended, in one direction.

    Attributes:
        latency_s: time before the first byte arrives (α), seconds.
        bytes_per_s: bandwidth of the narrowest part (1/β).
        scope: how far it reaches: within a chip (``self``), a node, a pool, between two pools of
            a site (``pools``) or between two sites.
    """

    latency_s: float
    bytes_per_s: float
    scope: Scope

    def seconds(self, num_bytes: float) -> float:
        """Time of one message, α + n·β (R. W. Hockney, Parallel Computing 20(3), 1994)."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True)
class LinkSpec:
    """A [[link]]: the shared path between two pools, or between two sites.

    Attributes:
        between: two pool addresses, or two site names; the order does not matter.
        gbps: capacity of the whole path in each direction, Gbit/s, shared by all its traffic.
        latency_us: one-way time from chip to chip, microseconds, network adapters included.

    Raises:
        ConfigError: a number out of range, or ends that cannot be linked.
    """

    between: tuple[str, str]
    gbps: float
    latency_us: float

    def __post_init__(self) -> None:
        check_positive("gbps", self.gbps)
        check_not_negative("latency_us", self.latency_us)
        first, second = self.between
        if first == second:
            raise ConfigError(f"'between' names '{first}' twice", do="Name two different ends.")
        if ("/" in first) != ("/" in second):
            raise ConfigError(
                f"'between' names a pool and a site: '{first}', '{second}'",
                do="Name two pools (site/pool) or two sites.",
            )

    @property
    def bytes_per_s(self) -> float:
        """Capacity of the whole path in each direction, bytes/s."""
        return self.gbps * GBPS_TO_BYTES

    @property
    def latency_s(self) -> float:
        """One-way latency, seconds."""
        return self.latency_us * 1e-6
