"""Plan, Profile and the record of a run: the documents between rooms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pluribus.core.errors import ConfigError, MissingFileError, PlanError
from pluribus.core.io import read_json, write_json
from pluribus.spec.plan import Plan, Stage
from pluribus.spec.prediction import ChipMemory
from pluribus.spec.profile import LayerTime, LinkTime, OptimizerTime, Profile
from pluribus.spec.run import Comparison, Measurement, parse_events, read_events

from ..small import make_pipeline, make_plan, make_pool, make_setting


@pytest.fixture
def plan() -> Plan:
    setting = make_setting([make_pool("a", chips_per_node=2), make_pool("b")])
    return make_plan(
        setting,
        make_pipeline(("here/a/0/0", 0, 3), ("here/b/0/0", 3, 6), micro_batches=3),
        make_pipeline(("here/a/0/1", 0, 6), micro_batches=5),
    )


def test_a_plan_lists_its_chips_in_rank_order(plan: Plan) -> None:
    assert plan.chips == ("here/a/0/0", "here/b/0/0", "here/a/0/1")
    assert [(p, s, stage.pool) for p, s, stage in plan.stages] == [
        (0, 0, "here/a"), (0, 1, "here/b"), (1, 0, "here/a"),
    ]  # fmt: skip
    assert plan.global_batch == 8
    assert [pipeline.num_chips for pipeline in plan.pipelines] == [2, 1]


def test_a_stage_counts_its_replicas() -> None:
    chips = tuple(f"here/a/0/{i}" for i in range(8))
    stage = Stage(chips=chips, layers=(2, 7), tensor_parallel=2, context_parallel=2)
    assert (stage.data_parallel, stage.num_layers, stage.pool) == (2, 5, "here/a")


def test_the_digest_of_a_plan_is_of_what_it_does(plan: Plan) -> None:
    assert replace(plan, explanation=("because",)).digest == plan.digest
    assert replace(plan, pipelines=plan.pipelines[:1]).digest != plan.digest


def test_a_plan_of_another_version_says_so_whatever_its_keys(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    table = read_json(tmp_path / "plan.json")
    for other in ({**table, "version": 2}, {**table, "version": 2, "sites": []}):
        write_json(tmp_path / "plan.json", other)
        with pytest.raises(PlanError, match=r"plan\.json: plan version 2 is not 1") as caught:
            Plan.load(tmp_path / "plan.json")
        assert "pluribus plan job.toml" in caught.value.do


def test_a_file_that_is_no_plan(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        Plan.load(tmp_path / "none.json")
    write_json(tmp_path / "list.json", [1])
    with pytest.raises(ConfigError, match="expected a table"):
        Plan.load(tmp_path / "list.json")
    with pytest.raises(PlanError, match="no pipeline"):
        replace(plan, pipelines=())


def test_memory_fits_up_to_the_last_byte() -> None:
    memory = ChipMemory(weights=1, gradients=2, optimizer=3, activations=4, buffers=5, capacity=15)
    assert memory.total == 15
    assert memory.fits
    assert not replace(memory, buffers=6).fits


def layer_time(**changes: object) -> LayerTime:
    given = {
        "chip": "c", "layer": "l", "micro_batch": 2, "sequence_length": 64, "precision": "bf16",
        "forward": 1.0, "backward": 2.0, "spread": 0.1,
    }  # fmt: skip
    return LayerTime(**{**given, **changes})


def test_a_layers_time_is_found_by_all_of_its_key() -> None:
    time = layer_time()
    profile = Profile(cluster_digest="d", layers=(time, layer_time(layer="m", forward=9.0)))
    key = ("c", "l", 2, 64, 1, "bf16")
    assert profile.layer(*key) is time
    for place, other in enumerate(("x", "x", 1, 65, 2, "fp32")):
        assert profile.layer(*key[:place], other, *key[place + 1 :]) is None


def test_a_links_time_is_found_from_either_end() -> None:
    link = LinkTime(
        between=("s/a", "s/b"), operation="point_to_point", latency_s=1e-5, bytes_per_s=1e9,
        spread=0.0,
    )  # fmt: skip
    within = replace(link, between=("s/a", "s/a"))
    profile = Profile(cluster_digest="d", links=(link, within))
    assert profile.link("s/b", "s/a", "point_to_point") is link
    assert profile.link("s/a", "s/a", "point_to_point") is within
    assert profile.link("s/b", "s/b", "point_to_point") is None
    assert profile.link("s/a", "s/b", "all_reduce") is None


def test_an_optimisers_time_is_found_by_chip() -> None:
    time = OptimizerTime(chip="c", seconds_per_parameter=1e-9, spread=0.0)
    profile = Profile(cluster_digest="d", optimizers=(time,))
    assert profile.optimizer("c") is time
    assert profile.optimizer("other") is None


def test_a_torn_last_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    lines = [json.dumps({"event": "step", "step": step}) for step in (1, 2)]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, '{"event": "st']))
    assert [event["step"] for event in read_events(tmp_path / "events.jsonl")] == [1, 2]


def test_a_torn_line_in_the_middle_is_named() -> None:
    with pytest.raises(ConfigError, match=r"events\.jsonl line 2: not valid JSON"):
        parse_events(["{}", '{"ev', "{}"], "events.jsonl")


def measurement(role: str, measured: float, predicted: float = 1.0) -> Measurement:
    return Measurement(
        name=role, role=role, predicted_seconds=predicted, measured_seconds=measured, spread=0.0,
        tokens=100, steps=3,
    )  # fmt: skip


def test_a_comparison_by_hand() -> None:
    rows = (
        measurement("alone", 1.0), measurement("alone", 4.0), measurement("even", 2.0),
        measurement("plan", 1.0, predicted=0.9),
    )  # fmt: skip
    comparison = Comparison(rows=rows)
    assert comparison.aggregation == pytest.approx(100 / (100 + 25))
    assert comparison.speedup_over_even == pytest.approx(2)
    assert rows[3].prediction_error == pytest.approx(-0.1)
    assert Comparison(rows=rows[:3]).aggregation is None
    assert Comparison(rows=rows[3:]).aggregation is None
    assert Comparison(rows=rows[3:]).speedup_over_even is None
