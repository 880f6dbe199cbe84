"""The tuner counts right, chooses what is cheapest, alike on all ranks, and remembers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pluribus.comm import tuner
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS
from pluribus.comm.codecs.registry import codec
from pluribus.comm.corrections import Corrections
from pluribus.comm.costs import TYPICAL, LinkCost, Links, Shape, shape
from pluribus.comm.meeting import host_identity
from pluribus.comm.probe import rounds
from pluribus.comm.tuner import Tuner

from .ranks import run_ranks

FLAT = Layout.of(["a"] * 4)
TWO = Layout.of(["a", "a", "b", "b"])
EVEN = Links(LinkCost(1e-4, 1e9), LinkCost(1e-4, 1e9))
SLOW = Links(LinkCost(1e-4, 1e9), LinkCost(20e-3, 1.2e7))


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("one_shot", FLAT, Shape(1, 0, 3.0, 3.0, 0.0, 3.0, 4, 0.0, 1.0, 1.0)),
        ("direct", FLAT, Shape(2, 0, 1.5, 1.5, 0.0, 0.75, 8, 0.0, 0.5, 0.25)),
        ("ring", FLAT, Shape(6, 0, 1.5, 1.5, 0.0, 0.75, 0, 0.0, 1.5, 0.25)),
        ("doubling", FLAT, Shape(2, 0, 2.0, 2.0, 0.0, 2.0, 0, 0.0, 2.0, 1.0)),
        ("halving", FLAT, Shape(4, 0, 1.5, 1.5, 0.0, 0.75, 4, 0.0, 1.0, 0.25)),
        ("islands", TWO, Shape(2, 1, 1.5, 1.5, 1.0, 1.0, 0, 0.5, 1.0, 0.5)),
        ("direct", TWO, Shape(0, 2, 1.5, 1.5, 2.0, 0.75, 8, 0.5, 0.0, 0.25)),
    ],
)
def test_hops_and_bytes_are_those_of_the_textbook(
    name: str, layout: Layout, expected: Shape
) -> None:
    assert shape("all_reduce", name, layout) == expected


def test_small_buffers_take_few_hops_and_large_ones_few_bytes() -> None:
    flat = Tuner(FLAT, EVEN, 2**20)
    assert flat.choose("all_reduce", 64) == "one_shot"
    assert Tuner(Layout.of(["a"] * 8), EVEN, 2**20).choose("all_reduce", 64) == "doubling"
    assert flat.choose("all_reduce", 2**26) == "direct"
    slow = Tuner(TWO, SLOW, 2**20)
    assert slow.choose("all_reduce", 2**26) == "islands"
    assert slow.choose("all_gather", 2**26) == "islands"
    assert slow.choose("broadcast", 2**26) == "islands"


def test_a_chain_costs_its_hops_once_per_chunk() -> None:
    chunk, rate = 2**20, EVEN.near.bytes_per_s
    for size, hops in ((chunk // 64, 3), (256 * chunk, 1)):
        seconds = Tuner(FLAT, EVEN, chunk).prices("broadcast", size)["chain"] - 3e-4
        assert seconds == pytest.approx(hops * size / rate, rel=0.05)


def test_a_rank_that_sends_alone_has_what_the_others_leave() -> None:
    together = Links(EVEN.near, EVEN.far, alone_bytes_per_s=4 * EVEN.near.bytes_per_s)
    size = 2**26
    for links, share in ((EVEN, 3.0), (together, 0.75)):
        seconds = Tuner(FLAT, links, 2**20).prices("broadcast", size)["direct"]
        assert seconds == pytest.approx(share * size / EVEN.near.bytes_per_s, rel=0.01)


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
    assert measured == remembered != TYPICAL
    assert 1e-6 < measured.near.latency_s < 1
    assert 1e6 < measured.far.bytes_per_s < 1e12


def test_a_damaged_memory_is_measured_again(tmp_path: Path) -> None:
    known = Corrections({"all_reduce/ring/5": 2.5})
    tuner.save(tuner.to_json(SLOW, known), tmp_path, "x")
    links, corrections = tuner.from_json(tuner.load(tmp_path, "x"))
    assert links == SLOW
    assert corrections.to_json() == known.to_json()
    assert tuner.load(tmp_path, "y") is None
    (tmp_path / "x.json").write_text('{"near": {"latency_s": -1, "bytes_per_s": 1}}')
    assert tuner.load(tmp_path, "x") is None


def test_every_pair_meets_once_and_nobody_is_in_two_pairs_at_a_time() -> None:
    for count in range(2, 9):
        plan = rounds(count)
        pairs = [pair for one in plan for pair in one]
        assert sorted(pairs) == [(a, b) for a in range(count) for b in range(a + 1, count)]
        assert all(len({x for pair in one for x in pair}) == 2 * len(one) for one in plan)


def test_an_algorithm_that_takes_longer_than_predicted_is_left() -> None:
    chooser = Tuner(FLAT, EVEN, 2**20)
    first = chooser.choose("all_reduce", 2**20)
    predicted = chooser.model_seconds("all_reduce", first, 2**20)
    assert predicted is not None
    learned = chooser.corrections
    learned.note("all_reduce", first, 2**20, 1.2)
    assert not learned.decide(learned.noted.copy())  # within tolerance
    for ratio in (9.0, 3.0, 5.0):
        learned.note("all_reduce", first, 2**20, ratio)
    assert learned.decide(learned.noted.copy())
    assert learned.factor("all_reduce", first, 2**20) == 3.0
    assert chooser.choose("all_reduce", 2**20) != first
    assert chooser.choose("all_reduce", 2**26) == Tuner(FLAT, EVEN, 2**20).choose(
        "all_reduce", 2**26
    )
    assert not learned.decide(learned.noted.copy())  # nothing new was noted
    learned.note("all_reduce", first, 2**20, 1.0)  # it was disturbed then
    assert learned.decide(learned.noted.copy())
    assert chooser.choose("all_reduce", 2**20) == first


def learning(rank: int, n: int, folder: str) -> Any:
    """Rank 1 alone sees that what is chosen takes ten times as long as predicted; then both do."""
    tuner.cache_folder = lambda: Path(folder)  # type: ignore[assignment]
    group: Any = dist.group.WORLD
    told: Any = group._collectives.tuner.corrections
    size = 2**18
    before = group._collectives.tuner.choose("all_reduce", size)
    told.note = lambda *given: type(told).note(told, *given[:-1], 10.0)
    if rank == 0:
        told.note = lambda *given: type(told).note(told, *given[:-1], 20.0)
    x = torch.zeros(size // 4)
    chosen = []
    for _ in range(60):
        chosen.append(group._collectives.tuner.choose("all_reduce", size))
        dist.all_reduce(x)
    return before, chosen, told.factor("all_reduce", before, size)


def test_ranks_change_their_minds_at_the_same_operation(tmp_path: Path) -> None:
    found = run_ranks(learning, 3, str(tmp_path))
    assert found[0] == found[1] == found[2]
    before, chosen, factor = found[0]
    assert chosen[:39] == [before] * 39
    assert chosen[45] != before
    assert factor == 10.0
    assert len(list(tmp_path.glob("*.json"))) == 1


def alone(rank: int, n: int) -> float:
    x = torch.full((3,), 2.0)
    for _ in range(50):  # beyond the operation at which groups learn
        dist.all_reduce(x)
    dist.barrier()
    return float(x.sum())


def test_a_rank_alone_has_nothing_to_learn() -> None:
    assert run_ranks(alone, 1) == {0: 6.0}


@pytest.mark.parametrize(
    ("far", "codecs"),
    [
        (1.2e8, {"bf16": 1e10, "int8": 4.5e9, "int8 slowly": 6e8}),  # 1 Gbit/s
        (1.2e9, {"bf16": 1e10, "int8": 4.5e9}),
        (5e9, {"bf16": 1e10}),
    ],
)
def test_a_codec_is_used_where_it_saves_time(far: float, codecs: dict[str, float]) -> None:
    """As measured by hand: at 1 Gbit/s even a slow one pays, at 10 only the kernel in C."""
    found = {}
    for name, rate in {"bf16": 1e10, "int8": 4.5e9, "int8 slowly": 6e8, "power-sgd": 1e8}.items():
        one = codec(name.split()[0])
        links = Links(LinkCost(1e-4, 2e9), LinkCost(1e-3, far), 5e9, {one.name: rate})
        assert Links.from_json(asdict(links)) == links
        if Tuner(Layout.of("ab"), links, 2**20).worth_coding("all_reduce", 2**27, one):
            found[name] = rate
    assert found == codecs
    unmeasured = Links(LinkCost(1e-4, 2e9), LinkCost(1e-3, far))
    assert Tuner(TWO, unmeasured, 2**20).worth_coding("all_reduce", 2**27, codec("int8"))


def crossed(rank: int, n: int) -> float:
    """Share of the buffer that left this rank."""
    paths = dist.group.WORLD._engine._mesh.data[1 - rank]
    before = sum(path.traffic.sent for path in paths)
    x = torch.randn(1_000_000)
    dist.all_reduce(x)
    return (sum(path.traffic.sent for path in paths) - before) / x.nbytes


def test_where_a_codec_takes_longer_than_the_link_nothing_is_coded(tmp_path: Path) -> None:
    name = tuner.digest(Layout.of("ab"), [host_identity()] * 2)
    for rate, share in ((1e8, 1.0), (5e9, 0.254)):
        links = Links(LinkCost(1e-4, 2e9), LinkCost(1e-3, 1e9), 5e9, {"int8": rate})
        known = tuner.to_json(links, Corrections())
        tuner.save(known, tmp_path / ".cache" / "pluribus" / "comm", name)
        places = [
            {"HOME": str(tmp_path), "PLURIBUS_COMM_ISLAND": i, "PLURIBUS_COMM_CODEC": "int8"}
            for i in "ab"
        ]
        found = run_ranks(crossed, 2, environments=places)
        assert found[0] == pytest.approx(share, abs=0.01)
