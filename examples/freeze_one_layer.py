"""Freeze a parameter by hand, then with ``freeze``, and see that a frozen layer does not move.

python examples/freeze_one_layer.py
"""

from __future__ import annotations

import paddle
from paddle import nn

from paddle_freeze_callback import freeze, trainable_ratio, unfreeze


class TwoLayers(nn.Layer):
    """``fc1`` is the backbone, ``fc2`` the head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 20)
        self.fc2 = nn.Linear(20, 2)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.fc2(nn.functional.relu(self.fc1(x)))


def train(network: nn.Layer, steps: int = 5) -> None:
    """A few steps on random numbers."""
    optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
    for _ in range(steps):
        loss = network(paddle.randn([8, 10])).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()


def how_far(network: nn.Layer, before: dict[str, paddle.Tensor]) -> dict[str, float]:
    """The largest change of each parameter."""
    return {
        name: float((tensor - before[name]).abs().max())
        for name, tensor in network.named_parameters()
    }


def main() -> dict[str, dict[str, float]]:
    """Run the three cases; returns how far each parameter moved in each."""
    paddle.seed(0)
    moved = {}

    linear = nn.Linear(10, 2)
    linear.weight.stop_gradient = True  # by hand
    before = {name: tensor.clone() for name, tensor in linear.named_parameters()}
    train(linear)
    moved["by hand"] = how_far(linear, before)

    linear = nn.Linear(10, 2)
    freeze(linear, "weight")  # the same
    before = {name: tensor.clone() for name, tensor in linear.named_parameters()}
    train(linear)
    moved["with freeze"] = how_far(linear, before)

    network = TwoLayers()
    print("frozen:", freeze(network, "fc1"), f"trainable ratio {trainable_ratio(network):.2f}")
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    train(network)
    moved["fc1 frozen"] = how_far(network, before)

    print("opened:", unfreeze(network), f"trainable ratio {trainable_ratio(network):.2f}")
    for case, distances in moved.items():
        print(f"{case}: " + ", ".join(f"{name} moved {far:.4f}" for name, far in distances.items()))
    return moved


if __name__ == "__main__":
    main()
