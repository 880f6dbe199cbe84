"""Prices every run of layers on every kind of stage: seconds and bytes, as arrays.

Layers of one signature are alike, so a run [a, a + q) is priced by how many layers of each kind it
holds: 80 equal blocks between an embedding and a head make some 240 kinds of runs, not 3,321.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pluribus.hardware.pool import Pool
from pluribus.model.share import Share
from pluribus.plan.columns import StageKind
from pluribus.predict.boundary import boundary_seconds
from pluribus.predict.compute import share_of
from pluribus.predict.memory import (
    USABLE_SHARE,
    StateBytes,
    gathered_bytes,
    held_at_once,
    kept_bytes,
    message_bytes,
    process_bytes,
    working_bytes,
)
from pluribus.predict.setting import Setting
from pluribus.predict.update import optimizer_seconds
from pluribus.spec.plan import Stage

Array = NDArray[np.float64]

MANY = 1 << 30  # more micro-batches than any plan has


def usable_pools(setting: Setting) -> tuple[Pool, ...]:
    """Pools whose chips have the job's precision."""
    return tuple(p for p in setting.cluster.pools if p.chip.supports(setting.precision))


def tensor_parallel_degrees(setting: Setting, pool: Pool) -> list[int]:
    """Degrees that stay inside a node, divide it, and divide the model's heads and experts."""
    return [
        tp
        for tp in range(1, pool.chips_per_node + 1)
        if pool.chips_per_node % tp == 0 and setting.model.supports_tp(tp)
    ]


def stage_kinds(setting: Setting, pool: Pool) -> list[StageKind]:
    """Every way a stage can use chips of a pool."""
    wanted = setting.job.plan.recompute
    modes = ("none", "full") if wanted == "auto" else (wanted,)
    return [
        StageKind(pool.address, tp, recompute)
        for tp in tensor_parallel_degrees(setting, pool)
        for recompute in modes
    ]


@dataclass(frozen=True)
class Runs:
    """The kinds of runs of a model.

    Attributes:
        kind: [L, Q + 1] the kind of the run of q layers from layer a; -1 where it passes the end.
        counts: [kinds, layer kinds] how many layers of each kind it holds.
        unlike: one layer index of each kind of layer.
    """

    kind: NDArray[np.intp]
    counts: NDArray[np.intp]
    unlike: tuple[int, ...]

    @classmethod
    def of(cls, setting: Setting) -> Runs:
        layers = setting.model.layers
        names: dict[tuple[str, str], int] = {}
        unlike: list[int] = []
        of_layer = []
        for i, layer in enumerate(layers):
            key = (layer.kind, layer.signature)
            if key not in names:
                names[key] = len(unlike)
                unlike.append(i)
            of_layer.append(names[key])
        size = len(layers)
        kind = np.full((size, size + 1), -1, dtype=np.intp)
        known: dict[tuple[int, ...], int] = {}
        for a in range(size):
            counts = [0] * len(unlike)
            for q in range(1, size - a + 1):
                counts[of_layer[a + q - 1]] += 1
                kind[a, q] = known.setdefault(tuple(counts), len(known))
        return cls(kind, np.array(list(known), dtype=np.intp), tuple(unlike))


@dataclass(frozen=True, eq=False)
class Prices:
    """What runs of layers take with one micro-batch size.

    Attributes:
        kinds: of stages; the first axis of the arrays.
        runs: of layers; the second axis.
    """

    setting: Setting
    micro_batch_size: int
    kinds: tuple[StageKind, ...]
    runs: Runs

    @cached_property
    def _times(self) -> tuple[Array, Array]:
        """(forward, backward) seconds, [kinds, layer kinds]."""
        times = [
            [
                self.setting.layers_time(
                    k.pool, (i, i + 1), self.micro_batch_size, k.tensor_parallel, k.recompute
                )
                for i in self.runs.unlike
            ]
            for k in self.kinds
        ]
        forward = np.array([[t.forward for t in row] for row in times])
        return forward, np.array([[t.backward for t in row] for row in times])

    @cached_property
    def forward(self) -> Array:
        """[kinds, runs] seconds of one micro-batch's forward."""
        factors, software = self.setting.calibration, self.setting.software
        host = software.micro_batch_s * factors.host
        return (self._times[0] @ self.runs.counts.T + host) * factors.overhead

    @cached_property
    def backward(self) -> Array:
        """[kinds, runs] seconds of one micro-batch's backward."""
        return self._times[1] @ self.runs.counts.T * self.setting.calibration.overhead

    @cached_property
    def seconds(self) -> Array:
        """[kinds, runs] seconds of one micro-batch, forward and backward."""
        return self.forward + self.backward

    @cached_property
    def parameters(self) -> Array:
        """[kinds, runs] parameters on one chip."""
        layers, tied = self.setting.model.layers, self.setting.tied_layers
        result = np.empty((len(self.kinds), len(self.runs.counts)))
        for row, kind in enumerate(self.kinds):
            tp, ep = kind.tensor_parallel, kind.expert_parallel
            each = [layers[i].parameters_per_rank(tp=tp, ep=ep) for i in self.runs.unlike]
            result[row] = self.runs.counts @ np.array(each, dtype=np.float64)
            if tied:
                # The head without the embedding keeps a copy of its matrix.
                embedding, head = (self.runs.unlike.index(i) for i in tied)
                apart = (self.runs.counts[:, head] > 0) & (self.runs.counts[:, embedding] == 0)
                result[row, apart] += layers[tied[1]].tied_parameters // tp
        return result

    def _shares(self) -> list[Share]:
        """Of one micro-batch on a chip of each kind."""
        setting = self.setting
        return [
            share_of(
                self.micro_batch_size, setting.sequence_length, setting.precision,
                setting.software, tp=kind.tensor_parallel, cp=kind.context_parallel,
                ep=kind.expert_parallel,
            )
            for kind in self.kinds
        ]  # fmt: skip

    def _kept(self, in_flight: float) -> Array:
        """[kinds, runs] bytes of activations with so many micro-batches in flight."""
        layers, software = self.setting.model.layers, self.setting.software
        each = [
            [
                held_at_once(layers[i], "1f1b", in_flight)
                * kept_bytes(layers[i], share, kind.recompute, software)
                for i in self.runs.unlike
            ]
            for kind, share in zip(self.kinds, self._shares(), strict=True)
        ]
        return np.array(each) @ self.runs.counts.T * (1 + software.fragmentation)

    @cached_property
    def _kept_bytes(self) -> Array:
        """[kinds, runs] bytes that every further micro-batch in flight adds."""
        return self._kept(1.0) - self._kept(0.0)

    @cached_property
    def _fixed_bytes(self) -> Array:
        """[kinds, runs] bytes that do not grow with the micro-batches in flight."""
        setting, runs = self.setting, self.runs
        state = StateBytes.of(setting.software, setting.precision)
        size, held = len(runs.kind), runs.counts > 0
        result = self.parameters * state.total + self._kept(0.0)
        for row, (kind, share) in enumerate(zip(self.kinds, self._shares(), strict=True)):
            result[row] += process_bytes(setting.pool(kind.pool).chip)
            result[row] += gathered_bytes(setting.model.hidden_size, share, setting.software)
            messages = np.full(
                len(runs.counts), 2 * message_bytes(setting.model.hidden_size, share)
            )
            messages[runs.kind[0, size]] = 0.0  # a run of all layers has no neighbour
            result[row] += messages
            if kind.recompute == "full":
                working = [
                    working_bytes(setting.model.layers[i], share, setting.software)
                    for i in runs.unlike
                ]
                extra = np.where(held, np.array(working), 0.0).max(axis=1)
                result[row] += extra * (1 + setting.software.fragmentation)
        return result

    @cached_property
    def _capacity(self) -> Array:
        chips = [self.setting.pool(kind.pool).chip for kind in self.kinds]
        return np.array([chip.memory_bytes * USABLE_SHARE for chip in chips])

    @cached_property
    def most_held(self) -> NDArray[np.int64]:
        """[kinds, runs] the most micro-batches in flight that fit; 0 where not even one does."""
        room = self._capacity[:, None] - self._fixed_bytes
        with np.errstate(divide="ignore"):
            held = np.where(self._kept_bytes > 0, room / self._kept_bytes, MANY)
        held = np.floor(np.clip(held, 0, MANY))
        return np.where(room >= 0, held, 0).astype(np.int64)

    def overflow(self, in_flight: int) -> Array:
        """[kinds, runs] bytes beyond what the chip has; not positive where it fits."""
        return self._fixed_bytes + in_flight * self._kept_bytes - self._capacity[:, None]

    @cached_property
    def update(self) -> Array:
        """[kinds, runs] seconds of the optimiser's update."""
        setting, factors = self.setting, self.setting.calibration
        each = [
            optimizer_seconds(
                1.0, setting.pool(kind.pool).chip, setting.profile, factors, setting.software
            )
            for kind in self.kinds
        ]
        update = self.parameters * np.array(each)[:, None]
        for row, kind in enumerate(self.kinds):
            layers = [
                setting.update_seconds(kind.pool, (i,), kind.tensor_parallel, np.nan)
                for i in self.runs.unlike
            ]
            # Known layer by layer only where that was measured.
            if np.isfinite(layers).all():
                update[row] = self.runs.counts @ np.array(layers)
        return (update + setting.software.step_s * factors.host) * factors.overhead

    def matrix(self, row: int, values: Array) -> Array:
        """[L + 1, L + 1] values of one kind of stage for layers [a, b); infinite if empty."""
        size = len(self.runs.kind)
        result = np.full((size + 1, size + 1), np.inf)
        for a in range(size):
            result[a, a + 1 :] = values[row, self.runs.kind[a, 1 : size - a + 1]]
        return result


@dataclass(frozen=True)
class Hops:
    """Seconds a message and its answer take between two stages.

    Attributes:
        senders: of each kind of stage, its row in `seconds`.
        seconds: [senders, pools] there and back, from a sender to a next stage in a pool.
    """

    senders: NDArray[np.intp]
    seconds: Array

    @classmethod
    def of(
        cls,
        setting: Setting,
        kinds: Sequence[StageKind],
        pools: Sequence[str],
        micro_batch_size: int,
        where: Literal["near", "mean", "far"] = "mean",
    ) -> Hops:
        """Hops within a pool leave the node as often as stages one behind the other fill it.

        Args:
            where: all stay in the node where it has room for two stages, so that no placement is
                quicker; or all leave it, as where gradient peers share the nodes.
        """
        rows: dict[tuple[str, int], int] = {}
        senders = []
        for kind in kinds:
            ranks = kind.tensor_parallel * kind.context_parallel
            senders.append(rows.setdefault((kind.pool, ranks), len(rows)))
        seconds = np.zeros((len(rows), len(pools)))
        for (address, width), row in rows.items():
            pool = setting.pool(address)
            fills = width >= pool.chips_per_node
            source = _stage(f"{address}/0/0", width)
            share = min(width / pool.chips_per_node, 1.0)  # of hops that leave a node
            for column, other in enumerate(pools):
                targets = {f"{other}/0/0": 1.0}
                if other == address:
                    targets = {f"{other}/1/0": share} if pool.nodes > 1 else {}
                    if not fills:
                        targets[f"{other}/0/{width}"] = 1.0 - share
                # A narrower next stage takes longer, a wider one no less: fewer ranks send.
                times = {
                    boundary_seconds(setting, source, _stage(t, width), micro_batch_size): weight
                    for t, weight in targets.items()
                }
                # Without any target no second stage fits into the pool.
                mean = sum(t * w for t, w in times.items()) / max(sum(times.values()), 1e-12)
                ends = {"near": min(times, default=0.0), "far": max(times, default=0.0)}
                seconds[row, column] = 2 * ends.get(where, mean)
        return cls(np.array(senders, dtype=np.intp), seconds)


def _stage(chip: str, width: int) -> Stage:
    """A stage of which only its first chip and its ranks matter."""
    return Stage(chips=(chip,) * width, layers=(0, 1), tensor_parallel=width)
