"""Which family reads a config: by ``model_type``, or else by the class in ``architectures``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pluribus.core.errors import nearest
from pluribus.model.config import Config
from pluribus.model.families.base import Family
from pluribus.model.families.bloom import bloom
from pluribus.model.families.deepseek import deepseek_v2, deepseek_v3
from pluribus.model.families.gpt2 import gpt2
from pluribus.model.families.gpt_neox import gpt_neox
from pluribus.model.families.llama import llama
from pluribus.model.families.mistral import mistral, mixtral
from pluribus.model.families.opt import opt
from pluribus.model.families.profiled import profiled
from pluribus.model.families.qwen import qwen2, qwen2_moe, qwen3, qwen3_moe

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": llama,
        "mistral": mistral,
        "mixtral": mixtral,
        "qwen2": qwen2,
        "qwen3": qwen3,
        "qwen2_moe": qwen2_moe,
        "qwen3_moe": qwen3_moe,
        "deepseek_v2": deepseek_v2,
        "deepseek_v3": deepseek_v3,
        "gpt2": gpt2,
        "gpt_neox": gpt_neox,
        "opt": opt,
        "bloom": bloom,
        "profiled": profiled,
    }
)
"""Families by ``model_type``."""

_BY_CLASS: Mapping[str, str] = MappingProxyType(
    {
        "LlamaForCausalLM": "llama",
        "MistralForCausalLM": "mistral",
        "MixtralForCausalLM": "mixtral",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
        "Qwen2MoeForCausalLM": "qwen2_moe",
        "Qwen3MoeForCausalLM": "qwen3_moe",
        "DeepseekV2ForCausalLM": "deepseek_v2",
        "DeepseekV3ForCausalLM": "deepseek_v3",
        "GPT2LMHeadModel": "gpt2",
        "GPTNeoXForCausalLM": "gpt_neox",
        "OPTForCausalLM": "opt",
        "BloomForCausalLM": "bloom",
    }
)


def family_of(config: Config) -> str:
    """The key of `FAMILIES` that reads this config.

    Raises:
        UnsupportedModelError: neither ``model_type`` nor ``architectures`` is known.
    """
    model_type = config.values.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    # Models that reuse another family's classes carry a model_type of their own (kimi_k2).
    classes = config.values.get("architectures") or []
    for name in classes if isinstance(classes, list) else []:
        if name in _BY_CLASS:
            return _BY_CLASS[name]
    hint = nearest(str(model_type), FAMILIES)
    raise config.error(
        "model_type",
        f"'model_type' is {model_type!r}, which is not a supported architecture",
        f"{hint[0].upper()}{hint[1:]}",
    )
