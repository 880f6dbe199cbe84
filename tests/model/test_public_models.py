"""Parameter counts of public models, and what the Model says of them as a whole."""

from __future__ import annotations

import json

import pytest

from pluribus.model.model import Model
from pluribus.model.share import Share

from .configs import (
    DEEPSEEK_V3,
    LLAMA_2_7B,
    LLAMA_3_8B,
    LLAMA_32_1B,
    MIXTRAL_8X7B,
    PUBLISHED,
    QWEN3_30B_A3B,
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_published_count(name):
    config, published = PUBLISHED[name]
    assert Model.from_config(config).num_parameters == published


@pytest.mark.parametrize(
    ("config", "billions"), [(MIXTRAL_8X7B, 12.88), (QWEN3_30B_A3B, 3.35), (DEEPSEEK_V3, 37.55)]
)
def test_active_parameters_of_experts(config, billions):
    assert Model.from_config(config).num_active_parameters / 1e9 == pytest.approx(
        billions, abs=0.01
    )


def test_dense_models_use_all_their_parameters():
    for config in (LLAMA_2_7B, LLAMA_32_1B):
        model = Model.from_config(config)
        assert model.num_active_parameters == model.num_parameters


def test_a_tied_head_names_the_matrix_it_needs():
    model = Model.from_config(LLAMA_32_1B)
    embedding, head = model.layers[0], model.layers[-1]
    assert model.tied
    assert head.tied_parameters == embedding.parameters == 128256 * 2048
    assert head.parameters == 2048
    assert Model.from_config(LLAMA_3_8B).layers[-1].tied_parameters == 0


def test_layers_are_embedding_blocks_head():
    model = Model.from_config(DEEPSEEK_V3)
    kinds = [layer.kind for layer in model.layers]
    assert kinds == ["embedding"] + ["dense"] * 3 + ["moe"] * 58 + ["head"]
    assert model.num_blocks == 61
    assert model.layers[4].name == "model.layers.3"
    assert len({layer.signature for layer in model.layers[1:-1]}) == 2
    assert Model.from_config(LLAMA_3_8B).layers[1].signature == "dense-h4096-a32-k8-f14336"


def test_layers_of_equal_signature_cost_the_same():
    seen = {}
    for config, _ in PUBLISHED.values():
        for layer in Model.from_config(config).layers:
            cost = (
                layer.parameters,
                layer.active_parameters,
                layer.tied_parameters,
                layer.operators(Share(2, 1024, ep=1)),
                layer.activation_bytes(Share(2, 1024)),
            )
            assert seen.setdefault(layer.signature, cost) == cost


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (0, 13, "embedding + blocks 0–11"),
        (0, 34, "embedding + blocks 0–31 + head"),
        (5, 6, "block 4"),
        (32, 34, "block 31 + head"),
        (0, 1, "embedding"),
        (33, 34, "head"),
        (7, 7, "no layers"),
    ],
)
def test_layers_in_words(a, b, words):
    assert Model.from_config(LLAMA_2_7B).describe_layers(a, b) == words


def test_a_directory_a_file_and_a_table_are_the_same_model(tmp_path):
    directory = tmp_path / "llama-3-8b"
    directory.mkdir()
    file = directory / "config.json"
    file.write_text(json.dumps(dict(reversed(LLAMA_3_8B.items()))))
    models = [Model.from_config(source) for source in (LLAMA_3_8B, file, str(directory))]
    assert [model.name for model in models] == ["llama", "llama-3-8b", "llama-3-8b"]
    assert len({model.digest for model in models}) == 1
    assert len({model.layers for model in models}) == 1
    other = Model.from_config({**LLAMA_3_8B, "rope_theta": 1e6})
    assert other.digest != models[0].digest


def test_another_model_type_with_known_classes():
    model = Model.from_config({**DEEPSEEK_V3, "model_type": "kimi_k2"})
    assert model.architecture == "deepseek_v3"
