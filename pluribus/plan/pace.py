"""How long a column takes for m micro-batches, in closed form.

A path through the 1F1B schedule that stays on one stage and now and then follows a micro-batch to
the last stage and back is a lower bound of the step, and with the best such path a tight one: on
random pipelines of 4 to 16 stages with up to 10 % of imbalance and messages of up to 5 % of a stage
it is 0 to 2.4 % below the exact timeline, mostly below 0.5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pluribus.plan.columns import Column
from pluribus.plan.prices import Array
from pluribus.predict.one_f_one_b import last_backward
from pluribus.predict.software import Software


def step_bounds(forward: Array, backward: Array, hops: Array, counts: Sequence[int]) -> Array:
    """Seconds in which no 1F1B timeline of m micro-batches can end.

    Args:
        forward, backward: [S] seconds of one micro-batch on each stage.
        hops: [S − 1] seconds of a message to the next stage and its answer.
        counts: the numbers of micro-batches m to answer, each at least 1.

    Returns:
        [len(counts)] seconds until the first stage's last backward has ended.

    Notes:
        With t = forward + backward, w = min(S − 1 − s, m − 1) forwards ahead of stage s, and R_s
        the way of one micro-batch from stage s to the last one and back, without its passes on s:
        the way from the first stage to s and back again takes the passes and hops before s, and
        between them stage s works through its m micro-batches. Following the first micro-batch
        to the end and back skips w forwards; following the last one skips w backwards; following
        any other one skips w of each. κ excursions, κ ≤ ⌊(m − 1)/(w + 1)⌋ + 1, thus take
        m t + κ R − (κ − 1) w t, two at least; one takes m t + R − w min(f, b). Before that, k
        micro-batches may each go all the way from the first stage to the last and back, every
        S-th one: (k + 1) Σe + (m − 1 − k S) τ in all, with Σe the way there and back, τ the
        slowest stage and 1 ≤ k ≤ (m − 1)/S.
    """
    size = len(forward)
    m = np.asarray(counts, dtype=np.float64)[:, None]
    t = forward + backward
    ways = np.concatenate([[0.0], np.cumsum(t[:-1] + hops)])
    rest = ways[-1] + t[-1] - ways - t
    ahead = np.arange(size - 1, -1, -1)
    skipped = np.minimum(ahead, m - 1)
    busy = m * t
    one = busy + np.maximum(rest - skipped * np.minimum(forward, backward), 0.0)
    most = np.floor((m - 1) / (ahead + 1)) + 1
    gain = rest - ahead * t
    many = np.where(most >= 2, busy + rest + np.maximum(gain, (most - 1) * gain), 0.0)
    through = ways[-1] + t[-1]
    k = np.floor((m[:, 0] - 1) / size)
    whole = (k + 1) * through + (m[:, 0] - 1 - k * size) * t.max()
    once = 2 * through + (m[:, 0] - 1 - size) * t.max()
    return np.maximum(
        (ways + np.maximum(one, many)).max(axis=1),
        np.where(k >= 1, np.maximum(whole, once), 0.0),
    )


@dataclass(frozen=True, eq=False)
class Pace:
    """A column's times.

    Attributes:
        forward, backward: [S] seconds of one micro-batch.
        hops: [S − 1] seconds of a message and its answer.
        tail: seconds between the first stage's last pass and the end of the step: its gradient
            sums and update, or those of a later stage where they take longer.
        limit: micro-batches in the global batch; no step has more.
        stretch: the exact timeline over the bound; unlike stages make 1F1B wait.
    """

    column: Column
    forward: Array
    backward: Array
    hops: Array
    tail: float
    limit: int
    stretch: float = 1.0

    @cached_property
    def ends(self) -> Array:
        """Seconds of a step with 1, 2, … micro-batches, as far as `most` was asked."""
        return self._ends(min(64, self.limit))

    def _ends(self, count: int) -> Array:
        ends = step_bounds(self.forward, self.backward, self.hops, range(1, count + 1))
        return np.maximum.accumulate(ends) * self.stretch + self.tail

    def with_tail(self, tail: float) -> Pace:
        """The same passes with another end."""
        pace = replace(self, tail=tail)
        if "ends" in self.__dict__:
            pace.__dict__["ends"] = self.ends - self.tail + tail
        return pace

    def timed(self, micro_batches: int, software: Software) -> Pace:
        """The same, exact for so many micro-batches; as it is where there is no compiler."""
        last = last_backward(
            self.forward, self.backward, self.hops, micro_batches,
            blocking=software.blocking_messages, rendezvous=software.rendezvous,
        )  # fmt: skip
        if last is None:
            return self
        bound = (self.seconds(micro_batches) - self.tail) / self.stretch
        return self.with_stretch(last / bound)

    def with_stretch(self, stretch: float) -> Pace:
        """The same with passes that take so many times the bound."""
        pace = replace(self, stretch=stretch)
        pace.__dict__["ends"] = (self.ends - self.tail) * (stretch / self.stretch) + self.tail
        return pace

    def most(self, seconds: float) -> int:
        """Micro-batches that end within so many seconds."""
        ends = self.ends
        while ends[-1] <= seconds and len(ends) < self.limit:
            ends = self._ends(min(2 * len(ends), self.limit))
            self.__dict__["ends"] = ends
        return int(np.searchsorted(ends, seconds, side="right"))

    def seconds(self, micro_batches: int) -> float:
        """Of a step with so many micro-batches."""
        if micro_batches > len(self.ends):
            self.__dict__["ends"] = self._ends(
                max(micro_batches, min(2 * micro_batches, self.limit))
            )
        return float(self.ends[micro_batches - 1])

    @cached_property
    def early(self) -> Array:
        """[S] seconds from a stage's last pass to the first stage's."""
        return np.concatenate([[0.0], np.cumsum(self.backward[:-1] + self.hops / 2)])

    @cached_property
    def early_layers(self) -> Array:
        """[L] the same of the stage that holds a layer."""
        return np.repeat(self.early, [stage.num_layers for stage in self.column.stages])

    @property
    def slowest(self) -> float:
        """Seconds of a micro-batch on the slowest stage."""
        return float((self.forward + self.backward).max())

    @property
    def each(self) -> float:
        """Seconds that every further micro-batch adds."""
        t = self.forward + self.backward
        after = np.cumsum((t + np.append(self.hops, 0.0))[::-1])[::-1]
        cycle = after / np.arange(len(t), 0, -1)
        return float(max(t.max(), cycle.max()))
