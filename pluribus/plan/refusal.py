"""Why there is no plan, in words the user can act on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pluribus.core.errors import PlanError
from pluribus.core.units import GIB
from pluribus.plan.shapes import ShapeFinder
from pluribus.plan.teams import largest
from pluribus.predict.setting import Setting


def no_arithmetic(setting: Setting) -> PlanError:
    """No chip of the cluster has the job's precision."""
    names = ", ".join(sorted({pool.chip.key for pool in setting.cluster.pools}))
    return PlanError(
        f"no chip of the cluster ({names}) computes in {setting.precision}",
        where="job.toml [train.precision]",
        do="Choose a precision that one of the chips has.",
    )


def refusal(finder: ShapeFinder, pools: Sequence[str]) -> PlanError:
    """Nothing fits: names the chip that comes closest, and by how much it misses."""
    setting = finder.setting
    batch = setting.job.train.global_batch
    sizes = [b for b in setting.job.plan.micro_batch_sizes if batch % b == 0]
    if not sizes:
        return PlanError(
            f"a global batch of {batch} sequences divides into no micro-batch of "
            f"{list(setting.job.plan.micro_batch_sizes)}",
            where="job.toml [plan.micro_batch_sizes]",
            do="Add a micro-batch size that divides it, e.g. 1.",
        )
    teams = [largest(setting.cluster, pools, n) for n in range(1, len(pools) + 1)]
    teams += [(pool,) for pool in pools]
    least, worst = math.inf, pools[0]
    for team in dict.fromkeys(teams):
        for shape in finder.shapes(team, min(sizes), batch):
            if shape.depth <= len(setting.model.layers):
                over, where = finder.least_overflow(shape, batch)
                if over < least:
                    least, worst = over, where
    assert 0 < least < math.inf, "some shape fits, or none exists"
    chip = setting.pool(worst).chip
    return PlanError(
        f"{setting.model.name} does not fit: even the best cut lacks "
        f"{least / GIB:.2f} GiB on each {chip.key} of {worst} ({chip.memory_gib:g} GiB)",
        do="Add chips, shorten sequence_length, or choose a smaller model.",
    )
