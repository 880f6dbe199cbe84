"""NVIDIA's chips, and those whose PyTorch build presents itself as CUDA; NCCL inside an island."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pluribus.comm.devices.accelerator import Accelerator


class Cuda(Accelerator):
    """See the module."""

    library_name = "nccl"

    def make_event(self) -> Any:
        return torch.cuda.Event(blocking=True)  # a waiting thread sleeps instead of spinning

    def make_library(
        self, store: dist.Store, rank: int, size: int, timeout: float
    ) -> dist.Backend | None:
        if not dist.is_nccl_available():
            return None
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=timeout)
        return dist.ProcessGroupNCCL(store, rank, size, options)
