"""Predicts the training runs that Sailor (SOSP 2025) measured, through plans and profiles.

    .venv/bin/python bench/sailor.py --data DIR [--calibrate 4] [--rows]

DIR holds layer times, layer sizes and link curves in Sailor's format or in ours (docs/measure.md)
and `measured.csv`: source, cluster, model, gbs, mbs, parallel_config, metric, value, extra. Every
replica of a stage is a node of its own, as in those runs, and replica j of every stage together
are pipeline j of a plan. Rows that look wrong are marked with the reason and shown; means are
given with and without them.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import random
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pluribus.core.errors import ConfigError
from pluribus.hardware.cluster import Cluster
from pluribus.hardware.pool import Pool
from pluribus.measure.foreign import ForeignProfile
from pluribus.measure.imported import chip_namer, find, profile_of
from pluribus.measure.starter import chip_of, starter_config
from pluribus.model.model import Model
from pluribus.predict.calibrate import MeasuredRun, calibrate
from pluribus.predict.predict import Forecast, forecast
from pluribus.predict.schedule import ActionKind
from pluribus.predict.setting import Setting
from pluribus.predict.software import MEGATRON_DEEPSPEED
from pluribus.spec.calibration import Calibration
from pluribus.spec.job import DataSpec, Job, ModelSpec, TrainSpec
from pluribus.spec.plan import Pipeline, Plan, Stage
from pluribus.spec.profile import Profile

RIVALS = """\
errors of others on the whole of these sets (36 rows; mean, max in brackets; time unless said):
  set                        Sailor         Metis      FlashFlex  AMP        Sailor memory
  GH200 OPT-350M (15)        8.9 % (16.1)   12.2 (57)  21.8 (63)  -          5.9 (8.8)
  GH200 GPT-Neo-2.7B (12)    18.5 % (111)   23.7 (163) 74.9       -          16.5
    without 2 of its rows    7.1 % (9.3)
  mixed RTX OPT-350M (9)     10.3 % (27.3)  27.7 (49)  67.0 (88)  35.6 (49)  76 (285)
AMP's predictor on its own 16 T4 is printed below from the same file."""

# A run cannot be this much shorter than its own passes, which were timed on the same chips.
TOO_SHORT = 2 / 3


@dataclass
class Row:
    """A measured run."""

    name: str
    cluster: str
    model: str
    batch: int
    micro_batch: int
    layers: list[int]
    stages: list[list[tuple[str, int]]]
    seconds: float
    sync: float | None
    memory: float | None
    doubts: list[str] = field(default_factory=list)
    memory_doubts: list[str] = field(default_factory=list)


@dataclass
class Scored:
    row: Row
    forecast: Forecast
    sync: float
    memory: float

    @property
    def seconds(self) -> float:
        return self.forecast.prediction.step_seconds.mid

    @property
    def communication(self) -> float:
        parts = self.forecast.prediction.breakdown
        return parts.pipeline_communication + parts.gradient_sync

    def calibrated(self, factors: Calibration) -> float:
        computing = (self.seconds - self.communication) * factors.matmul
        return factors.overhead * (computing + self.communication * factors.inter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calibrate", type=int, default=4, metavar="N")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, rivals, others = read_rows(options.data / "measured.csv")
    loaded = Loaded(options.data)
    scored, failed = [], []
    for row in rows:
        try:
            scored.append(score(row, loaded))
        except ConfigError as error:
            failed.append(f"{row.name}: {error.what}")
    mark_doubts(scored)
    print(RIVALS)
    for name, error in rivals.items():
        print(f"AMP on {name}: {error}")
    report = [summary(name, items, options) for name, items in sets(scored).items()]
    show(report)
    if options.rows:
        show_rows(scored)
    else:
        for item in scored:
            for doubt in item.row.doubts + item.row.memory_doubts:
                print(f"marked: {item.row.name}: {doubt}")
    for reason, count in others.items():
        print(f"not predicted: {count} rows, {reason}")
    for line in failed:
        print(f"not predicted: {line}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


class Loaded:
    """The profiles of a folder, one per model, read when a row asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._profiles: dict[str, tuple[Profile, ForeignProfile, Model]] = {}
        self._names = models_in(folder)

    def of(self, model: str) -> tuple[Profile, ForeignProfile, Model]:
        plain = re.sub(r"[^a-z0-9]", "", model.lower())
        names = [n for n in self._names if plain.startswith(re.sub(r"[^a-z0-9]", "", n.lower()))]
        if not names:
            raise ConfigError(f"no profile of '{model}' among {', '.join(self._names)}")
        name = max(names, key=len)
        if name not in self._profiles:
            found = find([self._folder], name)
            profile = profile_of(found)
            model_ = Model.from_config(starter_config(profile, found.first))
            self._profiles[name] = profile, found.first, model_
        return self._profiles[name]


def models_in(folder: Path) -> list[str]:
    try:
        return [find([folder]).first.model]
    except ConfigError as error:
        if "models:" not in error.what:
            raise
        return error.what.partition("models: ")[2].split(", ")


def read_rows(path: Path) -> tuple[list[Row], dict[str, str], Counter[str]]:
    """Runs with a plan of stages; AMP's errors on its own rows; why others are left out."""
    rows, pairs, others = [], defaultdict(list), Counter()
    with path.open(encoding="utf-8", newline="") as file:
        for raw in csv.DictReader(file):
            stages = re.search(r"stages (\[\[.*\]\])", raw["parallel_config"])
            if raw["metric"] != "iteration_time" or raw["value"] == "inf":
                others["no iteration time (out of memory, or another metric)"] += 1
            elif stages is None:
                predicted = re.search(r"AMP_predicted=([\d.]+)", raw["extra"] or "")
                if predicted:
                    pairs[raw["cluster"]].append((float(raw["value"]), float(predicted[1])))
                others["no profile of their chips in the data (AMP's runs)"] += 1
            else:
                rows.append(parse(raw, stages[1]))
    return rows, {name: amp_error(found) for name, found in pairs.items()}, others


def parse(raw: dict[str, str], stages: str) -> Row:
    name = "/".join(raw["source"].rpartition("validation/")[2].removesuffix(".json").split("/"))
    extra = raw["extra"] or ""
    sync, memory = re.search(r"grad_sync=([\d.]+)", extra), re.search(r"max_mem=(\d+)", extra)
    return Row(
        name=name, cluster=raw["cluster"], model=raw["model"].split(" ")[0],
        batch=int(raw["gbs"]), micro_batch=int(raw["mbs"]),
        layers=ast.literal_eval(re.search(r"layers/stage (\[[^\]]*\])", raw["parallel_config"])[1]),
        stages=[[(gpu, int(tp[2:])) for gpu, tp in stage] for stage in ast.literal_eval(stages)],
        seconds=float(raw["value"]), sync=float(sync[1]) if sync else None,
        memory=float(memory[1]) if memory else None,
        doubts=[raw["quality_note"]] if raw.get("quality_note") else [],
    )  # fmt: skip


def amp_error(pairs: Sequence[tuple[float, float]]) -> str:
    errors = [abs(predicted / real - 1) for real, predicted in pairs]
    return f"{statistics.mean(errors):.1%} mean, {max(errors):.0%} max on {len(pairs)} rows"


def score(row: Row, loaded: Loaded) -> Scored:
    profile, first, model = loaded.of(row.model)
    plan, setting = plan_of(row, profile, first, model)
    result = forecast(plan, setting, {})
    lanes = result.timeline.lanes.values()
    syncs = [sum(s.seconds for s in spans if s.action.kind is ActionKind.REDUCE) for spans in lanes]
    memories = [stage.memory.total for stages in result.prediction.stages for stage in stages]
    scored = Scored(row, result, max(syncs), max(memories))
    floor = memory_floor(result)
    if row.memory is not None and row.memory < floor:
        row.memory_doubts.append(
            f"peak memory {row.memory / 1e9:.1f} GB is below {floor / 1e9:.1f} GB, what weights, "
            "moments and one micro-batch of activations alone take"
        )
    passes = max(
        pipeline.micro_batches * (stage.forward + stage.backward)
        for pipeline, stages in zip(plan.pipelines, result.prediction.stages, strict=True)
        for stage in stages
    )
    if row.seconds < TOO_SHORT * passes:
        row.doubts.append(
            f"{row.seconds:.2f} s, though its slowest stage's passes alone take {passes:.2f} s"
        )
    return scored


def memory_floor(result: Forecast) -> float:
    """Bytes no run of the plan can do without: no gradients, no allocator, no process."""
    floors = []
    for stages in result.prediction.stages:
        for position, stage in enumerate(stages):
            held, memory = len(stages) - position, stage.memory
            kept = memory.activations / (1 + MEGATRON_DEEPSPEED.cache_share) / held
            floors.append(memory.weights + memory.optimizer + 0.8 * kept)
    return max(floors)


def plan_of(
    row: Row, profile: Profile, first: ForeignProfile, model: Model
) -> tuple[Plan, Setting]:
    """Replica j of every stage is pipeline j; every replica of a stage has a node of its own."""
    replicas = {len(stage) for stage in row.stages}
    if len(replicas) > 1 or row.batch % (row.micro_batch * min(replicas)):
        raise ConfigError(f"stages of {sorted(replicas)} replicas share {row.batch} sequences")
    count = replicas.pop()
    key_of, site = chip_namer({}), site_of(profile)
    measured = {time.chip for time in profile.layers}
    for gpu in {gpu for stage in row.stages for gpu, _ in stage}:
        if key_of(gpu) not in measured:
            raise ConfigError(f"no times of {gpu} among those of {', '.join(sorted(measured))}")
    nodes: Counter[tuple[str, int]] = Counter()
    pipelines = []
    for replica in range(count):
        end, stages = 0, []
        for size, choices in zip(row.layers, row.stages, strict=True):
            gpu, tp = choices[replica]
            node = f"{site}/{gpu}-tp{tp}/{nodes[gpu, tp]}"
            nodes[gpu, tp] += 1
            stages.append(
                Stage(
                    chips=tuple(f"{node}/{chip}" for chip in range(tp)),
                    layers=(end, end + size), tensor_parallel=tp,
                )
            )  # fmt: skip
            end += size
        pipelines.append(
            Pipeline(
                stages=tuple(stages), micro_batch_size=row.micro_batch,
                micro_batches=row.batch // row.micro_batch // count,
            )
        )  # fmt: skip
    cluster = Cluster(
        tuple(
            Pool(
                address=f"{site}/{gpu}-tp{tp}", chip=chip_of(key_of(gpu), profile, first),
                nodes=n, chips_per_node=tp, nic_gbps=10,
            )
            for (gpu, tp), n in nodes.items()
        )
    )  # fmt: skip
    tokens = first.sequence_length
    job = Job(
        model=ModelSpec(config="config.json"), data=DataSpec(tokens="*.bin"),
        train=TrainSpec(
            sequence_length=tokens, global_batch_tokens=row.batch * tokens, steps=1,
            precision=first.precision,
        ),
    )  # fmt: skip
    plan = Plan(
        pipelines=tuple(pipelines), job=job.to_table(), job_digest=job.digest,
        cluster=cluster.to_table(), cluster_digest=cluster.digest,
        model_config=dict(model.config),
    )  # fmt: skip
    return plan, Setting(job, model, cluster, profile, MEGATRON_DEEPSPEED)


def site_of(profile: Profile) -> str:
    """The site that most links were measured at."""
    sites = Counter(
        end.partition("/")[0] for c in profile.curves for end in c.between if "/" in end
    )
    return sites.most_common(1)[0][0] if sites else "here"


def mark_doubts(scored: Sequence[Scored]) -> None:
    """Rows that cannot be right for reasons other rows show."""
    seen: dict[float, Row] = {}
    for item in sorted(scored, key=lambda item: item.row.name):
        row = item.row
        if row.seconds in seen and len(row.stages) * len(row.stages[0]) > 1:
            row.doubts.append(f"the very {row.seconds} s of {seen[row.seconds].name}: a copy?")
        seen.setdefault(row.seconds, row)
        if row.batch == 1 and not row.doubts:
            row.doubts.append("one sequence: latency only")


def sets(scored: Sequence[Scored]) -> dict[tuple[str, str], list[Scored]]:
    found = defaultdict(list)
    for item in scored:
        found[item.row.cluster, item.row.model].append(item)
    return found


def summary(key: tuple[str, str], items: Sequence[Scored], options: argparse.Namespace) -> dict:
    """Errors of one set: all rows, those without a doubt, and after calibration."""
    clean = [item for item in items if not item.row.doubts]
    clean_memory = [i for i in items if i.row.memory and not i.row.memory_doubts]
    calibrated, calibrated_memory, used = calibrate_set(clean, clean_memory, options)
    return {
        "set": f"{key[0].split(' (')[0]}, {key[1]}", "rows": len(items), "clean": len(clean),
        "all": errors([i.seconds / i.row.seconds - 1 for i in items]),
        "unmarked": errors([i.seconds / i.row.seconds - 1 for i in clean]),
        "calibrated": errors(calibrated), "calibrated_on": used,
        "memory": errors([i.memory / i.row.memory - 1 for i in items if i.row.memory]),
        "memory_unmarked": errors([i.memory / i.row.memory - 1 for i in clean_memory]),
        "memory_calibrated": errors(calibrated_memory),
    }  # fmt: skip


def calibrate_set(
    clean: Sequence[Scored], clean_memory: Sequence[Scored], options: argparse.Namespace
) -> tuple[list[float], list[float], int]:
    """Errors of rows left out of fits to N rows of the set, over draws with a fixed seed."""
    number = min(options.calibrate, len(clean) // 2)
    if number < 1:
        return [], [], 0
    left, left_memory, chance = [], [], random.Random(0)
    for _ in range(options.draws):
        drawn = chance.sample(range(len(clean)), number)
        runs = [MeasuredRun(clean[i].calibrated, clean[i].row.seconds) for i in drawn]
        factors = calibrate(runs)
        taken = [clean[i] for i in drawn]
        rest = [item for item in clean if item not in taken]
        left += [item.calibrated(factors) / item.row.seconds - 1 for item in rest]
        known = [item for item in taken if item in clean_memory]
        if known:
            constant = statistics.median(item.row.memory - item.memory for item in known)
            left_memory += [
                (item.memory + constant) / item.row.memory - 1
                for item in clean_memory
                if item not in taken
            ]
    return left, left_memory, number


def errors(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    sizes = [abs(value) for value in values]
    return {"mean": statistics.mean(sizes), "max": max(sizes), "bias": statistics.mean(values)}


def show(report: Sequence[dict]) -> None:
    columns = (
        ("all", "time, all rows"), ("unmarked", "unmarked rows"), ("calibrated", "calibrated"),
        ("memory", "memory, all"), ("memory_unmarked", "unmarked"),
        ("memory_calibrated", "calibrated"),
    )  # fmt: skip
    print("\nours: mean, max in brackets, signed mean (bias)")
    for line in report:
        print(f"{line['set']}: {line['rows']} rows, {line['clean']} unmarked")
        for key, title in columns:
            found = line[key]
            if found:
                on = f" on {line['calibrated_on']} rows" if title == "calibrated" else ""
                print(
                    f"  {title + on:24} {found['mean']:6.1%} ({found['max']:.1%}) "
                    f"{found['bias']:+.1%}"
                )


def show_rows(scored: Sequence[Scored]) -> None:
    print("\nrow: measured and predicted seconds, error; gradient sync; memory in GB, error")
    for item in scored:
        row = item.row
        memory = ""
        if row.memory:
            error = item.memory / row.memory - 1
            memory = f"{row.memory / 1e9:7.2f} {item.memory / 1e9:7.2f} {error:+6.1%}"
        print(
            f"{row.name[-44:]:44} {row.seconds:9.4f} {item.seconds:9.4f} "
            f"{item.seconds / row.seconds - 1:+7.1%}  sync {row.sync or 0:8.4f} {item.sync:8.4f}  "
            f"{memory}"
        )
        for doubt in row.doubts + row.memory_doubts:
            print(f"    marked: {doubt}")


if __name__ == "__main__":
    main()
