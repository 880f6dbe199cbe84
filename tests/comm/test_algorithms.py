"""Every algorithm ends with the right numbers whatever moves first, and crosses seldom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.comm.algorithms.islands import Coding
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS, program
from pluribus.comm.program import Span, chunks, cut

from .simulate import Member, run


def halved(fast: bool) -> Coding:
    """A codec that needs half the size; the simulator keeps numbers exact."""
    return Coding(4, lambda num_elements: 1 + num_elements // 2, 4, fast)


# Islands of unequal sizes, some divided into hosts, with links of unequal speed.
LAYOUTS = st.lists(
    st.one_of(st.integers(1, 3), st.lists(st.integers(1, 2), min_size=1, max_size=3)),
    min_size=1, max_size=3,
).map(lambda sizes: [name for i, size in enumerate(sizes) for name in names(str(i), size)]).flatmap(
    lambda found: st.one_of(
        st.just(()), st.lists(st.floats(0.01, 8.0), min_size=len(found), max_size=len(found))
    ).map(lambda rates: Layout.of(found, rates))
)  # fmt: skip


def names(island: str, size: int | list[int]) -> list[str]:
    if isinstance(size, int):
        return [island] * size
    return [f"{island}/{host}" for host, count in enumerate(size) for _ in range(count)]


EVERY = [(operation, name) for operation, known in ALGORITHMS.items() for name in known]


def simulate(
    operation: str,
    name: str,
    layout: Layout,
    elements: int,
    chunk: int,
    root: int = 0,
    coding: Coding | None = None,
    lanes: int = 1,
    seed: int = 0,
) -> tuple[list[np.ndarray], list[np.ndarray], dict[tuple[int, int], int]]:
    """(inputs, outputs, elements moved) of an operation on random whole numbers."""
    n = layout.size
    numbers = np.random.default_rng(seed)
    long_in = operation in ("reduce_scatter", "all_to_all", "scatter")
    long_out = operation in ("all_gather", "all_to_all", "gather")
    inputs = [
        numbers.integers(-99, 99, elements * (n if long_in else 1)).astype(float) for _ in range(n)
    ]
    members = []
    for rank in range(n):
        steps = program(operation, name, layout, rank, elements, chunk, root, coding, lanes)
        if ALGORITHMS[operation][name].in_place:
            output = inputs[rank].copy()
        else:
            output = np.full(elements * (n if long_out else 1), np.nan)
        members.append(Member(steps, inputs[rank].copy(), output))
    moved = run(members, seed, lanes)
    for rank, member in enumerate(members):
        if not ALGORITHMS[operation][name].in_place:
            assert (member.buffers[0] == inputs[rank]).all(), "the input was changed"
    return inputs, [member.buffers[1] for member in members], moved


def expected(operation: str, inputs: list[np.ndarray], root: int, rank: int) -> np.ndarray | None:
    n = len(inputs)
    if operation == "all_reduce":
        return np.mean(inputs, axis=0)
    if operation == "broadcast":
        return inputs[root]
    if operation == "all_gather":
        return np.concatenate(inputs)
    if operation == "reduce_scatter":
        return np.mean(inputs, axis=0).reshape(n, -1)[rank]
    if operation == "all_to_all":
        return np.concatenate([given.reshape(n, -1)[rank] for given in inputs])
    if operation == "scatter":
        return inputs[root].reshape(n, -1)[rank]
    return np.concatenate(inputs) if rank == root else None


@pytest.mark.parametrize(("operation", "name"), EVERY)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    layout=LAYOUTS, elements=st.integers(1, 40), chunk=st.integers(1, 16),
    root=st.integers(0, 8), coded=st.sampled_from([None, False, True]), lanes=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_every_algorithm_ends_with_the_right_numbers(
    operation: str, name: str, layout: Layout, elements: int, chunk: int,
    root: int, coded: bool | None, lanes: int, seed: int,
) -> None:  # fmt: skip
    crosses = ALGORITHMS[operation][name].crosses
    if layout.size < 2 or (crosses and len(layout.islands) == 1):
        return
    root %= layout.size
    coding = halved(coded) if coded is not None and crosses else None
    inputs, outputs, _ = simulate(
        operation, name, layout, elements, chunk, root, coding, lanes, seed
    )
    for rank, output in enumerate(outputs):
        want = expected(operation, inputs, root, rank)
        if want is not None:
            np.testing.assert_allclose(output, want, rtol=1e-12, err_msg=f"rank {rank}")


def crossing(layout: Layout, moved: dict[tuple[int, int], int]) -> int:
    """The most elements that enter or leave one island."""
    most = 0
    for island in layout.islands:
        out = sum(m for (a, b), m in moved.items() if a in island and b not in island)
        into = sum(m for (a, b), m in moved.items() if b in island and a not in island)
        most = max(most, out, into)
    return most


@pytest.mark.parametrize(
    ("sizes", "share"), [((2, 2), 1.0), ((3, 2), 1.0), ((4, 1), 1.0), ((2, 2, 2), 4 / 3)]
)
def test_an_all_reduce_crosses_with_as_few_bytes_as_there_can_be(
    sizes: tuple[int, ...], share: float
) -> None:
    layout = Layout.of([str(i) for i, size in enumerate(sizes) for _ in range(size)])
    moved = simulate("all_reduce", "islands", layout, 3600, 100)[2]
    assert crossing(layout, moved) == share * 3600
    coded = simulate("all_reduce", "islands", layout, 3600, 100, coding=halved(True))[2]
    assert crossing(layout, coded) < 0.52 * share * 3600


def test_a_ring_with_a_bad_order_crosses_three_times_as_much() -> None:
    bad = Layout.of(["a", "b", "a", "b"])
    assert crossing(bad, simulate("all_reduce", "ring", bad, 3600, 100)[2]) == 3 * 3600
    assert crossing(bad, simulate("all_reduce", "islands", bad, 3600, 100)[2]) == 3600


@pytest.mark.parametrize(
    ("operation", "flat", "least"),
    [("all_gather", 8, 4), ("reduce_scatter", 8, 4), ("broadcast", 4, 1), ("all_to_all", 8, 8)],
)
def test_two_levels_cross_with_the_least(operation: str, flat: int, least: int) -> None:
    """In parts of one rank, islands of two and four: all-to-all has nothing to save but frames."""
    layout = Layout.of(["a", "a", "b", "b", "b", "b"])
    assert crossing(layout, simulate(operation, "direct", layout, 600, 50)[2]) == flat * 600
    assert crossing(layout, simulate(operation, "islands", layout, 600, 50)[2]) == least * 600


def test_work_is_even_on_unequal_islands() -> None:
    """Every rail of the larger island carries a third, every one of the smaller half."""
    layout = Layout.of(["a"] * 3 + ["b"] * 2)
    moved = simulate("all_reduce", "islands", layout, 3600, 100)[2]
    across = [
        sum(m for (a, b), m in moved.items() if a == r and (r < 3) != (b < 3)) for r in range(5)
    ]
    assert across == [1200, 1200, 1200, 1800, 1800]


def test_links_carry_by_their_speed() -> None:
    """A link of a quarter of its neighbour's speed carries a fifth, in each island by its own."""
    layout = Layout.of(["a", "a", "b", "b"], [3.0, 1.0, 100.0, 100.0])
    assert [rail.owners for rail in layout.rails()] == [(0, 2), (0, 3), (1, 3)]
    layout = Layout.of(["a", "a", "b", "b"], [8.0, 2.0, 4.0, 4.0])
    moved = simulate("all_reduce", "islands", layout, 4000, 100)[2]
    across = [sum(m for (a, b), m in moved.items() if a == r and r < 2 <= b) for r in range(2)]
    assert across == [3200, 800]
    assert crossing(layout, moved) == 4000


def test_a_slow_island_adds_up_less() -> None:
    """At a third of the others' speed it sends what there is no way around, once; then even
    shares, 4/3 for all, would keep it busy longest."""
    layout = Layout.of(["a", "b", "c"], [1.0, 3.0, 3.0])
    assert layout.homes(6) == [1, 2] * 3
    moved = simulate("all_reduce", "islands", layout, 3600, 100)[2]
    sent = [sum(m for (a, _), m in moved.items() if a == rank) for rank in range(3)]
    assert sent == [3600, 5400, 5400]
    level = Layout.of(["a", "b", "c"], [2.0, 3.0, 3.0])  # (1 + w) ∝ speed, 4 in all
    counts = [level.homes(800).count(island) for island in range(3)]
    assert counts == pytest.approx([0, 400, 400], abs=20)  # in sixteenths


def test_every_level_is_crossed_with_the_least() -> None:
    """Two sites of two hosts of two: between hosts of a site an all-reduce moves no more than
    one among two, between sites no more either."""
    where = ["a/x", "a/x", "a/y", "a/y", "b/x", "b/x", "b/y", "b/y"]
    layout = Layout.of(where)
    moved = simulate("all_reduce", "islands", layout, 3200, 100)[2]
    assert crossing(layout, moved) == 3200
    for host in (where[0], where[2], where[4]):
        out = sum(
            m for (a, b), m in moved.items()
            if where[a] == host != where[b] and where[b][0] == host[0]
        )  # fmt: skip
        assert out == 3200
    for rank in range(8):  # all ranks do as much of it: 2 × (1/2 near + 1/4 in the site) + 1/4
        assert sum(m for (a, _), m in moved.items() if a == rank) == 5600
    gathered = simulate("all_gather", "islands", layout, 400, 100)[2]
    assert crossing(layout, gathered) == 4 * 400
    between = sum(m for (a, b), m in gathered.items() if a in (0, 1) and b in (2, 3))
    assert between == (2 + 2) * 400  # its own parts, and half of the other site's


def test_levels_that_divide_nothing_do_not_count() -> None:
    assert Layout.of(["s/a", "s/a", "s/b"]) == Layout.of(["a", "a", "b"])
    assert Layout.of(["a/x", "b/y"]) == Layout.of(["a", "b"])
    assert Layout.of(["a/x/1", "a/x/2"]).islands == ((0,), (1,))
    assert Layout.of(["a/x", "a/x"]) == Layout.of(["a", "a"])
    deep = Layout.of(["a/x", "a/y", "b"])
    assert deep.islands == ((0, 1), (2,))
    assert deep.leaves() == [(0,), (1,), (2,)]


def test_pieces_are_cut_at_multiples() -> None:
    assert cut(Span(1, 10, 20), 3, 2) == [Span(1, 10, 12), Span(1, 12, 16), Span(1, 16, 20)]
    assert chunks(Span(0, 0, 0), 4) == [Span(0, 0, 0)]
    assert [piece.size for piece in chunks(Span(0, 0, 10), 4)] == [3, 3, 4]
