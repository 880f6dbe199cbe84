"""Cluster: every pool a job may use and the links between them, as cluster.toml says it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluribus.core import io
from pluribus.core.errors import ConfigError, nearest, sentence
from pluribus.core.schema import from_table, to_table
from pluribus.hardware.catalogue import find_chip, load_catalogue
from pluribus.hardware.link import Link, LinkSpec
from pluribus.hardware.pool import Pool
from pluribus.hardware.toml_text import cluster_toml

# Words for people; rewording them leaves the cluster what it is.
_PROSE = ("name", "source", "note")


@dataclass(frozen=True)
class Cluster:
    """Everything a job may use.

    Attributes:
        pools: at least one, each at its own address.
        links: the [[link]] tables.

    Raises:
        ConfigError: no pools, an address or a link given twice, a link to an unknown place.
    """

    pools: tuple[Pool, ...]
    links: tuple[LinkSpec, ...] = ()

    def __post_init__(self) -> None:
        if not self.pools:
            raise ConfigError(
                "has no pools",
                do="Add a [[pool]] with address, chip, nodes, chips_per_node and nic_gbps.",
            )
        seen: set[str] = set()
        for index, pool in enumerate(self.pools):
            if pool.address.lower() in seen:
                raise ConfigError(
                    f"pool[{index}].address '{pool.address}' is taken by an earlier pool",
                    do="Give each pool its own address (upper and lower case count as the same).",
                )
            seen.add(pool.address.lower())
        self._check_links()

    def _check_links(self) -> None:
        addresses = {pool.address for pool in self.pools}
        sites = {pool.site for pool in self.pools}
        seen: set[frozenset[str]] = set()
        for index, spec in enumerate(self.links):
            for end in spec.between:
                kind, known = ("pool", addresses) if "/" in end else ("site", sites)
                if end not in known:
                    raise ConfigError(
                        f"link[{index}].between names the unknown {kind} '{end}'",
                        do=sentence(nearest(end, known)),
                    )
            if frozenset(spec.between) in seen:
                raise ConfigError(
                    f"link[{index}].between repeats the link of '{spec.between[0]}' and "
                    f"'{spec.between[1]}'",
                    do="Keep one of them, with the capacity of both.",
                )
            seen.add(frozenset(spec.between))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cluster:
        """Reads a cluster file.

        Raises:
            MissingFileError: no such file.
            ConfigError: a mistake in it; names file, key and value.
        """
        return cls.from_table(io.read_toml(path), str(path))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], file: str) -> Cluster:
        """Builds a cluster from the tables of a cluster file.

        Args:
            table: ``pool`` and ``link``, each a list of tables.
            file: where they came from, for messages.

        Raises:
            ConfigError: a mistake in the tables; names file, key and value.
        """
        for key in table:
            if key not in ("pool", "link"):
                raise ConfigError(
                    f"unknown key '{key}'", where=file,
                    do=f"{sentence(nearest(key, ('pool', 'link')))} "
                    "A cluster file holds [[pool]] and [[link]] tables.",
                )  # fmt: skip
        pools = tuple(
            from_table(Pool, _with_chip(entry, file, f"pool[{i}]"), file=file, at=f"pool[{i}]")
            for i, entry in enumerate(_entries(table, "pool", file))
        )
        links = tuple(
            from_table(LinkSpec, entry, file=file, at=f"link[{i}]")
            for i, entry in enumerate(_entries(table, "link", file))
        )
        try:
            return cls(pools, links)
        except ConfigError as error:
            error.where = file
            raise

    def to_table(self) -> dict[str, Any]:
        """The inverse of `from_table`; values equal to their default are left out."""
        table: dict[str, Any] = {"pool": [_pool_table(pool) for pool in self.pools]}
        if self.links:
            table["link"] = [to_table(spec) for spec in self.links]
        return table

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the cluster as TOML, atomically."""
        return io.write_text(path, cluster_toml(self.to_table()))

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that name every number of the cluster, those of its chips included."""
        table = to_table(self)
        for pool in table["pools"]:
            for word in _PROSE:
                del pool["chip"][word]
        return io.digest(_as_floats(table))

    @functools.cached_property
    def num_chips(self) -> int:
        """Chips in all pools."""
        return sum(pool.num_chips for pool in self.pools)

    @functools.cached_property
    def _pool_by_address(self) -> dict[str, Pool]:
        return {pool.address: pool for pool in self.pools}

    @functools.cached_property
    def _pool_by_chip(self) -> dict[str, Pool]:
        return {address: pool for pool in self.pools for address in pool.chip_addresses()}

    @functools.cached_property
    def _spec_by_ends(self) -> dict[frozenset[str], LinkSpec]:
        return {frozenset(spec.between): spec for spec in self.links}

    def pool(self, address: str) -> Pool:
        """The pool at ``site/pool``.

        Raises:
            ConfigError: no such pool; offers the nearest address.
        """
        if address not in self._pool_by_address:
            raise ConfigError(
                f"the cluster has no pool '{address}'",
                do=sentence(nearest(address, self._pool_by_address)),
            )
        return self._pool_by_address[address]

    def pool_of(self, chip_address: str) -> Pool:
        """The pool of the chip at ``site/pool/node/chip``.

        Raises:
            ConfigError: no such chip; says which there are.
        """
        if chip_address in self._pool_by_chip:
            return self._pool_by_chip[chip_address]
        pool = self.pool("/".join(chip_address.split("/")[:2]))
        raise ConfigError(
            f"the cluster has no chip '{chip_address}'",
            do=f"Write {pool.address}/NODE/CHIP with NODE from 0 to {pool.nodes - 1} and CHIP "
            f"from 0 to {pool.chips_per_node - 1}.",
        )

    def link_between_pools(self, a: str, b: str) -> LinkSpec | None:
        """The [[link]] whose capacity traffic between two pools shares.

        Args:
            a: address of a pool.
            b: address of another.

        Returns:
            The [[link]] that names the two pools, else the one that names their sites, else None
            (also for one pool with itself).

        Raises:
            ConfigError: no such pool.
        """
        sites = frozenset((self.pool(a).site, self.pool(b).site))
        return self._spec_by_ends.get(frozenset((a, b))) or self._spec_by_ends.get(sites)

    def between(self, pool_a: str, pool_b: str) -> tuple[Link, LinkSpec | None]:
        """The path between the first chips of two pools, and the [[link]] it takes, if any."""
        if (pool_a, pool_b) not in self._between:
            path = self.link(f"{pool_a}/0/0", f"{pool_b}/0/0")
            self._between[pool_a, pool_b] = path, self.link_between_pools(pool_a, pool_b)
        return self._between[pool_a, pool_b]

    @functools.cached_property
    def _between(self) -> dict[tuple[str, str], tuple[Link, LinkSpec | None]]:
        return {}

    def link(self, chip_a: str, chip_b: str) -> Link:
        """The path between two chips, uncontended.

        Within a node it is the node's own links, within a pool its network. Between pools it is
        the [[link]] that names the pools, else the one that names their sites, but never faster
        than either chip's network adapter; pools of one site without a [[link]] meet at the
        slower adapter with the larger latency.

        Args:
            chip_a: ``site/pool/node/chip``.
            chip_b: another, or the same (no time at all).

        Raises:
            ConfigError: no such chip, or two sites without a [[link]].
        """
        a, b = self.pool_of(chip_a), self.pool_of(chip_b)
        if chip_a == chip_b:
            return Link(0.0, float("inf"), "self")
        if chip_a.rpartition("/")[0] == chip_b.rpartition("/")[0]:
            return Link(a.intra_latency_us * 1e-6, a.intra_bytes_per_s, "node")
        if a is b:
            return Link(a.nic_latency_us * 1e-6, a.adapter_bytes_per_s, "pool")
        adapter = min(a.adapter_bytes_per_s, b.adapter_bytes_per_s)
        scope = "pools" if a.site == b.site else "sites"
        spec = self.link_between_pools(a.address, b.address)
        if spec is not None:
            return Link(spec.latency_s, min(adapter, spec.bytes_per_s), scope)
        if scope == "sites":
            raise ConfigError(
                f"the cluster has no link between the sites '{a.site}' and '{b.site}'",
                do=f'Add a [[link]] with between = ["{a.site}", "{b.site}"], gbps and latency_us '
                "to the cluster file.",
            )
        return Link(max(a.nic_latency_us, b.nic_latency_us) * 1e-6, adapter, scope)


def _entries(table: Mapping[str, Any], kind: str, file: str) -> list[Any]:
    entries = table.get(kind, [])
    if not isinstance(entries, list):
        raise ConfigError(
            f"'{kind}' is not a list of tables", where=file,
            do=f"Write [[{kind}]] with two brackets above each.",
        )  # fmt: skip
    return entries


def _with_chip(entry: Any, file: str, at: str) -> Any:
    """A pool's table with its chip's numbers in the place of its catalogue key."""
    chip = entry.get("chip") if isinstance(entry, Mapping) else None
    if isinstance(chip, str):
        return {**entry, "chip": to_table(find_chip(chip, where=f"{file} [{at}.chip]"))}
    if isinstance(chip, Mapping):
        name = chip.get("key", str(entry.get("address", "")).rpartition("/")[2])
        own = {"key": name, "name": name, "vendor": "own", "source": "the cluster file"}
        return {**entry, "chip": {**own, **chip}}
    return entry


def _pool_table(pool: Pool) -> dict[str, Any]:
    table = _without_defaults(pool)
    if load_catalogue().get(pool.chip.key) == pool.chip:
        return {**table, "chip": pool.chip.key}
    return {**table, "chip": _without_defaults(pool.chip)}


def _without_defaults(value: Any) -> dict[str, Any]:
    kept = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if item != default:
            kept[field.name] = to_table(item)
    return kept


def _as_floats(value: Any) -> Any:
    """Whole numbers as floats, so that 200 and 200.0 (equal to a dataclass) digest alike."""
    if isinstance(value, Mapping):
        return {key: _as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_floats(item) for item in value]
    return float(value) if isinstance(value, int) else value
