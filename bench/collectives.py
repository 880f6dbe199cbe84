"""Predicted against measured collectives.

    .venv/bin/python bench/collectives.py --data FILE

FILE is a table of source, hw, collective, n_gpu, nodes, bytes, time_us, busbw_GBps and note, as
nccl-tests and its like print them. Prints the error for each hardware, collective and number of
chips, by decade of size, marked with whether the constants saw the rows; the error on links
that have no constants of their own; the efficiency of a ring from 2 to 128 nodes; the gain of
sums in the switch; and the time of the flow solver.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pluribus.hardware.catalogue import load_catalogue
from pluribus.predict.algorithms import ALL_GATHER, ALL_REDUCE, GroupShape
from pluribus.predict.collectives import collective_seconds
from pluribus.predict.fabric import Flows, adapters, completion_seconds, max_min_rates
from pluribus.predict.link_classes import LinkClass, Links, class_of, load_link_classes
from pluribus.predict.link_classes import Path as LinkPath

console = Console(width=150, highlight=False)

# Which chip of the catalogue the name of a source stands for, and how many sit in its node.
CHIPS = {
    "A100-SXM NVSwitch": "nvidia-a100-80g",
    "NVIDIA A100-SXM4-80GB": "nvidia-a100-80g",
    "a100_dgx": "nvidia-a100-80g",
    "h100_dgx": "nvidia-h100-80g",
    "NVIDIA H100 80GB HBM3": "nvidia-h100-80g",
    "h100_sxm": "nvidia-h100-80g",
    "NVIDIA H200": "nvidia-h200-141g",
    "h200_sxm": "nvidia-h200-141g",
    "H200 8x": "nvidia-h200-141g",
    "H200 p5en EFA 3200Gbps/node": "nvidia-h200-141g",
    "NVIDIA B200": "nvidia-b200-180g",
    "B200 8x": "nvidia-b200-180g",
    "NVIDIA B300 SXM6 AC": "nvidia-b300-288g",
    "NVIDIA GB200": "nvidia-gb200-186g",
    "NVIDIA GB300": "nvidia-gb300-288g",
    "V100-SXM (DGX-1/hybrid mesh)": "nvidia-v100-32g",
    "NVIDIA L40S": "nvidia-l40s-48g",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "nvidia-rtx-pro-6000",
    "Intel(R) Arc(TM) Pro B60 Graphics": "intel-arc-pro-b60",
    "Intel(R) Graphics [0xe211]": "intel-arc-pro-b60",
    "MI300X 8x": "amd-mi300x",
}
OPS = {"alltoall": "all_to_all"}
NIC_GBPS = 400.0  # of one chip, where a source with several nodes does not say

# The network's constants are fitted on up to so many nodes and tested on more.
MOST_NODES = 32
# The classes that `accelerator` is the median of, and the constants it takes from them.
SWITCHES = ("nvlink3", "nvlink4", "nvlink5")
TYPICAL = ("launch_us", "step_us", "peak", "start", "half_kib", "own_copy")

_RATIO = re.compile(r"RATIO ([0-9.]+)")


@dataclass(frozen=True)
class Row:
    """One measurement; ``seconds`` of the whole collective."""

    source: str
    hardware: str
    chip: str
    op: str
    group: GroupShape
    num_bytes: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    table = read(arguments.data)
    rows, skipped = measurements(table)
    errors_table(rows, load_link_classes())
    for (hardware, reason), count in sorted(skipped.items()):
        console.print(f"skipped {count} rows of {hardware}: {reason}")
    unseen_table(rows, load_link_classes())
    collapse_table(ring_ratios(table), load_link_classes()["nic"])
    switch_table()
    solver_times()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measurements(
    table: Iterable[Mapping[str, str]],
) -> tuple[list[Row], Counter[tuple[str, str]]]:
    """The rows with a known chip, and how many were left out by hardware and reason."""
    rows, skipped = [], Counter[tuple[str, str]]()
    for line in table:
        hardware, op = line["hw"], OPS.get(line["collective"], line["collective"])
        if _RATIO.search(line["note"]):
            skipped[hardware, "shares of a peak, used below"] += 1
        elif hardware not in CHIPS:
            skipped[hardware, "no known hardware"] += 1
        elif "devices_per_node" in line["note"] and not _one_node(line):
            skipped[hardware, "several nodes on an unknown network"] += 1
        else:
            rows.append(_row(line, hardware, op))
    return rows, skipped


def _one_node(line: Mapping[str, str]) -> bool:
    per_node = re.search(r"devices_per_node (\d+)", line["note"])
    return per_node is not None and int(per_node[1]) == int(line["n_gpu"])


def _row(line: Mapping[str, str], hardware: str, op: str) -> Row:
    n, nodes = int(line["n_gpu"]), int(line["nodes"] or 1)
    num_bytes = float(line["bytes"])
    if "oneccl" in line["source"] and op == ALL_GATHER:
        num_bytes *= n  # oneCCL counts the part of one member, NCCL the gathered whole
    if line["time_us"]:
        seconds = float(line["time_us"]) * 1e-6
    else:
        share = (2 if op == ALL_REDUCE else 1) * (n - 1) / n
        seconds = share * num_bytes / (float(line["busbw_GBps"]) * 1e9)
    group = GroupShape(n // nodes, nodes)
    return Row(line["source"], hardware, CHIPS[hardware], op, group, num_bytes, seconds)


def links_for(chip: str, classes: Mapping[str, LinkClass]) -> Links:
    """Links of a catalogue chip with the constants given, not the ones shipped."""
    inside = class_of(chip, classes)
    nominal = load_catalogue()[chip].link_gbytes_per_s
    assert nominal, chip
    nic = classes["nic"]
    return Links(
        LinkPath(inside, nominal * 1e9, inside.step_us * 1e-6),
        LinkPath(nic, NIC_GBPS * 1e9 / 8, nic.step_us * 1e-6),
    )


def log_errors(rows: Sequence[Row], classes: Mapping[str, LinkClass]) -> np.ndarray:
    """ln(predicted ÷ measured) of each row."""
    logs = np.zeros(len(rows))
    alike = defaultdict(list)
    for i, row in enumerate(rows):
        alike[row.op, row.chip, row.group].append(i)
    for (op, chip, group), members in alike.items():
        sizes = np.array([rows[i].num_bytes for i in members])
        # Vendors' libraries have no rail-aligned sums; see docs/predict.md.
        among = ("ring", "tree", "in_network", "direct")
        predicted = collective_seconds(op, sizes, group, links_for(chip, classes), among).seconds
        logs[members] = np.log(predicted / np.array([rows[i].seconds for i in members]))
    return logs


def seen(row: Row, classes: Mapping[str, LinkClass]) -> bool:
    """Whether the constants of the row's class were fitted on it."""
    return any(matches(row, entry) for entry in class_of(row.chip, classes).fitted_on)


def matches(row: Row, entry: str) -> bool:
    """Whether a row is one of ``source | hardware | counts``, the counts being optional."""
    source, hardware, *counts = entry.split(" | ")
    few = [int(count) for count in counts[0].split(", ")] if counts else [row.group.members]
    return (source, hardware) == (row.source, row.hardware) and row.group.members in few


def errors_table(rows: Sequence[Row], classes: Mapping[str, LinkClass]) -> None:
    errors = np.exp(log_errors(rows, classes)) - 1
    fitted = np.array([seen(row, classes) for row in rows])
    table = Table(title="predicted ÷ measured − 1, %", title_justify="left")
    for name in ("hardware", "collective", "n", "rows", "constants", "MAPE", "median", "bias"):
        table.add_column(name, justify="left" if name in ("hardware", "collective") else "right")
    decades = ("<10 KB", "<100 KB", "<1 MB", "<10 MB", "<100 MB", "≥100 MB")
    for name in decades:
        table.add_column(name, justify="right")
    sizes = np.array([row.num_bytes for row in rows])
    decade = np.clip(np.floor(np.log10(sizes)).astype(int) - 3, 0, 5)
    of_row = [
        (row.hardware, row.op, row.group.members, bool(known))
        for row, known in zip(rows, fitted, strict=True)
    ]
    for key in sorted(set(of_row)):
        chosen = np.array([other == key for other in of_row])
        table.add_row(*_cells(key, errors, decade, chosen))
    for label, chosen in (("all fitted", fitted), ("all held out", ~fitted)):
        table.add_section()
        table.add_row(*_cells((label, "", "", bool(fitted[chosen].any())), errors, decade, chosen))
    console.print(table)


def _cells(
    key: tuple[str, str, object, bool], errors: np.ndarray, decade: np.ndarray, chosen: np.ndarray
) -> list[str]:
    own = errors[chosen]
    parts = [np.abs(errors[chosen & (decade == d)]) for d in range(6)]
    return [
        key[0][:32], key[1], str(key[2]), str(len(own)), "fitted" if key[3] else "held out",
        f"{100 * np.abs(own).mean():.1f}", f"{100 * np.median(np.abs(own)):.1f}",
        f"{100 * own.mean():+.1f}", *(f"{100 * p.mean():.0f}" if len(p) else "" for p in parts),
    ]  # fmt: skip


def ring_ratios(table: Iterable[Mapping[str, str]]) -> dict[tuple[int, float], float]:
    """Measured share of the peak bus bandwidth by (nodes, bytes): nodes of eight chips."""
    found = {}
    for line in table:
        ratio = _RATIO.search(line["note"])
        if ratio and line["collective"].endswith(" NIC") and int(line["nodes"]) > 1:
            found[int(line["nodes"]), float(line["bytes"])] = float(ratio[1])
    return found


def ring_efficiency(nodes: int, sizes: np.ndarray, nic: LinkClass) -> np.ndarray:
    """Share of the adapters' nominal rate that an all-gather over nodes of eight reaches."""
    plain = LinkPath(LinkClass("wide"), 1e15, 0.0)
    nominal = NIC_GBPS * 1e9 / 8
    links = Links(plain, LinkPath(nic, nominal, nic.step_us * 1e-6))
    group = GroupShape(8, nodes)
    seconds = collective_seconds(ALL_GATHER, sizes, group, links, ("ring",)).seconds
    ideal = sizes * (group.members - 1) / group.members / (8 * nominal)
    return ideal / seconds


def collapse_table(measured: Mapping[tuple[int, float], float], nic: LinkClass) -> None:
    if not measured:
        return
    nodes = sorted({n for n, _ in measured})
    sizes = sorted({size for _, size in measured})
    table = Table(
        title="ring all-gather over nodes of 8: share of the adapters' rate", title_justify="left"
    )
    table.add_column("size, measured / predicted")
    for n in nodes:
        table.add_column(f"{n} nodes", justify="right")
    predicted = {n: ring_efficiency(n, np.array(sizes), nic) for n in nodes}
    for i, size in enumerate(sizes):
        cells = [f"{measured[n, size]:.3f} / {predicted[n][i]:.3f}" for n in nodes]
        table.add_row(f"{size / 2**20:.0f} MiB", *cells)
    console.print(table)
    for label, some in (
        ("fitted", [n for n in nodes if n <= MOST_NODES]),
        ("held out", [n for n in nodes if n > MOST_NODES]),
    ):
        ratios = np.array([[measured[n, size] for size in sizes] for n in some])
        errors = np.array([predicted[n] for n in some]) / ratios - 1
        console.print(
            f"{label}, {some} nodes: MAPE {100 * np.abs(errors).mean():.1f} %, "
            f"bias {100 * errors.mean():+.1f} %"
        )


def typical(names: Iterable[str], classes: Mapping[str, LinkClass]) -> LinkClass:
    """What to expect of a link that has no class: the medians of those that have one."""
    kinds = [classes[name] for name in names]
    medians = {key: statistics.median(getattr(kind, key) for kind in kinds) for key in TYPICAL}
    return replace(classes["accelerator"], **medians)


def unseen_table(rows: Sequence[Row], classes: Mapping[str, LinkClass]) -> None:
    """Each generation of NVLink as if it had no class: predicted from the two others."""
    table = Table(title="links never seen: constants of the other two", title_justify="left")
    for name in ("class", "rows", "MAPE", "median", "bias"):
        table.add_column(name, justify="right")
    for name in SWITCHES:
        others = {other: kind for other, kind in classes.items() if other != name}
        others["accelerator"] = typical((s for s in SWITCHES if s != name), classes)
        own = [row for row in rows if row.chip in classes[name].chips and row.group.nodes == 1]
        errors = np.exp(log_errors(own, others)) - 1
        table.add_row(
            name, str(len(own)), f"{100 * np.abs(errors).mean():.1f}",
            f"{100 * np.median(np.abs(errors)):.1f}", f"{100 * errors.mean():+.1f}",
        )  # fmt: skip
    console.print(table)


def switch_table() -> None:
    """Gain of the switch's own sums over a ring, at 8 GiB."""
    table = Table(title="all-reduce in the switch ÷ ring, 8 GiB", title_justify="left")
    for name in ("chip", *map(str, range(3, 9))):
        table.add_column(name, justify="right")
    for chip in ("nvidia-h200-141g", "nvidia-b200-180g"):
        links = links_for(chip, load_link_classes())
        cells = []
        for n in range(3, 9):
            ring = collective_seconds(ALL_REDUCE, 2.0**33, GroupShape(n), links, ("ring",))
            best = collective_seconds(ALL_REDUCE, 2.0**33, GroupShape(n), links)
            cells.append(f"{ring.seconds / best.seconds:.2f}")
        table.add_row(chip, *cells)
    console.print(table)


def solver_times(count: int = 10_240) -> None:
    """One symmetric ring step, and a permutation whose flows meet on 4 of 5 uplinks."""
    capacity = np.full(2 * count, 50e9)
    ring = adapters(np.arange(count), np.roll(np.arange(count), -1))
    console.print(f"ring step of {count} flows: {_best(lambda: max_min_rates(ring, capacity))}")
    random = np.random.default_rng(0)
    links = np.stack(
        [2 * np.arange(count), 2 * random.permutation(count) + 1,
         2 * count + random.integers(count, size=count)], axis=1,
    )  # fmt: skip
    flows = Flows(links.ravel(), 3 * np.arange(count + 1))
    wide = np.full(3 * count, 50e9)
    console.print(
        f"permutation of {count} flows over random spine links, to the end: "
        f"{_best(lambda: completion_seconds(flows, 1e6, wide))}"
    )


def _best(call: Callable[[], object]) -> str:
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return f"{1e3 * min(times):.1f} ms"


if __name__ == "__main__":
    main()
