"""Fits the constants of pluribus/predict/collectives.toml.

    .venv/bin/python bench/fit_collectives.py --data FILE [--write]

FILE as for bench/collectives.py. Each class is fitted on some sources alone (``fitted_on`` in the
file), so that bench/collectives.py can test it on the others. Minimises the mean of
|ln(predicted ÷ measured)| over the rows by a pattern search (Hooke and Jeeves 1961): each
constant in turn is raised and lowered by a factor that shrinks when nothing helps.
"""

from __future__ import annotations

import argparse
import functools
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path

import numpy as np
from collectives import (
    MOST_NODES,
    SWITCHES,
    log_errors,
    matches,
    measurements,
    read,
    ring_efficiency,
    ring_ratios,
    typical,
)

from pluribus.predict.link_classes import LinkClass, link_classes

PLAIN = ("launch_us", "step_us", "peak", "start", "half_kib")
SWITCH = (*PLAIN, "own_copy")
IN_NETWORK = ("in_network_peak", "in_network_launch_us")
FREE: dict[str, tuple[str, ...]] = {
    "nvlink2_mesh": PLAIN,
    "nvlink3": SWITCH,
    "nvlink4": SWITCH + IN_NETWORK,
    "nvlink5": SWITCH + IN_NETWORK,
    "pcie4": (*PLAIN, "crowding"),
    "pcie5": (*PLAIN, "crowding"),
    "pcie_oneccl": PLAIN,
    "xgmi_mesh": ("peak",),
    "nic": PLAIN,
}
# Training moves most of its bytes in large messages, and tables hold more small sizes than large.
LARGE_BYTES, LARGE_WEIGHT = 1e6, 3
LARGEST = {"peak": 1.0, "start": 1.0, "in_network_peak": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="replace the constants shipped")
    arguments = parser.parse_args()
    file = Path(str(resources.files("pluribus.predict") / "collectives.toml"))
    table = read(arguments.data)
    classes = link_classes(tomllib.loads(file.read_text(encoding="utf-8")))
    for name, free in FREE.items():
        kind = classes[name]
        loss = _nic_loss(table) if name == "nic" else _loss(table, kind)
        classes[name] = fitted = search(kind, free, loss)
        print(f"{name}: {loss(kind):.4f} -> {loss(fitted):.4f}", flush=True)
    classes["accelerator"] = usual = typical(SWITCHES, classes)
    # Too few rows for more than its peak.
    known = {key: getattr(usual, key) for key in PLAIN if key != "peak"}
    classes["xgmi_mesh"] = replace(classes["xgmi_mesh"], **known)
    print(to_toml(classes))
    if arguments.write:
        file.write_text(to_toml(classes), encoding="utf-8")


def _loss(table: list[dict[str, str]], kind: LinkClass) -> Callable[[LinkClass], float]:
    rows = [row for row in measurements(table)[0] if any(matches(row, e) for e in kind.fitted_on)]
    assert rows, f"{kind.name} is fitted on nothing in this file"
    weights = np.where([row.num_bytes >= LARGE_BYTES for row in rows], LARGE_WEIGHT, 1)
    # Several nodes never count here: their network is not that of the class.
    plain = LinkClass("nic", step_us=10.0)
    return lambda c: float(
        np.average(np.abs(log_errors(rows, {c.name: c, "nic": plain})), weights=weights)
    )


def _nic_loss(table: list[dict[str, str]]) -> Callable[[LinkClass], float]:
    known = ring_ratios(table)
    by_nodes: dict[int, list[tuple[float, float]]] = {}
    for (nodes, size), ratio in known.items():
        if nodes <= MOST_NODES:
            by_nodes.setdefault(nodes, []).append((size, ratio))

    def loss(kind: LinkClass) -> float:
        logs = []
        for nodes, pairs in by_nodes.items():
            sizes, ratios = np.array(pairs).T
            logs.append(np.log(ring_efficiency(nodes, sizes, kind) / ratios))
        return float(np.abs(np.concatenate(logs)).mean())

    return loss


def search(kind: LinkClass, free: tuple[str, ...], loss: Callable[[LinkClass], float]) -> LinkClass:
    """The class with its free constants set to the least loss found."""
    loss = functools.cache(loss)
    best, least, factor = kind, loss(kind), 1.6
    while factor > 1.004:
        before = least
        for key in free:
            for scale in (factor, 1 / factor):
                value = min(getattr(best, key) * scale, LARGEST.get(key, np.inf))
                tried = replace(best, **{key: float(f"{value:.4g}")})
                if loss(tried) < least:
                    best, least = tried, loss(tried)
        if least > before * (1 - 1e-4):
            factor **= 0.5
    return best


def to_toml(classes: Mapping[str, LinkClass]) -> str:
    """The text of the file of constants."""
    blank = asdict(LinkClass(""))
    lines = ["# Constants of `LinkClass`, made by bench/fit_collectives.py."]
    for name, kind in classes.items():
        lines += ["", f"[{name}]"]
        for key, value in asdict(kind).items():
            if key != "name" and value != blank[key]:
                lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[\n" + "".join(f'    "{item}",\n' for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    main()
