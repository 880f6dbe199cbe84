"""Public configs of models whose rows give no sizes (their config.json on Hugging Face)."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "vocab_size": 128256,
}  # fmt: skip
_LLAMA2_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "vocab_size": 32000,
}  # fmt: skip
_DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "moe_layer_freq": 1,
}  # fmt: skip
_MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
}  # fmt: skip
_QWEN3_MOE = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
    "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
}  # fmt: skip
_GPT_OSS_120B = {
    **_QWEN3_MOE, "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64,
    "moe_intermediate_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
    "num_key_value_heads": 8, "num_experts_per_tok": 4, "vocab_size": 201088,
}  # fmt: skip

# Mixtures of experts are taken from here whatever else a row says: it has no columns for experts.
_EXPERTS = {
    r"gpt.?oss.?120b": _GPT_OSS_120B,
    r"gpt.?oss.?20b": {**_GPT_OSS_120B, "num_hidden_layers": 24, "num_experts": 32},
    r"deepseek.?v3|deepseek.?r1": _DEEPSEEK_V3,
    r"kimi.?k2": {
        **_DEEPSEEK_V3, "num_attention_heads": 64, "num_key_value_heads": 64,
        "n_routed_experts": 384, "first_k_dense_replace": 1, "vocab_size": 163840,
    },
    r"mixtral.?8x7b": _MIXTRAL,
    r"mixtral.?8x22b": {
        **_MIXTRAL, "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56,
        "num_attention_heads": 48, "vocab_size": 32768,
    },
    r"qwen3.?30b": _QWEN3_MOE,
    r"qwen3.?235b": {
        **_QWEN3_MOE, "hidden_size": 4096, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64,
    },
}  # fmt: skip
_DENSE = {
    r"llama.?3(\.\d)?.?8b": {
        **_LLAMA2_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    r"llama.?3(\.\d)?.?70b": _LLAMA_70B,
    r"llama.?3(\.\d)?.?405b": {
        **_LLAMA_70B, "hidden_size": 16384, "intermediate_size": 53248,
        "num_hidden_layers": 126, "num_attention_heads": 128,
    },
    r"llama.?2?.?7b": _LLAMA2_7B,
    r"llama.?2?.?13b": {
        **_LLAMA2_7B, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 40,
    },
    r"llama.?2.?70b": {**_LLAMA_70B, "vocab_size": 32000},
    r"gpt.?3?.?175b": {
        "model_type": "gpt2", "n_embd": 12288, "n_head": 96, "n_layer": 96, "vocab_size": 51200,
        "n_positions": 2048,
    },
}  # fmt: skip
_LOOKS_MIXED = re.compile(r"\bmoe\b|\d+x\d+B|A\d+(\.\d+)?B", re.I)


def named_config(
    row: Mapping[str, str], layers: int | None, hidden: int | None
) -> dict[str, object] | None:
    """The config of a row's model, if it is known by name and the row does not describe it."""
    found = next((config for words, config in _EXPERTS.items() if _is(words, row)), None) or (
        None if hidden else next((c for words, c in _DENSE.items() if _is(words, row)), None)
    )
    if found is None or not layers:
        return found
    depth = "n_layer" if "n_layer" in found else "num_hidden_layers"
    changed: dict[str, object] = {depth: layers}
    if "first_k_dense_replace" in found:
        dense = found["first_k_dense_replace"] * layers / found[depth]
        changed["first_k_dense_replace"] = max(1, round(dense))
    return {**found, **changed}


def looks_mixed(row: Mapping[str, str]) -> bool:
    """Whether its name says that a model is a mixture of experts."""
    return bool(_LOOKS_MIXED.search(row.get("model") or ""))


def _is(words: str, row: Mapping[str, str]) -> bool:
    return bool(re.search(words, row.get("model") or "", re.I))
