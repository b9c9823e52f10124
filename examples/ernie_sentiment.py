"""A frozen ERNIE encoder with a new classifier on top, in the PaddleNLP Trainer.

    python examples/ernie_sentiment.py --model ernie-3.0-nano-zh   # downloads it
    python examples/ernie_sentiment.py --model a/local/folder
    python examples/ernie_sentiment.py                             # a small random ERNIE

A few sentences are enough to see the schedule at work; bring your own data for a result.
"""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

import argparse
import tempfile
import warnings

warnings.filterwarnings("ignore", message="No ccache found")

import paddle
from paddlenlp.trainer import Trainer, TrainingArguments
from paddlenlp.transformers import ErnieConfig, ErnieForSequenceClassification, ErnieTokenizer

from paddle_freeze_callback import FreezeSchedule, HeadOnly

SENTENCES = [
    ("这部电影真好看", 1),
    ("剧情太无聊了", 0),
    ("演员演得很棒", 1),
    ("浪费时间", 0),
    ("强烈推荐给大家", 1),
    ("再也不想看第二遍", 0),
    ("音乐很动人", 1),
    ("画面粗糙", 0),
]


class Sentences(paddle.io.Dataset):
    """Sentences as padded token numbers; without a tokenizer, one number per character."""

    def __init__(self, tokenizer: object | None, length: int = 16) -> None:
        self.rows = []
        for text, label in SENTENCES:
            ids = (
                tokenizer(text, max_length=length, truncation=True)["input_ids"]
                if tokenizer
                else [3 + ord(character) % 90 for character in text]
            )
            self.rows.append({"input_ids": ids + [0] * (length - len(ids)), "labels": label})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def load(model: str | None) -> tuple[ErnieForSequenceClassification, ErnieTokenizer | None]:
    """A pretrained ERNIE and its tokenizer, or a small random one."""
    if model:
        network = ErnieForSequenceClassification.from_pretrained(model, num_classes=2)
        return network, ErnieTokenizer.from_pretrained(model)
    config = ErnieConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    return ErnieForSequenceClassification(config), None


def main(argv: list[str] | None = None) -> FreezeSchedule:
    """Train only the classifier; returns the schedule with its history."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="hub name or local folder; default: small and random")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args(argv)
    paddle.seed(0)
    network, tokenizer = load(options.model)
    # verify=True makes sure that the encoder does not move.
    schedule = FreezeSchedule(strategy=HeadOnly(), verify=True)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        )
        data = Sentences(tokenizer)
        Trainer(model=network, args=args, train_dataset=data, callbacks=[schedule]).train()
    for transition in schedule.history:
        print(transition)
    return schedule


if __name__ == "__main__":
    main()
