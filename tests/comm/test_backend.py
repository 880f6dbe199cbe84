"""PyTorch and the backend find each other, whoever is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest


# Where the package is installed, importing torch loads the backend in turn.
@pytest.mark.parametrize("first", ["pluribus.comm.backend", "pluribus.train.run"])
def test_torch_may_come_second(first: str) -> None:
    program = f"import {first}, torch.distributed as d; assert hasattr(d.Backend, 'PLURIBUS')"
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
