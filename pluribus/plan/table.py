"""Prices every run of layers on one kind of stage: seconds and bytes, as matrices.

Entry [a, b] of a matrix is for layers [a, b); runs that are empty cost infinity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pluribus.model.share import Share
from pluribus.predict.compute import share_of
from pluribus.predict.memory import (
    USABLE_SHARE,
    StateBytes,
    gathered_bytes,
    held_at_once,
    kept_bytes,
    loss_bytes,
    message_bytes,
    process_bytes,
    working_bytes,
)
from pluribus.predict.setting import Setting


@dataclass(frozen=True)
class StageKind:
    """Chips of one pool used one way; equal kinds price alike."""

    pool: str
    tensor_parallel: int
    micro_batch_size: int
    recompute: str


@dataclass(frozen=True, eq=False)
class StageTable:
    """Prices of one `StageKind` in one `Setting`; `ShapeFinder` keeps one of each."""

    setting: Setting
    kind: StageKind
    _feasible: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)
    _most: dict[int, int] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def layer_seconds(self) -> np.ndarray:
        """[L] forward and backward seconds of each layer for one micro-batch."""
        kind = self.kind
        return np.array(
            [
                self.setting.layers_time(
                    kind.pool, (i, i + 1), kind.micro_batch_size, kind.tensor_parallel,
                    kind.recompute,
                ).total
                for i in range(len(self.setting.model.layers))
            ]
        )  # fmt: skip

    @cached_property
    def seconds(self) -> np.ndarray:
        """[L + 1, L + 1] seconds of one micro-batch; infinite for empty runs."""
        return _runs(self.layer_seconds)

    @cached_property
    def parameters(self) -> np.ndarray:
        """[L + 1, L + 1] parameters on one chip; infinite for empty runs."""
        layers, tp = self.setting.model.layers, self.kind.tensor_parallel
        result = _runs(np.array([layer.parameters_per_rank(tp=tp) for layer in layers]))
        if self.setting.tied_layers:
            # The head without the embedding keeps a copy of its matrix.
            result[1:, -1] += layers[-1].tied_parameters // tp
        return result

    @cached_property
    def _static_bytes(self) -> np.ndarray:
        setting, kind = self.setting, self.kind
        state = StateBytes.of(setting.software, setting.precision)
        static = self.parameters * state.total + _runs(self._kept(0.0))
        static += process_bytes(setting.pool(kind.pool).chip)
        static[:-1, -1] += loss_bytes(setting.model.vocab_size, self._share, setting.software)
        static += gathered_bytes(setting.model.hidden_size, self._share, setting.software)
        messages = np.full_like(static, 2 * message_bytes(setting.model.hidden_size, self._share))
        messages[0, -1] = 0.0  # a run of all layers has no neighbour
        return static + messages

    @cached_property
    def _kept_bytes(self) -> np.ndarray:
        return _runs(self._kept(1.0) - self._kept(0.0))

    @cached_property
    def _transient_bytes(self) -> np.ndarray:
        software = self.setting.software
        layers = self.setting.model.layers
        working = np.array([working_bytes(layer, self._share, software) for layer in layers])
        size = len(working)
        result = np.zeros((size + 1, size + 1))
        for a in range(size):
            result[a, a + 1 :] = np.maximum.accumulate(working[a:])
        return result

    @cached_property
    def _share(self) -> Share:
        setting, kind = self.setting, self.kind
        return share_of(
            kind.micro_batch_size, setting.sequence_length, setting.precision, setting.software,
            tp=kind.tensor_parallel,
        )  # fmt: skip

    def _kept(self, in_flight: float) -> np.ndarray:
        """[L] bytes of each layer with this many micro-batches in flight under 1F1B."""
        software, recompute = self.setting.software, self.kind.recompute
        return np.array(
            [
                (1 + software.cache_share)
                * held_at_once(layer, "1f1b", in_flight)
                * kept_bytes(layer, self._share, recompute, software)
                for layer in self.setting.layers_on(self.kind.pool)
            ]
        )

    @cached_property
    def block_seconds(self) -> np.ndarray:
        """[blocks] seconds of each transformer block for one micro-batch."""
        layers = self.setting.model.layers
        blocks = [i for i, layer in enumerate(layers) if layer.kind in ("dense", "moe")]
        return self.layer_seconds[blocks]

    @property
    def least_block_seconds(self) -> float:
        """Of the cheapest transformer block."""
        return float(self.block_seconds.min())

    def feasible(self, in_flight: int) -> np.ndarray:
        """[L + 1, L + 1] seconds where this many micro-batches fit in memory, else infinite."""
        if in_flight not in self._feasible:
            fits = self.overflow(in_flight) <= 0
            self._feasible[in_flight] = np.where(fits, self.seconds, np.inf)
        return self._feasible[in_flight]

    def most_layers(self, in_flight: int) -> int:
        """The longest run that fits with this many micro-batches in flight."""
        if in_flight not in self._most:
            a, b = np.nonzero(np.isfinite(self.feasible(in_flight)))
            self._most[in_flight] = int((b - a).max(initial=0))
        return self._most[in_flight]

    def overflow(self, in_flight: int) -> np.ndarray:
        """[L + 1, L + 1] bytes used beyond what the chip has; not positive where it fits."""
        used = self._static_bytes + in_flight * self._kept_bytes
        if self.kind.recompute == "full":
            used = used + self._transient_bytes
        chip = self.setting.pool(self.kind.pool).chip
        return used - chip.memory_bytes * USABLE_SHARE


def _runs(per_layer: np.ndarray) -> np.ndarray:
    """Sums over every run [a, b); infinite where b ≤ a."""
    prefix = np.concatenate([[0.0], np.cumsum(per_layer)])
    sums = prefix[None, :] - prefix[:, None]
    sums[np.tril_indices(len(prefix))] = np.inf
    return sums
