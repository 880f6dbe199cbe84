"""Public models: the keys of their config.json that set a size, and their parameter counts.

Every count was checked against `transformers` by building the model on the meta device.
"""

from __future__ import annotations

from typing import Any

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
LLAMA_2_13B = {
    **LLAMA_2_7B, "hidden_size": 5120, "intermediate_size": 13824,
    "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 40,
}  # fmt: skip
LLAMA_3_8B = {
    **LLAMA_2_7B, "intermediate_size": 14336, "max_position_embeddings": 8192,
    "num_key_value_heads": 8, "vocab_size": 128256, "attention_bias": False,
}  # fmt: skip
LLAMA_3_70B = {
    **LLAMA_3_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
    "num_hidden_layers": 80,
}  # fmt: skip
LLAMA_32_1B = {
    **LLAMA_3_8B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "head_dim": 64, "max_position_embeddings": 131072, "mlp_bias": False,
    "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "sliding_window": None,
    "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
    "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072,
    "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "sliding_window": 131072, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
QWEN25_05B = {
    **QWEN25_7B, "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "tie_word_embeddings": True, "vocab_size": 151936,
}  # fmt: skip
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "sliding_window": None,
    "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_8B = {
    **QWEN3_06B, "hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36,
    "num_attention_heads": 32, "num_hidden_layers": 36, "tie_word_embeddings": False,
}  # fmt: skip
QWEN15_MOE_A27B = {
    "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_act": "silu",
    "decoder_sparse_step": 1, "hidden_size": 2048, "intermediate_size": 5632,
    "max_position_embeddings": 8192, "moe_intermediate_size": 1408, "num_attention_heads": 16,
    "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24,
    "num_key_value_heads": 16, "shared_expert_intermediate_size": 5632,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False,
    "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 6144, "max_position_embeddings": 40960, "mlp_only_layers": [],
    "moe_intermediate_size": 768, "num_attention_heads": 32, "num_experts": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
DEEPSEEK_V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "attention_bias": False, "first_k_dense_replace": 1, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
    "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "tie_word_embeddings": False, "v_head_dim": 128, "vocab_size": 102400,
}  # fmt: skip
DEEPSEEK_V2 = {
    **DEEPSEEK_V2_LITE, "hidden_size": 5120, "intermediate_size": 12288,
    "moe_intermediate_size": 1536, "n_routed_experts": 160, "num_attention_heads": 128,
    "num_hidden_layers": 60, "num_key_value_heads": 128, "q_lora_rank": 1536,
}  # fmt: skip
DEEPSEEK_V3 = {
    **DEEPSEEK_V2, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "first_k_dense_replace": 3, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_nextn_predict_layers": 1,
    "topk_group": 4, "vocab_size": 129280,
}  # fmt: skip
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
    "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
    "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
GPT2_XL = {**GPT2, "n_embd": 1600, "n_head": 25, "n_layer": 48}
GPT_NEOX_20B = {
    "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu_fast",
    "hidden_size": 6144, "intermediate_size": 24576, "max_position_embeddings": 2048,
    "num_attention_heads": 64, "num_hidden_layers": 44, "tie_word_embeddings": False,
    "vocab_size": 50432,
}  # fmt: skip
PYTHIA_69B = {
    **GPT_NEOX_20B, "hidden_act": "gelu", "hidden_size": 4096, "intermediate_size": 16384,
    "num_attention_heads": 32, "num_hidden_layers": 32, "use_parallel_residual": True,
}  # fmt: skip
OPT_350M = {
    "architectures": ["OPTForCausalLM"], "model_type": "opt", "activation_function": "relu",
    "do_layer_norm_before": False, "ffn_dim": 4096, "hidden_size": 1024,
    "max_position_embeddings": 2048, "num_attention_heads": 16, "num_hidden_layers": 24,
    "vocab_size": 50272, "word_embed_proj_dim": 512,
}  # fmt: skip
OPT_67B = {
    **OPT_350M, "do_layer_norm_before": True, "ffn_dim": 16384, "hidden_size": 4096,
    "num_attention_heads": 32, "num_hidden_layers": 32, "word_embed_proj_dim": 4096,
}  # fmt: skip
BLOOM_560M = {
    "architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_embed": 1024,
    "n_layer": 24, "num_attention_heads": 16, "vocab_size": 250880,
}  # fmt: skip
BLOOM_176B = {**BLOOM_560M, "n_embed": 14336, "n_layer": 70, "num_attention_heads": 112}

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-2-7B": (LLAMA_2_7B, 6_738_415_616),
    "Llama-2-13B": (LLAMA_2_13B, 13_015_864_320),
    "Llama-3-8B": (LLAMA_3_8B, 8_030_261_248),
    "Llama-3-70B": (LLAMA_3_70B, 70_553_706_496),
    "Llama-3.2-1B": (LLAMA_32_1B, 1_235_814_400),
    "Mistral-7B": (MISTRAL_7B, 7_241_732_096),
    "Mixtral-8x7B": (MIXTRAL_8X7B, 46_702_792_704),
    "Qwen2.5-0.5B": (QWEN25_05B, 494_032_768),
    "Qwen2.5-7B": (QWEN25_7B, 7_615_616_512),
    "Qwen3-0.6B": (QWEN3_06B, 596_049_920),
    "Qwen3-8B": (QWEN3_8B, 8_190_735_360),
    "Qwen1.5-MoE-A2.7B": (QWEN15_MOE_A27B, 14_315_784_192),
    "Qwen3-30B-A3B": (QWEN3_30B_A3B, 30_532_122_624),
    "DeepSeek-V2-Lite": (DEEPSEEK_V2_LITE, 15_706_484_224),
    "DeepSeek-V2": (DEEPSEEK_V2, 235_741_434_880),
    # Published 671,026,419,200 with e_score_correction_bias, a buffer in transformers.
    "DeepSeek-V3": (DEEPSEEK_V3, 671_026_419_200 - 58 * 256),
    "GPT-2": (GPT2, 124_439_808),
    "GPT-2-XL": (GPT2_XL, 1_557_611_200),
    "GPT-NeoX-20B": (GPT_NEOX_20B, 20_554_567_680),
    "Pythia-6.9B": (PYTHIA_69B, 6_857_302_016),
    "OPT-350M": (OPT_350M, 331_196_416),
    "OPT-6.7B": (OPT_67B, 6_658_473_984),
    "BLOOM-560M": (BLOOM_560M, 559_214_592),
    "BLOOM-176B": (BLOOM_176B, 176_247_271_424),
}
