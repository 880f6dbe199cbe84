"""FLOPs and memory traffic of operators."""

from __future__ import annotations

import pytest

from pluribus.model.attention import GroupedQueryAttention
from pluribus.model.model import Model
from pluribus.model.share import Share

from .configs import (
    DEEPSEEK_V3,
    LLAMA_2_7B,
    LLAMA_3_8B,
    LLAMA_32_1B,
    MISTRAL_7B,
    MIXTRAL_8X7B,
)


def test_llama_2_7b_by_hand():
    # Two per weight of the matrices (all but embedding and 65 norms) and, per block, scores
    # and values over half of 4096 keys: 2 * 2 * 4096 * 4096 / 2.
    matrices = 6_738_415_616 - 32000 * 4096 - 65 * 4096
    by_hand = 2 * matrices + 32 * 2 * 4096 * 4096
    assert Model.from_config(LLAMA_2_7B).forward_flops_per_token(4096) == by_hand


def test_a_tied_head_still_multiplies():
    head = Model.from_config(LLAMA_32_1B).layers[-1]
    assert head.forward_flops(Share(2, 100)) == 2 * 200 * 2048 * 128256


def test_experts_cost_what_they_activate():
    block = Model.from_config(MIXTRAL_8X7B).layers[1]
    attention = 2 * 4096 * 4096 / 2 * 2 * 4096
    expected = 2 * 4096 * (block.active_parameters - 2 * 4096) + attention
    assert block.forward_flops(Share(1, 4096)) == expected


def test_latent_attention_by_hand():
    block = Model.from_config(DEEPSEEK_V3).layers[1]  # dense
    norms = 2 * 7168 + 1536 + 512
    attention = 4096 * 4096 / 2 * 2 * 128 * (192 + 128)
    assert block.forward_flops(Share(1, 4096)) == 2 * 4096 * (block.parameters - norms) + attention


def test_sharding_divides_the_work():
    model = Model.from_config(LLAMA_3_8B)
    for layer in model.layers:
        whole = layer.forward_flops(Share(2, 2048))
        assert layer.forward_flops(Share(2, 2048, tp=4)) * 4 == pytest.approx(whole)
        assert layer.forward_flops(Share(2, 2048, tp=2, cp=4)) * 8 == pytest.approx(whole)
        assert layer.backward_flops(Share(2, 2048)) == 2 * whole


def test_key_value_heads_are_repeated_beyond_their_number():
    operators = {
        tp: {
            op.name: op
            for op in Model.from_config(LLAMA_3_8B).layers[1].operators(Share(1, 512, tp=tp))
        }
        for tp in (8, 16)
    }
    assert operators[8]["kv_proj"].n == operators[16]["kv_proj"].n == 128
    assert operators[8]["q_proj"].n == 2 * operators[16]["q_proj"].n


def test_expert_parallelism_keeps_work_and_reads_fewer_weights():
    block = Model.from_config(MIXTRAL_8X7B).layers[1]
    one, eight = (
        {op.name: op for op in block.operators(Share(1, 4096, ep=ep))}["experts.gate_up_proj"]
        for ep in (1, 8)
    )
    assert one.flops == eight.flops
    assert one.bytes - eight.bytes == 2 * 7 * 4096 * 2 * 14336
    assert (one.m, one.count, eight.m, eight.count) == (1024, 8, 8192, 1)


def test_a_window_bounds_attention():
    attention = GroupedQueryAttention(4096, 32, 8, 128, window=4096)
    whole = GroupedQueryAttention(4096, 32, 8, 128)

    def flops(of, length):
        return next(
            op.flops for op in of.operators(Share(1, length)) if op.kind == "attention"
        )  # fmt: skip

    assert flops(attention, 4096) == flops(whole, 4096)
    # Exact count of pairs, query i sees min(i, window) + 1/2 of itself.
    pairs = sum(min(i, 4096) for i in range(16384)) + 16384 / 2
    assert flops(attention, 16384) == pytest.approx(pairs * 4 * 32 * 128, rel=1e-3)
    assert Model.from_config(MISTRAL_7B).layers[1].attention.window == 4096


def test_traffic_of_a_matrix_product():
    block = Model.from_config(LLAMA_2_7B).layers[1]
    op = next(
        op for op in block.operators(Share(1, 2048, bytes_per_element=2)) if op.name == "down_proj"
    )
    assert (op.m, op.n, op.k) == (2048, 4096, 11008)
    assert op.bytes == 2 * (2048 * 11008 + 11008 * 4096 + 2048 * 4096)


def test_only_products_and_attention_have_flops():
    for config in (LLAMA_2_7B, DEEPSEEK_V3):
        for layer in Model.from_config(config).layers:
            for op in layer.operators(Share(1, 256)):
                assert (op.flops > 0) == (op.kind in ("gemm", "grouped_gemm", "attention"))
                assert op.bytes > 0


def test_output_is_the_hidden_state():
    assert Model.from_config(LLAMA_2_7B).layers[3].output_bytes(Share(2, 100)) == 2 * 100 * 4096 * 2
