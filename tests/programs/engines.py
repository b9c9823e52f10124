"""Engines for which a schedule was not shown to be right, in loops of one's own: what it says.

    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo engines.py FOLDER KIND

Each rank writes its answer to ``FOLDER/rank<N>.pickle``.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import paddle
from paddle import nn
from paddle.distributed import fleet

from paddle_freeze_callback import FreezeSchedule

DEGREES = {"pipeline": "pp_degree", "groups": "pp_degree", "sequence": "sep_degree"}


def answer(kind: str) -> str:
    """What ``attach()`` says; nothing if it goes on."""
    # A pipeline asks for the number of its GPU, which a process on a CPU does not have.
    paddle.distributed.ParallelEnv._device_id = 0
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"dp_degree": 1, DEGREES[kind]: 2}
    fleet.init(is_collective=True, strategy=strategy)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    if kind == "pipeline":
        network = fleet.meta_parallel.PipelineLayer(
            list(network), num_stages=2, loss_fn=nn.CrossEntropyLoss()
        )
    optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
    try:
        FreezeSchedule().attach(network, optimizer, total_steps=12)
    except ValueError as error:
        assert not any(tensor.stop_gradient for tensor in network.parameters())
        return str(error)
    return ""


if __name__ == "__main__":
    said = answer(sys.argv[2])
    rank = paddle.distributed.get_rank()
    (Path(sys.argv[1]) / f"rank{rank}.pickle").write_bytes(pickle.dumps(said))
