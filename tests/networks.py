"""Small real networks, data and training loops that the tests share."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from paddle_freeze_callback import FreezeSchedule


class TwoLayers(nn.Layer):
    """The smallest backbone with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.fc2 = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc2(nn.functional.relu(self.fc1(x)))


class ConvNet(nn.Layer):
    """Three convolution blocks with BatchNorm, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2D(1, 4, 3, padding=1), nn.BatchNorm2D(4), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2D(4, 4, 3, padding=1), nn.BatchNorm2D(4), nn.ReLU())
        self.block3 = nn.Sequential(nn.Conv2D(4, 4, 3, padding=1), nn.BatchNorm2D(4), nn.ReLU())
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(x.mean(axis=[2, 3]))


class Images(paddle.io.Dataset):
    """Random 6 x 6 images with a label each; the same for the same index."""

    def __init__(self, length: int = 24) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        random = np.random.RandomState(index)
        return random.rand(1, 6, 6).astype("float32"), np.array([index % 2])


class Vectors(Images):
    """Random vectors of four numbers."""

    def __getitem__(self, index: int):
        random = np.random.RandomState(index)
        return random.rand(4).astype("float32"), np.array([index % 2])


class Stream(paddle.io.IterableDataset):
    """Images without a length."""

    def __init__(self, length: int = 24) -> None:
        self.images = Images(length)

    def __iter__(self):
        return (self.images[index] for index in range(len(self.images)))


def conv_net() -> ConvNet:
    paddle.seed(7)
    return ConvNet()


def model_for(network: nn.Layer, optimizer=None, **prepared) -> paddle.Model:
    """A prepared ``paddle.Model``."""
    model = paddle.Model(network)
    optimizer = optimizer or paddle.optimizer.Adam(0.01, parameters=network.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss(), **prepared)
    return model


def fit(network: nn.Layer, schedule, *, data=None, **options) -> paddle.Model:
    """Train with ``paddle.Model.fit``: 24 images, batches of 4, in order, quietly."""
    model = model_for(network)
    settings = {"batch_size": 4, "epochs": 4, "shuffle": False, "verbose": 0, **options}
    model.fit(Images() if data is None else data, callbacks=[schedule], **settings)
    return model


def values(network: nn.Layer) -> dict[str, np.ndarray]:
    """A copy of all weights and buffers by name."""
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Names of the tensors that are not bitwise the same."""
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def rates_from(step: int, options: dict, **length) -> dict[int, dict[str, float]]:
    """The learning rates before each of the last of 12 steps, in a run continued at one of them."""
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    found = {}
    with FreezeSchedule(**options).attach(network, optimizer, step=step, **length) as freezing:
        for index in range(step, 12):
            found[index] = freezing.learning_rates
            freezing.step()
    return found


def open_names(network: nn.Layer) -> list[str]:
    """Names of the parameters that train now."""
    return [name for name, tensor in network.named_parameters() if not tensor.stop_gradient]


def rates_of(network: nn.Layer) -> dict[str, float]:
    """The learning-rate multiplier of each parameter."""
    return {n: t.optimize_attr["learning_rate"] for n, t in network.named_parameters()}


class Watch(paddle.callbacks.Callback):
    """Notes, at the end of each batch, which stages are open and what has moved."""

    def __init__(self, schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.open: list[tuple[str, ...]] = []
        self.moved: list[set[str]] = []

    def on_train_begin(self, logs=None):
        self.before = values(self.model.network)

    def on_train_batch_end(self, step, logs=None):
        after = values(self.model.network)
        self.open.append(tuple(s.name for s in self.schedule.run.stages if _is_open(self.model, s)))
        self.moved.append(moved(self.before, after))
        self.before = after


def _is_open(model: paddle.Model, stage) -> bool:
    by_name = dict(model.network.named_parameters())
    return any(not by_name[name].stop_gradient for name in stage.parameters)
