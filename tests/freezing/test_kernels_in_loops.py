"""Layers with incomplete kernels under a schedule, in each loop, against training by other means.

The reference trains with everything open and throws the gradients of what should be frozen away
before the optimizer steps: no kernel ever sees a frozen weight. Momentum, weight decay and the
global norm of the gradients would each show a gradient that should not be there.
"""

from __future__ import annotations

import re

import numpy as np
import paddle
import processes
import pytest
from networks import Images, moved, values
from paddle import nn
from trainers import InOrder, TrainerCallback, trainer_for

from paddle_freeze_callback import FreezeSchedule

STEPS, EPOCHS = 3, 4


class Reads(nn.Layer):
    """The rows of an image one after the other."""

    def __init__(self, kind=nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 4)
        self.rnn = kind(4, 3, num_layers=2, direction="bidirect")
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.rnn(self.embed(x[:, 0]))[0].mean(1))


class Neck(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.lstm = nn.Linear(4, 4), nn.LSTM(4, 4, num_layers=2)

    def forward(self, x):
        return self.lstm(self.squeeze(x))[0]


class Recognizer(nn.Layer):
    """Convolutions, a recurrent neck over the columns, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2D(1, 4, 3, padding=1), nn.ReLU())
        self.neck = Neck()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        columns = self.backbone(x).mean(2).transpose([0, 2, 1])
        return self.head(self.neck(columns).mean(1))


def blocks(norm, *, first: bool) -> nn.Layer:
    """Two blocks, each with a norm before or after its convolution and a PReLU, and a head."""

    def block(channels: int) -> nn.Layer:
        conv = nn.Conv2D(channels, 4, 3, padding=1)
        return nn.Sequential(
            *([("norm", norm(channels)), ("conv", conv)] if first else []),
            *([] if first else [("conv", conv), ("norm", norm(4))]),
            ("act", nn.PReLU()),
        )

    return nn.Sequential(
        ("block1", block(1)),
        ("block2", block(4)),
        ("pool", nn.AdaptiveAvgPool2D(1)),
        ("flat", nn.Flatten()),
        ("head", nn.Linear(4, 2)),
    )


# A network, what the schedule opens when, and what is open in each epoch as a regular expression.
CASES = {
    "LSTM": (
        Reads,
        {0: "fc", 1: "rnn.weight_hh_l1", 2: ["re:rnn\\.bias.*"], 3: {"freeze": "rnn.weight_hh_l1"}},
        ["fc", r"fc|rnn\.weight_hh_l1$", r"fc|rnn\.weight_hh_l1$|rnn\.bias",
         r"fc|rnn\.bias"],
    ),
    "GRU": (
        lambda: Reads(nn.GRU),
        {0: "fc", 1: "rnn.1", 2: "embed", 3: "*"},
        ["fc", r"fc|rnn\..*_l1", r"fc|rnn\..*_l1|embed", ""],
    ),
    "SimpleRNN": (
        lambda: Reads(nn.SimpleRNN),
        {0: "embed", 1: "rnn.weight_ih_l0", 2: {"freeze": "embed"}, 3: "*"},
        ["embed", r"embed|rnn\.weight_ih_l0$", r"rnn\.weight_ih_l0$", ""],
    ),
    "CRNN": (
        Recognizer,
        {0: "head", 1: "backbone", 2: {"freeze": "head"}, 3: "neck"},
        ["head", "head|backbone", "backbone", "backbone|neck"],
    ),
    "pre-norm InstanceNorm": (
        lambda: blocks(nn.InstanceNorm2D, first=True),
        {0: "head", 1: "block2", 2: {"unfreeze": "block1", "freeze": "block2.conv"}, 3: "*"},
        ["head", "head|block2", r"head|block1|block2\.(norm|act)", ""],
    ),
    "biases, InstanceNorm": (
        lambda: blocks(nn.InstanceNorm2D, first=False),
        {0: ["head", "**.bias"], 2: "*"},
        [r"head|.*bias", r"head|.*bias", "", ""],
    ),
    "biases, BatchNorm": (
        lambda: blocks(nn.BatchNorm2D, first=False),
        {0: ["head", "**.bias"], 2: "*"},
        [r"head|.*bias", r"head|.*bias", "", ""],
    ),
    "scales, BatchNorm": (
        lambda: blocks(nn.BatchNorm2D, first=True),
        {0: ["head", "re:.*norm\\.weight"], 3: ["block2.act", "block2.norm"]},
        [r"head|.*norm\.weight"] * 3 + [r"head|.*norm\.weight|block2\.(act|norm)"],
    ),
}  # fmt: skip


def made(case: str) -> nn.Layer:
    paddle.seed(5)
    return CASES[case][0]()


def is_open(case: str, epoch: int, name: str) -> bool:
    return re.match(CASES[case][2][epoch], name) is not None


def optimizer_for(network: nn.Layer) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.Momentum(
        0.1, parameters=network.parameters(), weight_decay=0.05,
        grad_clip=nn.ClipGradByGlobalNorm(0.5),
    )  # fmt: skip


def batches() -> list[tuple[paddle.Tensor, paddle.Tensor]]:
    loader = paddle.io.DataLoader(Images(4 * STEPS), batch_size=4, shuffle=False)
    return list(loader)


def discard(case: str, network: nn.Layer, epoch: int) -> None:
    """Throw away the gradients of what should be frozen."""
    for name, parameter in network.named_parameters():
        if not parameter.stop_gradient and not is_open(case, epoch, name):
            parameter.clear_gradient(False)


def reference(case: str) -> tuple[nn.Layer, list[dict[str, np.ndarray]]]:
    """The network, trained with everything open, and its state after each epoch."""
    network = made(case)
    optimizer = optimizer_for(network)
    epochs = []
    network.train()
    for epoch in range(EPOCHS):
        for images, labels in batches():
            images.stop_gradient = False  # for InstanceNorm and PReLU
            nn.functional.cross_entropy(network(images), labels).backward()
            discard(case, network, epoch)
            optimizer.step()
            for parameter in network.parameters():
                parameter.clear_gradient(False)
        epochs.append(values(network))
    return network, epochs


class Notes(paddle.callbacks.Callback):
    """The network's state after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, np.ndarray]] = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(values(self.model.network))


def by_hand(case: str, schedule: FreezeSchedule) -> list[dict[str, np.ndarray]]:
    network = made(case)
    optimizer = optimizer_for(network)
    epochs = []
    with schedule.attach(network, optimizer, epochs=EPOCHS, steps_per_epoch=STEPS) as freezing:
        for _ in range(EPOCHS):
            for images, labels in batches():
                network.train()
                nn.functional.cross_entropy(network(images), labels).backward()
                assert all(p.grad is None for p in network.parameters() if p.stop_gradient)
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
            epochs.append(values(network))
    return epochs


def by_fit(case: str, schedule: FreezeSchedule) -> list[dict[str, np.ndarray]]:
    network, notes = made(case), Notes()
    model = paddle.Model(network)
    model.prepare(optimizer_for(network), nn.CrossEntropyLoss())
    model.fit(
        Images(4 * STEPS), epochs=EPOCHS, batch_size=4, shuffle=False, verbose=0,
        callbacks=[schedule, notes],
    )  # fmt: skip
    return notes.epochs


def assert_still(case: str, epochs: list[dict[str, np.ndarray]]) -> None:
    """Bit for bit what was frozen, and not what was open."""
    network = made(case)
    names = {name for name, tensor in network.named_parameters() if not tensor.stop_gradient}
    for epoch, (before, after) in enumerate(zip([values(network), *epochs], epochs)):
        open_now = {name for name in names if is_open(case, epoch, name)}
        assert moved(before, after) & names == open_now, f"epoch {epoch}"


def assert_near(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, 1e-4, 1e-6, err_msg=name)


@pytest.mark.parametrize("loop", [by_hand, by_fit])
@pytest.mark.parametrize("case", CASES)
def test_what_is_open_trains_as_by_other_means_and_what_is_frozen_is_still(case, loop):
    _, wanted = reference(case)
    # statistics of a norm that is frozen whole would be held: not what the reference does
    schedule = FreezeSchedule(unfreeze_at=CASES[case][1], verify=True, frozen_norm="train")
    found = loop(case, schedule)
    assert_still(case, found)
    for one, other in zip(found, wanted):
        assert_near(one, other)


@pytest.mark.parametrize("case", ["LSTM", "GRU", "CRNN"])
def test_a_held_frozen_rnn_trains_what_is_below_it_the_same(case):
    """By default it runs in eval mode, in which its kernel has no backward at all."""
    _, wanted = reference(case)
    found = by_hand(case, FreezeSchedule(unfreeze_at=CASES[case][1], verify=True))
    assert_still(case, found)
    assert_near(found[-1], wanted[-1])


class Rows(paddle.io.Dataset):
    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, index: int) -> dict:
        image, label = Images()[index]
        return {"inputs": image, "labels": label}


class Plain(InOrder):
    """A Trainer for a network that gives logits."""

    def compute_loss(self, model, inputs, return_outputs=False, **options):
        images = inputs["inputs"]
        images.stop_gradient = not getattr(self, "wants", False)
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, inputs["labels"])
        return (loss, logits) if return_outputs else loss


class Discard(TrainerCallback):
    """The reference's way, as a callback."""

    def __init__(self, case: str) -> None:
        self.case = case

    def on_optimizer_begin(self, args, state, control, model=None, **kwargs):
        discard(self.case, model, state.global_step // STEPS)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            parameter.clear_gradient(False)


class States(TrainerCallback):
    def __init__(self) -> None:
        self.epochs: list[dict[str, np.ndarray]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % STEPS == 0:
            self.epochs.append(values(model))


@pytest.mark.parametrize(
    "case", ["LSTM", "CRNN", "pre-norm InstanceNorm", "biases, BatchNorm", "biases, InstanceNorm"]
)
def test_under_a_trainer_too(tmp_path, case):
    flags = {
        "data": Rows(), "kind": Plain, "num_train_epochs": EPOCHS, "learning_rate": 0.01,
        "weight_decay": 0.1, "max_grad_norm": 0.5,
    }  # fmt: skip
    other = States()
    trainer = trainer_for(made(case), tmp_path / "other", [Discard(case), other], **flags)
    trainer.wants = True
    trainer.train()
    schedule = FreezeSchedule(unfreeze_at=CASES[case][1], verify=True, frozen_norm="train")
    states = States()
    trainer_for(made(case), tmp_path / "own", [schedule, states], **flags).train()
    assert_still(case, states.epochs)
    for found, wanted in zip(states.epochs, other.epochs):
        assert_near(found, wanted)


def test_an_lstm_from_the_kernel_trains_as_one_from_cells():
    """Cells are made of ordinary operations, so Paddle itself can freeze any part of them."""

    class FromCells(nn.Layer):
        def __init__(self, source: Reads) -> None:
            super().__init__()
            self.embed, self.rnn, self.fc = source.embed, nn.LayerList(source.rnn), source.fc

        def forward(self, x):
            x = self.embed(x[:, 0])
            for layer in self.rnn:
                x, _ = layer(x)
            return self.fc(x.mean(1))

    plan = {0: "fc", 1: "re:rnn\\.1\\..*weight_hh", 2: "embed", 3: "*"}
    ends = []
    for network in (made("LSTM"), FromCells(made("LSTM"))):
        optimizer = optimizer_for(network)
        with FreezeSchedule(unfreeze_at=plan, verify=True).attach(
            network, optimizer, epochs=EPOCHS, steps_per_epoch=STEPS
        ) as freezing:
            for images, labels in batches() * EPOCHS:
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
        ends.append(values(network))
    fused, cells = ends
    assert_near(fused, cells)


def test_verify_sees_a_frozen_rnn_weight_that_somebody_moved():
    network = made("LSTM")
    optimizer = optimizer_for(network)
    schedule = FreezeSchedule(unfreeze_at={0: ["fc", "rnn.weight_hh_l1"]}, verify=True)
    freezing = schedule.attach(network, optimizer, total_steps=2)
    for images, labels in batches()[:2]:
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.clear_grad()
        freezing.step()
    network.rnn.weight_ih_l0.scale_(1.5)
    with pytest.raises(RuntimeError, match=r"rnn\.weight_ih_l0 moved although it is frozen"):
        freezing.close()


@pytest.mark.parametrize("case", ["LSTM", "biases, BatchNorm"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, case):
    plan = CASES[case][1]

    def run(network, optimizer, start, stop, **resume):
        schedule = FreezeSchedule(unfreeze_at=plan, verify=True)
        data = batches()
        with schedule.attach(
            network, optimizer, epochs=EPOCHS, steps_per_epoch=STEPS, step=start
        ) as freezing:
            for at in range(start, stop):
                images, labels = data[at % STEPS]
                network.train()
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()

    whole = made(case)
    run(whole, optimizer_for(whole), 0, STEPS * EPOCHS)
    for stop in (STEPS, STEPS + 1):
        first = made(case)
        optimizer = optimizer_for(first)
        run(first, optimizer, 0, stop)
        second = made(case)
        second.set_state_dict(first.state_dict())
        for a, b in zip(first.parameters(), second.parameters()):
            b.name = a.name
        resumed = optimizer_for(second)
        resumed.set_state_dict(optimizer.state_dict())
        run(second, resumed, stop, STEPS * EPOCHS)
        assert not moved(values(whole), values(second))


def test_gradients_scaled_for_mixed_precision_pass_too():
    network = made("CRNN")
    optimizer = optimizer_for(network)
    scaler = paddle.amp.GradScaler(init_loss_scaling=8.0)
    before = values(network)
    with FreezeSchedule(unfreeze_at={0: "backbone"}, verify=True).attach(
        network, optimizer, total_steps=3
    ) as freezing:
        for images, labels in batches():
            network.train()
            with paddle.amp.auto_cast():
                loss = nn.functional.cross_entropy(network(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()
            freezing.step()
    assert moved(before, values(network)) == {"backbone.0.weight", "backbone.0.bias"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_train_the_same(reentrant):
    class Recomputes(Reads):
        def forward(self, x):
            x = self.embed(x[:, 0])
            recompute = paddle.distributed.fleet.utils.recompute
            outputs = recompute(lambda given: self.rnn(given)[0], x, use_reentrant=reentrant)
            return self.fc(outputs.mean(1))

    ends = []
    for kind in (Reads, Recomputes):
        paddle.seed(5)
        network = kind()
        optimizer = optimizer_for(network)
        plan = {0: ["fc", "embed"], "3 steps": "rnn.weight_hh_l1"}
        with FreezeSchedule(unfreeze_at=plan, verify=True).attach(
            network, optimizer, total_steps=6
        ) as freezing:
            for images, labels in batches() * 2:
                network.train()
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
        ends.append(values(network))
    assert_near(*ends)


def test_a_cached_prefix_with_an_rnn_changes_nothing():
    ends = []
    for cache in (None, "memory"):
        schedule = FreezeSchedule(unfreeze_at={0: "head", 2: "neck"}, cache=cache)
        ends.append(by_fit("CRNN", schedule)[-1])
    assert schedule.run.cache.hits > 0
    assert_near(*ends)


def test_two_processes_equal_each_other_and_one(tmp_path):
    ends = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        ends += processes.run("kernels.py", str(folder), ranks=ranks, folder=folder)
    single, first, second = ends
    assert not moved(first, second)
    assert_near(first, single)


def patched(network: nn.Layer) -> list:
    return [
        (set(layer.__dict__), len(layer._forward_pre_hooks), len(layer._forward_post_hooks))
        for layer in network.sublayers(include_self=True)
    ]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_after_a_run(case):
    network = made(case)
    found = patched(network)
    schedule = FreezeSchedule(unfreeze_at=CASES[case][1])
    with schedule.attach(network, optimizer_for(network), epochs=1, steps_per_epoch=STEPS):
        assert patched(network) != found
    assert patched(network) == found
