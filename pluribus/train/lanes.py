"""Which rank is which stage. A rank is a chip's position in `Plan.chips`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pluribus.core.errors import PlanError
from pluribus.predict.timeline import Lane
from pluribus.spec.plan import Plan


@dataclass(frozen=True)
class Lanes:
    """The two-way map between ranks and (pipeline, stage)."""

    lane_of: tuple[Lane, ...]

    @classmethod
    def of_plan(cls, plan: Plan) -> Lanes:
        """One rank per stage.

        Raises:
            PlanError: a stage has several chips, which this version plans but does not run.
        """
        for p, s, stage in plan.stages:
            if len(stage.chips) > 1:
                raise PlanError(
                    f"stage {s} of pipeline {p} has {len(stage.chips)} chips (tensor parallel "
                    f"{stage.tensor_parallel}); this version runs stages of one chip",
                    where="plan.json",
                    do="Plan for pools with chips_per_node = 1, or use the plan as advice.",
                )
        return cls(tuple((p, s) for p, s, _ in plan.stages))

    @property
    def rank_of(self) -> dict[Lane, int]:
        return {lane: rank for rank, lane in enumerate(self.lane_of)}

    def ranks(self, lanes: Iterable[Lane]) -> tuple[int, ...]:
        ranks = self.rank_of
        return tuple(ranks[lane] for lane in lanes)
