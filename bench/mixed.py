"""Two unlike chips of this machine: each alone, the even split, our plan.

    .venv/bin/python bench/mixed.py [--repeats 3] [--tokens 16384] [--json FILE]

Every repeat profiles, plans, and runs all of them once, in turn, so that a slow minute of the
machine touches all alike; the table shows medians over repeats. "aggregation" is the plan's
throughput divided by the sum of what each chip delivers alone on the same global batch. The two
chips share one machine's memory and caches, so they run alone at the same time, each a model of
its own (--apart runs one after the other while the other chip rests).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pluribus.cli.demo import MODEL_CONFIG, VOCAB_SIZE
from pluribus.core.io import write_json
from pluribus.measure.probe import probe
from pluribus.measure.profile import profile
from pluribus.model.model import Model
from pluribus.plan.search import Search
from pluribus.predict.setting import Setting
from pluribus.spec.job import Job
from pluribus.spec.run import Measurement
from pluribus.store.tokenizer import encode_files, standard_library_text, train_bpe
from pluribus.train.compare import measure_alone, measure_plan

console = Console(width=110, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16384, help="global batch")
    parser.add_argument("--apart", action="store_true", help="chips run alone one by one")
    parser.add_argument("--json", type=Path, help="write the medians to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments)
    table(rows)
    if arguments.json:
        write_json(arguments.json, summary(rows))
    console.print(json.dumps(summary(rows)))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, list[Measurement]]:
    found = probe(progress=console.print)
    for note in found.notes:
        console.print(note)
    files = standard_library_text(2_000_000, seed=0)
    encode_files(train_bpe(files, VOCAB_SIZE, max_bytes=1_000_000), files, folder / "tokens.bin")
    write_json(folder / "config.json", MODEL_CONFIG)
    job = Job.from_table(
        {
            "model": {"config": "config.json"},
            "data": {"tokens": "tokens.bin"},
            "train": {
                "sequence_length": 128,
                "global_batch_tokens": arguments.tokens,
                "steps": 1000,
                "precision": "fp32",
            },
            "plan": {"micro_batch_sizes": [1, 2, 4]},
        },
        file="bench",
        directory=str(folder),
    )
    model = Model.from_config(folder / "config.json")
    rows: dict[str, list[Measurement]] = {}
    for repeat in range(arguments.repeats):
        times = profile(found.cluster, job, model, repeats=5, log_folder=folder / "logs")
        search = Search(Setting(job, model, found.cluster, times))
        alone = {f"{p.address} alone": search.alone(p.address) for p in found.cluster.pools}
        even, best = search.even(), search.best()
        place = folder / str(repeat)
        if arguments.apart:
            made = [
                measure_plan(plan, name, "alone", place / name.replace("/", "-"), steps=1)
                for name, plan in alone.items()
            ]
        else:
            made = measure_alone(alone, place, steps=1)
        made.append(measure_plan(even, "even split", "even", place / "even", steps=2))
        made.append(measure_plan(best, "our plan", "plan", place / "plan", steps=3))
        console.print(f"repeat {repeat + 1}: the plan is {escape(best.alternatives[0].name)}")
        for row in made:
            rows.setdefault(row.name, []).append(row)
            console.print(
                f"  {row.name}: {row.tokens_per_s:,.0f} tokens/s, predicted "
                f"{row.prediction_error:+.1%}"
            )
    return rows


def summary(rows: dict[str, list[Measurement]]) -> dict[str, float]:
    """Medians over repeats, and the ratios they make."""
    rate = {name: statistics.median(m.tokens_per_s for m in row) for name, row in rows.items()}
    alone = sum(rate[name] for name, row in rows.items() if row[0].role == "alone")
    predicted = {
        f"prediction error, {name}": statistics.median(m.prediction_error for m in row)
        for name, row in rows.items()
    }
    return {
        **rate,
        "plan / even split": rate["our plan"] / rate["even split"],
        "aggregation": rate["our plan"] / alone,
        "aggregation, median of repeats": statistics.median(_aggregations(rows)),
        **predicted,
    }


def _aggregations(rows: dict[str, list[Measurement]]) -> list[float]:
    """The plan's throughput ÷ the chips' alone, within each repeat."""
    alone = [row for row in rows.values() if row[0].role == "alone"]
    return [
        plan.tokens_per_s / sum(row[repeat].tokens_per_s for row in alone)
        for repeat, plan in enumerate(rows["our plan"])
    ]


def table(rows: dict[str, list[Measurement]]) -> None:
    result = Table(title="Medians over repeats")
    result.add_column("")
    for name in ("tokens/s", "repeats", "against even", "predicted step", "measured step", "error"):
        result.add_column(name, justify="right")
    facts = summary(rows)
    for name, row in rows.items():
        seconds = [m.measured_seconds for m in row]
        result.add_row(
            name,
            f"{facts[name]:,.0f}",
            " ".join(f"{m.tokens_per_s:,.0f}" for m in row),
            f"{facts[name] / facts['even split']:.2f} ×",
            f"{statistics.median(m.predicted_seconds for m in row):.2f} s",
            f"{statistics.median(seconds):.2f} s",
            f"{facts[f'prediction error, {name}']:+.1%}",
        )
    console.print(result)
    console.print(f"our plan ÷ even split: {facts['plan / even split']:.2f}")
    each = ", ".join(f"{share:.1%}" for share in _aggregations(rows))
    console.print(f"aggregation: {facts['aggregation, median of repeats']:.1%} ({each})")


if __name__ == "__main__":
    main()
