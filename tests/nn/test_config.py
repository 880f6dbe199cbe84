"""What is read from config.json, and what is refused."""

from __future__ import annotations

import pytest

from pluribus.core.errors import UnsupportedModelError
from pluribus.nn.config import DecoderConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def read(**changes: object) -> DecoderConfig:
    return DecoderConfig.from_hf({**LLAMA, **changes}, "config.json")


def test_another_family_names_itself_and_the_trainable_ones() -> None:
    with pytest.raises(UnsupportedModelError) as error:
        read(model_type="mixtral")
    text = str(error.value)
    assert "'mixtral' can be planned but not trained yet" in text
    assert "llama, mistral, qwen2, qwen3" in text
    assert text.startswith("config.json:")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"num_key_value_heads": 3}, "do not fit 3"),
        ({"vocab_size": None}, "'vocab_size' is None"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        read(**changes)


def test_family_defaults() -> None:
    assert read().num_kv_heads == 4
    assert read().head_dim == 8
    assert read(model_type="qwen3").head_dim == 128
    assert read(model_type="qwen3").qk_norm
    assert read(model_type="qwen2").qkv_bias
    assert not read(model_type="qwen2").output_bias
    assert read(rope_theta=5e5).rope_theta == 5e5
    assert read(rope_theta=5e5, rope_parameters={"rope_theta": 1e6}).rope_theta == 1e6


def test_only_a_sliding_window_in_use_limits_the_sequence() -> None:
    read(model_type="qwen2", sliding_window=16).check_sequence_length(17)
    for limited in (
        read(model_type="mistral", sliding_window=16),
        read(model_type="qwen2", sliding_window=16, use_sliding_window=True),
    ):
        limited.check_sequence_length(16)
        with pytest.raises(UnsupportedModelError, match=r"17 tokens is longer .* of 16"):
            limited.check_sequence_length(17)
