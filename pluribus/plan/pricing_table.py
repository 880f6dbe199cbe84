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
    "pluribus_price": (_INT, (_POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT)),
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
        asked = np.column_stack([lanes.table, budget])
        price = np.ascontiguousarray(price, dtype=np.float64)
        pointers = {name: array.ctypes.data for name, array in self.arrays.items()}
        problem = _Problem(*self.shape, **pointers, prices=price.ctypes.data)
        values = np.full((len(lanes), layers), np.inf)
        sides = lanes.sides
        tables = (
            np.full((len(lanes), layers, sides, pools, layers + 1), np.inf) if columns else None
        )
        depths = self.library.pluribus_price(
            ctypes.byref(problem), len(lanes), asked.ctypes.data, values.ctypes.data,
            tables.ctypes.data if tables is not None else None, sides,
        )  # fmt: skip
        assert depths >= 0, "no memory for the table of the pricing problem"
        return values[:, :depths].T, tables


def fill_numpy(pricer: Pricer, price: Array, lanes: Lanes, budget: Array) -> tuple[Array, Array]:
    """(values, tables) of `Solution`."""
    layers = len(pricer.prices.runs.kind)
    values = np.full((layers, len(lanes)), np.inf)
    shape = (len(lanes), layers, lanes.sides, len(pricer.pools), layers + 1)
    tables = np.full(shape, np.inf)
    most = 0
    for group in lanes.alike():
        filled = _Filling(pricer, price, lanes[group], budget[group]).depths()
        for depth, (first, table) in enumerate(filled):
            values[depth, group] = first
            tables[group, depth, : len(table)] = table.swapaxes(0, 1)
            most = max(most, depth + 1)
    return values[:most], tables


@dataclass(frozen=True)
class _Role:
    """What a stage is: an early or a late one, or the first of the late ones, which is slow.

    Attributes:
        cost: [lanes, kinds, runs] price of a stage.
        opening: [lanes, kinds, L] of a first stage, with what comes after its last pass.
        hop: [lanes] price of a second of a message.
        before: [lanes] of the message before it, at most.
        layer: [lanes] least price of a layer, however slow its stage.
    """

    pricer: Pricer
    cost: Array
    opening: Array
    hop: Array
    before: Array
    layer: Array

    def best(self, fits: NDArray[np.bool_]) -> tuple[Array, Array]:
        """([lanes, senders, runs] least prices, [lanes, kinds, L] those of first stages)."""
        senders, hops = self.pricer.hops.senders, self.pricer.hops.seconds
        held = np.where(fits, self.cost, np.inf)
        best = np.stack(
            [held[:, senders == s].min(axis=1, initial=np.inf) for s in range(len(hops))], axis=1
        )
        best[_dominated(self.pricer, self.hop, self.before, best)] = np.inf
        opens = fits[:, self.pricer.prices.runs.kind[0, 1 : self.opening.shape[2] + 1]]
        first = np.where(opens, self.opening, np.inf)
        room = self.hop[:, None] * self.pricer.dearer.anywhere[senders]
        first[first > first.min(axis=1)[:, None] + room[..., None]] = np.inf
        return best, first


@dataclass(frozen=True)
class _Filling:
    """The table of lanes that hold and turn alike."""

    pricer: Pricer
    price: Array
    lanes: Lanes
    budget: Array

    def _role(self, *, late: bool, slow: bool) -> _Role:
        pricer, price = self.pricer, self.price[:, None]
        cap, stage, hop, tail, more, toll, least, _, turn = self.lanes.table.T
        seconds = pricer.prices.seconds
        weight, toll = (stage + more, 0.0 * toll) if late else (stage, toll)
        cost = weight[:, None, None] * seconds + price + toll[:, None, None]
        cost[seconds > cap[:, None, None]] = np.inf
        layer = (cost / pricer.prices.runs.counts.sum(axis=1)).min(axis=(1, 2))
        if slow:
            cost[seconds < least[:, None, None]] = np.inf
        elif turn[0] < 0:
            quick = (late == (more <= 0))[:, None, None]
            cost[quick & (seconds >= least[:, None, None])] = np.inf
        opening = cost[:, :, pricer.prices.runs.kind[0, 1:]]
        opening = opening + tail[:, None, None] * pricer.opening
        before = np.where((turn == 0) | (more < 0), hop, hop + more)
        return _Role(pricer, cost, opening, hop + more if late else hop, before, layer)

    def depths(self) -> Iterator[tuple[Array, Array]]:
        """Of 1, 2, … stages, [lanes] least price of a whole pipeline and the table
        [sides, lanes, pools, L + 1], as long as some lane goes on."""
        layers, pools = len(self.pricer.prices.runs.kind), len(self.pricer.pools)
        hold, turn = (int(x) for x in self.lanes.table[0, 7:])
        early = self._role(late=False, slow=False)
        late = self._role(late=True, slow=False) if turn else early
        slow = self._role(late=True, slow=True) if turn < 0 else late
        layer, least = early.layer, np.minimum(early.layer, late.layer)
        count = np.arange(layers + 1)

        def without_dear(table: Array, each: Array) -> None:
            before = count * np.where(np.isfinite(each), each, 0.0)[:, None]
            table[table + before[:, None] > self.budget[:, None, None]] = np.inf

        none = np.full((len(self.lanes), pools, layers + 1), np.inf)
        table = after = none
        going = np.isfinite(layer)
        for depth in range(1, layers + 1):
            if not going.any():
                return
            fits = self.pricer.prices.most_held >= min(depth, hold)
            if turn < 0:
                first, begun = self._before(depth, early, fits, table)
                values, turned = self._before(depth, slow, fits, after)
                _, after = self._before(depth, late, fits, after)
                if depth == 1:
                    first, begun = np.full(len(self.lanes), np.inf), none
                first, table = np.minimum(first, values), np.minimum(begun, turned)
                without_dear(table, layer)
                without_dear(after, least)
            else:
                role = late if depth <= turn else early
                first, table = self._before(depth, role, fits, table)
                without_dear(table, least)
            yield first, np.stack([table, after] if turn < 0 else [table])
            going = (np.isfinite(table) | np.isfinite(after)).any(axis=(1, 2))

    def _before(
        self, depth: int, role: _Role, fits: NDArray[np.bool_], later: Array
    ) -> tuple[Array, Array]:
        """([lanes] least price of a whole pipeline that a stage of a role begins, [lanes, pools,
        L + 1] of later stages with one before them).

        Args:
            later: the table of these later stages; without any at a depth of 1.
        """
        kind, hops = self.pricer.prices.runs.kind, self.pricer.hops
        size = len(kind)
        best, first = role.best(fits)
        rows = np.full((len(best), len(hops.seconds), size + 1), np.inf)
        if depth == 1:
            for q in range(1, size + 1):
                rows[:, :, size - q] = best[:, :, kind[size - q, q]]
            first[:, :, : size - 1] = np.inf
        else:
            onward = later[:, None] + (role.hop[:, None, None] * hops.seconds)[..., None]
            onward = onward.min(axis=2)
            lengths = self.pricer.prices.runs.counts.sum(axis=1)
            longest = int(lengths[np.isfinite(best).any(axis=(0, 1))].max(initial=0))
            for q in range(1, min(longest, size - 1) + 1):
                cost = best.take(kind[: size - q, q], axis=2) + onward[:, :, q:size]
                np.minimum(rows[:, :, : size - q], cost, out=rows[:, :, : size - q])
            first = first + onward[:, hops.senders, 1:]
        pools = self.pricer.pool_of_sender
        table = np.stack(
            [
                rows[:, pools == p].min(axis=1, initial=np.inf)
                for p in range(len(self.pricer.pools))
            ],
            axis=1,
        )
        return first.min(axis=(1, 2), initial=np.inf), table


def _dominated(pricer: Pricer, hop: Array, before: Array, cheapest: Array) -> NDArray[np.bool_]:
    """[lanes, senders, runs] what no cheapest pipeline needs: a sender that costs more for a run
    than the cheapest one of its pool, or of all, together with what messages after and before that
    one may cost.

    Args:
        hop, before: [lanes] price of a second of the messages after and before.
    """
    dearer, pools = pricer.dearer, pricer.pool_of_sender
    least = np.stack(
        [cheapest[:, pools == p].min(axis=1, initial=np.inf) for p in range(len(pricer.pools))],
        axis=1,
    )
    here = hop[:, None] * dearer.here
    anywhere = hop[:, None] * dearer.anywhere + before[:, None] * dearer.farther[pools]
    beyond = cheapest > least[:, pools] + here[..., None]
    return beyond | (cheapest > least.min(axis=1)[:, None] + anywhere[..., None])
