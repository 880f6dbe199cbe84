"""Which algorithm runs: the cheapest by `costs`, on links that were measured or are typical, and by
what was learned since.

All ranks must choose alike, so all begin with what rank 0 knows, which it tells through the store,
and learn by `corrections` at the same operation.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pluribus.comm.algorithms.islands import Coding
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS
from pluribus.comm.codecs.base import Codec
from pluribus.comm.corrections import Corrections
from pluribus.comm.costs import Links, candidates, coded
from pluribus.core.units import KIB, MIB
from pluribus.predict.algorithms import Algorithm

_MOST_SCRATCH = 256 * MIB
_FAST_GIGABYTES_PER_S = 5.0  # of a codec whose decoding takes about as long as copying
_ONE_SHOT_BYTES = 256 * KIB  # beyond it everybody's everything is too much memory traffic


class Tuner:
    """Chooses for one group.

    Args:
        links: the same on every rank.
        chunk_bytes: of the engine's frames.
        corrections: likewise.
        aggregated: whether there is an aggregator.
    """

    def __init__(
        self,
        layout: Layout,
        links: Links,
        chunk_bytes: int,
        corrections: Corrections | None = None,
        aggregated: bool = False,
    ) -> None:
        self.links = links
        self.corrections = corrections or Corrections()
        self.aggregated = aggregated
        self._layout = layout
        self._chunk = chunk_bytes
        self._known: dict[str, dict[str, Algorithm]] = {}

    def choose(self, operation: str, num_bytes: int, addable: bool = False) -> str:
        """Name of the cheapest algorithm for a buffer of this size.

        Args:
            addable: whether an aggregator can do this operation on this dtype.
        """
        if len(ALGORITHMS[operation]) == 1:
            return next(iter(ALGORITHMS[operation]))
        prices = self.prices(operation, num_bytes, addable)
        return min(prices, key=lambda name: prices[name])

    def prices(self, operation: str, num_bytes: int, addable: bool = False) -> dict[str, float]:
        """Seconds of each algorithm that may run, corrections included."""
        return {
            name: algorithm.seconds(num_bytes) * self.corrections.factor(operation, name, num_bytes)
            for name, algorithm in self._algorithms(operation).items()
            if self._fits(operation, name, num_bytes)
            and (addable or not ALGORITHMS[operation][name].aggregated)
        }

    def worth_coding(
        self, operation: str, num_bytes: int, codec: Codec, addable: bool = False
    ) -> bool:
        """Whether a codec makes a sum of float32 quicker; true as long as nobody has measured it,
        and where what is left depends on the numbers."""
        rate = self.links.code_bytes_per_s.get(codec.name)
        if rate is None or codec.varies:
            return True
        key = f"{operation} by {codec.name}"
        if key not in self._known:
            coding = coding_of(codec)
            found = coded(operation, self._layout, self.links, self._chunk, coding, rate)
            self._known[key] = {"islands": found}
        seconds = float(self._known[key]["islands"].seconds(num_bytes))
        return seconds <= min(self.prices(operation, num_bytes, addable).values())

    def model_seconds(self, operation: str, name: str, num_bytes: int) -> float | None:
        """What the model says without corrections; None of an algorithm it does not know."""
        algorithm = self._algorithms(operation).get(name)
        return None if algorithm is None else float(algorithm.seconds(num_bytes))

    def lose_aggregator(self) -> None:
        """Does without it until the group is made anew, and forgets what was measured of what took
        its place; every rank does at the same operation."""
        self.aggregated = False
        self.corrections.forget("aggregator")
        self._known.clear()

    def _algorithms(self, operation: str) -> dict[str, Algorithm]:
        if operation not in self._known:
            found = candidates(operation, self._layout, self.links, self._chunk, self.aggregated)
            self._known[operation] = {algorithm.name: algorithm for algorithm in found}
        return self._known[operation]

    def _fits(self, operation: str, name: str, num_bytes: int) -> bool:
        if name == "one_shot" and num_bytes > _ONE_SHOT_BYTES:
            return False
        return ALGORITHMS[operation][name].scratch(self._layout.size) * num_bytes < _MOST_SCRATCH


def coding_of(codec: Codec, width: int = 4) -> Coding:
    """What algorithms need to know of a codec for elements of so many bytes."""
    fast = codec.gigabytes_per_s >= _FAST_GIGABYTES_PER_S
    return Coding(codec.block, codec.num_bytes, width, fast)


def digest(layout: Layout, hosts: list[str]) -> str:
    """Of a topology: equal for a later group on the same hosts in the same islands."""
    said = json.dumps([layout.islands, hosts])
    return hashlib.sha256(said.encode()).hexdigest()[:20]


def to_json(links: Links, corrections: Corrections, rates: Sequence[float] = ()) -> dict[str, Any]:
    """What is kept, and told to other ranks; ``rates`` as in `Layout`."""
    return asdict(links) | {"corrections": corrections.to_json(), "rates": list(rates)}


def from_json(said: Any) -> tuple[Links, Corrections]:
    """What `to_json` returned.

    Raises:
        ValueError, KeyError, TypeError: it is not that.
    """
    return Links.from_json(said), Corrections(said.get("corrections"))


def rates_from_json(said: Any, size: int) -> tuple[float, ...]:
    """The links' rates out of what `to_json` returned; () where there is not one for each rank."""
    rates = tuple(map(float, said.get("rates", ())))
    return rates if len(rates) == size and min(rates, default=0.0) > 0 else ()


def save(said: dict[str, Any], folder: Path, name: str) -> None:
    """Keeps what is known of a topology for later groups."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    made = path.with_suffix(f".{time.monotonic_ns()}")
    made.write_text(json.dumps(said))
    made.replace(path)


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """What was kept, or None if there is nothing that can be read."""
    try:
        said = json.loads((folder / f"{name}.json").read_text())
        from_json(said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return said


def cache_folder() -> Path:
    """Where measured links are kept."""
    return Path.home() / ".cache" / "pluribus" / "comm"
