"""Networks of the zoo under a schedule: frozen things stand still, opened ones move."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from networks import moved, values
from paddle import nn
from trainers import LIBRARY, TrainerCallback, trainer_for
from trainers import Trainer as PlainTrainer

sys.path.insert(0, str(Path(__file__).parent))

import libraries
import own

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.cache.nested import tensors
from paddle_freeze_callback.stages import partition

# Networks with huge layers: what they show, a smaller one shows, too.
TOO_LARGE = {"vgg11 with a new last layer", "vgg11 with a classifier of one's own"}


def readable() -> list[str]:
    """Networks as users write them that have automatic stages."""
    listing = (Path(__file__).parent / "users.txt").read_text(encoding="utf-8").splitlines()
    read = {line.split(": ")[0] for line in listing if ": refused" not in line}
    here = set(own.NETWORKS) - (set() if LIBRARY == "paddlenlp" else own.OF_PADDLENLP)
    return sorted((here & read) - TOO_LARGE)


def loss_of(output) -> paddle.Tensor:
    """Something that depends on all of an output."""
    found = [one for one in tensors(output) if one.is_floating_point() and not one.stop_gradient]
    return sum((one.astype("float32") - 0.3).square().mean() for one in found)


class Seen:
    """What moved in each step, beside what was open in it."""

    def __init__(self, network: nn.Layer) -> None:
        self.network = network
        self.before = values(network)
        self.ever: set[str] = set()

    def step(self, run) -> None:
        after = values(self.network)
        changed = moved(self.before, after)
        members = {s.name: set(s.parameters) for s in run.stages}
        frozen = set().union(*(members[n] for n in members if n not in run.open_stages))
        assert not changed & frozen
        self.ever |= changed
        self.before = after

    def check(self, run) -> None:
        """Every stage that opened has moved, but for weights that no gradient reaches."""
        opened = {name for change in run.history for name in change.opened}
        for stage in run.stages:
            reached = set(stage.parameters) - set(run.unreached)
            if stage.name in opened and reached:
                assert reached & self.ever, stage.name


def schedule_for(network: nn.Layer) -> tuple[FreezeSchedule, int]:
    """One more stage a step, and how many steps that takes."""
    return FreezeSchedule(every="1 step", verify=True), len(partition(network)) + 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", readable())
def test_frozen_stages_stand_still_and_opened_ones_move_in_a_loop_of_ones_own(name):
    build, inputs = own.NETWORKS[name]
    paddle.seed(1)
    network = build()
    network.train()
    schedule, steps = schedule_for(network)
    optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
    seen = Seen(network)
    with schedule.attach(network, optimizer, total_steps=steps) as run:
        for _ in range(steps):
            loss_of(network(*inputs())).backward()
            optimizer.step()
            optimizer.clear_grad()
            seen.step(run)
            run.step()
        seen.check(run)


class Rows(paddle.io.Dataset):
    """The rows of one batch, over and over, with a label that nothing asks for."""

    def __init__(self, inputs) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int):
        return *(one.numpy()[index % one.shape[0]] for one in self.inputs), np.zeros(1, "int64")


IN_FIT = ["intent and slots", "CRNN with an LSTM", "attentions, norms and feed-forwards in lists"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*IN_FIT, "vgg"])
def test_two_epochs_of_fit(name):
    paddle.seed(1)
    if name == "vgg":
        layers = paddle.vision.models.vgg.make_layers([4, "M", 8, "M", 512])
        network = paddle.vision.models.VGG(layers)
        network.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        )
        inputs = (paddle.rand([2, 3, 28, 28]),)
    else:
        if name in own.OF_PADDLENLP and LIBRARY != "paddlenlp":
            pytest.skip("built around a model of PaddleNLP")
        build, made = own.NETWORKS[name]
        network, inputs = build(), made()
    model = paddle.Model(network)
    model.prepare(
        paddle.optimizer.AdamW(0.01, parameters=network.parameters()),
        lambda *outputs: loss_of(outputs[:-1]),
    )
    schedule = FreezeSchedule(every="1 step", verify=True)
    seen = Seen(network)

    class Look(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            seen.step(schedule.run)

    model.fit(Rows(inputs), batch_size=4, epochs=2, verbose=0, callbacks=[schedule, Look()])
    seen.check(schedule.run)
    assert len(schedule.history) == len(schedule.run.stages)


IN_A_TRAINER = [
    ("t5", "T5ForConditionalGeneration"),
    ("clip", "CLIPModel"),
    ("xlm", "XLMForSequenceClassification"),
    ("bert", "BertForPretraining"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "name"), IN_A_TRAINER)
def test_two_epochs_of_a_trainer(family, name, tmp_path):
    try:
        module = importlib.import_module(f"{LIBRARY}.transformers.{family}.modeling")
    except ImportError as missing:
        pytest.skip(f"no {family} here: {missing}")
    paddle.seed(1)
    network = libraries.build(f"{family}.{name}", getattr(module, name))
    forward = libraries.call(network)

    class Closed(PlainTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **options):
            return loss_of(forward())

    schedule = FreezeSchedule(every="1 step", verify=True)
    seen = Seen(network)

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **context):
            seen.step(schedule.run)

    trainer = trainer_for(
        network, tmp_path, [schedule, Look()], kind=Closed, num_train_epochs=2, weight_decay=0.1
    )
    trainer.train()
    seen.check(schedule.run)
    assert len(schedule.history) == len(schedule.run.stages)


def test_a_lora_model_of_paddleformers_trains_two_epochs():
    if LIBRARY != "paddleformers":
        pytest.skip("for PaddleFormers")
    peft = pytest.importorskip("paddleformers.peft")
    from trainers import PlainBert

    config = peft.LoRAConfig(target_modules=[".*linear1.*", ".*linear2.*"], r=2, lora_alpha=4)
    base = PlainBert()
    base.config = type("Config", (), {"tensor_model_parallel_size": 1})()
    try:
        network = peft.LoRAModel(base, config)
    except Exception as refused:  # it wants models of its own library
        pytest.skip(f"PaddleFormers' LoRAModel takes no plain network: {refused!r}"[:120])
    network.mark_only_lora_as_trainable()
    network.model.classifier.weight.stop_gradient = False
    schedule = FreezeSchedule(every="1 step", verify=True)
    seen = Seen(network)

    optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
    ids = paddle.to_tensor([[3, 4, 5, 6], [7, 8, 9, 3]])
    with schedule.attach(network, optimizer, epochs=2, steps_per_epoch=6) as run:
        for _ in range(12):
            loss_of(network(ids)).backward()
            optimizer.step()
            optimizer.clear_grad()
            seen.step(run)
            run.step()
        seen.check(run)
