"""Fills the table of the pricing problem: in C (`pricing.c`), and the same in numpy.

Both give the same bits. A state, the last stages from a layer on, is dropped as soon as the layers
before it cannot be held within the budget.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pluribus.core import native
from pluribus.plan.prices import Array

if TYPE_CHECKING:
    from pluribus.plan.pricing import Lanes, Pricer

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, native.Signature] = {
    "pluribus_price": (_INT, (_POINTER, _INT, _POINTER, _INT, _POINTER, _POINTER)),
}


class _Problem(ctypes.Structure):
    """`Problem` of pricing.c."""

    _fields_ = (
        *((name, _INT) for name in ("layers", "kinds", "runs", "senders", "pools", "segments")),
        *((name, _POINTER) for name in (
            "seconds", "held", "lengths", "prices", "tails", "openings", "sender_of",
            "pool_of_sender", "hops", "dearer_here", "dearer", "farther",
            "segment",
        )),
    )  # fmt: skip


@functools.cache
def _library() -> ctypes.CDLL | None:
    return native.load(Path(__file__).with_name("pricing.c"), _SIGNATURES)


@dataclass(frozen=True, eq=False)
class NativeTable:
    """The compiled loops over the arrays of one pricer, which they keep alive."""

    library: ctypes.CDLL
    arrays: dict[str, NDArray]
    shape: tuple[int, int, int, int, int, int]

    @classmethod
    def of(cls, pricer: Pricer) -> NativeTable | None:
        library = _library()
        if library is None:
            return None
        prices, hops = pricer.prices, pricer.hops
        kind, counts = prices.runs.kind, prices.runs.counts
        dearer = pricer.dearer
        floats = {
            "seconds": prices.seconds, "tails": pricer.opening, "hops": hops.seconds,
            "dearer_here": dearer.here, "dearer": dearer.anywhere, "farther": dearer.farther,
        }  # fmt: skip
        whole = {
            "held": prices.most_held, "lengths": counts.sum(axis=1), "openings": kind[0, 1:],
            "sender_of": hops.senders, "pool_of_sender": pricer.pool_of_sender,
            "segment": pricer.segments,
        }  # fmt: skip
        arrays = {name: np.ascontiguousarray(a, dtype=np.float64) for name, a in floats.items()}
        arrays |= {name: np.ascontiguousarray(a, dtype=np.int64) for name, a in whole.items()}
        shape = (
            len(kind), *prices.seconds.shape, *hops.seconds.shape, len(pricer.segments)
        )  # fmt: skip
        return cls(library, arrays, shape)

    def fill(
        self, price: Array, lanes: Lanes, budget: Array, columns: bool
    ) -> tuple[Array, Array | None]:
        """(values, tables) of `Solution`."""
        layers, pools = self.shape[0], self.shape[4]
        asked = np.stack(
            [lanes.cap, lanes.stage, lanes.hop, lanes.tail, *lanes.opening, budget], axis=1,
            dtype=np.float64,
        )  # fmt: skip
        price = np.ascontiguousarray(price, dtype=np.float64)
        pointers = {name: array.ctypes.data for name, array in self.arrays.items()}
        problem = _Problem(*self.shape, **pointers, prices=price.ctypes.data)
        values = np.full((len(lanes), layers), np.inf)
        tables = np.empty((len(lanes), layers, pools, layers + 1)) if columns else None
        depths = self.library.pluribus_price(
            ctypes.byref(problem), len(lanes), asked.ctypes.data, lanes.hold, values.ctypes.data,
            tables.ctypes.data if tables is not None else None,
        )  # fmt: skip
        assert depths >= 0, "no memory for the table of the pricing problem"
        return values[:, :depths].T, tables


def fill_numpy(pricer: Pricer, price: Array, lanes: Lanes, budget: Array) -> tuple[Array, Array]:
    """(values, tables) of `Solution`."""
    layers = len(pricer.prices.runs.kind)
    values = np.full((layers, len(lanes)), np.inf)
    tables = np.full((len(lanes), layers, len(pricer.pools), layers + 1), np.inf)
    most = 0
    for group in lanes.alike():
        for depth, (first, table) in enumerate(_depths(pricer, price, lanes[group], budget[group])):
            values[depth, group] = first
            tables[group, depth] = table
            most = max(most, depth + 1)
    return values[:most], tables


def _depths(
    pricer: Pricer, price: Array, lanes: Lanes, budget: Array
) -> Iterator[tuple[Array, Array]]:
    """Of 1, 2, … stages, [lanes] least price of a whole pipeline and the table
    [lanes, pools, L + 1], as long as some lane goes on."""
    prices, hops = pricer.prices, pricer.hops.seconds
    kind = prices.runs.kind
    size = len(kind)
    stage = lanes.stage[:, None, None] * prices.seconds + price[:, None]
    stage[prices.seconds > lanes.cap[:, None, None]] = np.inf
    lengths = prices.runs.counts.sum(axis=1)
    possible = lengths[np.isfinite(stage).any(axis=(0, 1))]
    longest = int(possible.max(initial=0))
    layer = (stage / lengths).min(axis=(1, 2))
    weight, first_hop, least = lanes.opening
    opening = weight[:, None, None] * prices.seconds + price[:, None]
    lesser = np.minimum(weight, lanes.stage)
    cheap = np.where(
        np.isfinite(stage), lesser[:, None, None] * prices.seconds + price[:, None], np.inf
    )
    cheap = (cheap / lengths).min(axis=(1, 2))
    slow = prices.seconds < least[:, None, None]
    opening[~np.isfinite(stage) | slow] = np.inf
    # Of the layers not yet held; the first stage may come cheaper than the others.
    count = np.arange(size + 1)
    before = count * np.where(np.isfinite(layer), layer, 0.0)[:, None]
    before = before - ((lanes.stage - lesser) * lanes.cap)[:, None]
    before = np.maximum(before, count * np.where(np.isfinite(cheap), cheap, 0.0)[:, None])
    members = [np.flatnonzero(pricer.hops.senders == s) for s in range(len(hops))]
    going = np.isfinite(layer)
    table = None
    for depth in range(1, size + 1):
        if not going.any():
            return
        fits = prices.most_held >= min(depth, lanes.hold)
        held = np.where(fits & going[:, None, None], stage, np.inf)
        cheapest = np.stack([held[:, m].min(axis=1) for m in members], axis=1)
        cheapest[_dominated(pricer, lanes.hop, first_hop, cheapest)] = np.inf
        first = np.where(fits & going[:, None, None], opening, np.inf)
        first = first[:, :, kind[0, 1 : longest + 1]]
        first = first + lanes.tail[:, None, None] * pricer.opening[:, :longest]
        rows = np.full((len(cheapest), len(hops), size + 1), np.inf)
        if table is None:
            for q in range(1, longest + 1):
                rows[:, :, size - q] = cheapest[:, :, kind[size - q, q]]
            first[:, :, : size - 1] = np.inf
        else:
            onward = table[:, None] + (lanes.hop[:, None, None] * hops)[..., None]
            onward = onward.min(axis=2)
            for q in range(1, min(longest, size - 1) + 1):
                cost = cheapest.take(kind[: size - q, q], axis=2) + onward[:, :, q:size]
                np.minimum(rows[:, :, : size - q], cost, out=rows[:, :, : size - q])
            ahead = (table[:, None] + (first_hop[:, None, None] * hops)[..., None]).min(axis=2)
            first += ahead[:, pricer.hops.senders, 1 : longest + 1]
        pools = pricer.pool_of_sender
        table = np.stack(
            [rows[:, pools == p].min(axis=1, initial=np.inf) for p in range(len(pricer.pools))],
            axis=1,
        )
        table[table + before[:, None] > budget[:, None, None]] = np.inf
        yield first.min(axis=(1, 2), initial=np.inf), table
        going = np.isfinite(table).any(axis=(1, 2))


def _dominated(pricer: Pricer, hop: Array, first_hop: Array, cheapest: Array) -> NDArray[np.bool_]:
    """[lanes, senders, runs] what no cheapest pipeline needs: a sender that costs more for a run
    than the cheapest one of its pool, or of all, together with what messages after and before that
    one may cost."""
    dearer, pools = pricer.dearer, pricer.pool_of_sender
    least = np.stack(
        [cheapest[:, pools == p].min(axis=1, initial=np.inf) for p in range(len(pricer.pools))],
        axis=1,
    )
    before = np.maximum(hop, first_hop)[:, None] * dearer.farther[pools]
    here, anywhere = hop[:, None] * dearer.here, hop[:, None] * dearer.anywhere + before
    beyond = cheapest > least[:, pools] + here[..., None]
    return beyond | (cheapest > least.min(axis=1)[:, None] + anywhere[..., None])
