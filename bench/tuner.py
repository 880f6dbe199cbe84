"""How far the tuner's choice is from the best algorithm: every one measured on every kind of link.

    python bench/tuner.py [--rates 1000 100] [--kib 1 16 256 4096] [--repeats 7] [--json FILE]

Four ranks on one host, and two centres of two ranks joined by a link that `tc tbf` shapes (root
and `ip`; else skipped, and it says so). The group first probes its links. Regret is the chosen
algorithm's time ÷ the best one's − 1, both medians over repeats that take turns. The second regret
is that of a tuner that has corrected itself by another run of the same measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]
import links  # noqa: E402

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
RANKS = 4


def worker(given: dict[str, Any]) -> None:
    import torch.distributed as dist

    from pluribus.comm import survey, survey_rank
    from pluribus.comm.options import Options

    rank = given["rank"]
    store = dist.TCPStore(given["address"], given["port"], RANKS, rank == 0)
    survey_rank.join(rank, RANKS, store, Options(probe=False))
    group: Any = dist.group.WORLD
    used = group.probe()
    tuner = group.tuner

    def rows() -> list[dict[str, Any]]:
        asked = given["operations"], given["sizes"], given["repeats"]
        return [asdict(row) for row in survey.algorithms(group, *asked)]

    learned_from = rows()
    judged = rows()
    for row in learned_from:
        model = tuner.model_seconds(row["operation"], row["algorithm"], row["num_bytes"])
        if model is not None:
            ratio = row["seconds"] / model
            tuner.corrections.note(row["operation"], row["algorithm"], row["num_bytes"], ratio)
    tuner.corrections.decide(tuner.corrections.noted.copy())
    for row in judged:
        row["corrected"] = tuner.choose(row["operation"], row["num_bytes"]) == row["algorithm"]
    if rank == 0:
        print(json.dumps({"rows": judged, "links": asdict(used)}), flush=True)
    dist.destroy_process_group()
    os._exit(0)


def measure(given: argparse.Namespace, centres: Sequence[str] | None, address: str, port: int):
    """Rows and links of one case."""
    processes = []
    with tempfile.TemporaryDirectory() as home:
        for rank in range(RANKS):
            said = {
                "rank": rank, "address": address, "port": port, "operations": OPERATIONS,
                "sizes": [1024 * kib for kib in given.kib], "repeats": given.repeats,
            }  # fmt: skip
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(said)]
            if centres is not None:
                command = links.inside(centres[rank], *command)
            environment = os.environ | {"HOME": home, "PYTHONPATH": str(ROOT)}
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment))
        out, _ = processes[0].communicate(timeout=600)
        for process in processes:
            process.wait(timeout=20)
    return json.loads(out)


def show(case: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Prints a table; returns a line per operation and size."""
    sizes: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in found["rows"]:
        sizes[row["operation"], row["num_bytes"]].append(row)
    near, far = found["links"]["near"], found["links"]["far"]
    print(f"\n{case}: near {1e6 * near['latency_s']:.0f} us {near['bytes_per_s'] / 1e6:.0f} MB/s, "
          f"far {1e6 * far['latency_s']:.0f} us {far['bytes_per_s'] / 1e6:.0f} MB/s")  # fmt: skip
    lines = []
    for (operation, num_bytes), rows in sizes.items():
        best = min(row["seconds"] for row in rows)
        chosen = next(row for row in rows if row["chosen"])
        corrected = next(row for row in rows if row["corrected"])
        lines.append(
            {"case": case, "operation": operation, "num_bytes": num_bytes,
             "chosen": chosen["algorithm"], "regret": chosen["seconds"] / best - 1,
             "regret_corrected": corrected["seconds"] / best - 1}
        )  # fmt: skip
        times = "  ".join(
            f"{'*' if row['chosen'] else ''}{row['algorithm']} {1e3 * row['seconds']:.2f}"
            f" ({1e3 * row['predicted_seconds']:.2f})"
            for row in sorted(rows, key=lambda row: row["seconds"])
        )
        print(f"{operation:15}{num_bytes // 1024:6} KiB  regret {100 * lines[-1]['regret']:6.1f} % "
              f"/ {100 * lines[-1]['regret_corrected']:5.1f} %   {times}", flush=True)  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--rates", type=int, nargs="*", default=[1000, 100], help="Mbit/s")
    parser.add_argument("--kib", type=int, nargs="+", default=[1, 16, 256, 4096])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.worker:
        worker(json.loads(given.worker))
        return
    lines = show("one host", measure(given, None, "127.0.0.1", 29_900))
    if links.possible():
        with links.Centres() as shaped:
            for number, rate in enumerate(given.rates):
                # What passes at once after a rest must be small beside what is measured.
                shaped.shape(rate, max(4, 32 * rate // 1000))
                a, b = links.CENTRES
                found = measure(given, (a, a, b, b), links.ADDRESSES[0], 29_901 + number)
                lines += show(f"{rate} Mbit/s", found)
    else:
        print("skipped: links between centres (they need root, ip and tc)")
    for key in ("regret", "regret_corrected"):
        values = [100 * line[key] for line in lines]
        print(f"{key}: median {statistics.median(values):.1f} %, mean {statistics.mean(values):.1f}"
              f" %, worst {max(values):.1f} %, over 10 %: {sum(v > 10 for v in values)} of "
              f"{len(values)}")  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
