"""Regular layouts predicted by their closed forms and, as plans, by the timeline."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from pluribus.core.errors import PlanError
from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.predict.predict import Forecast, forecast
from pluribus.predict.regular import Layout, regular_terms
from pluribus.predict.regular_memory import regular_memory
from pluribus.predict.regular_plan import regular_pipelines
from pluribus.predict.setting import Setting
from pluribus.predict.software import FSDP, MEGATRON, MEGATRON_2021, PLURIBUS, Software
from pluribus.spec.calibration import FACTORS as FACTOR_NAMES
from pluribus.spec.calibration import Calibration
from pluribus.spec.prediction import ChipMemory

from ..small import make_job, make_plan, make_setting

SEQUENCE = 2048
POOL = Pool(
    address="here/a", chip=find_chip("nvidia-a100-80g", where="test"), nodes=32,
    chips_per_node=8, nic_gbps=200,
)  # fmt: skip
DENSE = Model.from_config(
    {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5504,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 16,
        "vocab_size": 32000,
    }
)  # fmt: skip
EXPERTS = Model.from_config(
    {
        "model_type": "mixtral", "hidden_size": 1024, "intermediate_size": 3584,
        "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 8,
        "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
    }
)  # fmt: skip
FACTORS = Calibration(matmul=1.1, memory=0.9, host=1.2, intra=1.3, inter=0.8, overhead=1.05)


def setting_of(layout: Layout, model: Model = DENSE, software: Software = PLURIBUS) -> Setting:
    job = make_job(layout.global_batch, sequence=SEQUENCE)
    return replace(make_setting([POOL], model, job), software=software)


def as_plan(
    layout: Layout,
    model: Model = DENSE,
    software: Software = PLURIBUS,
    factors: Calibration = FACTORS,
    *,
    apart: bool = False,
) -> Forecast:
    setting = setting_of(layout, model, software).calibrated(factors)
    plan = make_plan(setting, *regular_pipelines(model, POOL, layout, apart=apart))
    return forecast(plan, setting, {})


def closed(layout: Layout, model: Model = DENSE, software: Software = PLURIBUS) -> float:
    return regular_terms(model, POOL, layout, SEQUENCE, "bf16", software).seconds(FACTORS)


def fullest(result: Forecast) -> ChipMemory:
    return max(
        (stage.memory for row in result.prediction.stages for stage in row),
        key=lambda memory: memory.total,
    )


def agree(layout: Layout, model: Model, software: Software, tolerance: float) -> None:
    result = as_plan(layout, model, software)
    assert result.prediction.step_seconds.mid == pytest.approx(
        closed(layout, model, software), rel=tolerance
    )
    memory = regular_memory(model, POOL, layout, SEQUENCE, "bf16", software)
    assert fullest(result) == memory


WITHOUT_PIPELINE = [
    Layout(tp=tp, dp=dp, cp=cp, zero=zero, recompute=recompute, micro_batch=2, global_batch=64)
    for (tp, dp, cp), zero, recompute in itertools.product(
        [(1, 1, 1), (4, 2, 1), (1, 16, 1), (2, 4, 2)], (0, 1, 2, 3), ("none", "selective", "full")
    )
]


@pytest.mark.parametrize("software", [PLURIBUS, MEGATRON_2021, MEGATRON, FSDP])
def test_without_a_pipeline_both_agree_exactly(software: Software) -> None:
    for layout in WITHOUT_PIPELINE:
        agree(layout, DENSE, software, 1e-9)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_experts_cost_the_same_both_ways(zero: int) -> None:
    for tp, dp, ep in ((1, 8, 8), (2, 8, 4), (1, 16, 2)):
        layout = Layout(tp=tp, dp=dp, ep=ep, zero=zero, micro_batch=1, global_batch=32)
        agree(layout, EXPERTS, MEGATRON, 1e-9)


# How far the closed form of a schedule is from its timeline, where the ends are unlike the
# middle. That of ZBV needs many micro-batches: its order hides more behind a heavy end.
TOLERANCE = {"1f1b": 0.01, "gpipe": 0.01, "interleaved": 0.04, "zb-h1": 0.01, "zb-h2": 0.03,
             "zbv": 0.025}  # fmt: skip


@pytest.mark.parametrize("schedule", sorted(TOLERANCE))
@pytest.mark.parametrize("software", [PLURIBUS, MEGATRON])
def test_with_a_pipeline_both_agree_closely(schedule: str, software: Software) -> None:
    chunks = 2 if schedule in ("interleaved", "zbv") else 1
    batches = (256,) if schedule == "zbv" else (32, 256)
    for (tp, pp, dp), batch in itertools.product([(1, 2, 4), (2, 4, 2), (8, 4, 4)], batches):
        layout = Layout(
            tp=tp, pp=pp, dp=dp, global_batch=batch, schedule=schedule, virtual_stages=chunks,
            recompute="full" if pp == 2 else "none",
        )  # fmt: skip
        agree(layout, DENSE, software, TOLERANCE[schedule])


@pytest.mark.parametrize("software", [PLURIBUS, MEGATRON])
def test_replicas_in_one_stage_or_in_pipelines_of_their_own_are_the_same(
    software: Software,
) -> None:
    for layout in (
        Layout(tp=2, pp=4, dp=8, global_batch=64),
        Layout(tp=8, pp=2, dp=4, cp=1, global_batch=64, recompute="full", schedule="gpipe"),
        Layout(tp=1, pp=1, dp=8, cp=2, global_batch=64),
    ):
        whole = as_plan(layout, software=software)
        apart = as_plan(layout, software=software, apart=True)
        assert len(apart.prediction.stages) == layout.dp
        assert apart.prediction.step_seconds.mid == pytest.approx(
            whole.prediction.step_seconds.mid, rel=1e-9
        )
        assert fullest(apart) == fullest(whole)
        assert apart.prediction.tokens_per_s == pytest.approx(whole.prediction.tokens_per_s)


def test_factors_reach_every_part_of_a_plan() -> None:
    """Each factor alone makes the step slower, and the interval is the calibration's."""
    layout = Layout(tp=2, pp=2, dp=8, global_batch=64)
    plain = as_plan(layout, software=MEGATRON_2021, factors=Calibration())
    for name in ("matmul", "memory", "host", "intra", "inter", "overhead"):
        slower = as_plan(layout, software=MEGATRON_2021, factors=Calibration(**{name: 2.0}))
        assert slower.prediction.step_seconds.mid > plain.prediction.step_seconds.mid * 1.0001
    sure = replace(FACTORS, covariance=(*[(0.0,) * len(FACTOR_NAMES)] * len(FACTOR_NAMES),),
                   residual=0.1, runs=8)  # fmt: skip
    step = as_plan(layout, factors=sure).prediction.step_seconds
    assert step.high / step.mid == pytest.approx(math.exp(1.372 * 0.1))
    assert step.mid / step.low == pytest.approx(step.high / step.mid)


def test_the_talk_of_a_stages_ranks_is_told_apart() -> None:
    layout = Layout(tp=2, dp=4, cp=2, ep=4, zero=3, global_batch=16)
    parts = as_plan(layout, EXPERTS).prediction.breakdown
    for name in ("tensor_communication", "expert_communication", "context_communication",
                 "weight_gather", "gradient_sync"):  # fmt: skip
        assert getattr(parts, name) > 0
    one = as_plan(Layout(global_batch=16), EXPERTS).prediction.breakdown
    assert one.inside_stage == one.gradient_sync == one.pipeline_communication == 0


def test_interleaved_micro_batches_that_do_not_divide_are_refused() -> None:
    layout = Layout(
        pp=4, dp=2, global_batch=12, schedule="interleaved", virtual_stages=2, micro_batch=1
    )
    with pytest.raises(PlanError, match="interleaved"):
        as_plan(layout)
