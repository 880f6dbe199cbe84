"""Small random configs of every family against the real classes of `transformers`."""

from __future__ import annotations

import random

import pytest

from pluribus.model.families.registry import FAMILIES
from pluribus.model.model import Model

torch = pytest.importorskip("torch", reason="torch builds the models to compare with")
transformers = pytest.importorskip(
    "transformers", reason="transformers has the models to compare with"
)


def random_config(family: str, seed: int) -> dict:
    """Sizes that differ from every default, and every switch the family has."""
    rng = random.Random(f"{family}-{seed}")
    heads = rng.choice([4, 8])
    hidden = heads * rng.choice([8, 12])
    common = {"model_type": family, "vocab_size": rng.randrange(90, 200)}
    common["tie_word_embeddings"] = rng.random() < 0.5
    if family == "gpt2":
        return common | {
            "n_embd": hidden, "n_head": heads, "n_layer": 3, "n_positions": 40,
            "n_inner": rng.choice([None, 100]),
        }  # fmt: skip
    if family == "bloom":
        return common | {"hidden_size": hidden, "n_head": heads, "n_layer": 3}
    common |= {
        "hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": 4,
        "max_position_embeddings": 48, "pad_token_id": 1,
    }  # fmt: skip
    if family == "opt":
        return common | {
            "ffn_dim": 72, "word_embed_proj_dim": rng.choice([16, hidden]),
            "do_layer_norm_before": rng.random() < 0.5, "enable_bias": rng.random() < 0.5,
            "layer_norm_elementwise_affine": rng.random() < 0.5,
        }  # fmt: skip
    common["intermediate_size"] = rng.choice([72, 136])
    if family == "gpt_neox":
        return common | {"attention_bias": rng.random() < 0.5}
    if family.startswith("deepseek"):
        return common | {
            "attention_bias": rng.random() < 0.5, "first_k_dense_replace": rng.randrange(3),
            "kv_lora_rank": 20, "moe_intermediate_size": 24, "n_routed_experts": 8,
            "n_shared_experts": rng.choice([1, 2]), "num_experts_per_tok": 3,
            "q_lora_rank": rng.choice([None, 28]), "qk_nope_head_dim": 10,
            "qk_rope_head_dim": 6, "v_head_dim": 14,
        }  # fmt: skip
    common["num_key_value_heads"] = rng.choice([1, 2, heads])
    if family in ("llama", "mistral", "mixtral", "qwen3"):
        common["head_dim"] = rng.choice([10, 16])
    if family in ("llama", "qwen3", "qwen3_moe"):
        common["attention_bias"] = rng.random() < 0.5
    if family == "llama":
        common["mlp_bias"] = rng.random() < 0.5
    if family == "mixtral":
        common |= {"num_local_experts": 5, "num_experts_per_tok": 2}
    if family.endswith("_moe"):
        common |= {
            "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "decoder_sparse_step": rng.choice([1, 2]), "mlp_only_layers": rng.choice([[], [1]]),
        }  # fmt: skip
    if family == "qwen2_moe":
        common["shared_expert_intermediate_size"] = 40
    return common


def parameters_of(config: dict) -> dict[str, int]:
    """Names and sizes of the real model's parameters, a tied one once."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config)
        )
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if config["model_type"] == "gpt_neox":
        # transformers 5 renames the head in memory; checkpoints and version 4 say embed_out.
        sizes = {name.replace("lm_head.", "embed_out."): n for name, n in sizes.items()}
    return sizes


@pytest.mark.parametrize("seed", range(3))
# Models known by measured sizes only are nobody's architecture.
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "profiled"])
def test_every_layer_has_the_parameters_of_the_real_one(family, seed):
    config = random_config(family, seed)
    model, real = Model.from_config(config), parameters_of(config)
    assert model.num_parameters == sum(real.values())
    for layer in model.layers:
        prefixes = tuple(f"{prefix}." for prefix in layer.prefixes)
        owned = sum(n for name, n in real.items() if name.startswith(prefixes))
        assert layer.parameters == owned, layer.name
