"""That no placed plan sums its gradients faster than the floor says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.link import LinkSpec
from pluribus.hardware.pool import Pool
from pluribus.plan.columns import StageKind
from pluribus.plan.least_sums import least_tails
from pluribus.plan.prices import Prices, Runs, stage_kinds
from pluribus.predict.gradients import gradient_sum
from pluribus.predict.schedule import gradient_groups
from pluribus.predict.setting import Setting
from pluribus.predict.software import PLURIBUS
from pluribus.spec.calibration import Calibration
from pluribus.spec.plan import Pipeline, Plan, Stage

from ..small import make_job, make_model, make_plan, make_pool, make_setting


def pool(key: str, nodes: int, site: str = "here") -> Pool:
    return Pool(
        address=f"{site}/{key}", chip=find_chip(key, where="a test"), nodes=nodes,
        chips_per_node=8, nic_gbps=100,
    )  # fmt: skip


# Links of a switch that adds, of a mesh, and of the host; two sites with a slow link.
UNLIKE = (pool("nvidia-h100-80g", 3), pool("amd-mi300x", 4, "there"))
POOLS = {
    "switch": UNLIKE[:1],
    "two": (UNLIKE[0], pool("amd-mi300x", 3)),
    "sites": (*UNLIKE, pool("nvidia-l40s-48g", 2)),
    "plain": (make_pool("a", nodes=9, chips_per_node=2), make_pool("b", nodes=12)),
}
WAN = LinkSpec(between=("here", "there"), gbps=10, latency_us=2000)


def settings_of(name: str, blocks: int, tied: bool) -> Setting:
    links = [WAN] if name == "sites" else []
    model = make_model(blocks=blocks, hidden=512, vocab=4096, tied=tied)
    setting = make_setting(POOLS[name], model, make_job(sizes=(1,)), links)
    return setting.calibrated(Calibration(intra=1.3, inter=0.8, overhead=1.1))


@st.composite
def plans(draw: st.DrawFn) -> tuple[Setting, Plan]:
    """Some like or unlike pipelines on chips of any nodes that have them."""
    name = draw(st.sampled_from(sorted(POOLS)))
    setting = settings_of(name, draw(st.integers(1, 4)), draw(st.booleans()))
    size = len(setting.model.layers)
    free = {
        f"{pool.address}/{node}": list(range(pool.chips_per_node))
        for pool in setting.cluster.pools
        for node in range(pool.nodes)
    }
    degrees = {
        pool.address: sorted({k.tensor_parallel for k in stage_kinds(setting, pool)})
        for pool in setting.cluster.pools
    }
    random = draw(st.randoms(use_true_random=False))
    beside = draw(st.booleans())  # peers side by side, as far as they go
    only = draw(st.sampled_from([0, 1]))  # one degree for all, or any
    pipelines: list[Pipeline] = []
    for _ in range(draw(st.integers(2, 20))):
        borders = random.sample(range(1, size), random.randint(0, min(2, size - 1)))
        edges = [0, *sorted(borders), size]
        stages = []
        for a, b in itertools.pairwise(edges):
            places = [
                (node, tp)
                for node, chips in free.items()
                for tp in degrees[node.rpartition("/")[0]][: 1 if only else None]
                if tp <= len(chips)
            ]
            if not places:
                break
            node, tp = places[0] if beside else random.choice(places)
            chips = tuple(f"{node}/{free[node].pop(0)}" for _ in range(tp))
            stages.append(Stage(chips=chips, layers=(a, b), tensor_parallel=tp))
        else:
            pipelines.append(Pipeline(stages=tuple(stages), micro_batch_size=1, micro_batches=1))
    return setting, make_plan(setting, *pipelines)


def tails_of(setting: Setting, pipelines: int) -> tuple[tuple[StageKind, ...], Runs, np.ndarray]:
    kinds = tuple(kind for pool in setting.cluster.pools for kind in stage_kinds(setting, pool))
    prices = Prices(setting, 1, kinds, Runs.of(setting))
    return kinds, prices.runs, least_tails(setting, prices, pipelines) - prices.update


@settings(max_examples=150, deadline=None)
@given(plans())
def test_no_placed_plan_sums_faster(case: tuple[Setting, Plan]) -> None:
    """Whatever the pools, borders, degrees and nodes: every stage takes at least as long as it
    would with as many pipelines as there are, and with any fewer."""
    setting, plan = case
    count = len(plan.pipelines)
    if count < 2:
        return
    groups = gradient_groups(plan, setting.tied_layers)
    taken = dict.fromkeys(((p, s) for p, s, _ in plan.stages), 0.0)
    for group in groups:
        seconds = sum(phase.seconds for phase in gradient_sum(plan, setting, group))
        for lane in group.holders:
            taken[lane] += seconds
    for least in {2, 1 + count // 2, count}:
        kinds, runs, floor = tails_of(setting, least)
        for p, s, stage in plan.stages:
            row = kinds.index(StageKind(stage.pool, stage.tensor_parallel, "none"))
            run = runs.kind[stage.layers[0], stage.layers[1] - stage.layers[0]]
            assert taken[p, s] >= floor[row, run] * (1 - 1e-9)


def test_more_pipelines_than_a_node_has_room_for_sum_over_the_network() -> None:
    """Two replicas may share a node; nine of one chip each move 16/9 of their bytes, or what nine
    chips of two nodes share out over the network."""
    setting = settings_of("switch", 2, tied=False)
    kinds, runs, two = tails_of(setting, 2)
    row, whole = kinds.index(StageKind(POOLS["switch"][0].address, 1, "none")), runs.kind[0, -1]
    nine = tails_of(setting, 9)[2]
    assert nine[row, whole] > 1.5 * two[row, whole] > 0


def test_one_pipeline_and_frozen_weights_have_no_sums() -> None:
    setting = settings_of("two", 2, tied=True)
    assert not tails_of(setting, 1)[2].any()
    frozen = replace(setting, software=replace(PLURIBUS, frozen=True))
    assert not tails_of(frozen, 4)[2].any()


def test_sums_that_hide_are_a_tenth() -> None:
    """What overlaps with the backward is never hidden altogether."""
    setting = settings_of("two", 2, tied=False)
    hidden = replace(setting, software=replace(PLURIBUS, overlap_gradients=True))
    assert tails_of(hidden, 4)[2] == pytest.approx(0.1 * tails_of(setting, 4)[2])
