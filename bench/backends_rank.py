"""One rank of `bench/backends.py`: a training rank that takes another backend with every step."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch.distributed as dist

from pluribus.comm.backend import NAME as PLURIBUS
from pluribus.comm.fabric import Fabric, Group
from pluribus.comm.options import Options
from pluribus.comm.rank import RankLine, rank_main
from pluribus.predict.schedule import gradient_groups
from pluribus.train.worker import Rank


class Beside(Fabric):
    """A fabric over our own backend in processes whose default group is gloo's."""

    def __init__(self, first: Fabric, options: Options) -> None:
        self.rank, self.device, self._devices = first.rank, first.device, first._devices
        self._own = True
        self._more = {"backend": PLURIBUS, "pg_options": options}
        ranks = first.everyone.ranks
        self.everyone = Group(ranks, dist.new_group(list(ranks), **self._more), False)
        self._groups = [self.everyone]


def body(line: RankLine) -> None:
    rank = Rank(line)
    line.report("ready", pid=os.getpid())
    groups = gradient_groups(rank.plan, rank.setting.tied_layers)
    holders = [rank.lanes.ranks(group.holders) for group in groups]
    island = f"island {rank.rank}"
    fabrics = {
        "gloo": rank.fabric,
        "pluribus": Beside(rank.fabric, Options()),
        "int8": Beside(rank.fabric, Options(island=island, codec="int8")),
    }
    ways = {
        name: (fabric, [fabric.group(ranks) for ranks in holders])
        for name, fabric in fabrics.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    while rank.step < line.config["until"]:
        # Each follows each other one equally often.
        turn, at = divmod(rank.step, len(names))
        name = names[at if turn % 2 else -1 - at]
        rank.fabric, handles = ways[name]
        rank.interpreter._fabric = rank.fabric
        for number, bucket in rank.gradients._buckets.items():
            bucket.group = None if number is None else handles[number]
        before = time.process_time()
        rank._one_step(timed=False)
        spent[name].append(time.process_time() - before)
    folder = Path(os.environ["BACKENDS_FOLDER"])
    (folder / f"spent-{rank.rank}.json").write_text(json.dumps(spent))
    fabrics["gloo"].barrier()
    fabrics["gloo"].close()


if __name__ == "__main__":
    rank_main(body)
