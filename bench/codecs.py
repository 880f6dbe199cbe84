"""What each codec takes: C against torch against a copy, and the error of one step.

    .venv/bin/python bench/codecs.py [--mebibytes 64]

GB of fp32 input per CPU second of one core, best of five; × is the ratio to a copy of the same
input measured in the same round, which other work on the machine disturbs alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from pluribus.comm.codecs import int4, int8
from pluribus.comm.codecs.base import Codec
from pluribus.comm.codecs.registry import CODECS
from pluribus.comm.native.build import kernel
from pluribus.comm.native.crc32c import crc32c, crc32c_numpy

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=64)
    n = parser.parse_args().mebibytes << 18
    torch.set_num_threads(1)
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    y, residual = torch.zeros(n), torch.zeros(n)
    print("compiled kernel:", "yes" if kernel() else "no compiler found")
    copy = rate(lambda: y.copy_(x), n)
    print(f"{'copy':24}{copy:7.2f} GB/s")
    for name, make in CODECS.items():
        codec = make()
        coded = torch.empty(codec.num_bytes(n), dtype=torch.uint8)
        codec.encode(x, coded)
        codec.decode(coded, y)
        error = float((x - y).norm() / x.norm())
        print(f"{name}: {coded.numel() / (4 * n):.4f} of the bytes, error of one step {error:.1e}")
        row("encode", lambda c=codec, o=coded: c.encode(x, o), n, copy)
        row("encode with feedback", lambda c=codec, o=coded: c.encode(x, o, residual), n, copy)
        row("decode and add", lambda c=codec, o=coded: c.decode(o, y, add=True), n, copy)
        twins(codec, x, coded, residual, copy)
    data = x.numpy().view("uint8")
    row("crc32c in C", lambda: crc32c(data), n, copy)
    row("crc32c in numpy", lambda: crc32c_numpy(data), n, copy)


def twins(
    codec: Codec, x: torch.Tensor, coded: torch.Tensor, residual: torch.Tensor, copy: float
) -> None:
    """The torch code of the codecs that have C."""
    y = torch.zeros_like(x)
    if codec.name == "int8":
        row("torch: encode", lambda: int8.encode_torch(x, coded, residual), len(x), copy)
        row("torch: decode and add", lambda: int8.decode_torch(coded, y, True), len(x), copy)
    elif codec.name == "int4":
        row("torch: encode", lambda: int4.encode_torch(x, coded, residual, 0), len(x), copy)
        row("torch: decode and add", lambda: int4.decode_torch(coded, y, True, 0), len(x), copy)


def row(name: str, deed: Callable[[], object], n: int, copy: float) -> None:
    found = rate(deed, n)
    print(f"  {name:22}{found:7.2f} GB/s {found / copy:6.2f} ×", flush=True)


def rate(deed: Callable[[], object], n: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        deed()
        best = min(best, time.process_time() - start)
        if best > 1.0:
            break
    return 4 * n / best / 1e9


if __name__ == "__main__":
    main()
