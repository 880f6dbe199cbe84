"""Serving: by hand where it can be, and in the relations that must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pluribus.core.errors import PlanError
from pluribus.core.units import GIB
from pluribus.hardware.catalogue import find_chip
from pluribus.model.model import Model
from pluribus.predict.operator_tables import operator_times
from pluribus.predict.serving import (
    RUNTIME_BYTES,
    USABLE_SHARE,
    Load,
    predict_serving,
)
from pluribus.predict.serving_step import STEP_HOST_S, Deployment
from pluribus.spec.operator_table import OperatorTable
from pluribus.spec.profile import Profile

from ..small import make_chip, make_model, make_pool

LLAMA_8B = Model.from_config(
    {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
        "vocab_size": 128256, "max_position_embeddings": 131072,
    }
)  # fmt: skip
MIXTRAL = Model.from_config(
    {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
        "vocab_size": 32000, "max_position_embeddings": 32768, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
)  # fmt: skip
DEEPSEEK = Model.from_config(
    {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "first_k_dense_replace": 3, "vocab_size": 129280, "max_position_embeddings": 163840,
        "n_group": 8, "topk_group": 4,
    }
)  # fmt: skip
POOL = make_pool("h100", find_chip("nvidia-h100-80g", where="test"), chips_per_node=8)
SERVED = Deployment(model=LLAMA_8B, pool=POOL)


def load(requests: int = 16, prompt: int = 1024, answer: int = 256, **other: int) -> Load:
    return Load(requests=requests, prompts=(prompt,), generated=(answer,), **other)


@pytest.mark.parametrize(
    ("model", "tp", "expected"),
    [
        (LLAMA_8B, 1, 2 * 8 * 128 * 32 * 2),  # keys and values of 8 heads in 32 blocks, 2 bytes
        (LLAMA_8B, 4, 2 * 2 * 128 * 32 * 2),
        (LLAMA_8B, 16, 2 * 1 * 128 * 32 * 2),  # a head cannot be cut
        (DEEPSEEK, 1, (512 + 64) * 61 * 2),  # one latent for all heads
        (DEEPSEEK, 8, (512 + 64) * 61 * 2),
    ],
)
def test_a_tokens_cache(model: Model, tp: int, expected: float) -> None:
    deployment = Deployment(model=model, pool=POOL, tp=tp)
    assert deployment.cache_bytes_per_token == expected
    eight_bit = Deployment(model=model, pool=POOL, tp=tp, cache_precision="fp8")
    assert eight_bit.cache_bytes_per_token == expected / 2
    staged = Deployment(model=model, pool=POOL, tp=tp, pp=2)
    assert staged.cache_bytes_per_token == expected / 2


def test_weights_in_memory() -> None:
    assert SERVED.weight_bytes == pytest.approx(2 * LLAMA_8B.num_parameters, rel=1e-6)
    ends = LLAMA_8B.layers[0].parameters + LLAMA_8B.layers[-1].parameters
    four_bit = Deployment(model=LLAMA_8B, pool=POOL, weight_precision="int4")
    blocks = LLAMA_8B.num_parameters - ends
    assert four_bit.weight_bytes == pytest.approx(blocks / 2 + 2 * ends)
    halved = Deployment(model=MIXTRAL, pool=POOL, tp=2).weight_bytes
    assert halved == pytest.approx(MIXTRAL.num_parameters, rel=0.01)


def test_one_token_takes_reading_the_weights() -> None:
    """Llama-3.1 8B on an H100 decodes alone in 6 to 8 ms; the bandwidth allows 5."""
    read = SERVED.weight_bytes / POOL.chip.memory_bytes_per_s
    alone = SERVED.step_seconds(decoding=1, context=128)
    assert read < alone < 2 * read


def test_a_long_context_takes_reading_its_cache() -> None:
    short, long = (SERVED.step_seconds(decoding=32, context=c) for c in (1000, 5000))
    read = 32 * 4000 * SERVED.cache_bytes_per_token / POOL.chip.memory_bytes_per_s
    assert long - short == pytest.approx(read, rel=0.1)


def test_a_prompt_takes_its_arithmetic() -> None:
    seconds = SERVED.step_seconds(chunk=8192)
    flops = 2 * 8192 * (LLAMA_8B.num_parameters - 2 * 4096 * 128256)
    ideal = flops / POOL.chip.matmul_flops("bf16")
    assert ideal < seconds < 2 * ideal


def test_chunks_of_a_prompt_add_up_to_it() -> None:
    whole = SERVED.step_seconds(chunk=8192)
    parts = sum(SERVED.step_seconds(chunk=2048, before=start) for start in range(0, 8192, 2048))
    assert whole < parts < 1.3 * whole


def test_few_tokens_visit_few_experts() -> None:
    served = Deployment(model=MIXTRAL, pool=POOL, tp=4)
    dense = 32 * 8 * 3 * 4096 * 14336 * 2 / 4 / POOL.chip.memory_bytes_per_s  # every expert
    one, four, many = (served.step_seconds(decoding=n, context=64) for n in (1, 4, 64))
    assert one < 0.6 * dense  # two of eight
    assert one < four < many
    assert many > dense


@pytest.mark.parametrize("changes", [{"tp": 2}, {"precision": "fp8"}, {"weight_precision": "int4"}])
def test_what_makes_decoding_quicker(changes: dict) -> None:
    other = Deployment(model=LLAMA_8B, pool=POOL, **changes)
    assert other.step_seconds(decoding=4, context=512) < SERVED.step_seconds(
        decoding=4, context=512
    )
    assert other.weight_bytes < SERVED.weight_bytes


def test_stages_hold_less_and_take_no_less_time_for_a_token() -> None:
    two = Deployment(model=LLAMA_8B, pool=POOL, pp=2)
    assert two.weight_bytes < 0.6 * SERVED.weight_bytes
    assert two.step_seconds(decoding=4, context=512) > SERVED.step_seconds(decoding=4, context=512)


def test_more_requests_get_more_tokens_but_each_more_slowly() -> None:
    few, many = (predict_serving(SERVED, load(requests=n)) for n in (1, 64))
    assert few.tokens_per_s < many.tokens_per_s < 64 * few.tokens_per_s
    assert few.tpot_s < many.tpot_s
    assert few.tpot_s == few.decode_s  # nobody's prompt is computed beside it
    assert many.tpot_s > many.decode_s
    assert few.ttft_s < many.ttft_s < many.ttft_burst_s
    assert few.ttft_burst_s == few.prefill_s
    assert many.interval.low < many.tpot_s < many.interval.high


def test_a_mix_has_a_mean_and_a_tail() -> None:
    mix = Load(requests=8, prompts=(100,) * 9 + (4000,), generated=(100,) * 10)
    found = predict_serving(SERVED, mix)
    assert found.ttft_p95_s > 3 * found.ttft_s
    assert found.decode_s < found.gap_p95_s  # eight of each hundred steps hold a prompt
    rare = predict_serving(SERVED, replace(mix, generated=(4000,) * 10))
    assert rare.gap_p95_s == rare.decode_s


def test_the_largest_batch_fills_the_memory() -> None:
    found = predict_serving(SERVED, load())
    room = (80 * GIB - RUNTIME_BYTES - SERVED.weight_bytes) * USABLE_SHARE
    one = 1280 * SERVED.cache_bytes_per_token
    assert found.largest_batch * one <= room < (found.largest_batch + 1) * one
    assert found.fits
    assert found.cache_bytes == 16 * (1024 + 128) * SERVED.cache_bytes_per_token
    large = predict_serving(Deployment(model=DEEPSEEK, pool=POOL), load())
    assert large.largest_batch == 0
    assert not large.fits


def test_who_has_no_place_waits_and_slows_nobody() -> None:
    """Twice as many requests as fit at their mean length: the same steps, and a wait as long as
    one answer."""
    room = (80 * GIB - RUNTIME_BYTES - SERVED.weight_bytes) * USABLE_SHARE
    places = int(room / (1152 * SERVED.cache_bytes_per_token))
    full, crowded = (predict_serving(SERVED, load(requests=n)) for n in (places, 2 * places))
    assert not crowded.fits
    assert crowded.tpot_s == full.tpot_s
    assert crowded.tokens_per_s == full.tokens_per_s
    assert crowded.cache_bytes == full.cache_bytes
    assert crowded.ttft_s == pytest.approx(2 * full.ttft_s + 255 * full.tpot_s)


def test_few_rows_take_no_longer_than_many() -> None:
    """A table in which 4 rows are slower than 64: the engine pads them."""
    chip = make_chip("c")
    rows = [((m, n, k), 2.0 if m < 8 else 1.0) for m in (2, 4, 64) for n in (64, 128, 256)
            for k in (64, 128)]  # fmt: skip
    table = OperatorTable.of_rows("c", "gemm", "bf16", rows, source="a test")
    profile = Profile(cluster_digest="", operators=(table,))
    deployment = Deployment(
        model=make_model(blocks=2), pool=make_pool("a", chip), profile=profile
    )  # fmt: skip
    few, many = (deployment.step_seconds(decoding=n, context=50) for n in (4, 64))
    # The head's logits are not padded: one product of 2 s beside eight of 1 s.
    assert few == pytest.approx(many + 1, abs=1e-2)


def test_tables_stand_in_for_the_formulas() -> None:
    model = make_model(blocks=2)
    chip = make_chip("c")
    rows = {(m, n, k): 1.0 for m in (3,) for n in (64, 128, 256) for k in (64, 128)}
    tables = (
        OperatorTable.of_rows("c", "gemm", "bf16", rows.items(), source="a test"),
        OperatorTable.of_rows(
            "c", "decode_attention", "bf16", [((3, 4, 2, 16, 50), 10.0)], source="a test"
        ),
    )
    profile = Profile(cluster_digest="", operators=tables)
    deployment = Deployment(model=model, pool=make_pool("a", chip), profile=profile)
    # Two blocks of four products (one of queries, keys and values) and attention; the head.
    seconds = deployment.step_seconds(decoding=3, context=50)
    assert seconds == pytest.approx(2 * (4 + 10) + 1, abs=1e-3)
    assert operator_times(profile, chip) is deployment.times
    found = predict_serving(deployment, load(requests=3, prompt=40, answer=20))
    assert found.decode_s == pytest.approx(seconds + STEP_HOST_S)


def test_loads_and_deployments_that_are_none() -> None:
    with pytest.raises(PlanError, match="2 prompts and 1 answers"):
        Load(requests=1, prompts=(1, 2), generated=(1,))
    with pytest.raises(PlanError, match="0 requests"):
        load(requests=0)
    with pytest.raises(PlanError, match="tp = 3"):
        predict_serving(Deployment(model=LLAMA_8B, pool=POOL, tp=3), load())
    slow = make_pool("a", make_chip("c"))
    with pytest.raises(PlanError, match="fp8"):
        predict_serving(Deployment(model=LLAMA_8B, pool=slow, precision="fp8"), load())


def test_every_rank_norms_all_tokens() -> None:
    """Engines divide no tokens between the regions of tensor parallelism."""
    block = LLAMA_8B.layers[1]
    moved = [
        {o.name: o.bytes for o in block.operators(replace(SERVED, tp=tp)._share(64))}
        for tp in (1, 8)
    ]
    assert moved[0]["attention_norm"] == moved[1]["attention_norm"]
    assert moved[0]["activation"] == 8 * moved[1]["activation"]
