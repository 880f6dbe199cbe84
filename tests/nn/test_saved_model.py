"""A model saved stage by stage is a Hugging Face model, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pluribus.nn.config import DecoderConfig
from pluribus.nn.stage import build_stage
from pluribus.store.checkpoint import begin, finish, load_tensors, write_part
from pluribus.store.manifest import step_directory, verify
from pluribus.store.tokenizer import save_tokenizer, standard_library_text, train_bpe

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_it_and_we_load_what_transformers_wrote(
    tmp_path: Path, tied: bool
) -> None:
    table = {**CONFIG, "tie_word_embeddings": tied}
    config = DecoderConfig.from_hf(table, "test")
    text = standard_library_text(100_000, seed=0)
    tokenizer = train_bpe(text, 400, max_bytes=100_000)
    tokenizer_path = save_tokenizer(tokenizer, tmp_path / "tokenizer.json")

    final = step_directory(tmp_path, 7)
    partial = begin(final)
    manifests, written = [], set()
    for part, layers in enumerate([(0, 2), (2, 4)]):
        stage = build_stage(config, layers, seed=3, device="cpu", dtype=torch.float32)
        held = {name: p for name, p in stage.named_parameters() if name not in written}
        written |= held.keys()
        manifests.append(write_part(partial, part, 2, held, {}))
    finish(
        partial, final, manifests, config=table, tokenizer_path=tokenizer_path,
        training={"step": 7},
    )  # fmt: skip
    verify(final, deep=True)

    sentence = "def main(argv: list[str]) -> int:\n    return 0"
    ids = tokenizer.encode(sentence).ids
    theirs = AutoTokenizer.from_pretrained(final)
    assert theirs(sentence)["input_ids"] == ids
    assert theirs.decode(ids) == sentence
    assert theirs.eos_token_id == tokenizer.token_to_id("<|endoftext|>")

    whole = build_stage(config, (0, 4), seed=3, device="cpu", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(final)
    batch = torch.tensor([ids])
    torch.testing.assert_close(model(batch).logits, whole.logits(batch), rtol=1e-5, atol=1e-5)

    model.save_pretrained(tmp_path / "hf")  # a plain directory, without training.json
    names = [name for name, _ in whole.named_parameters()]
    read = load_tensors(tmp_path / "hf", names)
    assert all(torch.equal(read[name], p) for name, p in whole.named_parameters())
