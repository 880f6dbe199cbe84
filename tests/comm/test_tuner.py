"""The tuner counts right, chooses what is cheapest, alike on all ranks, and remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pluribus.comm import tuner
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS
from pluribus.comm.costs import LinkCost, Links, Shape, shape
from pluribus.comm.tuner import Tuner

from .ranks import run_ranks

FLAT = Layout.of(["a"] * 4)
TWO = Layout.of(["a", "a", "b", "b"])
EVEN = Links(LinkCost(1e-4, 1e9), LinkCost(1e-4, 1e9))
SLOW = Links(LinkCost(1e-4, 1e9), LinkCost(20e-3, 1.2e7))


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("one_shot", FLAT, Shape(1, 0, 3.0, 0.0)),
        ("direct", FLAT, Shape(2, 0, 1.5, 0.0)),
        ("ring", FLAT, Shape(6, 0, 1.5, 0.0)),
        ("doubling", FLAT, Shape(2, 0, 2.0, 0.0)),
        ("halving", FLAT, Shape(4, 0, 1.5, 0.0)),
        ("islands", TWO, Shape(2, 1, 1.5, 1.0)),
        ("direct", TWO, Shape(0, 2, 1.5, 2.0)),
    ],
)
def test_hops_and_bytes_are_those_of_the_textbook(
    name: str, layout: Layout, expected: Shape
) -> None:
    assert shape("all_reduce", name, layout) == expected


def test_small_buffers_take_few_hops_and_large_ones_few_bytes() -> None:
    flat = Tuner(FLAT, EVEN, 2**20)
    assert flat.choose("all_reduce", 64) == "one_shot"
    assert flat.choose("all_reduce", 2**26) == "direct"
    slow = Tuner(TWO, SLOW, 2**20)
    assert slow.choose("all_reduce", 2**26) == "islands"
    assert slow.choose("all_gather", 2**26) == "islands"
    assert slow.choose("broadcast", 2**26) == "islands"


@pytest.mark.parametrize("layout", [FLAT, TWO, Layout.of(list("abbbcc"))])
@pytest.mark.parametrize("operation", ALGORITHMS)
def test_what_is_chosen_fits_the_layout(operation: str, layout: Layout) -> None:
    chooser = Tuner(layout, SLOW, 2**20)
    for power in range(6, 34, 3):
        known = ALGORITHMS[operation][chooser.choose(operation, 2**power)]
        assert not (known.crosses and layout.is_flat)


def probing(rank: int, n: int, folder: str) -> Any:
    group: Any = dist.group.WORLD
    tuner.cache_folder = lambda: Path(folder)  # type: ignore[assignment]
    links = group.probe()
    again: Any = dist.new_group(list(range(n)))
    return links, again._collectives.tuner.links


def test_all_ranks_measure_the_same_and_later_groups_know_it(tmp_path: Path) -> None:
    places = [{"PLURIBUS_COMM_ISLAND": island} for island in "aab"]
    found = run_ranks(probing, 3, str(tmp_path), environments=places)
    assert len({found[rank] for rank in found}) == 1
    measured, remembered = found[0]
    assert measured == remembered != tuner.TYPICAL
    assert 1e-6 < measured.near.latency_s < 1
    assert 1e6 < measured.far.bytes_per_s < 1e12


def test_a_damaged_memory_is_measured_again(tmp_path: Path) -> None:
    tuner.save(SLOW, tmp_path, "x")
    assert tuner.load(tmp_path, "x") == SLOW
    assert tuner.load(tmp_path, "y") is None
    (tmp_path / "x.json").write_text('{"near": {"latency_s": -1, "bytes_per_s": 1}}')
    assert tuner.load(tmp_path, "x") is None
