"""Two unlike chips of this machine: each alone, the even split, our plan.

    .venv/bin/python bench/mixed.py [--repeats 3] [--tokens 8192] [--json FILE]

Every repeat runs all of them once, in turn, so that a slow minute of the machine touches all
alike; the table shows medians over repeats. "aggregation" is the plan's throughput divided by
the sum of what each chip delivers alone, on the same global batch; each chip runs alone while
the other rests. Predictions come from one profile, taken before the first repeat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pluribus.cli.demo import MODEL_CONFIG, VOCAB_SIZE
from pluribus.core.io import write_json
from pluribus.measure.probe import probe
from pluribus.measure.profile import profile
from pluribus.model.model import Model
from pluribus.plan.search import Search
from pluribus.predict.setting import Setting
from pluribus.spec.job import Job
from pluribus.spec.plan import Plan
from pluribus.spec.run import Measurement
from pluribus.store.tokenizer import encode_files, standard_library_text, train_bpe
from pluribus.train.compare import measure_plan

console = Console(width=110, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8192, help="global batch")
    parser.add_argument("--steps", type=int, default=2, help="timed steps per run")
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
    times = profile(found.cluster, job, model, repeats=9, log_folder=folder / "logs")
    search = Search(Setting(job, model, found.cluster, times))
    plans: list[tuple[str, str, Plan | None]] = [
        (f"{pool.address} alone", "alone", search.alone(pool.address))
        for pool in found.cluster.pools
    ]
    plans += [("even split", "even", search.even()), ("our plan", "plan", search.best())]
    rows: dict[str, list[Measurement]] = {}
    for repeat in range(arguments.repeats):
        for name, role, plan in plans:
            if plan is None:
                continue
            place = folder / f"{repeat}-{name.replace('/', '-')}"
            row = measure_plan(plan, name, role, place, steps=arguments.steps)  # type: ignore[arg-type]
            rows.setdefault(name, []).append(row)
            console.print(f"repeat {repeat + 1}: {name}: {row.tokens_per_s:,.0f} tokens/s")
    best = search.best()
    console.print("the plan: " + best.alternatives[0].name)
    return rows


def summary(rows: dict[str, list[Measurement]]) -> dict[str, float]:
    """Medians over repeats, and the ratios they make."""
    rate = {name: statistics.median(m.tokens_per_s for m in row) for name, row in rows.items()}
    alone = sum(rate[name] for name, row in rows.items() if row[0].role == "alone")
    predicted = {
        f"prediction error, {name}": row[0].predicted_seconds
        / statistics.median(m.measured_seconds for m in row)
        - 1
        for name, row in rows.items()
    }
    return {
        **rate,
        "plan / even split": rate["our plan"] / rate["even split"],
        "aggregation": rate["our plan"] / alone,
        **predicted,
    }


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
            f"{row[0].predicted_seconds:.2f} s",
            f"{statistics.median(seconds):.2f} s",
            f"{facts[f'prediction error, {name}']:+.1%}",
        )
    console.print(result)
    console.print(f"our plan ÷ even split: {facts['plan / even split']:.2f}")
    console.print(f"aggregation: {facts['aggregation']:.1%}")


if __name__ == "__main__":
    main()
