"""Logits, gradients and names against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pluribus.nn.config import DecoderConfig
from pluribus.nn.rope import inverse_frequencies
from pluribus.nn.stage import build_stage

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

FAMILIES = {
    "llama": {"model_type": "llama", "rope_theta": 5e5},
    "llama-mha-biased": {
        "model_type": "llama", "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True,
    },
    "llama-3.1": {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama-3.2-tied": {
        "model_type": "llama", "tie_word_embeddings": True,
        "rope_parameters": {**LLAMA3, "rope_theta": 1e4},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 40, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "rms_norm_eps": 1e-5, "head_dim": 24},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_and_gradients_as_transformers(family: str) -> None:
    table = {**SHAPE, **FAMILIES[family]}
    config = DecoderConfig.from_hf(table, family)
    ours = build_stage(
        config, (0, config.num_stage_layers), seed=1, device="cpu", dtype=torch.float32
    )
    with torch.no_grad():  # ones and zeros would hide a norm or bias that is not applied
        for name, parameter in ours.named_parameters():
            if parameter.dim() == 1:
                generator = torch.Generator().manual_seed(len(name))
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    kind = table.pop("model_type")
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **table))
    assert dict(theirs.named_parameters()).keys() == dict(ours.named_parameters()).keys()
    theirs.load_state_dict(ours.state_dict(), strict=not config.tie_word_embeddings)

    ids = torch.randint(96, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = theirs(ids).logits
    torch.testing.assert_close(ours.logits(ids), expected, rtol=1e-5, atol=1e-5)

    targets = ids.roll(-1, dims=1)
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    (ours.loss(ids, targets) / targets.numel()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_llama3_frequencies_cover_all_three_bands() -> None:
    """At this head width some channels are kept, some interpolated and some stretched."""
    table = {**SHAPE, "hidden_size": 256, "rope_theta": 5e5, "rope_scaling": LLAMA3}
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.for_model("llama", **table))
    actual = inverse_frequencies(DecoderConfig.from_hf({**table, "model_type": "llama"}, "test"))
    assert torch.equal(actual, expected)
