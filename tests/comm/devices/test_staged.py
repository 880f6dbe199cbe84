"""A staged program gives the same numbers, touches device memory only to copy, and needs no more
host memory than the algorithm keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.comm.algorithms import relay
from pluribus.comm.algorithms.layout import Layout
from pluribus.comm.algorithms.registry import ALGORITHMS, program
from pluribus.comm.devices.staged import staged
from pluribus.comm.program import FIRST_SCRATCH, INPUT, OUTPUT, Builder, Kind, Program

from ..simulate import Member, run
from ..test_algorithms import EVERY, LAYOUTS, expected, halved


@pytest.mark.parametrize(("operation", "name"), EVERY)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    layout=LAYOUTS, elements=st.integers(1, 40), chunk=st.integers(1, 16),
    root=st.integers(0, 8), coded=st.booleans(), room=st.integers(0, 60),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_every_algorithm_runs_on_device_memory(
    operation: str, name: str, layout: Layout, elements: int, chunk: int,
    root: int, coded: bool, room: int, seed: int,
) -> None:  # fmt: skip
    known = ALGORITHMS[operation][name]
    if layout.size < 2 or (known.crosses and layout.is_flat):
        return
    root %= layout.size
    coding = halved(seed % 2 == 0) if coded and known.crosses else None
    n = layout.size
    numbers = np.random.default_rng(seed)
    long_in = operation in ("reduce_scatter", "all_to_all", "scatter")
    long_out = operation in ("all_gather", "all_to_all", "gather")
    inputs = [
        numbers.integers(-99, 99, elements * (n if long_in else 1)).astype(float) for _ in range(n)
    ]
    members = []
    for rank in range(n):
        steps = program(operation, name, layout, rank, elements, chunk, root, coding)
        output = np.full(elements * (n if long_out else 1), np.nan)
        if known.in_place:
            output = inputs[rank].copy()
        members.append(Member(only_copies_touch_it(staged(steps, room)), inputs[rank], output))
    run(members, seed, 1)
    for rank, member in enumerate(members):
        want = expected(operation, inputs, root, rank)
        if want is not None:
            np.testing.assert_allclose(member.buffers[OUTPUT], want, rtol=1e-12)


def only_copies_touch_it(steps: Program) -> Program:
    for step in steps.steps:
        if step.kind not in (Kind.FETCH, Kind.STORE):
            assert step.target.buffer not in (INPUT, OUTPUT), step
            assert step.source.buffer not in (INPUT, OUTPUT), step
    return steps


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=3), elements=st.integers(1, 60),
    chunk=st.integers(1, 16), coded=st.booleans(), native=st.lists(st.booleans(), min_size=3,
    max_size=3), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_islands_with_and_without_a_library_add_up_together(
    sizes: list[int], elements: int, chunk: int, coded: bool, native: list[bool], seed: int
) -> None:
    layout = Layout.of([str(i) for i, size in enumerate(sizes) for _ in range(size)])
    coding = halved(seed % 2 == 0) if coded else None
    align = coding.block if coding else 1
    given = np.random.default_rng(seed).integers(-99, 99, (layout.size, elements)).astype(float)
    members, shards = [], {}
    for rank in range(layout.size):
        island = layout.island_of(rank)
        own = layout.islands[island]
        builder = Builder(rank)
        relay.all_reduce(builder, layout, elements, chunk, 0, coding, native[island])
        steps = builder.build()
        if not native[island]:
            members.append(Member(steps, given[rank], given[rank].copy()))
            continue
        # What the library would do: reduce-scatter in equal shards, the last ones padded.
        size = relay.shard_elements(elements, len(own), align)
        start = min(elements, size * own.index(rank))
        shards[rank] = (start, min(elements, start + size))
        part = given[list(own)].sum(axis=0)[start : start + size]
        members.append(Member(only_copies_touch_it(staged(steps, 0)), part, part.copy()))
    run(members, seed, 1)
    want = given.mean(axis=0)
    for rank, member in enumerate(members):
        start, stop = shards.get(rank, (0, elements))
        np.testing.assert_allclose(member.buffers[OUTPUT], want[start:stop], rtol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=3), elements=st.integers(1, 40),
    chunk=st.integers(1, 16), operation=st.sampled_from(["all_gather", "reduce_scatter",
    "broadcast"]), coded=st.booleans(), native=st.lists(st.booleans(), min_size=3, max_size=3),
    root=st.integers(0, 11), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_islands_with_and_without_a_library_move_together(
    sizes: list[int], elements: int, chunk: int, operation: str, coded: bool, native: list[bool],
    root: int, seed: int,
) -> None:  # fmt: skip
    layout = Layout.of([str(i) for i, size in enumerate(sizes) for _ in range(size)])
    n, numbers = layout.size, np.random.default_rng(seed)
    root %= n
    coding = halved(seed % 2 == 0) if coded and operation == "reduce_scatter" else None
    long = n if operation == "reduce_scatter" else 1
    given = numbers.integers(-99, 99, (n, elements * long)).astype(float)
    everything = given.reshape(-1)  # of an all-gather
    members, wanted = [], []
    for rank in range(n):
        island = layout.island_of(rank)
        own = list(layout.islands[island])
        builder = Builder(rank)
        relay.WRITTEN[operation](builder, layout, elements, chunk, root, coding, native[island])
        steps = builder.build()
        total = given.mean(axis=0)[rank * elements :][:elements] if long > 1 else None
        whole = {"all_gather": everything, "broadcast": given[root], "reduce_scatter": total}
        want = whole[operation]
        one, out = given[rank], np.full(len(want), np.nan)
        if operation == "broadcast":
            one = out = given[rank].copy()
        if native[island]:
            steps = only_copies_touch_it(staged(steps, 0))
            shard, starts = relay.others(layout, island, elements)
            outside = np.concatenate([[], *(given[r] for r in starts)])
            if operation == "broadcast":
                outside, shard = given[root], relay.shard_elements(elements, len(own))
            part = slice(shard * own.index(rank), shard * (own.index(rank) + 1))
            if operation == "reduce_scatter":  # what the library left here
                near = given[own].sum(axis=0).reshape(n, elements)
                one, out = near[list(starts)].reshape(-1)[part], near[rank].copy()
            elif operation == "broadcast" and root in own:
                one = out = given[root].copy()
            else:
                want = outside[part]
                out = np.full(len(want), np.nan)
                one = given[rank] if operation == "all_gather" else out
        members.append(Member(steps, one, out))
        wanted.append(want)
    moved = run(members, seed, 1)
    for member, want in zip(members, wanted, strict=True):
        np.testing.assert_allclose(member.buffers[OUTPUT], want, rtol=1e-12)
    if operation == "all_gather":  # everything crosses once to each other island
        crossed = sum(
            m for (a, b), m in moved.items() if layout.island_of(a) != layout.island_of(b)
        )
        assert crossed == n * elements * (len(sizes) - 1)


def test_staging_memory_does_not_grow_with_the_buffer() -> None:
    two = Layout.of(["a", "b"])
    for elements in (1_000, 100_000):
        sends = staged(program("broadcast", "direct", two, 0, elements, 100), room=400)
        assert sends.scratch[sends.staging - FIRST_SCRATCH] == 400
        fetches = sum(step.kind is Kind.FETCH for step in sends.steps)
        assert fetches == elements // 100
