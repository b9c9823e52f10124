"""The same schedule through every kind of training loop gives the same transitions."""

from __future__ import annotations

import importlib
from dataclasses import replace

import paddle
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from networks import model_for
from trainers import LIBRARY, SIZES, Tokens, Trainer, logger, trainer_for

from paddle_freeze_callback import (
    Explicit,
    FreezeSchedule,
    Gradual,
    HeadOnly,
    HeadThenAll,
    partition,
)
from paddle_freeze_callback.strategies.moments import Moment
from paddle_freeze_callback.strategies.run import Run


class Small(paddle.nn.Layer):
    """A network that fits all loops."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = paddle.nn.Embedding(50, 4)
        self.layer1 = paddle.nn.Linear(4, 4)
        self.layer2 = paddle.nn.Linear(4, 4)
        self.classifier = paddle.nn.Linear(4, 2)

    def forward(self, input_ids):
        x = self.layer2(self.layer1(self.embedding(input_ids).mean(1)))
        return self.classifier(x)


class Pairs(Tokens):
    def __getitem__(self, index):
        row = super().__getitem__(index)
        return row["input_ids"], row["labels"].reshape(1)


class Plain(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        logits = model(inputs["input_ids"])
        return paddle.nn.functional.cross_entropy(logits, inputs["labels"])


def by_hapi(schedule, epochs):
    model_for(Small()).fit(Pairs(), batch_size=4, epochs=epochs, verbose=0, callbacks=[schedule])


def by_trainer(schedule, epochs, folder):
    trainer = trainer_for(Small(), folder, [schedule], kind=Plain, num_train_epochs=epochs)
    trainer.train()


def by_hand(schedule, epochs):
    network = Small()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    rows = Tokens()
    with schedule.attach(network, optimizer, epochs=epochs, steps_per_epoch=6) as freezing:
        for _ in range(epochs):
            for index in range(6):
                row = rows[index]
                network(paddle.to_tensor(row["input_ids"])[None]).sum().backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()


moments = st.one_of(
    st.integers(0, 3),
    st.integers(0, 30).map("{} steps".format),
    st.integers(0, 99).map("{}%".format),
)
lengths = moments.filter(lambda moment: str(moment).split()[0] not in ("0", "0%"))
strategies = st.one_of(
    st.builds(Gradual, every=st.none() | lengths, start=st.none() | moments),
    st.just(HeadOnly()),
    st.builds(HeadThenAll, at=moments),
    st.lists(
        st.tuples(moments, st.sampled_from(["layer2", "layer{1-2}", "embedding", "*", "head"])),
        max_size=3,
    ).map(lambda pairs: Explicit({0: "classifier", **dict(pairs)})),
)


def in_order_of_time(strategy, epochs):
    """Whether what was drawn is a schedule that may be written so."""
    if not isinstance(strategy, Explicit):
        return True
    run = Run.of(epochs=epochs, steps_per_epoch=6)
    steps = [run.step_of(Moment.of(when)) for when in strategy.unfreeze_at]
    return steps == sorted(steps)


@pytest.mark.filterwarnings("ignore:the stage")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(strategy=strategies, epochs=st.integers(1, 4))
def test_all_loops_make_the_same_transitions(tmp_path, strategy, epochs):
    assume(in_order_of_time(strategy, epochs))
    histories = []
    for run in (by_hapi, by_hand, lambda s, e: by_trainer(s, e, tmp_path)):
        schedule = FreezeSchedule(strategy=strategy, verify=True)
        run(schedule, epochs)
        # hapi and the Trainer apply a transition before a step, a hand-written loop after one,
        # so only the latter sees those of the very end.
        # Their optimizers have other rates.
        histories.append(
            [replace(c, learning_rates={}) for c in schedule.history if c.step < 6 * epochs]
        )
    assert histories[0] == histories[1] == histories[2]
    assert histories[0]


@pytest.mark.parametrize("tied", [False, True])
def test_automatic_stages_of_qwen2(tied):
    """PaddleNLP 3 has it; 2.8.1 does not, and PaddleFormers' wants a package for GPUs."""
    try:
        qwen2 = importlib.import_module(f"{LIBRARY}.transformers.qwen2")
        config, model = qwen2.Qwen2Config, qwen2.Qwen2ForCausalLM
    except ImportError as missing:
        pytest.skip(f"no Qwen2 here: {missing}")
    parts = partition(model(config(**SIZES, num_key_value_heads=2, tie_word_embeddings=tied)))
    blocks = ["layers.2", "layers.1", "layers.0"]
    assert [s.name for s in parts] == ["head", *blocks, *([] if tied else ["embeddings"])]
    head = "qwen2.embed_tokens.weight" if tied else "lm_head.weight"
    assert parts[0].parameters == (head,)


@pytest.mark.parametrize("bar", [False, True])
def test_what_a_trainer_prints_leaves_out_what_is_for_reporters(tmp_path, monkeypatch, bar):
    """Its displays are found by their names; they are handed the logs by keyword."""
    lines: list[str] = []
    monkeypatch.setattr(logger, "info", lambda line, *_: lines.append(str(line)))
    schedule = FreezeSchedule(every=1, lr_decay=2)
    trainer_for(
        Small(), tmp_path, [schedule], kind=Plain, num_train_epochs=2, disable_tqdm=not bar
    ).train()
    logged = [line for line in lines if line.startswith("loss: ")]
    assert len(logged) == 12
    assert [line.count("trainable_ratio: ") for line in logged] == [1] * 12
    assert all(f"open_stages: {1 + i // 6}/4" in line for i, line in enumerate(logged))
    assert not [line for line in logged if "lr/" in line or "trainable_params" in line]
