"""Makes ``"pluribus"`` a backend that `torch.distributed.init_process_group` knows.

Where the package is installed, PyTorch finds `register` by itself (entry point
``torch.backends``); in a bare source tree import this module first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist

NAME = "pluribus"
DEVICES = ("cpu", "cuda", "npu", "musa", "mlu", "gcu", "xpu", "hpu")


def register() -> None:
    """Tells torch.distributed of the backend; may be repeated."""
    # Not before this is defined: importing torch calls it where the package is installed.
    import torch.distributed as dist

    if not dist.is_available() or hasattr(dist.Backend, NAME.upper()):
        return
    dist.Backend.register_backend(NAME, _create, extended_api=True, devices=list(DEVICES))


def _create(given: Any, options: Any) -> dist.ProcessGroup:
    from pluribus.comm.group import Group
    from pluribus.comm.options import Options

    if not isinstance(options, Options):
        options = Options.from_environment(os.environ)
    return Group(
        given.store,
        given.group_rank,
        given.group_size,
        given.timeout.total_seconds(),
        tuple(given.global_ranks_in_group),
        options,
    )


register()
