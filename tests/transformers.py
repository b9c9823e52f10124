"""A tiny BERT under the PaddleNLP Trainer, shared by the tests."""

from __future__ import annotations

import numpy as np
import paddle
from paddlenlp.trainer import Trainer
from paddlenlp.transformers import BertConfig, BertForSequenceClassification

from paddle_freeze_callback.arguments import FreezeTrainingArguments

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
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


def tiny_bert(**sizes) -> BertForSequenceClassification:
    paddle.seed(3)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**{**SIZES, **dropout, **sizes}))


class InOrder(Trainer):
    """A Trainer that does not shuffle, so that runs can be compared."""

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
        **flags,
    }
    args = FreezeTrainingArguments(**settings)
    return kind(
        model=model,
        args=args,
        train_dataset=Tokens() if data is None else data,
        callbacks=callbacks,
    )
