"""The laws every plan obeys, whoever wrote it: the planner, a hand, another program.

`check` lists every broken law; `require_valid` turns the list into one message. Published planners
break the first two: of 1,124 ranked plans that ship with Metis (github.com/SamsungLabs/Metis) 547
drop at least one layer and 988 hold an empty stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from pluribus.core.errors import ConfigError, PlanError
from pluribus.core.units import GIB
from pluribus.predict.memory import stage_memory
from pluribus.predict.schedules.base import Placement
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Pipeline, Plan, Stage

_SHOWN = 4  # violations a message spells out


class Law(StrEnum):
    """What a violation is about."""

    LAYERS = "layers"
    CHIPS = "chips"
    SHARING = "sharing"
    BATCH = "batch"
    MEMORY = "memory"


@dataclass(frozen=True)
class Violation:
    """One broken law.

    Attributes:
        where: the part of plan.json, e.g. ``pipelines[0].stages[2]``.
        what: what is wrong there, with the offending value.
    """

    law: Law
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


def check(plan: Plan, setting: Setting) -> list[Violation]:
    """Every law the plan breaks, in the order of the file; empty for a valid plan.

    Notes:
        The laws: each layer once in each pipeline, in order, no empty stage; every chip one of
        the cluster, used once, a stage's chips of one pool that has the job's precision; tensor
        parallel groups inside a node, every degree dividing what it divides; the pipelines'
        sequences add up to the global batch; every stage fits in memory with as many
        micro-batches as its position in the schedule holds.
    """
    found: list[Violation] = []
    users: dict[str, str] = {}
    fitting: set[Pipeline] = set()
    for p, pipeline in enumerate(plan.pipelines):
        at = f"pipelines[{p}]"
        found += _layers(pipeline, setting, at)
        found += _batches(pipeline, at)
        whole = True
        for s, stage in enumerate(pipeline.stages):
            here = f"{at}.stages[{s}]"
            broken = [*_sharing(stage, setting, here), *_chips(stage, setting, here, users)]
            found += broken
            whole = whole and not broken
        if whole and not any(v.where.startswith(at) for v in found):
            bare = _without_addresses(pipeline)
            if bare not in fitting:
                over = list(_memory(pipeline, setting, at))
                found += over
                if not over:
                    fitting.add(bare)
    batch = setting.job.train.global_batch
    if plan.global_batch != batch:
        found.append(
            Violation(
                Law.BATCH, "pipelines",
                f"together they take {plan.global_batch} sequences a step, the job's global batch "
                f"is {batch}",
            )
        )  # fmt: skip
    return found


def require_valid(plan: Plan, setting: Setting, *, memory: bool = True) -> None:
    """Refuses a plan that breaks a law.

    Args:
        memory: also refuse one that is predicted not to fit.

    Raises:
        PlanError: says what is wrong and where.
    """
    found = [v for v in check(plan, setting) if memory or v.law is not Law.MEMORY]
    if not found:
        return
    told = "; ".join(map(str, found[:_SHOWN]))
    if len(found) > _SHOWN:
        told += f"; and {len(found) - _SHOWN} more"
    raise PlanError(
        f"the plan is not valid: {told}",
        where="plan.json",
        do="Mend the file, or plan again: pluribus plan job.toml.",
    )


def _layers(pipeline: Pipeline, setting: Setting, at: str) -> Iterator[Violation]:
    if not pipeline.stages:
        yield Violation(Law.LAYERS, at, "has no stage")
        return
    count, complaint = len(setting.model.layers), False
    for s, stage in enumerate(pipeline.stages):
        for first, end in stage.chunks or (stage.layers,):
            if not 0 <= first <= end <= count:
                words = f"layers {[first, end]} of a model of {count}"
            elif first == end:
                words = f"holds no layer: {[first, end]}"
            else:
                continue
            complaint = True
            yield Violation(Law.LAYERS, f"{at}.stages[{s}]", words)
    if complaint:
        return
    # Not `Structure.of`: degrees that make no sense are for another law to say.
    vee = pipeline.schedule == "zbv"
    order = Placement(len(pipeline.stages), pipeline.virtual_stages, vee=vee)
    runs = []
    for virtual in range(order.num_virtual):
        s, chunk = order.home(virtual)
        stage = pipeline.stages[s]
        runs.append((stage.chunks or (stage.layers,))[chunk])
    expected = 0
    for first, end in runs:
        if first != expected:
            words = "are in no stage" if first > expected else "are in two stages"
            low, high = sorted((first, expected))
            yield Violation(Law.LAYERS, at, f"layers {[low, high]} {words}, or out of order")
            return
        expected = end
    if expected != count:
        yield Violation(Law.LAYERS, at, f"layers {[expected, count]} are in no stage")


def _batches(pipeline: Pipeline, at: str) -> Iterator[Violation]:
    for name in ("micro_batch_size", "micro_batches"):
        value = getattr(pipeline, name)
        if value < 1:
            yield Violation(Law.BATCH, at, f"{name} is {value}, not at least 1")


def _sharing(stage: Stage, setting: Setting, at: str) -> Iterator[Violation]:
    """Degrees that are counts, and divide what they divide."""
    degrees = {
        "tensor_parallel": stage.tensor_parallel,
        "context_parallel": stage.context_parallel,
        "expert_parallel": stage.expert_parallel,
    }
    wrong = {name: value for name, value in degrees.items() if value < 1}
    for name, value in wrong.items():
        yield Violation(Law.SHARING, at, f"{name} is {value}, not at least 1")
    if wrong:
        return
    if stage.zero not in range(4):
        yield Violation(Law.SHARING, at, f"zero is {stage.zero}, not 0 to 3")
    tp, cp, ep = degrees.values()
    if not stage.chips or len(stage.chips) % (tp * cp):
        shared = f"tensor parallel {tp}" + (f" × context parallel {cp}" if cp > 1 else "")
        yield Violation(Law.SHARING, at, f"{len(stage.chips)} chips are no multiple of {shared}")
        return
    if (stage.data_parallel * tp) % ep:
        yield Violation(
            Law.SHARING, at,
            f"expert parallel {ep} does not divide data × tensor parallel "
            f"{stage.data_parallel} × {tp}",
        )  # fmt: skip
    if setting.sequence_length % cp:
        yield Violation(
            Law.SHARING, at,
            f"sequences of {setting.sequence_length} tokens do not divide by context parallel {cp}",
        )  # fmt: skip
    layers = setting.model.layers
    held = [layers[i] for i in stage.layer_indices if 0 <= i < len(layers)]
    for name, degree, able in (
        ("tensor", tp, lambda layer: layer.supports_tp(tp)),
        ("expert", ep, lambda layer: layer.supports_ep(ep)),
    ):
        unable = next((layer for layer in held if not able(layer)), None)
        if unable is not None:
            yield Violation(
                Law.SHARING, at, f"{unable.name} does not divide by {name} parallel {degree}"
            )


def _chips(stage: Stage, setting: Setting, at: str, users: dict[str, str]) -> Iterator[Violation]:
    """Chips of the cluster, each used once, in one pool that can do the work; groups in a node."""
    for chip in stage.chips:
        try:
            pool = setting.cluster.pool_of(chip)
        except ConfigError as error:
            yield Violation(Law.CHIPS, at, error.what)
            return
        if chip in users:
            words = "twice" if users[chip] == at else f"also by {users[chip]}"
            yield Violation(Law.CHIPS, at, f"chip {chip} is used {words}")
        users[chip] = at
        if pool.address != stage.pool:
            yield Violation(Law.CHIPS, at, f"chips of two pools, {stage.pool} and {pool.address}")
            return
    if not stage.chips:
        return
    kind = setting.pool(stage.pool).chip
    if not kind.supports(setting.precision):
        yield Violation(Law.CHIPS, at, f"{kind.key} has no {setting.precision}")
    tp = max(stage.tensor_parallel, 1)
    for first in range(0, len(stage.chips), tp):
        group = stage.chips[first : first + tp]
        if len({chip.rpartition("/")[0] for chip in group}) > 1:
            yield Violation(
                Law.CHIPS, at, f"a tensor-parallel group leaves its node: {', '.join(group)}"
            )


def _memory(pipeline: Pipeline, setting: Setting, at: str) -> Iterator[Violation]:
    for s, stage in enumerate(pipeline.stages):
        memory = stage_memory(setting, pipeline, s)
        if not memory.fits:
            chip = setting.pool(stage.pool).chip
            yield Violation(
                Law.MEMORY, f"{at}.stages[{s}]",
                f"needs {memory.total / GIB:.1f} GiB on each {chip.key}, which has "
                f"{memory.capacity / GIB:.1f} GiB to use",
            )  # fmt: skip


def _without_addresses(pipeline: Pipeline) -> Pipeline:
    """Equal for pipelines that differ only in which chips of a pool they use."""
    stages = (replace(s, chips=(s.pool,) * len(s.chips)) for s in pipeline.stages)
    return replace(pipeline, stages=tuple(stages))
