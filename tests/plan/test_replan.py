"""After a loss the plan goes on with what is left, and little moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pluribus.cli.main import main
from pluribus.core.errors import PlanError
from pluribus.plan.replan import moves, replan
from pluribus.plan.search import Search
from pluribus.predict.predict import predict
from pluribus.predict.setting import Setting
from pluribus.spec.plan import Plan

from ..small import make_chip, make_job, make_model, make_pool, make_setting


def plan_of_two_pools() -> Plan:
    pools = [make_pool("a", nodes=4, chips_per_node=2), make_pool("b", make_chip("slow", 5), 4)]
    job = make_job(batch=48, sequence=512, sizes=(1, 2))
    return Search(make_setting(pools, make_model(blocks=6, hidden=256), job)).best()


def test_a_lost_node_is_not_used_and_the_rest_stays() -> None:
    plan = plan_of_two_pools()
    lost = plan.pipelines[0].stages[0].chips[0].rpartition("/")[0]
    result = replan(plan, lost=[lost])
    new = result.plan
    assert not any(chip.startswith(lost + "/") for chip in new.chips)
    assert len(set(new.chips)) == len(new.chips)
    assert new.global_batch == plan.global_batch
    for pipeline in new.pipelines:
        edges = [edge for stage in pipeline.stages for edge in stage.layers]
        assert edges[0] == 0
        assert edges[1:-1:2] == edges[2::2]
        assert edges[-1] == 8
    assert new.prediction is not None
    assert plan.prediction is not None
    assert new.prediction.step_seconds.mid >= plan.prediction.step_seconds.mid * (1 - 1e-9)
    assert predict(new).step_seconds == new.prediction.step_seconds
    stayed = [p.stages for p in new.pipelines if p.stages in {q.stages for q in plan.pipelines}]
    assert len(stayed) >= result.kept


def test_nothing_moves_where_nothing_changes() -> None:
    plan = plan_of_two_pools()
    result = replan(plan)
    assert result.moved_bytes == 0
    assert result.move_seconds == 0
    assert {p.stages for p in result.plan.pipelines} == {p.stages for p in plan.pipelines}


def test_moved_bytes_are_the_layers_that_change_holder() -> None:
    plan = plan_of_two_pools()
    setting = Setting.of_plan(plan)
    assert moves(plan, plan, setting) == (0, 0)
    from dataclasses import replace

    fewer = replace(plan, pipelines=plan.pipelines[1:])
    back, seconds = moves(fewer, plan, setting)
    tables = setting.model.layers
    held = sum(
        len(s.chips) * tables[i].parameters_per_rank(tp=s.tensor_parallel)
        for s in plan.pipelines[0].stages
        for i in s.layer_indices
    )
    assert back == pytest.approx(14 * held)  # fp32 and bf16 weights, two moments
    assert seconds > 0


def test_gained_nodes_are_used_and_a_slower_chip_gets_less() -> None:
    plan = plan_of_two_pools()
    assert plan.prediction is not None
    more = replan(plan, gained={"here/a": 4}, lasting_steps=10**9).plan
    assert more.prediction is not None
    assert more.prediction.step_seconds.mid < plan.prediction.step_seconds.mid
    slow = replan(plan, slower={"here/a": 0.25}, lasting_steps=10**9).plan
    assert slow.prediction is not None
    same = predict_same_cuts(plan, slow)
    assert slow.prediction.step_seconds.mid <= same


def predict_same_cuts(plan: Plan, other: Plan) -> float:
    """The old pipelines on the other plan's cluster."""
    from dataclasses import replace

    moved = replace(other, pipelines=plan.pipelines, prediction=None)
    return predict(moved).step_seconds.mid * (1 + 1e-9)


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of_two_pools()
    with pytest.raises(PlanError, match="no node or chip 'here/a/9'"):
        replan(plan, lost=["here/a/9"])
    plan.save(tmp_path / "plan.json")
    assert main(["replan", str(tmp_path / "plan.json"), "--slower", "here/a"]) == 2
    assert "is not site/pool=NUMBER" in capsys.readouterr().err
    lost = plan.chips[0]
    assert main(["replan", str(tmp_path / "plan.json"), "--lost", lost, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["step_seconds"] > 0
    assert lost not in Plan.load(tmp_path / "replan.json").chips
