"""The Model: the numbers of an architecture, as a list of layers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluribus.core.errors import UnsupportedModelError
from pluribus.core.io import digest, read_json
from pluribus.model.config import Config
from pluribus.model.families.registry import FAMILIES, family_of
from pluribus.model.layer import Layer
from pluribus.model.share import Share


@dataclass(frozen=True)
class Model:
    """What a plan needs to know of an LLM.

    Attributes:
        name: of its directory, or what its config calls it.
        architecture: its family, a ``model_type`` such as ``llama``.
        hidden_size: width of the hidden state between layers.
        vocab_size: tokens.
        num_attention_heads: query heads of a block.
        max_sequence_length: positions it was made for.
        tied: whether the head uses the embedding's token table.
        layers: embedding, block 0 to L-1, head; the ranges [a, b) of stages index this.
        config: the raw config.json.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    max_sequence_length: int
    tied: bool
    layers: tuple[Layer, ...]
    config: Mapping[str, Any] = field(repr=False, hash=False)

    @classmethod
    def from_config(cls, source: Mapping[str, Any] | str | os.PathLike[str]) -> Model:
        """Reads a Hugging Face config.

        Args:
            source: its keys and values, the path of a config.json, or a directory with one.

        Raises:
            MissingFileError: no such file.
            ConfigError: not valid JSON.
            UnsupportedModelError: an unknown architecture, a missing required key, a value of
                the wrong type or size, or numbers that contradict; names file, key and value.
        """
        if isinstance(source, Mapping):
            values, file, name = source, "config", source.get("_name_or_path")
        else:
            path = Path(source)
            path = path / "config.json" if path.is_dir() else path
            values, file = read_json(path), str(path)
            name = path.resolve().parent.name if path.name == "config.json" else path.stem
        if not isinstance(values, Mapping):
            raise UnsupportedModelError(
                "is not a table of keys and values", where=file, do="Name a model's config.json."
            )
        config = Config(values, file)
        family = family_of(config)
        pieces = FAMILIES[family](config)
        return cls(
            name=Path(name).name if isinstance(name, str) and name else family,
            architecture=family,
            hidden_size=pieces.hidden_size,
            vocab_size=pieces.vocab_size,
            num_attention_heads=pieces.num_attention_heads,
            max_sequence_length=pieces.max_sequence_length,
            tied=pieces.tied,
            layers=pieces.layers,
            config=dict(values),
        )

    @property
    def num_blocks(self) -> int:
        """Decoder blocks: the layers between embedding and head."""
        return len(self.layers) - 2

    @property
    def num_parameters(self) -> int:
        """Unique parameters, a tied matrix once: what Hugging Face's ``parameters()`` sum to."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def num_active_parameters(self) -> int:
        """Unique parameters of embedding, head, shared parts and the chosen experts."""
        return sum(layer.active_parameters for layer in self.layers)

    @property
    def digest(self) -> str:
        """16 hex digits that name the config; the order of its keys does not matter."""
        return digest(dict(self.config))

    def forward_flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of the forward divided by tokens; causal attention counts half of the square."""
        share = Share(1, sequence_length)
        total = sum(layer.forward_flops(share) for layer in self.layers)
        return total / sequence_length

    def supports_tp(self, tp: int) -> bool:
        """Whether every layer divides over ``tp`` ranks."""
        return all(layer.supports_tp(tp) for layer in self.layers)

    def supports_ep(self, ep: int) -> bool:
        """Whether the experts of every layer divide over ``ep`` ranks."""
        return all(layer.supports_ep(ep) for layer in self.layers)

    def describe_layers(self, a: int, b: int) -> str:
        """The layers [a, b) in words: ``embedding + blocks 0–11 + head``."""
        assert 0 <= a <= b <= len(self.layers), f"[{a}, {b}) is outside {len(self.layers)} layers"
        parts = []
        if a == 0 < b:
            parts.append("embedding")
        first, last = max(a, 1) - 1, min(b, len(self.layers) - 1) - 2
        if first == last:
            parts.append(f"block {first}")
        elif first < last:
            parts.append(f"blocks {first}–{last}")
        if a < b == len(self.layers):
            parts.append("head")
        return " + ".join(parts) or "no layers"
