"""Trials: the measured best is kept, and what the chips took corrects the profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pluribus.cli.main import main
from pluribus.core.errors import PlanError
from pluribus.plan.search import Search
from pluribus.predict.predict import predict
from pluribus.predict.setting import Setting
from pluribus.spec.job import Deadline
from pluribus.spec.plan import Plan
from pluribus.spec.profile import Profile
from pluribus.spec.run import Measurement
from pluribus.train.trial import (
    Tried,
    corrected,
    measured_best,
    pass_ratios,
    ratios_of,
    try_plans,
)

from ..small import make_chip, make_job, make_pool, make_setting
from . import tiny


@pytest.fixture(scope="module")
def setting() -> Setting:
    pools = [
        make_pool("a", make_chip("fast", 4), price=9.0),
        make_pool("b", make_chip("slow", 1), price=1.0),
    ]
    return make_setting(pools, job=make_job(batch=10, steps=100, sizes=(1,)))


def tried(plan: Plan, seconds: float, **ratios: float) -> Tried:
    assert plan.prediction is not None
    measured = Measurement(
        name="plan", role="plan", predicted_seconds=plan.prediction.step_seconds.mid,
        measured_seconds=seconds, spread=0.0, tokens=1280, steps=3,
    )  # fmt: skip
    return Tried(plan=plan, measured=measured, ratios=ratios)


def test_the_planners_best_few_are_distinct_and_in_order(setting: Setting) -> None:
    plans = Search(setting).best_few(3)
    assert plans[0] == Search(setting).best()
    assert len({plan.digest for plan in plans}) == len(plans) == 3
    steps = [plan.prediction.step_seconds.mid for plan in plans if plan.prediction]
    assert steps == sorted(steps)


def test_the_measured_best_by_each_objective(setting: Setting) -> None:
    search = Search(setting)
    cheap = search.alone("here/b")
    assert cheap is not None
    rows = [tried(search.best(), 3.0), tried(cheap, 4.0), tried(search.best(), 2.0)]

    def best(objective: str | Deadline) -> Tried:
        job = replace(setting.job, plan=replace(setting.job.plan, objective=objective))
        return measured_best(rows, replace(setting, job=job))

    assert best("time") is rows[2]
    assert best("money") is rows[1]
    assert best(Deadline(deadline="300s")) is rows[2]
    assert best(Deadline(deadline="500s")) is rows[1]
    assert best(Deadline(deadline="1s")) is rows[2]  # none in time: the quickest


def test_ratios_are_of_forward_and_backward_of_each_chip(setting: Setting) -> None:
    plan = Search(setting).best()
    assert plan.prediction is not None
    lanes = [(p, s, stage.pool) for p, s, stage in plan.stages]
    factor = {"here/a": 2.0, "here/b": 0.5}
    spans = [(0, "recv_activation", 99.0)]
    for rank, (p, s, pool) in enumerate(lanes):
        row = plan.prediction.stages[p][s]
        for noise in (0.9, 1.0, 5.0):  # one slow pass does not move the median
            spans.append((rank, "forward", row.forward * factor[pool] * noise))
            spans.append((rank, "backward", row.backward * factor[pool] * noise))
    assert pass_ratios(plan, spans) == pytest.approx({"fast": 2.0, "slow": 0.5})
    assert pass_ratios(plan, []) == {}


def test_the_corrected_profile_predicts_what_was_measured(setting: Setting) -> None:
    """Formulas are written down and scaled; a second correction scales them again."""
    plan = Search(setting).best()
    assert plan.prediction is not None
    ratios = ratios_of([tried(plan, 1.0, fast=2.0), tried(plan, 1.0, fast=4.0, slow=1.5)])
    assert ratios == {"fast": 3.0, "slow": 1.5}
    profile = corrected(setting, [plan], ratios)
    assert profile.cluster_digest == setting.cluster.digest
    after = predict(plan, profile)
    factor = {"here/a": 3.0, "here/b": 1.5}
    for p, s, stage in plan.stages:
        old, new = plan.prediction.stages[p][s], after.stages[p][s]
        assert new.forward == pytest.approx(old.forward * factor[stage.pool])
        assert new.backward == pytest.approx(old.backward * factor[stage.pool])
    again = corrected(replace(setting, profile=profile), [plan], {"fast": 2.0})
    times = {(t.chip, t.layer): t.forward for t in profile.layers}
    for time in again.layers:
        expected = times[time.chip, time.layer] * (2.0 if time.chip == "fast" else 1.0)
        assert time.forward == pytest.approx(expected)


def test_a_machine_that_can_run_none_says_why(tmp_path: Path) -> None:
    job = make_job(precision="fp16")
    half = make_setting([make_pool("a", make_chip(precisions=("fp16",)))], job=job)
    with pytest.raises(PlanError, match="can run none of the 1 plans: fp16 needs loss scaling"):
        try_plans(Search(half).best_few(1), half, tmp_path)


def test_two_plans_are_tried_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.cluster(2).save(tmp_path / "cluster.toml")
    tiny.write_job(tmp_path, sequences=4)
    (tmp_path / "job.toml").write_text(
        '[model]\nconfig = "config.json"\n[data]\ntokens = "tokens.bin"\n[train]\n'
        f"sequence_length = {tiny.SEQUENCE}\nglobal_batch_tokens = {4 * tiny.SEQUENCE}\n"
        'steps = 3\nprecision = "fp32"\n'
    )
    command = ["plan", str(tmp_path / "job.toml"), "--trial", "2", "--trial-steps", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Tried on this machine" in printed
    profile = Profile.load(tmp_path / "trial" / "profile.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.profile == profile
    assert predict(plan) == plan.prediction
    runs = [tmp_path / "trial" / f"plan-{n}" / "events.jsonl" for n in (1, 2)]
    kinds = [[json.loads(line)["event"] for line in run.read_text().splitlines()] for run in runs]
    assert all(kind.count("step") == 3 and "timeline" in kind for kind in kinds)
    assert not list((tmp_path / "trial").rglob("checkpoints"))
