"""Scores each published source with what was read off it unlearnt: how much is in sample?

    .venv/bin/python bench/published_without.py --data runs.csv [--data more.csv]

For every source that a shipped constant was fitted on or read off (`UNLEARNT`; the constants'
comments say so, too) its rows are predicted twice: as shipped, and with each such constant put back
to what it would be without these rows. That is what its other sources say where there are any
(`sustained` of A100), what the program's code says, or nothing at all (no overlap, no penalty).
Printed are mean absolute errors of iteration times, uncalibrated and with eight rows per cluster.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from published import load, score, terms_of
from published_rows import Row

from pluribus.predict import gemm
from pluribus.predict.software import MEGATRON

# Hosts as guessed for programs that no small runs are known of.
_GUESSED_HOST = {
    "host_s": MEGATRON.host_s, "host_backward": MEGATRON.host_backward, "host_talk_s": 0.0,
    "sum_wait_s": 0.0, "micro_batch_s": MEGATRON.micro_batch_s, "step_s": MEGATRON.step_s,
}  # fmt: skip
_NO_PENALTY = {"64": 1.0, "8": 1.0, "4": 1.0, "2": 1.0, "1": 1.0}


@dataclass(frozen=True)
class Unlearnt:
    """What a source has taught.

    Attributes:
        software: fields of its program, and what they are without it.
        alignment: whether the price of unaligned dimensions came from it.
        family: of the chips whose sustained rate is refitted on the other sources.
    """

    software: dict[str, float] = field(default_factory=dict)
    alignment: bool = False
    family: str = ""


UNLEARNT = {
    "Zero Bubble": Unlearnt({"accumulate_bytes": 6}, family="ampere"),
    "Megatron-Bridge": Unlearnt({"overlap_tensor": 0.0, "overlap_experts": 0.0}),
    "torchtitan": Unlearnt({"eager_passes": 1.0, "ring_attention": 1.0, "overlap_tensor": 0.0}),
    "vTrain": Unlearnt(_GUESSED_HOST, alignment=True, family="ampere"),
    "bigscience": Unlearnt({"drag": 1.0}, alignment=True, family="ampere"),
    "SC21": Unlearnt(family="ampere"),
    "Megatron-LM repo": Unlearnt(family="ampere"),
    "Korthikanti": Unlearnt(family="ampere"),
    "llm-foundry": Unlearnt({"gather_wait_s": 0.0}, family="ampere"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [row for row in load(options.data)[0] if row.seconds]
    print(f"{'source':<30}{'rows':>5}{'shipped':>16}{'without it':>16}   sustained")
    for name, unlearnt in UNLEARNT.items():
        own = [row for row in rows if re.search(name, row.group)]
        if not own:
            continue
        shipped = errors(own, options.seed)
        constants = {}
        if unlearnt.alignment:
            constants["alignment"] = _NO_PENALTY
        if unlearnt.family:
            others = [row for row in rows if row not in own and of_family(row, unlearnt.family)]
            if others:
                constants["sustained"] = refitted(others, unlearnt.family)
        with_constants(unlearnt.family or "ampere", constants)
        changed = [
            replace(row, software=replace(row.software, **without(row, unlearnt.software)))
            for row in own
        ]
        left = errors(changed, options.seed)
        with_constants("", {})
        cells = "".join(
            f"{100 * alone:>8.1f}{100 * calibrated:>7.1f}%" for alone, calibrated in (shipped, left)
        )
        print(f"{name:<30}{len(own):>5}{cells}   {constants.get('sustained', '')}")


def without(row: Row, changes: dict[str, float]) -> dict[str, float]:
    """Of the changes those to something that the row's program has."""
    none = {"overlap_tensor": 0.0, "overlap_experts": 0.0, "ring_attention": 1.0}
    return {k: v for k, v in changes.items() if getattr(row.software, k) != none.get(k)}


def errors(rows: Sequence[Row], seed: int) -> tuple[float, float]:
    """Mean absolute error, uncalibrated and with eight rows."""
    terms = [terms_of(row) for row in rows]
    found = []
    for count in (0, 8):
        records = score(rows, terms, count, 5, seed, False)
        found.append(statistics.fmean(abs(r["predicted"] / r["measured"] - 1) for r in records))
    return found[0], found[1]


def of_family(row: Row, family: str) -> bool:
    return gemm.gemm_constants(row.pool.chip.key) is gemm._families()[family]


def refitted(rows: Sequence[Row], family: str) -> float:
    """The sustained rate under which sources are right on average, each counted once."""
    best, chosen = float("inf"), 0.0
    for share in (0.75, 0.78, 0.81, 0.84, 0.87, 0.9, 0.93):
        with_constants(family, {"sustained": share})
        groups: dict[str, list[float]] = {}
        for row in rows[:: max(1, len(rows) // 200)]:
            error = terms_of(row).seconds() / row.seconds - 1
            groups.setdefault(row.group, []).append(error)
        wrong = abs(statistics.fmean(statistics.median(errors) for errors in groups.values()))
        if wrong < best:
            best, chosen = wrong, share
    with_constants("", {})
    return chosen


def with_constants(family: str, changes: dict[str, object]) -> None:
    """Predicts with other constants of a family from here on; without a family as shipped."""
    gemm._families.cache_clear()
    if family:
        found = gemm._families()
        found[family] = replace(found[family], **changes)
    gemm.gemm_constants.cache_clear()
    gemm._seconds.cache_clear()


if __name__ == "__main__":
    main()
