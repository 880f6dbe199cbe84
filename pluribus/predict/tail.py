"""The end of a step: gradient sums that share links, and updates.

Sums begin when their last member has come and progress together: where several use one link at
the same time, its bandwidth is divided max-min fairly among their rings (`fabric`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pluribus.predict.fabric import Flows, max_min_rates
from pluribus.predict.gradients import Phase, Place
from pluribus.predict.schedule import GradientGroup
from pluribus.predict.timeline import Lane


@dataclass
class _Moving:
    """A sum on its way: which of its phases, and the share of that phase that is left."""

    phases: list[Phase]
    left: float = 1.0


@dataclass(frozen=True)
class Sums:
    """When each group's sum has its last member, and when it is done."""

    begin: Sequence[float]
    end: Sequence[float]

    @property
    def seconds(self) -> list[float]:
        return [end - begin for begin, end in zip(self.begin, self.end, strict=True)]


def shared_sums(
    groups: Sequence[GradientGroup],
    phases: Sequence[Sequence[Phase]],
    capacity: Mapping[Place, float],
    start: Mapping[Lane, float],
) -> Sums:
    """Times the sums of a plan.

    Args:
        groups: each lane works through its own in this order.
        phases: of each group, one after another.
        capacity: bytes/s of the shared links.
        start: when each lane begins with its sums.
    """
    return _Run(groups, phases, capacity, start).result()


@dataclass
class _Run:
    groups: Sequence[GradientGroup]
    phases: Sequence[Sequence[Phase]]
    capacity: Mapping[Place, float]
    start: Mapping[Lane, float]
    _moving: dict[int, _Moving] = field(default_factory=dict)

    def result(self) -> Sums:
        groups = self.groups
        queue: dict[Lane, list[int]] = {lane: [] for lane in self.start}
        for g, group in enumerate(groups):
            for lane in group.holders:
                queue[lane].append(g)
        position = dict.fromkeys(queue, 0)
        missing = [len(group.holders) for group in groups]
        begin, end = [0.0] * len(groups), [0.0] * len(groups)
        waiting: list[tuple[float, int]] = []  # (when its last member comes, group)

        def arrive(lane: Lane, now: float) -> None:
            if position[lane] < len(queue[lane]):
                g = queue[lane][position[lane]]
                begin[g] = max(begin[g], now)
                missing[g] -= 1
                if not missing[g]:
                    waiting.append((begin[g], g))

        for lane, time in self.start.items():
            arrive(lane, time)
        now = 0.0
        while waiting or self._moving:
            rates = self._rates()
            finish = {
                g: now + self._moving[g].left * self._moving[g].phases[0].seconds / rate
                for g, rate in rates.items()
            }
            coming = min(waiting, default=(float("inf"), -1))
            first = min(finish, key=finish.__getitem__, default=-1)
            if first >= 0 and finish[first] <= coming[0]:
                self._advance(finish[first] - now, rates, first)
                now = finish[first]
                if not self._moving[first].phases:
                    del self._moving[first]
                    end[first] = now
                    for lane in groups[first].holders:
                        position[lane] += 1
                        arrive(lane, now)
            else:
                waiting.remove(coming)
                self._advance(coming[0] - now, rates)
                now, g = coming
                if any(phase.seconds for phase in self.phases[g]):
                    own = [phase for phase in self.phases[g] if phase.seconds]
                    self._moving[g] = _Moving(own)
                else:
                    end[g] = now
                    for lane in groups[g].holders:
                        position[lane] += 1
                        arrive(lane, now)
        assert not any(missing), "the gradient groups deadlock"
        return Sums(begin, end)

    def _advance(self, seconds: float, rates: Mapping[int, float], done: int = -1) -> None:
        for g, rate in rates.items():
            moving = self._moving[g]
            moving.left = max(0.0, moving.left - seconds * rate / moving.phases[0].seconds)
        if done >= 0:
            self._moving[done].phases.pop(0)
            self._moving[done].left = 1.0

    def _rates(self) -> dict[int, float]:
        """Of each sum on its way, the share of the pace it would have alone."""
        shared = [g for g, moving in self._moving.items() if moving.phases[0].wire]
        rates = dict.fromkeys(self._moving, 1.0)
        if not shared:
            return rates
        index = {place: i for i, place in enumerate(self.capacity)}
        paths, alone, owner = [], [], []
        caps = list(self.capacity.values())
        for g in shared:
            phase = self._moving[g].phases[0]
            # A ring is as fast as its busiest link lets it be, and never faster than alone.
            most = max(phase.wire.values()) / phase.seconds / phase.rings
            for _ in range(phase.rings):
                paths.append([index[place] for place in phase.wire] + [len(caps)])
                caps.append(most)
                alone.append(most)
                owner.append(g)
        got = max_min_rates(Flows.of(paths), np.array(caps)) / np.array(alone)
        for g, rate in zip(owner, got.tolist(), strict=True):
            rates[g] = min(rates[g], rate)
        return rates
