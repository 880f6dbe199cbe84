"""Every algorithm ends with the right numbers whatever moves first, and crosses seldom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS, program
from pluribus.comm.program import Span, chunks, cut

from .simulate import Member, run


class Halved:
    """A codec that needs half the size; the simulator keeps numbers exact."""

    block = 4

    def num_bytes(self, num_elements: int) -> int:
        return 1 + num_elements // 2


LAYOUTS = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(
    lambda sizes: Layout.of([str(island) for island, size in enumerate(sizes) for _ in range(size)])
)
EVERY = [(operation, name) for operation, known in ALGORITHMS.items() for name in known]


def simulate(
    operation: str,
    name: str,
    layout: Layout,
    elements: int,
    chunk: int,
    root: int = 0,
    coding: Halved | None = None,
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
    root=st.integers(0, 8), coded=st.booleans(), lanes=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_every_algorithm_ends_with_the_right_numbers(
    operation: str, name: str, layout: Layout, elements: int, chunk: int,
    root: int, coded: bool, lanes: int, seed: int,
) -> None:  # fmt: skip
    crosses = ALGORITHMS[operation][name].crosses
    if layout.size < 2 or (crosses and layout.is_flat):
        return
    root %= layout.size
    coding = Halved() if coded and crosses else None
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
    coded = simulate("all_reduce", "islands", layout, 3600, 100, coding=Halved())[2]
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


def test_pieces_are_cut_at_multiples() -> None:
    assert cut(Span(1, 10, 20), 3, 2) == [Span(1, 10, 12), Span(1, 12, 16), Span(1, 16, 20)]
    assert chunks(Span(0, 0, 0), 4) == [Span(0, 0, 0)]
    assert [piece.size for piece in chunks(Span(0, 0, 10), 4)] == [3, 3, 4]
