"""Bytes kept from forward to backward: the published formula, and what torch keeps."""

from __future__ import annotations

import pytest

from pluribus.model.attention import GroupedQueryAttention
from pluribus.model.block import Block
from pluribus.model.feed_forward import DenseFeedForward
from pluribus.model.model import Model
from pluribus.model.share import Share

from .configs import DEEPSEEK_V3, GPT2, LLAMA_3_8B, MIXTRAL_8X7B, PUBLISHED


def test_a_gpt_block_is_korthikanti_without_masks():
    # Eq. 1 has 34 sbh and the scores; two of the 34 are dropout masks. Eq. 2 splits them into
    # 10 + 24/t, eq. 4 divides all by t.
    block, sbh = Model.from_config(GPT2).layers[1], 1024 * 3 * 768
    assert block.activation_bytes(Share(3, 1024)) == 32 * sbh
    assert (
        block.activation_bytes(Share(3, 1024, tp=4, sequence_parallel=False)) == (8 + 24 / 4) * sbh
    )
    assert block.activation_bytes(Share(3, 1024, tp=4)) == 32 * sbh / 4


def test_a_llama_block_by_hand():
    block, tokens = Model.from_config(LLAMA_3_8B).layers[1], 2 * 8192
    # Two norms in and out, queries and output, keys and values, four of the FFN.
    elements = 4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336
    assert block.activation_bytes(Share(2, 8192)) == tokens * elements * 2
    assert block.activation_bytes(Share(2, 8192, cp=4)) == tokens * elements * 2 / 4
    kept = 2 * 4096 + 2 * 4096 + 2 * 1024 + 2 * 14336
    assert block.activation_bytes(Share(2, 8192), "selective") == tokens * kept * 2
    assert block.activation_bytes(Share(2, 8192), "full") == block.output_bytes(Share(2, 8192))


def test_the_head_keeps_logits_and_their_gradient_in_fp32():
    head = Model.from_config(LLAMA_3_8B).layers[-1]
    expected = 1024 * (2 * 4096 * 2 + 128256 * 8)
    assert head.activation_bytes(Share(1, 1024)) == expected
    assert head.activation_bytes(Share(1, 1024), "full") == expected
    assert head.activation_bytes(Share(1, 1024, tp=8)) == expected / 8


@pytest.mark.parametrize("name", PUBLISHED)
def test_recomputing_more_keeps_less(name):
    block = Model.from_config(PUBLISHED[name][0]).layers[-2]
    none, selective, full = (
        block.activation_bytes(Share(1, 2048), mode) for mode in ("none", "selective", "full")
    )
    assert full < selective < none


@pytest.mark.parametrize("config", [MIXTRAL_8X7B, DEEPSEEK_V3])
def test_experts_keep_their_dispatched_tokens(config):
    block = Model.from_config(config).layers[-2]
    experts, e = block.feed_forward, 2
    pair = 2 * experts.hidden_size + 4 * experts.intermediate_size
    routed = experts.top_k * pair * e + experts.num_experts * 4
    shared = 4 * experts.shared.intermediate_size * e if experts.shared else 0
    dense = Block("x", block.hidden_size, block.attention, DenseFeedForward(block.hidden_size, 1))
    without = dense.activation_bytes(Share(1, 1)) - 4 * e
    assert block.activation_bytes(Share(1, 1)) == without + routed + shared


def saved_by_torch(torch, attention: GroupedQueryAttention, mlp: DenseFeedForward, tokens: int):
    """Bytes of the distinct tensors autograd keeps for one pre-norm block, without weights."""
    functional = torch.nn.functional
    h, d = attention.hidden_size, attention.head_dim
    q, kv = attention.num_heads * d, attention.num_kv_heads * d
    f, kept = mlp.intermediate_size, {}
    shapes = [(q, h), (kv, h), (kv, h), (h, q), (f, h), (f, h), (h, f)]
    wq, wk, wv, wo, gate, up, down = (torch.randn(s, requires_grad=True) for s in shapes)
    scale = torch.ones(h, requires_grad=True)
    weights = {w.untyped_storage().data_ptr() for w in (wq, wk, wv, wo, gate, up, down, scale)}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    def heads(x, w):
        return functional.linear(x, w).view(1, tokens, -1, d).transpose(1, 2)

    x = torch.randn(1, tokens, h, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = functional.layer_norm(x, (h,), scale)
        core = functional.scaled_dot_product_attention(
            heads(y, wq), heads(y, wk), heads(y, wv), is_causal=True, enable_gqa=True
        )
        x = x + functional.linear(core.transpose(1, 2).reshape(1, tokens, q), wo)
        y = functional.layer_norm(x, (h,), scale)
        if mlp.activation == "gated":
            inner = functional.silu(functional.linear(y, gate)) * functional.linear(y, up)
        else:
            inner = getattr(functional, mlp.activation)(functional.linear(y, up))
        x = x + functional.linear(inner, down)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("activation", ["gated", "gelu", "relu"])
@pytest.mark.parametrize("num_kv_heads", [2, 8])
def test_torch_keeps_as_much(activation, num_kv_heads):
    torch = pytest.importorskip("torch", reason="torch's autograd is what is counted")
    attention = GroupedQueryAttention(256, 8, num_kv_heads, 32)
    mlp = DenseFeedForward(256, 640, activation)
    real = saved_by_torch(torch, attention, mlp, tokens=64)
    counted = Block("x", 256, attention, mlp).activation_bytes(Share(1, 64, bytes_per_element=4))
    # The statistics of the norms and of the softmax are left out of the formula.
    statistics = 64 * 4 * (2 + 2 + 8)
    assert real == counted + statistics
