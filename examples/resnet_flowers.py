"""A ResNet for ten new classes with ``paddle.Model.fit``, unfrozen stage by stage.

    python examples/resnet_flowers.py --images flowers/ --pretrained   # flowers/<class>/<image>
    python examples/resnet_flowers.py                                  # generated images

First only ``layer4`` and the new 10-class ``fc`` train, and everything else is frozen, running
statistics included; then ``layer3``, and at last all of it.
"""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

import argparse
import warnings

warnings.filterwarnings("ignore", message="No ccache found")

import numpy as np
import paddle
from paddle import nn
from paddle.vision import models, transforms

from paddle_freeze_callback import FreezeSchedule

CLASSES = 10


class Generated(paddle.io.Dataset):
    """Noise with a stripe whose place tells the class."""

    def __init__(self, length: int, size: int) -> None:
        self.length, self.size = length, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        label = index % CLASSES
        image = np.random.RandomState(index).rand(3, self.size, self.size).astype("float32")
        place = label * self.size // CLASSES
        image[:, place : place + self.size // CLASSES] += 2
        return image, np.array([label])


def data(images: str | None, length: int, size: int) -> paddle.io.Dataset:
    """A folder of images, one subfolder a class, or generated ones."""
    if not images:
        return Generated(length, size)
    steps = [transforms.Resize((size, size)), transforms.ToTensor()]
    steps.append(transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return paddle.vision.datasets.DatasetFolder(images, transform=transforms.Compose(steps))


def main(argv: list[str] | None = None) -> FreezeSchedule:
    """Train; returns the schedule with its history."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="a folder with one subfolder a class")
    parser.add_argument("--pretrained", action="store_true", help="download ImageNet weights")
    parser.add_argument("--network", default="resnet50", help="a network of paddle.vision.models")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--generate", type=int, default=60, help="number of generated images")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--batch_size", type=int, default=10)
    options = parser.parse_args(argv)

    paddle.seed(0)
    network = getattr(models, options.network)(pretrained=options.pretrained)
    network.fc = nn.Linear(network.fc.weight.shape[0], CLASSES)
    model = paddle.Model(network)
    model.prepare(
        paddle.optimizer.AdamW(1e-3, parameters=network.parameters()),
        nn.CrossEntropyLoss(),
        paddle.metric.Accuracy(),
    )
    schedule = FreezeSchedule(unfreeze_at={0: ["fc", "layer4"], 1: "layer3", 2: "*"}, verify=True)
    images = data(options.images, options.generate, options.size)
    model.fit(images, batch_size=options.batch_size, epochs=options.epochs, callbacks=[schedule])
    return schedule


if __name__ == "__main__":
    main()
