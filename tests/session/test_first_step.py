"""The first step after an opening shows whether the stages are what they seem."""

from __future__ import annotations

import paddle
import pytest
from networks import Images, TwoLayers, Vectors, conv_net, fit, model_for, values
from paddle import nn
from trainers import tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.session import first_step


class Detached(nn.Layer):
    """Its encoder never gets a gradient: the forward cuts the graph above it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.encoder(x).detach())


def by_hand(network, schedule, batches, *, epochs=2):
    """Losses and lines of a loop of our own."""
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    lines, losses = [], []
    with schedule.attach(
        network, optimizer, epochs=epochs, steps_per_epoch=len(batches), say=lines.append
    ) as run:
        for _ in range(epochs):
            for batch in batches:
                loss = network(batch).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                losses.append(loss.numpy().tobytes())
                run.step()
    return losses, lines


def vectors(count=3):
    paddle.seed(1)
    return [paddle.rand([5, 4]) for _ in range(count)]


def test_an_open_stage_that_no_gradient_reaches_is_named_once_in_a_loop_of_ones_own():
    schedule = FreezeSchedule(every=1)
    _, lines = by_hand(Detached(), schedule, vectors())
    found = [line for line in lines if line.startswith("nothing reaches")]
    assert len(found) == 1
    assert found[0].startswith("nothing reaches 'encoder': it is open, and none of its weights")
    assert schedule.run.unreached == ("encoder.weight", "encoder.bias")


def test_in_fit_too(capsys):
    schedule = FreezeSchedule(every=1)
    data = Vectors()
    model_for(Detached()).fit(data, batch_size=4, epochs=2, verbose=2, callbacks=[schedule])
    assert capsys.readouterr().out.count("nothing reaches 'encoder'") == 1
    assert schedule.run.unreached == ("encoder.weight", "encoder.bias")


def test_in_a_trainer_too(tmp_path):
    network = tiny_bert()
    blocks = network.bert.encoder.layers
    blocks[1].register_forward_post_hook(lambda layer, inputs, output: output.detach())
    schedule = FreezeSchedule(every=1)
    trainer_for(network, tmp_path, [schedule], num_train_epochs=5).train()
    below = ("bert.embeddings", "bert.encoder.layers.0", "bert.encoder.layers.1")
    expected = {n for n, _ in network.named_parameters() if n.startswith(below)}
    assert set(schedule.run.unreached) == expected


@pytest.mark.parametrize("build", [TwoLayers, conv_net, tiny_bert])
def test_a_network_that_is_read_right_gets_no_line(build, tmp_path):
    schedule = FreezeSchedule(every="2 steps")
    if build is tiny_bert:
        trainer_for(build(), tmp_path, [schedule], num_train_epochs=2).train()
    else:
        fit(build(), schedule, data=Vectors() if build is TwoLayers else Images())
    assert schedule.run.unreached == ()
    assert len(schedule.history) > 1


def test_stages_in_another_order_than_they_are_used_are_named():
    schedule = FreezeSchedule(stages=["fc", "block1", "block3", "block2"], every=1)
    images = [paddle.rand([4, 1, 6, 6]) for _ in range(2)]
    _, lines = by_hand(conv_net(), schedule, images, epochs=4)
    found = [line for line in lines if line.startswith("order: ")]
    assert found == [
        "order: 'block1' opens before 'block3' but is used before it in the forward; name the "
        "stages in the order of use, head first (stages=[...])"
    ]


def test_a_schedule_that_does_not_follow_the_order_says_nothing_of_it():
    schedule = FreezeSchedule(unfreeze_at={0: "fc", 1: "block1", 2: "*"})
    images = [paddle.rand([4, 1, 6, 6]) for _ in range(2)]
    _, lines = by_hand(conv_net(), schedule, images, epochs=4)
    assert not [line for line in lines if line.startswith("order: ")]


class Tied(nn.Layer):
    """A language model whose head shares the embedding's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(9, 4)
        self.layers = nn.LayerList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.lm_head = nn.Layer()
        self.lm_head.weight = self.embeddings.weight

    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return paddle.matmul(x, self.lm_head.weight, transpose_y=True)


def test_a_tied_head_contradicts_no_order():
    schedule = FreezeSchedule(stages=["lm_head", "layers.1", "layers.0"], every=1)
    batches = [paddle.to_tensor([[1, 2], [3, 4]])] * 2
    _, lines = by_hand(Tied(), schedule, batches, epochs=3)
    assert not [line for line in lines if line.startswith(("order: ", "nothing", "no gradient"))]


class Spare(TwoLayers):
    """One layer has a weight that its forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.spare = self.fc1.create_parameter([3])


def test_one_weight_without_a_gradient_beside_others_is_named():
    schedule = FreezeSchedule(every=1)
    _, lines = by_hand(Spare(), schedule, vectors())
    assert [line for line in lines if "reaches" in line] == [
        "no gradient reaches fc1.spare in this step, unlike the rest of 'fc1'; unless other "
        "batches use it, the forward leaves it out, or its layer has none while its other "
        "weights are frozen"
    ]
    assert schedule.run.unreached == ("fc1.spare",)


def test_steps_without_any_gradient_are_not_believed_at_once():
    network = TwoLayers()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    run = FreezeSchedule(every="9 steps").attach(network, optimizer, total_steps=30)
    run.step()  # a batch that was skipped
    for _ in range(3):
        network(paddle.rand([2, 4])).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        run.step()
    run.close()
    assert run.unreached == ()


def test_watching_changes_no_number_and_leaves_no_hook(monkeypatch):
    def train():
        paddle.seed(2)
        network = conv_net()
        images = [paddle.rand([4, 1, 6, 6]) for _ in range(2)]
        losses, _ = by_hand(network, FreezeSchedule(every=1, lr_decay=2), images, epochs=4)
        hooks = sum(len(one._forward_pre_hooks) for one in network.sublayers(include_self=True))
        return losses, {name: array.tobytes() for name, array in values(network).items()}, hooks

    watched = train()
    monkeypatch.setattr(first_step.FirstStep, "__init__", _blind)
    assert watched == train()
    assert watched[2] == 0


def _blind(self, network, members, began, *, ordered):
    self.began, self._open, self._stages, self._reached = began, {}, (), {"all"}
    self._first, self._last, self._handles = {}, {}, []


def test_the_hooks_come_off_after_the_first_step():
    network = TwoLayers()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    run = FreezeSchedule().attach(network, optimizer, total_steps=30)
    counts = []
    for _ in range(3):
        counts.append(len(network.fc2._forward_pre_hooks))
        network(paddle.rand([2, 4])).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        run.step()
    run.close()
    assert counts[0] > counts[1] == counts[2]
