"""Codecs by name."""

from __future__ import annotations

from collections.abc import Callable

from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.int4 import Int4
from pluribus.comm.codecs.int8 import Int8
from pluribus.comm.codecs.plain import BFloat16, Plain
from pluribus.comm.codecs.power_sgd import PowerSgd
from pluribus.comm.codecs.sparse import Sparse
from pluribus.comm.codecs.top_k import TopK
from pluribus.core.errors import ConfigError, nearest, sentence

CODECS: dict[str, Callable[[], Codec]] = {
    codec.name: codec for codec in (Plain, BFloat16, Int8, Int4, Sparse, TopK, PowerSgd)
}


def codec(name: str) -> Codec:
    """The codec of that name with its usual settings.

    Raises:
        ConfigError: there is none.
    """
    if name not in CODECS:
        raise ConfigError(f"no codec is named '{name}'", do=sentence(nearest(name, CODECS)))
    return CODECS[name]()
