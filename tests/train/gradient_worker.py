"""A rank that stops at its first STEP and writes down the loss and every gradient it holds."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from pluribus.comm.rank import RankLine, rank_main
from pluribus.train.worker import Rank


class GradientRank(Rank):
    """Keeps the summed gradients as they are before clipping and update."""

    def _step(self) -> None:
        self.found = {
            name: parameter.grad.detach().clone().contiguous()
            for name, parameter in self.module.named_parameters()
        }
        super()._step()


def body(line: RankLine) -> None:
    rank = GradientRank(line)
    rank.run(1, checkpoint_root=None, timeline_every=1)
    folder = Path(line.config["folder"])
    save_file(rank.found, folder / f"gradients-{rank.rank}.safetensors")
    line.report("gradients", loss=rank.loss, norm=rank.norm)


if __name__ == "__main__":
    rank_main(body)
