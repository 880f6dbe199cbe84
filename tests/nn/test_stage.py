"""Stages against each other: any split is the same model."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pluribus.core.errors import UnsupportedModelError
from pluribus.nn.config import DecoderConfig
from pluribus.nn.stage import StageModule, build_stage

LAYERS = 4
SPLIT = [(0, 2), (2, 4), (4, 5), (5, 6)]


def config(**changes: object) -> DecoderConfig:
    table = {
        "model_type": "qwen3",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    return DecoderConfig.from_hf({**table, **changes}, "test")


def stage(layers: tuple[int, int], recompute: str = "none", **changes: object) -> StageModule:
    return build_stage(
        config(**changes), layers, seed=5, device="cpu", dtype=torch.float32, recompute=recompute
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(96, (2, 13), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def gradients(stages: list[StageModule]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and, summed by name over the stages, gradients of one batch run through a pipeline."""
    x, targets = batch()
    cut: list[tuple[torch.Tensor, torch.Tensor]] = []
    for part in stages[:-1]:
        out = part(x)
        x = out.detach().requires_grad_()
        cut.append((out, x))
    loss = stages[-1].loss(x, targets)
    loss.backward()
    for out, received in reversed(cut):
        out.backward(received.grad)
    total: dict[str, torch.Tensor] = {}
    for part in stages:
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            total[name] = total[name] + parameter.grad if name in total else parameter.grad
    return loss.detach(), total


@pytest.mark.parametrize("tied", [False, True])
def test_a_split_gives_the_same_loss_and_gradients(tied: bool) -> None:
    whole = stage((0, LAYERS + 2), tie_word_embeddings=tied)
    parts = [stage(layers, tie_word_embeddings=tied) for layers in SPLIT]
    loss, expected = gradients([whole])
    split_loss, actual = gradients(parts)
    assert torch.equal(split_loss, loss)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        if tied and name == "model.embed_tokens.weight":  # summed in another order
            torch.testing.assert_close(actual[name], gradient)
        else:
            assert torch.equal(actual[name], gradient), name


@pytest.mark.parametrize("tied", [False, True])
def test_a_split_starts_from_the_same_weights_under_the_same_names(tied: bool) -> None:
    whole = dict(stage((0, LAYERS + 2), tie_word_embeddings=tied).named_parameters())
    held = Counter()
    for layers in SPLIT:
        for name, parameter in stage(layers, tie_word_embeddings=tied).named_parameters():
            assert torch.equal(parameter, whole[name]), name
            held[name] += 1
    assert held.keys() == whole.keys()
    twice = {name for name, count in held.items() if count > 1}
    assert twice == ({"model.embed_tokens.weight"} if tied else set())
    assert ("lm_head.weight" in whole) is not tied


def test_initial_weights_depend_on_seed_and_have_the_wanted_spread() -> None:
    random_state = torch.get_rng_state()
    first = stage((0, 2))
    assert torch.equal(torch.get_rng_state(), random_state)
    other = build_stage(config(), (0, 2), seed=6, device="cpu", dtype=torch.float32)
    matrix, changed = first.model.embed_tokens.weight, other.model.embed_tokens.weight
    assert not torch.equal(matrix, changed)
    assert matrix.std().item() == pytest.approx(0.02, rel=0.05)
    assert (first.model.layers["0"].self_attn.q_norm.weight == 1).all()
    half = build_stage(config(), (0, 2), seed=5, device="cpu", dtype=torch.bfloat16)
    assert torch.equal(half.model.embed_tokens.weight, matrix.bfloat16())


def test_recompute_changes_nothing_but_memory() -> None:
    def kept(part: StageModule) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            part(batch()[0])
        return sum(sizes.values())

    plain, full = stage((0, LAYERS + 2)), stage((0, LAYERS + 2), recompute="full")
    loss, expected = gradients([plain])
    again, actual = gradients([full])
    assert torch.equal(again, loss)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert kept(full) < kept(plain) / 4


def test_bf16_and_autocast_stay_close_to_fp32() -> None:
    x, targets = batch()
    exact = stage((0, LAYERS + 2))
    loss = exact.loss(x, targets)
    rounded = build_stage(
        config(), (0, LAYERS + 2), seed=5, device="cpu", dtype=torch.bfloat16
    ).loss(x, targets)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact.loss(x, targets)
    mixed.backward()
    assert exact.lm_head.weight.grad.dtype == torch.float32
    torch.testing.assert_close(rounded, loss, rtol=1e-2, atol=0)
    torch.testing.assert_close(mixed, loss, rtol=1e-2, atol=0)


def test_a_model_cast_after_use_keeps_its_rotary_table_exact() -> None:
    part = stage((1, 3))
    hidden = torch.randn(1, 200, 32)
    part(hidden)
    fresh = stage((1, 3)).to(torch.bfloat16)
    assert torch.equal(part.to(torch.bfloat16)(hidden.bfloat16()), fresh(hidden.bfloat16()))


def test_on_meta_there_are_shapes_only() -> None:
    part = build_stage(config(), (1, 3), seed=0, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in part.parameters()} == {"meta"}
    assert part(torch.empty(2, 8, 32, device="meta", dtype=torch.bfloat16)).shape == (2, 8, 32)


def test_a_sequence_beyond_the_sliding_window_is_refused() -> None:
    part = stage((0, 2), use_sliding_window=True, sliding_window=8)
    with pytest.raises(UnsupportedModelError, match="12 tokens"):
        part(batch()[0])
