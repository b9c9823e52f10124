"""Tiny language models under a Trainer, shared by the tests.

The library is whichever is installed: PaddleNLP 2 or 3, or PaddleFormers, which has no BERT.
"""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
import paddle
from paddle import nn

LIBRARY = "paddlenlp" if importlib.util.find_spec("paddlenlp") else "paddleformers"
trainer_library = importlib.import_module(f"{LIBRARY}.trainer")
Trainer, TrainerCallback = trainer_library.Trainer, trainer_library.TrainerCallback
logger = importlib.import_module(f"{LIBRARY}.utils.log").logger

# tiny_bert's table of words, which both libraries' Trainers train.
WORD_TABLE = "bert.embeddings" + (".word_embeddings" if LIBRARY == "paddlenlp" else "")

# PaddleFormers 1.2 calls paddle.device.synchronize() there, which raises TypeError on a CPU.
ACCUMULATES = LIBRARY == "paddlenlp"

from paddle_freeze_callback import FreezeTrainingArguments  # noqa: E402

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


# Defaults of PaddleFormers that a plain network on a CPU cannot have.
FORMERS_ON_A_CPU = {
    "amp_master_grad": False,
    "save_checkpoint_format": None,
    "load_checkpoint_format": None,
    "sharding": "",
    "split_param": False,
}


class Tokens(paddle.io.Dataset):
    """Random token sequences with a label each; the same for the same index."""

    def __init__(self, length: int = 24) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        random = np.random.RandomState(index)
        return {"input_ids": random.randint(3, 50, 8), "labels": np.array(index % 2)}


class TokenStream(paddle.io.IterableDataset):
    """Token sequences without a length."""

    def __iter__(self):
        return (Tokens()[index % 24] for index in range(1000))


class PlainBert(nn.Layer):
    """An encoder with BERT's names, for a library that has none."""

    base_model_prefix = "bert"

    def __init__(self) -> None:
        super().__init__()
        self.bert = nn.Layer()
        self.bert.embeddings = nn.Embedding(50, 16)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(3)]
        self.bert.encoder = nn.Layer()
        self.bert.encoder.layers = nn.LayerList(layers)
        self.bert.pooler = nn.Linear(16, 16)
        self.classifier = nn.Linear(16, 2)

    def forward(self, input_ids):
        x = self.bert.embeddings(input_ids)
        for layer in self.bert.encoder.layers:
            x = layer(x)
        return self.classifier(nn.functional.tanh(self.bert.pooler(x[:, 0])))


def tiny_bert(**sizes) -> nn.Layer:
    paddle.seed(3)
    if LIBRARY != "paddlenlp":
        return PlainBert()
    from paddlenlp.transformers import BertConfig, BertForSequenceClassification

    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**{**SIZES, **dropout, **sizes}))


class InOrder(Trainer):
    """A Trainer that does not shuffle, so that runs can be compared."""

    def compute_loss(self, model, inputs, return_outputs=False, **options):
        if LIBRARY == "paddlenlp":
            return super().compute_loss(model, inputs, return_outputs, **options)
        logits = model(inputs["input_ids"])
        loss = nn.functional.cross_entropy(logits, inputs["labels"])
        return (loss, logits) if return_outputs else loss

    def _get_train_sampler(self):
        return paddle.io.DistributedBatchSampler(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            shuffle=False,
            num_replicas=self.args.dataset_world_size,
            rank=self.args.dataset_rank,
        )


def trainer_for(model, folder, callbacks, *, data=None, kind=InOrder, **flags) -> Trainer:
    """A Trainer over 24 sequences in batches of 4, which reports nowhere and saves nothing."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 4,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": [],
        **({} if LIBRARY == "paddlenlp" else FORMERS_ON_A_CPU),
        **flags,
    }
    args = FreezeTrainingArguments(**settings)
    return kind(
        model=model,
        args=args,
        train_dataset=Tokens() if data is None else data,
        callbacks=callbacks,
    )
