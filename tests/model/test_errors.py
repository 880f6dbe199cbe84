"""What a wrong config.json says."""

from __future__ import annotations

import json

import pytest

from pluribus.core.errors import ConfigError, MissingFileError, UnsupportedModelError
from pluribus.model.model import Model

from .configs import BLOOM_560M, DEEPSEEK_V3, GPT2, LLAMA_3_8B, MIXTRAL_8X7B


def without(config, key):
    return {name: value for name, value in config.items() if name != key}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**LLAMA_3_8B, "model_type": "lama", "architectures": []}, "Did you mean 'llama'?"),
        ({"model_type": "whisper"}, "'model_type' is 'whisper'"),
        ({}, "'model_type' is None"),
        (without(LLAMA_3_8B, "hidden_size"), "missing key 'hidden_size'"),
        (without(GPT2, "n_layer"), "missing key 'n_layer'"),
        ({**LLAMA_3_8B, "hidden_size": None}, "missing key 'hidden_size'"),
        ({**LLAMA_3_8B, "hidden_size": "4096"}, "'hidden_size' is '4096'"),
        ({**LLAMA_3_8B, "hidden_size": 4096.0}, "'hidden_size' is 4096.0"),
        ({**LLAMA_3_8B, "num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
        ({**LLAMA_3_8B, "vocab_size": -1}, "'vocab_size' is -1"),
        ({**LLAMA_3_8B, "vocab_size": True}, "'vocab_size' is True"),
        ({**LLAMA_3_8B, "tie_word_embeddings": "no"}, "'tie_word_embeddings' is 'no'"),
        ({**LLAMA_3_8B, "num_attention_heads": 24}, "'hidden_size' 4096 is not divisible by"),
        ({**LLAMA_3_8B, "num_key_value_heads": 5}, "'num_key_value_heads' 5"),
        ({**BLOOM_560M, "num_attention_heads": 15}, "1024 is not divisible by"),
        ({**MIXTRAL_8X7B, "num_experts_per_tok": 9}, "9 is more than the 8 experts"),
        ({**DEEPSEEK_V3, "q_lora_rank": 0}, "'q_lora_rank' is 0"),
    ],
)
def test_the_message_names_key_and_value(config, words):
    with pytest.raises(UnsupportedModelError) as caught:
        Model.from_config(config)
    assert words in str(caught.value)
    assert caught.value.do


def test_the_message_names_the_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**LLAMA_3_8B, "vocab_size": 0}))
    with pytest.raises(UnsupportedModelError) as caught:
        Model.from_config(tmp_path)
    assert caught.value.where == f"{file} [vocab_size]"
    file.write_text("[1, 2]")
    with pytest.raises(UnsupportedModelError, match="not a table"):
        Model.from_config(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        Model.from_config(file)
    with pytest.raises(MissingFileError):
        Model.from_config(tmp_path / "absent.json")
