"""The plan as a picture: a row per pipeline, a box per stage, as wide as it has layers.

Pipelines that differ only in which chips of a pool they use share one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pluribus.core.units import GIB, format_bytes, format_seconds
from pluribus.dashboard import svg
from pluribus.dashboard.names import (
    NBSP,
    PoolName,
    alike,
    chips_label,
    layers_labels,
    percent,
    pipelines_label,
    pool_names,
)
from pluribus.spec.plan import Plan, Stage
from pluribus.spec.prediction import StagePrediction

WIDTH = 1040.0
GUTTER = 170.0
ROW_GAP = 14.0

# Baselines of a box's lines, from its top; a row without room for addresses leaves that line out.
_CHIP, _ADDRESS, _LAYERS, _BUSY, _METER, _MEMORY, _BOTTOM = (
    27.0,
    44.0,
    64.0,
    82.0,
    91.0,
    109.0,
    117.0,
)
_ADDRESS_HEIGHT = 14.0

_LARGE, _SMALL = 13.0, 11.5
# Below this width a box gives its text the room of half its padding.
_NARROW = 80.0
# How far text may run into the padding at its end.
_SLACK = 2.0


def plan_picture(plan: Plan, layer_kinds: Sequence[str]) -> str:
    """The figure as SVG."""
    pools = pool_names(plan)
    body: list[str] = []
    y = 0.0
    for members in alike(plan):
        boxes = _boxes(plan, members, layer_kinds, pools)
        row = _Row(boxes)
        body.append(svg.group(0, y, [*_row_head(plan, members), *row.draw()]))
        y += row.height + ROW_GAP
    chips = ", ".join(f"{pool.num_chips} {pool.chip}" for pool in pools.values())
    plural = "s" if len(plan.pipelines) > 1 else ""
    label = f"The plan: {len(plan.pipelines)} pipeline{plural} on {chips}."
    return svg.figure(WIDTH, y - ROW_GAP, label, body)


def stage_width(stage: Stage, num_layers: int) -> float:
    """Pixels of a stage's box: its share of all layers."""
    return (WIDTH - GUTTER) * stage.num_layers / num_layers


def _boxes(
    plan: Plan, members: Sequence[int], layer_kinds: Sequence[str], pools: dict[str, PoolName]
) -> list[_Box]:
    predictions = plan.prediction.stages[members[0]] if plan.prediction else None
    return [
        _Box(
            stage=stage,
            width=stage_width(stage, len(layer_kinds)),
            pool=pools[stage.pool],
            layers=layers_labels(layer_kinds, stage.layers),
            prediction=predictions[s] if predictions else None,
            # A row of several pipelines stands for other chips too, so it names only the pool.
            address=chips_label(stage) if len(members) == 1 else stage.pool,
        )
        for s, stage in enumerate(plan.pipelines[members[0]].stages)
    ]


def _row_head(plan: Plan, members: Sequence[int]) -> list[str]:
    pipeline = plan.pipelines[members[0]]
    share = percent(pipeline.sequences * len(members) / plan.global_batch)
    batches = f"{pipeline.micro_batches} micro-batch{'es' if pipeline.micro_batches > 1 else ''}"
    lines = [
        batches,
        f"× {_count(pipeline.micro_batch_size, 'sequence')}",
        f"{share} of the batch",
    ]
    if len(members) > 1:
        lines.insert(0, f"× {len(members)}, {_count(pipeline.num_chips, 'chip')} each")
    return [
        svg.text(0, 22, pipelines_label(members), "strong"),
        *(svg.text(0, 41 + 18 * i, words, "small muted") for i, words in enumerate(lines)),
    ]


class _Row:
    """The boxes of one row, which say each thing in the same form where they can."""

    def __init__(self, boxes: Sequence[_Box]) -> None:
        self.boxes = boxes
        # A box far narrower than the others, such as an embedding's, does not speak for the row.
        typical = sum(box.width for box in boxes) / len(boxes) / 2
        speaking = [box for box in boxes if box.width >= typical]
        self.levels = {
            line: max(min(box.level(line), len(box.variants(line)) - 1) for box in speaking)
            for line in (_CHIP, _BUSY, _MEMORY)
        }
        self.raised = 0.0 if any(box.level(_ADDRESS) == 0 for box in boxes) else _ADDRESS_HEIGHT
        self.height = _BOTTOM - self.raised

    def draw(self) -> list[str]:
        body, x = [], GUTTER
        for index, box in enumerate(self.boxes):
            inside = box.draw(self.levels, self.raised)
            body.append(svg.group(x, 0, inside, box.tooltip(index)))
            x += box.width
        return body


@dataclass(frozen=True, kw_only=True)
class _Box:
    """One stage's box, with whatever text has room in it."""

    stage: Stage
    width: float
    pool: PoolName
    layers: tuple[str, str, str]
    prediction: StagePrediction | None
    address: str

    @property
    def padding(self) -> float:
        return 4.0 if self.width < _NARROW else 9.0

    @property
    def room(self) -> float:
        return self.width - 2 * self.padding

    def variants(self, line: float) -> tuple[str, ...]:
        """What may stand on a line, long to short."""
        if line == _CHIP:
            times = f" × {len(self.stage.chips)}" if len(self.stage.chips) > 1 else ""
            place = self.pool.address.rpartition("/")[2]
            return self.pool.chip + times, place + times
        if line == _ADDRESS:
            return (self.address,)
        if line == _LAYERS:
            return self.layers
        if self.prediction is None:
            return ()
        if line == _BUSY:
            return f"busy {percent(self.prediction.busy)}", percent(self.prediction.busy)
        memory = self.prediction.memory
        used, capacity = memory.total / GIB, memory.capacity / GIB
        return (
            f"{used:.1f} of {capacity:.1f}{NBSP}GiB memory",
            f"{used:.1f} / {capacity:.0f}{NBSP}GiB",
            percent(memory.total / memory.capacity),
        )

    def level(self, line: float) -> int:
        """Index of the first variant of a line that fits."""
        variants = self.variants(line)
        return next(
            (i for i, words in enumerate(variants) if self._fits(line, words)), len(variants)
        )

    def _fits(self, line: float, words: str) -> bool:
        size = _LARGE if line == _CHIP else _SMALL
        return svg.fits(words, self.room + _SLACK, size, bold=line == _CHIP)

    def draw(self, levels: Mapping[float, int], raised: float) -> list[str]:
        """The box's elements; `raised` is how far the lines below the address move up."""
        colour = f"pool-{self.pool.colour % 8}"
        body = [
            svg.rect(0, 0, self.width, _BOTTOM - raised, f"stage {colour}"),
            svg.rect(0, 0, self.width, 5, f"band {colour}"),
        ]
        for line, css in (
            (_CHIP, "strong"),
            (_ADDRESS, "small muted"),
            (_LAYERS, "small"),
            (_BUSY, "small"),
            (_MEMORY, "small muted"),
        ):
            level = max(levels.get(line, 0), self.level(line))
            words = self.variants(line)[level : level + 1]
            y = line - (raised if line > _ADDRESS else 0)
            body += [svg.text(self.padding, y, *words, css)] if words else []
        if self.prediction is not None:
            memory, y = self.prediction.memory, _METER - raised
            filled = self.room * min(memory.total / memory.capacity, 1)
            css = "meter" if memory.fits else "meter over"
            body.append(svg.rect(self.padding, y, self.room, 5, "track", radius=2.5))
            body.append(svg.rect(self.padding, y, filled, 5, css, radius=2.5))
        return body

    def tooltip(self, index: int) -> str:
        stage = self.stage
        lines = [
            f"Stage {index + 1}: {self.layers[0]}",
            f"{_count(len(stage.chips), 'chip')}, {self.pool.chip}, {self.address}",
        ]
        if len(stage.chips) > 1:
            lines.append(
                f"data parallel {stage.data_parallel}, tensor parallel {stage.tensor_parallel}, "
                f"context parallel {stage.context_parallel}, ZeRO {stage.zero}"
            )
        if stage.recompute == "full":
            lines.append("runs forward again in backward")
        if self.prediction is not None:
            p = self.prediction
            lines += [
                f"micro-batch: forward {format_seconds(p.forward)}, "
                f"backward {format_seconds(p.backward)}",
                f"busy {percent(p.busy, 1)} of the step",
                f"memory {format_bytes(p.memory.total)} of {format_bytes(p.memory.capacity)}",
            ]
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
