"""Which residual a sum gets: by its memory, by its place in the step, and never another's."""

from __future__ import annotations

import torch

from pluribus.comm.codecs.residuals import Residuals
from pluribus.comm.codecs.slots import Slots

N = 100


def made() -> tuple[Residuals, Slots, torch.optim.Optimizer]:
    residuals = Residuals()
    slots = Slots(residuals)
    return residuals, slots, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def summed(residuals: Residuals, slots: Slots, tensor: torch.Tensor, owed: float) -> float:
    """What a sum of this tensor was owed; then it is owed something else."""
    residual = residuals.of(slots.name("reduce_scatter", tensor, len(tensor)), len(tensor))
    before = float(residual[0])
    residual.fill_(owed)
    return before


def test_memory_that_lives_keeps_its_residual_wherever_it_comes() -> None:
    residuals, slots, optimizer = made()
    one, other = torch.zeros(N), torch.zeros(N)
    assert summed(residuals, slots, one, 1.0) == summed(residuals, slots, other, 2.0) == 0.0
    optimizer.step()
    assert summed(residuals, slots, other, 2.5) == 2.0
    assert summed(residuals, slots, one, 1.5) == 1.0
    assert summed(residuals, slots, one, 1.5) == 1.5


def test_new_memory_at_the_same_place_of_a_step_gets_what_the_place_is_owed() -> None:
    residuals, slots, optimizer = made()
    optimizer.step()
    for step in range(3):
        for layer in range(4):  # layers of one size
            size = N if layer < 3 else 2 * N
            owed = summed(residuals, slots, torch.zeros(size), 10.0 * step + layer + 1)
            assert owed == (10.0 * (step - 1) + layer + 1 if step else 0.0)
        optimizer.step()
    assert len(residuals.state_dict()) == 4


def test_memory_that_outlives_its_step_a_little_holds_up_nothing() -> None:
    residuals, slots, optimizer = made()
    optimizer.step()
    late = []
    for step in range(4):
        for layer in range(2):
            late.append(torch.zeros(N))
            owed = summed(residuals, slots, late[-1], 10.0 * step + layer + 1)
            assert owed == (10.0 * (step - 1) + layer + 1 if step else 0.0)
        optimizer.step()
        late = late[-1:]  # another thread still holds it
    assert len(residuals.state_dict()) == 2


def test_as_long_as_no_optimizer_has_made_a_step_new_memory_is_owed_nothing() -> None:
    residuals, slots, _ = made()
    for _ in range(100):
        assert summed(residuals, slots, torch.zeros(N), 1.0) == 0.0
    assert len(residuals.state_dict()) == 1  # of the last one, whose end nobody has seen yet


def test_steps_of_other_sums_keep_residuals_of_their_own_for_a_while() -> None:
    residuals, slots, optimizer = made()
    optimizer.step()
    for step in range(6):
        size = N if step % 2 else 2 * N
        assert summed(residuals, slots, torch.zeros(size), step + 1.0) == max(0, step - 1)
        optimizer.step()
    for _ in range(20):
        summed(residuals, slots, torch.zeros(N), 1.0)
        optimizer.step()
    assert len(residuals.state_dict()) == 1


def test_what_replaces_memory_that_had_outlived_a_step_is_owed_nothing() -> None:
    """DDP's buckets are cut anew after the first step, perhaps to the same size."""
    residuals, slots, optimizer = made()
    bucket = torch.zeros(N)
    summed(residuals, slots, bucket, 1.0)
    optimizer.step()
    first = list(residuals.state_dict())
    del bucket
    again = torch.zeros(N)
    assert summed(residuals, slots, again, 2.0) == 0.0
    assert list(residuals.state_dict()) != first
    optimizer.step()
    assert summed(residuals, slots, again, 3.0) == 2.0


def test_a_run_from_a_checkpoint_owes_what_the_first_one_did() -> None:
    def step(residuals: Residuals, slots: Slots, optimizer: torch.optim.Optimizer) -> list[float]:
        owed = []
        for layer in range(3):
            key = slots.name("reduce_scatter", torch.zeros(N), N)
            owed.append(float(residuals.of(key, N)[0]))
            residuals.of(key, N).add_(layer + 1.0)
        optimizer.step()
        return owed

    first = made()
    for _ in range(3):
        step(*first)
    second = made()
    second[0].load_state_dict(first[0].state_dict())
    for _ in range(3):
        assert step(*second) == step(*first)


def test_a_later_run_finds_them_by_the_same_names() -> None:
    found = []
    for _ in range(2):
        residuals, slots, optimizer = made()
        optimizer.step()
        for _ in range(3):
            for size in (N, N, 2 * N):
                summed(residuals, slots, torch.zeros(size), 1.0)
            optimizer.step()
        found.append(list(residuals.state_dict()))
    assert found[0] == found[1]
    assert len(found[0]) == 3
