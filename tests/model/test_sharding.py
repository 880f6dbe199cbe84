"""Parameters of a rank, and which shardings divide a model."""

from __future__ import annotations

from pluribus.model.model import Model

from .configs import (
    DEEPSEEK_V2_LITE,
    GPT2,
    LLAMA_3_8B,
    LLAMA_32_1B,
    MIXTRAL_8X7B,
    QWEN25_05B,
)


def test_ranks_sum_to_the_whole_and_the_repeated_part():
    model = Model.from_config(LLAMA_3_8B)
    repeated = {"embedding": 0, "dense": 2 * 4096, "head": 4096}
    for layer in model.layers:
        ranks = 8 * layer.parameters_per_rank(tp=8)
        assert ranks == layer.parameters + 7 * repeated[layer.kind]


def test_repeated_key_value_heads_count():
    block = Model.from_config(LLAMA_3_8B).layers[1]
    keys_and_values = 2 * 4096 * 8 * 128  # whole on every second rank: twice in all
    ranks = 16 * block.parameters_per_rank(tp=16)
    assert ranks == block.parameters + 15 * 2 * 4096 + keys_and_values


def test_experts_divide_over_ep_and_tp():
    block = Model.from_config(MIXTRAL_8X7B).layers[1]
    experts = 8 * 3 * 4096 * 14336
    rest = block.parameters - experts
    assert block.parameters_per_rank(ep=4) == rest + experts // 4
    attention = 4096 * (2 * 4096 + 2 * 1024)
    router_and_norms = 8 * 4096 + 2 * 4096
    expected = attention // 2 + router_and_norms + experts // 8
    assert block.parameters_per_rank(tp=2, ep=4) == expected


def test_latent_down_projections_are_whole_on_every_rank():
    block = Model.from_config(DEEPSEEK_V2_LITE).layers[1]
    repeated = 2048 * (512 + 64) + 512 + 2 * 2048
    assert 4 * block.parameters_per_rank(tp=4) == block.parameters + 3 * repeated


def test_row_biases_and_positions_are_whole_on_every_rank():
    embedding, block, *_ = Model.from_config(GPT2).layers
    assert 4 * block.parameters_per_rank(tp=4) == block.parameters + 3 * (4 * 768 + 2 * 768)
    # 50257 tokens over 4 ranks: the largest shard has 12565.
    assert embedding.parameters_per_rank(tp=4) == 12565 * 768 + 1024 * 768


def test_a_tied_matrix_is_not_in_the_head():
    head = Model.from_config(LLAMA_32_1B).layers[-1]
    assert head.parameters_per_rank(tp=2) == 2048


def test_tensor_parallel_limits():
    llama = Model.from_config(LLAMA_3_8B)
    assert [tp for tp in range(1, 65) if llama.supports_tp(tp)] == [1, 2, 4, 8, 16, 32]
    # 14 heads over 2 key-value heads: 7 ranks fit neither a head nor its copies.
    qwen = Model.from_config(QWEN25_05B)
    assert [tp for tp in range(1, 17) if qwen.supports_tp(tp)] == [1, 2]


def test_expert_parallel_limits():
    assert [ep for ep in range(1, 10) if Model.from_config(MIXTRAL_8X7B).supports_ep(ep)] == [
        1, 2, 4, 8,
    ]  # fmt: skip
    assert Model.from_config(LLAMA_3_8B).supports_ep(3)
