"""A new plan after chips are lost, gained or found slower, that moves little.

Pipelines that lost nothing keep their chips. What is left of the others, and what was gained, forms
new pipelines, priced around the old plan's stages. Each team is charged for what has to move:
seconds of moving, spread over the steps that the new plan is expected to last.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pluribus.core.errors import PlanError
from pluribus.hardware.chip import Chip
from pluribus.hardware.cluster import Cluster
from pluribus.plan.candidates import estimate
from pluribus.plan.columns import Column, StageChoice, StageKind, Team
from pluribus.plan.generate import Generator
from pluribus.plan.placement import place
from pluribus.plan.rounding import deal, repeated, whole_team
from pluribus.plan.score import pipelines_of
from pluribus.predict.memory import OPTIMIZER_BYTES, weight_bytes
from pluribus.predict.predict import Forecast, forecast
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Plan
from pluribus.spec.profile import Profile

# A failure every few hours at a thousand chips and steps of some ten seconds; not fitted.
LASTING_STEPS = 1000
_SCORE = 3


@dataclass(frozen=True)
class Replanned:
    """A new plan and what it takes to get there.

    Attributes:
        moved_bytes: parameters and optimiser state that chips have to receive.
        move_seconds: until the chip that receives most has them, over its network adapter.
        kept: pipelines that stay as they are, but for their micro-batches.
    """

    plan: Plan
    moved_bytes: float
    move_seconds: float
    kept: int


def replan(
    plan: Plan,
    *,
    lost: Collection[str] = (),
    gained: Mapping[str, int] | None = None,
    slower: Mapping[str, float] | None = None,
    lasting_steps: int = LASTING_STEPS,
) -> Replanned:
    """Plans anew.

    Args:
        plan: the plan that runs now.
        lost: addresses of nodes or chips that are gone.
        gained: nodes more, by pool.
        slower: speed of a pool's chips against what the plan assumed, e.g. 0.7, by pool.
        lasting_steps: steps over which moving has to pay off; more of them allow larger moves.

    Raises:
        PlanError: an unknown address, or nothing fits on what is left.
    """
    setting = _changed(Setting.of_plan(plan), gained or {}, slower or {})
    gone = _chips(setting.cluster, lost)
    generator = Generator.of(setting)
    left = [
        sum(chip not in gone for chip in setting.pool(pool).chip_addresses())
        for pool in generator.pools
    ]
    generator.available = np.array(left, dtype=np.float64)
    intact = [p for p in plan.pipelines if not gone & {c for s in p.stages for c in s.chips}]
    old = list(dict.fromkeys(column_of_pipeline(p) for p in plan.pipelines))
    options = []
    found = list(dict.fromkeys(_teams(generator, old, intact, plan)))
    for team in sorted(found, key=lambda team: estimate(generator, team))[: 2 * _SCORE]:
        made = _placed(plan, setting, team, intact, gone)
        if made is not None:
            options.append(made)
    ready = []
    for new, kept in options[:_SCORE]:
        ahead = forecast(new, setting, {})
        if all(s.memory.fits for stages in ahead.prediction.stages for s in stages):
            moved, seconds = moves(plan, new, setting)
            ready.append((new, ahead, moved, seconds, kept))
    if not ready:
        raise PlanError(
            "no plan fits on the chips that are left", where="replan",
            do="Plan from scratch to hear what is missing: pluribus plan job.toml.",
        )  # fmt: skip

    def charge(option: tuple[Plan, Forecast, float, float, int]) -> float:
        return option[1].prediction.step_seconds.mid + option[3] / lasting_steps

    new, ahead, moved, seconds, kept = min(ready, key=charge)
    return Replanned(replace(new, prediction=ahead.prediction), moved, seconds, kept)


def moves(old: Plan, new: Plan, setting: Setting) -> tuple[float, float]:
    """(bytes that chips have to receive, seconds until the slowest has them).

    A chip that held a layer at the same tensor-parallel place keeps its share of it.
    """
    held = {
        (chip, layer): (stage.tensor_parallel, i % stage.tensor_parallel)
        for _, _, stage in old.stages
        for i, chip in enumerate(stage.chips)
        for layer in stage.layer_indices
    }
    each = weight_bytes(setting) + OPTIMIZER_BYTES
    total = slowest = 0.0
    for _, _, stage in new.stages:
        tp = stage.tensor_parallel
        for i, chip in enumerate(stage.chips):
            missing = sum(
                setting.model.layers[layer].parameters_per_rank(tp=tp, ep=stage.expert_parallel)
                for layer in stage.layer_indices
                if held.get((chip, layer)) != (tp, i % tp)
            )
            total += missing * each
            slowest = max(slowest, missing * each / setting.pool(stage.pool).nic_bytes_per_s)
    return total, slowest


def column_of_pipeline(pipeline: Pipeline) -> Column:
    """A pipeline without its chips."""
    stages = []
    for stage in pipeline.stages:
        kind = StageKind(
            stage.pool, stage.tensor_parallel, stage.recompute, stage.context_parallel,
            stage.expert_parallel, stage.zero, stage.data_parallel,
        )  # fmt: skip
        stages.append(StageChoice(kind, stage.layers))
    return Column(tuple(stages), pipeline.micro_batch_size)


def _teams(
    generator: Generator, old: Sequence[Column], intact: Sequence[Pipeline], plan: Plan
) -> Iterator[Team]:
    """Ways to go on: without what broke, with the gap filled, or mixed anew."""
    known = set(generator.kinds)
    old = [c for c in old if all(stage.kind in known for stage in c.stages)]
    assert plan.prediction is not None
    deadline = plan.prediction.step_seconds.mid
    for column in old:
        generator.add(column)
    sizes = {column.micro_batch_size for column in old}
    for size in [s for s in generator.pricers if s not in sizes]:
        del generator.pricers[size]
    generator.price(deadline, deadline * generator.speeds * 0.85)
    uses = Counter(column_of_pipeline(p) for p in intact)
    kept = deal(generator, uses) if uses else None
    if kept is not None:
        yield kept
    after = generator.deadline(generator.ideal_seconds)
    free = generator.available - generator.chips_of(list(uses)) @ np.array(
        list(uses.values()), dtype=np.float64
    ) if uses else generator.available  # fmt: skip
    rest = [
        (column, int(np.floor((free[taken > 0] / taken[taken > 0]).min())))
        for column in generator.columns
        for taken in [generator.chips_of([column])[:, 0]]
    ]
    rest = [(column, count) for column, count in rest if count]
    rest.sort(key=lambda row: -row[1] * row[0].micro_batch_size / generator.pace(row[0]).each)
    for column, count in rest[:4]:
        grown = deal(generator, uses + Counter({column: count}))
        if grown is not None:
            yield grown
    mixed = whole_team(generator, after)
    if mixed is not None:
        yield mixed
    for column in [*old, *generator.columns[-8:]]:
        like = repeated(generator, column)
        if like is not None:
            yield like


def _placed(
    plan: Plan, setting: Setting, team: Team, intact: Sequence[Pipeline], gone: Collection[str]
) -> tuple[Plan, int] | None:
    """The team on chips: pipelines that stay where they are first, the others around them."""
    waiting: dict[Column, list[Pipeline]] = {}
    for pipeline in intact:
        waiting.setdefault(column_of_pipeline(pipeline), []).append(pipeline)
    stay, go = [], []
    for pipeline in pipelines_of(team):
        same = waiting.get(column_of_pipeline(pipeline))
        if same:
            stay.append(replace(same.pop(0), micro_batches=pipeline.micro_batches))
        else:
            go.append(pipeline)
    taken = {chip for p in stay for s in p.stages for chip in s.chips}
    try:
        moved = place(go, setting, without=taken | set(gone), polish=False) if go else ()
    except PlanError:
        return None
    new = replace(
        plan,
        pipelines=(*stay, *moved),
        cluster=setting.cluster.to_table(),
        cluster_digest=setting.cluster.digest,
        profile=setting.profile,
        prediction=None,
        alternatives=(),
        explanation=(),
        lower_bound_seconds=None,
        node_values={},
    )
    return new, len(stay)


def _chips(cluster: Cluster, addresses: Collection[str]) -> set[str]:
    """The chips at addresses of nodes and chips.

    Raises:
        PlanError: there is no such node or chip.
    """
    result = set()
    for address in addresses:
        mine = {
            chip
            for pool in cluster.pools
            if address.startswith(pool.address + "/")
            for chip in pool.chip_addresses()
            if chip == address or chip.startswith(address + "/")
        }
        if not mine:
            raise PlanError(
                f"the plan's cluster has no node or chip '{address}'", where="--lost",
                do="Write site/pool/NODE or site/pool/NODE/CHIP, counted from 0.",
            )  # fmt: skip
        result |= mine
    return result


def _changed(setting: Setting, gained: Mapping[str, int], slower: Mapping[str, float]) -> Setting:
    """The setting with more nodes and slower chips."""
    cluster = setting.cluster
    for address in (*gained, *slower):
        cluster.pool(address)
    pools, renamed = [], {}
    for pool in cluster.pools:
        pool = replace(pool, nodes=pool.nodes + gained.get(pool.address, 0))
        if pool.address in slower:
            chip = _slowed(pool.chip, slower[pool.address])
            renamed[pool.address] = (pool.chip.key, chip.key, slower[pool.address])
            pool = replace(pool, chip=chip)
        pools.append(pool)
    profile = setting.profile
    if profile is not None and renamed:
        profile = _slowed_profile(profile, list(renamed.values()))
    return Setting(setting.job, setting.model, replace(cluster, pools=tuple(pools)), profile)


def _slowed(chip: Chip, speed: float) -> Chip:
    if speed <= 0:
        raise PlanError(f"a speed of {speed}", where="--slower", do="Write e.g. site/pool=0.7.")

    def less(rates: Mapping[str, float]) -> dict[str, float]:
        return {dtype: rate * speed for dtype, rate in rates.items()}

    measured = chip.measured_memory_gbytes_per_s
    return replace(
        chip,
        key=f"{chip.key}-at-{speed:g}",
        peak_tflops=less(chip.peak_tflops),
        measured_tflops=less(chip.measured_tflops),
        memory_gbytes_per_s=chip.memory_gbytes_per_s * speed,
        measured_memory_gbytes_per_s=measured * speed if measured else None,
    )


def _slowed_profile(profile: Profile, changes: Sequence[tuple[str, str, float]]) -> Profile:
    """Measured times of a slowed chip, beside those of its kind elsewhere."""
    layers, optimizers = list(profile.layers), list(profile.optimizers)
    for old, new, speed in changes:
        layers += [
            dataclasses.replace(t, chip=new, forward=t.forward / speed, backward=t.backward / speed)
            for t in profile.layers
            if t.chip == old
        ]
        optimizers += [
            dataclasses.replace(t, chip=new, seconds_per_parameter=t.seconds_per_parameter / speed)
            for t in profile.optimizers
            if t.chip == old
        ]
    return replace(profile, layers=tuple(layers), optimizers=tuple(optimizers))
