"""A network of layers with incomplete kernels under a schedule, in one or two processes.

Every rank writes its weights to ``FOLDER/rank<N>.pickle``; the global batches are the same for
any number of processes.

    python kernels.py FOLDER
    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo kernels.py FOLDER
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import paddle
from networks import Images
from paddle import nn

from paddle_freeze_callback import FreezeSchedule

GLOBAL_BATCH, EPOCHS = 8, 4
PLAN = {
    0: ["head", "backbone.norm.bias"],
    1: "neck.weight_hh_l1",
    2: {"unfreeze": "backbone", "freeze": "neck"},
    3: "*",
}


class Recognizer(nn.Layer):
    """Convolution, norm, activation, a recurrent neck, a head."""

    def __init__(self) -> None:
        super().__init__()
        paddle.seed(5)
        self.backbone = nn.Sequential(
            # without bias: under an InstanceNorm its gradient is nothing but rounding
            ("conv", nn.Conv2D(1, 4, 3, padding=1, bias_attr=False)),
            ("norm", nn.InstanceNorm2D(4)),
            ("act", nn.PReLU()),
        )
        self.neck = nn.LSTM(4, 4, num_layers=2, direction="bidirect")
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        columns = self.backbone(x).mean(2).transpose([0, 2, 1])
        return self.head(self.neck(columns)[0].mean(1))


def main(folder: str) -> None:
    """Train and write down what came out."""
    environment = paddle.distributed.ParallelEnv()
    ranks = environment.nranks
    network = Recognizer()
    optimizer = paddle.optimizer.AdamW(
        0.01, parameters=network.parameters(), weight_decay=0.1,
        grad_clip=nn.ClipGradByGlobalNorm(0.5),
    )  # fmt: skip
    model = paddle.Model(network)
    model.prepare(optimizer, nn.CrossEntropyLoss())
    model.fit(
        Images(32), batch_size=GLOBAL_BATCH // ranks, epochs=EPOCHS, shuffle=False, verbose=0,
        callbacks=[FreezeSchedule(unfreeze_at=PLAN, verify=True)],
    )  # fmt: skip
    weights = {name: tensor.numpy() for name, tensor in network.named_parameters()}
    (Path(folder) / f"rank{environment.rank}.pickle").write_bytes(pickle.dumps(weights))


if __name__ == "__main__":
    main(*sys.argv[1:])
