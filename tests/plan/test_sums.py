"""Estimates of gradient sums, against the exact timeline of the placed plan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.plan.candidates import estimate
from pluribus.plan.columns import Column, StageChoice, StageKind
from pluribus.plan.generate import Generator
from pluribus.plan.rounding import deal
from pluribus.plan.score import score
from pluribus.plan.sums import layer_sums

from ..small import make_job, make_model, make_pool, make_setting

SETTING = make_setting(
    [make_pool("a", nodes=8, gbps=1), make_pool("b", nodes=8, gbps=1)],
    make_model(blocks=6, hidden=256), make_job(batch=24, sizes=(1,)),
)  # fmt: skip
LAYERS = len(SETTING.model.layers)


def column(pool: str, cuts: list[int]) -> Column:
    kind = StageKind(f"here/{pool}", 1, "none")
    runs = itertools.pairwise([0, *sorted(cuts), LAYERS])
    return Column(tuple(StageChoice(kind, run) for run in runs), 1)


cuts = st.lists(st.integers(1, LAYERS - 1), unique=True, max_size=3)


@settings(max_examples=25, deadline=None)
@given(first=cuts, second=cuts)
def test_the_estimate_follows_the_order_of_the_sums(first: list[int], second: list[int]) -> None:
    """On a slow network, where sums take as long as passes, whatever borders interleave."""
    generator = Generator.of(SETTING)
    team = deal(generator, {column("a", first): 1, column("b", second): 1})
    assert team is not None
    scored = score(team, SETTING)
    assert scored is not None
    assert estimate(generator, team) == pytest.approx(scored.seconds, rel=0.08)


def test_sums_by_layer_are_those_of_who_holds_the_layer() -> None:
    """Pipelines of one pool and of both: a layer costs what its bytes cost, none holds it alone."""
    one, other = column("a", [4]), column("b", [4])
    alone = layer_sums(SETTING, [one], np.array([1.0]))
    assert alone.shape == (LAYERS,)
    assert not alone.any()  # nobody to sum with
    both = layer_sums(SETTING, [one, other], np.array([1.0, 1.0]))
    assert (both > 0).all()
    block = both[1:-1]
    assert block == pytest.approx(np.full(len(block), block[0]), rel=0.2)


def test_members_beside_each_other_sum_as_the_placed_plan_does() -> None:
    """Four like pipelines on nodes of four chips: with the peers of a sum on one node each, a
    slow network carries messages alone, as the placement finds out, too. Of three, whose nodes
    would be unlike those of others, each still shares one."""
    setting = make_setting(
        [make_pool("a", nodes=8, chips_per_node=4, gbps=1)],
        make_model(blocks=6, hidden=256), make_job(batch=24, sizes=(1,)),
    )  # fmt: skip
    generator = Generator.of(setting)
    team = deal(generator, {column("a", [4]): 4})
    assert team is not None
    apart = estimate(generator, team)
    generator.beside = True
    scored = score(team, setting)
    assert scored is not None
    assert estimate(generator, team) == pytest.approx(scored.seconds, rel=0.08)
    assert apart > 1.5 * scored.seconds


def test_a_node_holds_as_many_members_as_divide_each_class() -> None:
    """Five and four members of one layer make nodes unlike, whatever their number on each; eight
    and four do not."""
    setting = make_setting(
        [make_pool("a", nodes=8, chips_per_node=4, gbps=1)], make_model(blocks=6, hidden=256)
    )
    columns = [column("a", [4]), column("a", [3])]
    odd, even = (
        layer_sums(setting, columns, np.array(uses), beside=True)[0]
        for uses in ([5.0, 4.0], [8.0, 4.0])
    )
    apart = layer_sums(setting, columns, np.array([5.0, 4.0]))[0]
    assert odd == pytest.approx(apart, rel=0.1)
    assert even < odd / 2
