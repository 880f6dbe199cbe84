"""Pool: equal nodes of equal chips on one fabric."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pluribus.core.errors import ConfigError
from pluribus.core.units import GBPS_TO_BYTES
from pluribus.hardware.checks import check_count, check_not_negative, check_positive
from pluribus.hardware.chip import Chip

# PCIe 4.0 x16 moves about 25 GB/s of its nominal 31.5: the path that any two cards of a node have.
DEFAULT_INTRA_GBYTES_PER_S = 25.0

# A part begins with a letter or digit, so that it is never '.' or '..' in a path.
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Pool:
    """Equal nodes of equal chips on one fabric: a [[pool]] of the cluster file.

    Attributes:
        address: ``site/pool``.
        chip: the kind of all its chips.
        nodes: number of nodes.
        chips_per_node: chips in each node.
        nic_gbps: network bandwidth of one chip in each direction, Gbit/s.
        nic_latency_us: one-way latency between two nodes of the pool, microseconds.
        rails: independent rails of a rail-optimised fabric; None where the fabric has none.
        nics_per_node: network adapters that the chips of a node share; None is one for each.
        intra_gbytes_per_s: between chips of a node, one direction, 1e9 bytes/s; None takes the
            chip's link, or PCIe where that is unknown too.
        intra_latency_us: one-way latency between chips of a node, microseconds.
        price_per_chip_hour: price of one chip for an hour.
        environment: process environment that makes the chip (e.g. an instruction-set cap).
        cores: CPU cores a process of this pool is pinned to; it takes them all. Empty: no pinning.

    Raises:
        ConfigError: a number out of range, or an address that is not ``site/pool``.
    """

    address: str
    chip: Chip
    nodes: int
    chips_per_node: int
    nic_gbps: float
    nic_latency_us: float = 10.0
    rails: int | None = None
    intra_gbytes_per_s: float | None = None
    intra_latency_us: float = 5.0
    price_per_chip_hour: float = 0.0
    nics_per_node: int | None = None
    environment: dict[str, str] = field(default_factory=dict, hash=False)
    cores: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.address):
            raise ConfigError(
                f"'address' is '{self.address}'",
                do="Write site/pool: one slash, and on each side letters, digits, '.', '_' or "
                "'-', beginning with a letter or digit.",
            )
        check_count("nodes", self.nodes)
        check_count("chips_per_node", self.chips_per_node)
        check_positive("nic_gbps", self.nic_gbps)
        check_not_negative("nic_latency_us", self.nic_latency_us)
        if self.rails is not None:
            check_count("rails", self.rails)
        if self.nics_per_node is not None:
            check_count("nics_per_node", self.nics_per_node)
        if self.intra_gbytes_per_s is not None:
            check_positive("intra_gbytes_per_s", self.intra_gbytes_per_s)
        check_not_negative("intra_latency_us", self.intra_latency_us)
        check_not_negative("price_per_chip_hour", self.price_per_chip_hour)
        for core in self.cores:
            check_not_negative("cores", core)
        if len(set(self.cores)) < len(self.cores):
            raise ConfigError(
                f"'cores' is {list(self.cores)}, which repeats a core", do="Name each core once."
            )

    @property
    def site(self) -> str:
        """The site of the address."""
        return self.address.partition("/")[0]

    @property
    def num_chips(self) -> int:
        """Chips in the pool."""
        return self.nodes * self.chips_per_node

    @property
    def memory(self) -> int:
        """Device memory of all its chips together, bytes."""
        return self.num_chips * self.chip.memory_bytes

    @property
    def nic_bytes_per_s(self) -> float:
        """Network bandwidth of one chip in each direction, bytes/s."""
        return self.nic_gbps * GBPS_TO_BYTES

    @property
    def adapters(self) -> int:
        """Network adapters of a node; a chip uses one at a time."""
        return min(self.nics_per_node or self.chips_per_node, self.chips_per_node)

    @property
    def adapter_bytes_per_s(self) -> float:
        """Network bandwidth of one chip whose neighbours are silent, each direction, bytes/s."""
        return self.nic_bytes_per_s * self.chips_per_node / self.adapters

    @property
    def node_bytes_per_s(self) -> float:
        """Network bandwidth of all chips of a node together, each direction, bytes/s."""
        return self.nic_bytes_per_s * self.chips_per_node

    @property
    def intra_bytes_per_s(self) -> float:
        """Bandwidth between two chips of a node, one direction, bytes/s."""
        known = self.intra_gbytes_per_s or self.chip.link_gbytes_per_s
        return (known or DEFAULT_INTRA_GBYTES_PER_S) * 1e9

    def chip_addresses(self) -> tuple[str, ...]:
        """Every chip as ``site/pool/node/chip``, node by node, counted from 0."""
        return tuple(
            f"{self.address}/{node}/{chip}"
            for node in range(self.nodes)
            for chip in range(self.chips_per_node)
        )
