"""What the parts of a plan are called on the page, and which of them look alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pluribus.hardware.cluster import Cluster
from pluribus.predict.schedule import Action, ActionKind
from pluribus.predict.timeline import Lane, Span
from pluribus.spec.plan import Pipeline, Plan, Stage
from pluribus.spec.run import StepTimeline

NBSP = "\u00a0"


@dataclass(frozen=True, kw_only=True)
class PoolName:
    """A pool of the plan.

    Attributes:
        address: ``site/pool``.
        chip: the name of its chips.
        colour: index into the page's pool colours.
        num_chips: chips that the plan uses.
    """

    address: str
    chip: str
    colour: int
    num_chips: int


def pool_names(plan: Plan) -> dict[str, PoolName]:
    """The plan's pools by address, in order of first use."""
    cluster = Cluster.from_table(plan.cluster, "plan.json [cluster]")
    num_chips: dict[str, int] = {}
    for _, _, stage in plan.stages:
        num_chips[stage.pool] = num_chips.get(stage.pool, 0) + len(stage.chips)
    return {
        address: PoolName(
            address=address, chip=cluster.pool(address).chip.name, colour=i, num_chips=count
        )
        for i, (address, count) in enumerate(num_chips.items())
    }


def alike(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Pipeline indices, grouped by pipelines that differ only in which chips of a pool they use."""
    groups: dict[Pipeline, list[int]] = {}
    for index, pipeline in enumerate(plan.pipelines):
        stages = (replace(s, chips=(s.pool,) * len(s.chips)) for s in pipeline.stages)
        groups.setdefault(replace(pipeline, stages=tuple(stages)), []).append(index)
    return tuple(tuple(members) for members in groups.values())


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as words: ``1–3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def pipelines_label(members: Sequence[int]) -> str:
    """``Pipeline 1`` or ``Pipelines 1–8``; people count from one."""
    plural = "s" if len(members) > 1 else ""
    return f"Pipeline{plural} {ranges([member + 1 for member in members])}"


def stage_label(plan: Plan, lane: Lane) -> str:
    """``stage 2``, with its pipeline where there are several."""
    pipeline, stage = lane
    head = f"pipeline {pipeline + 1} · " if len(plan.pipelines) > 1 else ""
    return f"{head}stage {stage + 1}"


def layers_labels(kinds: Sequence[str], layers: tuple[int, int]) -> tuple[str, str, str]:
    """A stage's layers in words, long to short.

    Blocks are the layers that are neither embedding nor head, counted from 0 as in checkpoints.

    Args:
        kinds: of each layer of the model.
        layers: half-open range into them.

    Returns:
        E.g. ``embedding + blocks 0–5``, ``emb + 0–5``, ``0–5``.
    """
    numbers, count = [], 0
    for kind in kinds:
        numbers.append(count)
        count += kind not in ("embedding", "head")
    own = range(*layers)
    blocks = [numbers[i] for i in own if kinds[i] not in ("embedding", "head")]
    span = ranges(blocks)
    words = {"embedding": ("embedding", "emb"), "head": ("head", "head")}
    before = [words[kinds[i]] for i in own if kinds[i] == "embedding"]
    after = [words[kinds[i]] for i in own if kinds[i] == "head"]
    middle = [(f"block{'s' if len(blocks) > 1 else ''} {span}", span)] if blocks else []
    parts = [*before, *middle, *after]
    long, short = (" + ".join(part[i] for part in parts) for i in (0, 1))
    return long, short, span or short


def chips_label(stage: Stage) -> str:
    """The addresses of a stage's chips: the first, and how many more."""
    more = len(stage.chips) - 1
    return stage.chips[0] + (f" + {more} more" if more else "")


def lane_of_rank(plan: Plan) -> tuple[Lane, ...]:
    """(pipeline, stage) of each rank."""
    return tuple((p, s) for p, s, stage in plan.stages for _ in stage.chips)


def spans_of_ranks(measured: StepTimeline) -> dict[int, tuple[Span, ...]]:
    """Each rank's measured actions in order of start, in the form of predicted ones."""
    spans: dict[int, list[Span]] = {}
    for time in measured.actions:
        action = Action(ActionKind(time.action), time.micro_batch)
        spans.setdefault(time.rank, []).append(Span(action, time.start, time.end))
    return {r: tuple(sorted(spans[r], key=lambda span: span.start)) for r in sorted(spans)}


def measured_lanes(plan: Plan, measured: StepTimeline) -> dict[Lane, tuple[Span, ...]]:
    """The measured actions of one chip of each stage: the one of lowest rank."""
    lanes, of_rank = lane_of_rank(plan), spans_of_ranks(measured)
    result: dict[Lane, tuple[Span, ...]] = {}
    for rank, spans in of_rank.items():
        result.setdefault(lanes[rank], spans)
    return result


def lanes_end(lanes: Mapping[Lane, Sequence[Span]]) -> float:
    """Seconds until the last action of any lane has ended."""
    return max(span.end for spans in lanes.values() for span in spans)


def percent(share: float, decimals: int = 0) -> str:
    """``97 %``."""
    return f"{share * 100:.{decimals}f}{NBSP}%".replace("-", "−")
