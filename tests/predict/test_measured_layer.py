"""Layers whose times and sizes were measured elsewhere, by their place in the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pluribus.core.errors import ConfigError
from pluribus.core.units import GIB
from pluribus.model.model import Model
from pluribus.model.share import Share
from pluribus.plan.search import Search
from pluribus.predict.compute import layer_time
from pluribus.predict.measured_layer import MeasuredLayer
from pluribus.predict.memory import stage_memory, stage_parameters
from pluribus.predict.predict import forecast
from pluribus.predict.software import MEGATRON_DEEPSPEED
from pluribus.spec.profile import LayerSize, LayerTime, Profile

from ..small import (
    SEQUENCE,
    make_chip,
    make_job,
    make_model,
    make_pipeline,
    make_plan,
    make_pool,
    make_setting,
)

CHIPS = [make_chip(name, precisions=("fp32",)) for name in ("fast", "slow")]
POOLS = [
    make_pool(name, chip, chips_per_node=2)
    for name, chip in zip(("fast", "slow"), CHIPS, strict=True)
]
MODEL = make_model(blocks=2, tied=True)
JOB = make_job(precision="fp32")


def time(layer: str, seconds: float, chip: str = "fast", **changes: object) -> LayerTime:
    given = {
        "micro_batch": 1, "sequence_length": SEQUENCE, "precision": "fp32", "spread": 0.0,
        "forward": seconds, "backward": 2 * seconds, "update": 0.25 * seconds,
    }  # fmt: skip
    return LayerTime(chip=chip, layer=layer, **{**given, **changes})


def size(layer: str, parameters: int, kept: float, **changes: object) -> LayerSize:
    given = {"micro_batch": 1, "sequence_length": SEQUENCE, "precision": "fp32"}
    return LayerSize(layer=layer, parameters=parameters, kept_bytes=kept, **{**given, **changes})


LARGE = 256 * 64 + 10
PROFILE = Profile(
    layers=(
        time("#0", 1.0), time("#1", 2.0), time("#2", 3.0), time("#3", 4.0),
        time("#1-2", 1.0, tensor_parallel=2), time("#0-3", 5.0, "slow"),
    ),
    sizes=(
        size("#0", LARGE, 0.0), size("#1-2", 1000, 5000.0), size("#3", LARGE, 300.0),
        size("#1-2", 600, 3000.0, tensor_parallel=2),
        size("#1-2", 1000, 50.0, chip="slow"),
    ),
)  # fmt: skip
SETTING = make_setting(POOLS, MODEL, JOB, profile=PROFILE)


def test_layers_of_one_kind_have_times_of_their_own() -> None:
    times = [SETTING.layers_time("here/fast", (i, i + 1), 1, 1, "none").forward for i in range(4)]
    assert times == [1.0, 2.0, 3.0, 4.0]
    assert SETTING.layers_time("here/slow", (0, 4), 1, 1, "none").total == pytest.approx(60.0)


def test_other_shapes_are_read_off_the_grid() -> None:
    # Degree 4 was not measured, one and two were: half the gain goes on, from 2 s to 1 s.
    reading = layer_time(SETTING.model.layers[1], POOLS[0], 1, SEQUENCE, 4, "fp32", PROFILE)
    assert reading.forward == pytest.approx(0.5)
    assert reading.spread > 0
    # Nothing but the formula tells how the embedding grows.
    one, two = (
        layer_time(MODEL.layers[0], POOLS[0], size, SEQUENCE, 1, "fp32", None) for size in (1, 2)
    )
    grown = layer_time(SETTING.model.layers[0], POOLS[0], 2, SEQUENCE, 1, "fp32", PROFILE)
    assert grown.forward == pytest.approx(two.forward / one.forward)


def test_sizes_are_as_measured_and_may_differ_by_chip() -> None:
    fast, slow = (make_pipeline((f"here/{pool}/0/0", 1, 3)) for pool in ("fast", "slow"))
    assert stage_parameters(SETTING, fast.stages[0]) == 2000
    assert stage_memory(SETTING, fast, 0).activations == 10_000
    assert stage_memory(SETTING, slow, 0).activations == 100
    double = replace(fast, micro_batch_size=3)
    assert stage_memory(SETTING, double, 0).activations == 30_000
    shared = replace(fast.stages[0], chips=("here/fast/0/0", "here/fast/0/1"), tensor_parallel=2)
    assert stage_parameters(SETTING, shared) == 1200


def test_recompute_and_other_lengths_keep_the_formula() -> None:
    block = SETTING.model.layers[1]
    assert isinstance(block, MeasuredLayer)
    for share, recompute in (
        (Share(1, SEQUENCE, bytes_per_element=4), "full"),
        (Share(1, SEQUENCE, cp=2, bytes_per_element=4), "none"),
        (Share(1, SEQUENCE, bytes_per_element=2), "none"),
    ):
        expected = MODEL.layers[1].activation_bytes(share, recompute)
        assert block.activation_bytes(share, recompute) == expected
    assert block.activation_bytes(Share(1, SEQUENCE, bytes_per_element=4)) == 5000


def test_a_head_with_a_matrix_of_its_own_is_not_tied() -> None:
    assert MODEL.tied
    assert not SETTING.model.tied
    assert SETTING.tied_layers is None
    small = replace(PROFILE, sizes=tuple(s for s in PROFILE.sizes if s.layer != "#3"))
    assert make_setting(POOLS, MODEL, JOB, profile=small).model.tied


def test_the_update_is_summed_over_the_layers() -> None:
    plan = make_plan(SETTING, make_pipeline(("here/fast/0/0", 0, 4)))
    breakdown = forecast(plan, SETTING, {}).prediction.breakdown
    assert breakdown.optimizer == pytest.approx(0.25 * (1 + 2 + 3 + 4))
    # Where a layer has none, by its parameters.
    untimed = tuple(replace(t, update=None) for t in PROFILE.layers)
    by_size = replace(SETTING, model=MODEL, profile=replace(PROFILE, layers=untimed))
    assert by_size.update_seconds("here/fast", [1], 1, 1000) == pytest.approx(38_000 / 90e9)


def test_a_profile_of_another_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"times of 4 layers, but .* has 5"):
        make_setting(POOLS, make_model(blocks=3), JOB, profile=PROFILE)


def test_memory_as_the_driver_counts_it() -> None:
    pipeline = make_pipeline(("here/fast/0/0", 0, 2), ("here/fast/0/1", 2, 4))
    theirs = replace(SETTING, software=MEGATRON_DEEPSPEED)
    first, last = (stage_memory(theirs, pipeline, s).activations for s in (0, 1))
    assert first == pytest.approx(1.1 * 2 * 5000)
    logits = SEQUENCE * 256 * 4
    assert last == pytest.approx(1.1 * 5300 + 2 * logits)


def test_a_chip_may_say_what_a_process_takes() -> None:
    chip = replace(CHIPS[0], context_gib=4.5)
    setting = make_setting([make_pool("fast", chip)], make_model(blocks=2), JOB)
    memory = stage_memory(setting, make_pipeline(("here/fast/0/0", 0, 4)), 0)
    assert memory.process == pytest.approx(4.5 * GIB)


def test_a_model_known_only_by_its_sizes_can_be_planned() -> None:
    config = {
        "model_type": "profiled", "hidden_size": 64, "vocab_size": 256,
        "layer_parameters": [LARGE, 1000, 1000, LARGE], "tensor_parallel_degrees": [1, 2],
    }  # fmt: skip
    setting = make_setting(POOLS, Model.from_config(config), JOB, profile=PROFILE)
    plan = Search(setting).best()
    assert {s.tensor_parallel for _, _, s in plan.stages} <= {1, 2}
    assert sorted(i for s in plan.pipelines[0].stages for i in s.layer_indices) == [0, 1, 2, 3]
    # The plan carries the profile; what it says is found again from the file alone.
    again = forecast(plan, type(setting).of_plan(plan), {})
    assert again.prediction.step_seconds == plan.prediction.step_seconds
