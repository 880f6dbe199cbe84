"""DecoderConfig: what the torch modules need of a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pluribus.core.errors import UnsupportedModelError

TRAINABLE = ("llama", "mistral", "qwen2", "qwen3")

# What the families mean when config.json leaves the key out.
_QWEN3_HEAD_DIM = 128
_MISTRAL_SLIDING_WINDOW = 4096


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """Llama 3.1's stretching of the rotary frequencies (``rope_type`` "llama3").

    Attributes:
        factor: by how much the longest wavelengths are stretched.
        low_freq_factor, high_freq_factor: wavelengths between
            ``original_max_position_embeddings`` ÷ each are interpolated.
        original_max_position_embeddings: tokens of context before the stretching.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder of pre-norm blocks: grouped-query attention with RoPE, SwiGLU, RMSNorm.

    Attributes:
        num_layers: blocks; the layer list is [embedding, block 0 … block num_layers-1, head].
        head_dim: width of one head; need not be hidden_size ÷ num_heads.
        qkv_bias, output_bias, mlp_bias: whether q/k/v, o and the MLP's matrices have a bias.
        qk_norm: RMSNorm over each head of q and k before RoPE (Qwen 3).
        tie_word_embeddings: the output matrix is the embedding.
        sliding_window: tokens a position may look back, or None; see `check_sequence_length`.
        initializer_range: standard deviation of the initial matrices.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    rms_norm_eps: float
    rope_theta: float
    llama3_rope: Llama3Rope | None
    sliding_window: int | None
    initializer_range: float

    @property
    def num_stage_layers(self) -> int:
        """Length of the layer list that stages index: the blocks, the embedding and the head."""
        return self.num_layers + 2

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str) -> DecoderConfig:
        """Reads a Hugging Face config.json.

        Args:
            config: the file's content.
            where: the file, for messages.

        Raises:
            UnsupportedModelError: another family, a feature whose training is not written
                (dropout, another activation, another RoPE scaling), or a missing or
                contradictory number.
        """
        kind = config.get("model_type")
        if kind not in TRAINABLE:
            raise UnsupportedModelError(
                f"model_type '{kind}' can be planned but not trained yet",
                where=where,
                do=f"Train one of: {', '.join(TRAINABLE)}.",
            )
        heads = _number(config, "num_attention_heads", where)
        hidden = _number(config, "hidden_size", where)
        default_head_dim = _QWEN3_HEAD_DIM if kind == "qwen3" else hidden // heads
        any_bias = bool(config.get("attention_bias", False)) and kind in ("llama", "qwen3")
        theta, llama3_rope = _rope(config, where)
        read = cls(
            model_type=kind,
            vocab_size=_number(config, "vocab_size", where),
            hidden_size=hidden,
            intermediate_size=_number(config, "intermediate_size", where),
            num_layers=_number(config, "num_hidden_layers", where),
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or default_head_dim,
            qkv_bias=any_bias or kind == "qwen2",
            output_bias=any_bias,
            mlp_bias=bool(config.get("mlp_bias", False)) and kind == "llama",
            qk_norm=kind == "qwen3",
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            llama3_rope=llama3_rope,
            sliding_window=_sliding_window(config),
            initializer_range=config.get("initializer_range", 0.02),
        )
        if read.num_heads % read.num_kv_heads or read.head_dim % 2:
            raise UnsupportedModelError(
                f"{read.num_heads} attention heads of width {read.head_dim} do not fit "
                f"{read.num_kv_heads} key-value heads (the width must be even)",
                where=where,
                do="Make num_attention_heads a multiple of num_key_value_heads.",
            )
        for key, wanted in (("hidden_act", "silu"), ("attention_dropout", 0.0)):
            if config.get(key, wanted) != wanted:
                raise UnsupportedModelError(
                    f"{key} {config[key]!r} can be planned but not trained yet",
                    where=where,
                    do=f"Write {key} = {wanted!r}.",
                )
        return read

    def check_sequence_length(self, length: int) -> None:
        """Up to the window, sliding-window attention is causal attention; beyond, we refuse.

        Raises:
            UnsupportedModelError: the sequence is longer than the model's sliding window.
        """
        if self.sliding_window is not None and length > self.sliding_window:
            raise UnsupportedModelError(
                f"a sequence of {length} tokens is longer than the sliding window of "
                f"{self.sliding_window}, which cannot be trained yet",
                where=f"model_type '{self.model_type}'",
                do=f"Write sequence_length = {self.sliding_window} or less, or remove "
                "sliding_window from config.json.",
            )


def _number(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UnsupportedModelError(
            f"'{key}' is {value!r}", where=where, do="Write a whole number above zero."
        )
    return value


def _sliding_window(config: Mapping[str, Any]) -> int | None:
    if config["model_type"] == "mistral":
        return config.get("sliding_window", _MISTRAL_SLIDING_WINDOW)
    if config["model_type"] in ("qwen2", "qwen3") and config.get("use_sliding_window", False):
        return config.get("sliding_window")
    return None


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, Llama3Rope | None]:
    # transformers 5 writes `rope_parameters`; before, `rope_theta` and `rope_scaling` were apart.
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    rotated = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if kind not in ("default", "llama3") or rotated != 1.0:
        raise UnsupportedModelError(
            f"RoPE of type '{kind}' over {rotated:.0%} of a head can be planned but not trained "
            "yet",
            where=where,
            do="Train with rope_type 'default' or 'llama3' over whole heads.",
        )
    if kind == "default":
        return float(theta), None
    missing = [k for k in ("factor", "low_freq_factor", "high_freq_factor") if k not in rope]
    if missing:
        raise UnsupportedModelError(
            f"RoPE of type 'llama3' lacks {', '.join(missing)}",
            where=where,
            do="Copy rope_scaling from the model's original config.json.",
        )
    return float(theta), Llama3Rope(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position_embeddings=rope.get("original_max_position_embeddings")
        or _number(config, "max_position_embeddings", where),
    )
