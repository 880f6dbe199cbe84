"""Predicts published training runs and prints how far off we are, source by source.

    .venv/bin/python bench/published.py --data runs.csv [--data more.csv] [--calibrate 8]

With `--through-plan` every row becomes a plan and is predicted by its timeline, as `pluribus
predict` does; otherwise by the closed forms of regular layouts.

A cluster starts from the shipped constants, or with `--leave-one-out` from factors fitted on
eight rows of every other source. With `--calibrate N` at most N rows of each cluster, and never
more than half of them, are drawn with a fixed seed to fit its factors, and are not scored; errors
are over all draws.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from published_cells import read_rows
from published_programs import by_driver
from published_rows import Row, UnusableError, parse_row

from pluribus.core.errors import PlanError, PluribusError
from pluribus.core.units import GIB
from pluribus.hardware.cluster import Cluster
from pluribus.predict.calibrate import MeasuredRun, calibrate, interval
from pluribus.predict.predict import forecast
from pluribus.predict.regular import Terms, regular_terms
from pluribus.predict.regular_memory import regular_memory
from pluribus.predict.regular_plan import regular_pipelines
from pluribus.predict.setting import Setting
from pluribus.spec.calibration import IDENTITY, Calibration
from pluribus.spec.job import DataSpec, Job, ModelSpec, TrainSpec
from pluribus.spec.plan import Plan
from pluribus.spec.prediction import ChipMemory, Prediction

MOST_BETWEEN_REPEATS = 1.15

RIVALS = """published errors of others (their own data unless said):
  vTrain 8.37 % on its 1,440 single-node runs, 14.73 % on its 109 multi-node runs
  Calculon 3.65 % on 8 fitted points; unchanged elsewhere 17.7-43 % (vTrain), 27 % (BLOOM),
    9.3 / 13.4 % (Megatron SC21 tables 1 / 2)
  SimuMax 5.62 % time and 0.46 % memory on its 43 B200 runs; AMPeD at most 12 %; Echo 8 %"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, type=Path)
    parser.add_argument("--calibrate", type=int, default=0, metavar="N")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leave-one-out", action="store_true", help="start from other sources")
    parser.add_argument("--through-plan", action="store_true", help="predict as users' plans are")
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not 0 <= options.calibrate <= 8:
        parser.error("--calibrate takes 0 to 8 rows")
    if missing := [str(path) for path in options.data if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}")
    rows, skipped = load(options.data)
    start = time.perf_counter()
    terms, kept = [], []
    for row in rows:
        try:
            terms.append(PlannedRow(row) if options.through_plan else terms_of(row))
            kept.append(row)
        except PlanError as error:
            skipped[f"{row.group[:40]}: {error.what}"] += 1
    rows = kept
    if options.through_plan:
        for term in terms:
            term.seconds()
    per_row = (time.perf_counter() - start) / max(1, len(rows))
    scored = score(
        rows, terms, options.calibrate, options.draws, options.seed, options.leave_one_out
    )
    report = {
        "calibrated_on": options.calibrate,
        "sources": summarise(rows, scored),
        "memory": memory(rows, terms),
        "skipped": dict(skipped.most_common()),
        "ms_per_row": per_row * 1e3,
    }
    show(report, rows, scored, options.rows)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def terms_of(row: Row) -> Terms:
    return regular_terms(
        row.model, row.pool, row.layout, row.sequence_length, row.precision, row.software
    )


class PlannedRow:
    """A row as a plan in its setting: what `pluribus predict` would say of it."""

    def __init__(self, row: Row) -> None:
        nodes = max(row.pool.nodes, -(-row.layout.num_chips // row.pool.chips_per_node))
        pool = replace(row.pool, nodes=nodes)
        train = TrainSpec(
            sequence_length=row.sequence_length, steps=1, precision=row.precision,
            global_batch_tokens=row.sequence_length * row.layout.global_batch,
        )  # fmt: skip
        job = Job(model=ModelSpec(config=""), data=DataSpec(tokens=""), train=train)
        self._setting = Setting(job, row.model, Cluster((pool,)), software=row.software)
        self._plan = Plan(
            pipelines=regular_pipelines(row.model, pool, row.layout), job={}, job_digest="",
            cluster={}, cluster_digest="", model_config={},
        )  # fmt: skip

    def seconds(self, calibration: Calibration = IDENTITY) -> float:
        return self.prediction(calibration).step_seconds.mid

    def prediction(self, calibration: Calibration = IDENTITY) -> Prediction:
        return forecast(self._plan, self._setting.calibrated(calibration), {}).prediction

    @property
    def memory(self) -> ChipMemory:
        stages = self.prediction().stages[0]
        return max((stage.memory for stage in stages), key=lambda memory: memory.total)


def load(paths: Sequence[Path]) -> tuple[list[Row], Counter[str]]:
    """Rows that can be predicted, and why the others cannot."""
    rows, skipped = [], Counter()
    for path in paths:
        for raw in read_rows(path):
            try:
                rows.append(parse_row(raw))
            except (UnusableError, PluribusError) as error:
                skipped[f"{(raw.get('source') or '?')[:40]}: {error}"] += 1
    return _with_repeats_flagged(rows), skipped


def _with_repeats_flagged(rows: Sequence[Row]) -> list[Row]:
    """Flags runs whose every column is that of a much quicker or slower one: a newer program, or
    a mistake."""
    alike = defaultdict(list)
    for row in rows:
        alike[_run(row)].append(row.seconds)
    flagged = []
    for row in rows:
        times = [seconds for seconds in alike[_run(row)] if seconds]
        if times and max(times) > MOST_BETWEEN_REPEATS * min(times):
            row = replace(row, flags=(*row.flags, "another run alike took a quite different time"))
        flagged.append(row)
    return flagged


def _run(row: Row) -> tuple[object, ...]:
    return (row.cluster, row.model.digest, row.layout, row.sequence_length, row.precision,
            row.pool.chip.matmul_flops(row.precision), row.software)  # fmt: skip


def score(
    rows: Sequence[Row],
    terms: Sequence[Terms | PlannedRow],
    count: int,
    draws: int,
    seed: int,
    others_first: bool,
) -> list[dict[str, Any]]:
    """Predicted against measured: one record for each row and draw in which it is scored."""
    clusters = defaultdict(list)
    for index, row in enumerate(rows):
        if row.seconds:
            clusters[row.cluster].append(index)
    records = []
    copies = [(*_run(row), row.seconds) for row in rows]
    groups = {row.group for row in rows} if others_first else set()
    others = {group: _from_others(rows, terms, group, seed) for group in groups}
    for cluster, members in clusters.items():
        start = others.get(rows[members[0]].group, IDENTITY)
        for draw in range(draws if count else 1):
            chosen = random.Random(f"{seed} {draw} {cluster}").sample(
                members, min(count, len(members) // 2)
            )
            runs = [MeasuredRun(terms[i].seconds, rows[i].seconds) for i in chosen]
            factors = calibrate(runs, start)
            seen = {copies[i] for i in chosen}
            for i in members:
                if copies[i] not in seen:
                    expected = interval(terms[i].seconds, factors)
                    records.append(
                        {
                            "row": i,
                            "draw": draw,
                            "predicted": expected.mid,
                            "measured": rows[i].seconds,
                            "covered": expected.low <= rows[i].seconds <= expected.high,
                        }
                    )
    return records


def _from_others(
    rows: Sequence[Row], terms: Sequence[Terms | PlannedRow], group: str, seed: int
) -> Calibration:
    """Factors fitted on a few rows of every other source: what a new cluster starts from."""
    sources = defaultdict(list)
    for index, row in enumerate(rows):
        # The same source in another file is no other source.
        if row.seconds and row.group.split(" [")[0] != group.split(" [")[0]:
            sources[row.group].append(index)
    runs = []
    for name in sorted(sources):
        members = sources[name]
        chosen = random.Random(f"{seed} {name}").sample(members, min(8, len(members)))
        runs += [MeasuredRun(terms[i].seconds, rows[i].seconds) for i in chosen]
    if not runs:
        return IDENTITY
    # The cluster differs from the others in what all of them differ: as much as from none.
    found = calibrate(runs)
    return replace(found, covariance=None, runs=0)


def summarise(rows: Sequence[Row], records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per source, and one over all."""
    groups = defaultdict(list)
    for record in records:
        groups[rows[record["row"]].group].append(record)
    lines = [{"source": name, **_line(rows, group)} for name, group in groups.items()]
    if not lines:
        return []
    return [
        *lines,
        {"source": "all rows", **_line(rows, records)},
        {"source": "mean over sources", "mape": statistics.fmean(x["mape"] for x in lines)},
    ]


def _line(rows: Sequence[Row], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    errors = [r["predicted"] / r["measured"] - 1 for r in records]
    sizes = sorted(abs(e) for e in errors)
    return {
        "rows": len({r["row"] for r in records}),
        "mape": statistics.fmean(sizes),
        "median": statistics.median(sizes),
        "p90": sizes[int(0.9 * (len(sizes) - 1))],
        "bias": statistics.fmean(errors),
        "coverage": statistics.fmean(r["covered"] for r in records),
        **_ranking(rows, records),
    }


def _ranking(rows: Sequence[Row], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Kendall's tau and the regret of the chosen layout, over sweeps of at least five layouts of
    one model and batch on as many chips."""
    sweeps = defaultdict(list)
    for record in records:
        row = rows[record["row"]]
        model = row.model  # its vocabulary may be padded by the layout
        key = (model.architecture, model.hidden_size, len(model.layers), row.cluster)
        key = (*key, row.layout.global_batch, row.sequence_length)
        sweeps[*key, row.layout.num_chips, row.precision, record["draw"]].append(record)
    taus, regrets = [], []
    for sweep in sweeps.values():
        if len({rows[record["row"]].layout for record in sweep}) >= 5:
            pairs = [(a["predicted"] - b["predicted"]) * (a["measured"] - b["measured"])
                     for i, a in enumerate(sweep) for b in sweep[:i]]  # fmt: skip
            taus.append(sum((p > 0) - (p < 0) for p in pairs) / len(pairs))
            chosen = min(sweep, key=lambda r: r["predicted"])["measured"]
            regrets.append(chosen / min(r["measured"] for r in sweep) - 1)
    if not taus:
        return {}
    return {"tau": statistics.fmean(taus), "regret": statistics.fmean(regrets)}


def memory(rows: Sequence[Row], terms: Sequence[Terms | PlannedRow]) -> list[dict[str, Any]]:
    """Peak bytes against published GiB by source, and whether runs that ran out were foreseen: of
    all runs said to be too large some were, and of all that ran out some were said to be. A run
    with a time or a peak did fit. Runs that leave out what decides it do not count."""
    groups = defaultdict(list)
    for row, term in zip(rows, terms, strict=True):
        if row.memory_gb is not None or row.seconds:
            groups[row.group].append((row, term))
    lines = []
    outcomes: Counter[tuple[bool, bool]] = Counter()
    for name, group in groups.items():
        errors = []
        for row, term in group:
            found = (
                term.memory
                if isinstance(term, PlannedRow)
                else regular_memory(
                    row.model,
                    row.pool,
                    row.layout,
                    row.sequence_length,
                    row.precision,
                    row.software,
                )
            )
            if row.room_known:
                outcomes[not found.fits, row.memory_gb == math.inf] += 1
            if row.memory_gb is not None and math.isfinite(row.memory_gb):
                held = found.total if by_driver(row.software) else found.tensors
                errors.append(held / GIB / row.memory_gb - 1)
        if errors:
            lines.append({
                "source": name, "rows": len(errors), "bias": statistics.fmean(errors),
                "mape": statistics.fmean(map(abs, errors)),
                "median": statistics.median(map(abs, errors)),
            })  # fmt: skip
    hits = outcomes[True, True]
    said, real = hits + outcomes[True, False], hits + outcomes[False, True]
    lines.append({
        "source": "out of memory", "rows": real, "foreseen": said, "of": outcomes.total(),
        "precision": hits / said if said else None, "recall": hits / real if real else None,
    })  # fmt: skip
    return lines


def show(
    report: dict[str, Any], rows: Sequence[Row], records: Sequence[dict[str, Any]], every: bool
) -> None:
    print(f"calibrated on up to {report['calibrated_on']} rows of each cluster")
    keys = ("mape", "median", "p90", "bias", "coverage", "tau", "regret")
    print(f"{'source':<48}{'rows':>5}" + "".join(f"{key:>10}" for key in keys))
    for line in report["sources"]:
        cells = (f"{100 * line[key]:>9.1f}%" if key in line else " " * 10 for key in keys)
        print(f"{line['source'][:47]:<48}{line.get('rows', ''):>5}" + "".join(cells))
    print("peak memory:")
    for line in report["memory"]:
        cells = (f"{k} {100 * line[k]:.1f}%" for k in ("mape", "median", "bias", "precision",
                 "recall") if line.get(k) is not None)  # fmt: skip
        foreseen = f"foreseen {line['foreseen']} of {line['of']}  " if "of" in line else ""
        print(f"  {line['source'][:47]:<48}{line['rows']:>5}  {foreseen}" + "  ".join(cells))
    if every:
        for r in records:
            row = rows[r["row"]]
            error = 100 * (r["predicted"] / r["measured"] - 1)
            print(f"{error:+7.1f}% {r['measured']:9.3f} s {row.model.num_parameters / 1e9:6.1f}B "
                  f"{row.layout} {row.group[:12]} {row.flags}")  # fmt: skip
    flags = Counter(flag for row in rows for flag in row.flags)
    for title, counts in (("flagged", flags), ("skipped", report["skipped"])):
        print(f"{title}:")
        for reason, count in counts.items():
            print(f"  {count:>4} {reason}")
    print(f"{report['ms_per_row']:.1f} ms per row")
    print(RIVALS)


if __name__ == "__main__":
    main()
