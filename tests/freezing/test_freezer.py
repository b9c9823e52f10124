"""How a network is made to be as scheduled, and how that is undone."""

from __future__ import annotations

import copy
import gc
import re
import weakref

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TwoLayers, conv_net, moved, open_names, values
from paddle import nn

from paddle_freeze_callback import FreezeSchedule, freeze, trainable_ratio, unfreeze
from paddle_freeze_callback.freezing.freezer import Freezer
from paddle_freeze_callback.stages.partition import Survey, partition
from paddle_freeze_callback.stages.weights import weights


def freezer_for(network, **manners) -> Freezer:
    openable = [weight.name for weight in weights(network) if weight.trains]
    return Freezer(Survey(network), partition(network), openable, **manners)


def train_once(network, *, rate=0.1, shape=(4, 1, 6, 6)) -> None:
    """One step as both loops do it: train mode, forward, backward, step, clear."""
    optimizer = paddle.optimizer.SGD(rate, parameters=network.parameters())
    network.train()
    paddle.seed(0)
    network(paddle.randn(shape)).square().sum().backward()
    optimizer.step()
    optimizer.clear_grad()


def flags(network) -> dict[str, bool]:
    return {name: tensor.stop_gradient for name, tensor in network.named_parameters()}


def test_frozen_stages_do_not_move_bit_for_bit_and_open_ones_do():
    network = conv_net()
    freezer_for(network).apply(["head", "block3"])
    before = values(network)
    train_once(network)
    changed = moved(before, values(network))
    assert changed == {
        "block3.0.weight", "block3.0.bias", "block3.1.weight", "block3.1.bias",
        "block3.1._mean", "block3.1._variance", "fc.weight", "fc.bias",
    }  # fmt: skip


def test_running_statistics_drift_without_the_cure():
    network = conv_net()
    freezer_for(network, frozen_norm="train").apply(["head"])
    before = values(network)
    train_once(network)
    assert "block1.1._mean" in moved(before, values(network))


def test_a_held_batch_norm_gives_the_output_of_eval_mode():
    network = conv_net()
    freezer_for(network).apply(["head"])
    images = paddle.randn([4, 1, 6, 6])
    network.train()
    trained = network(images).numpy()
    network.eval()
    np.testing.assert_array_equal(trained, network(images).numpy())


@pytest.mark.parametrize("asked", [None, True, False])
def test_use_global_stats_is_put_back_as_the_user_set_it(asked):
    network = nn.Sequential(nn.Conv2D(1, 2, 3), nn.BatchNorm2D(2, use_global_stats=asked))
    network = nn.Sequential(("body", network), ("flat", nn.Flatten()), ("head", nn.Linear(32, 2)))
    freezer = freezer_for(network)
    freezer.apply(["head"])
    before = values(network)
    train_once(network)
    assert not {name for name in moved(before, values(network)) if name.startswith("body")}
    freezer.apply(["head", "body"])
    assert network.body[1]._use_global_stats is asked
    freezer.apply(["head"])
    freezer.restore()
    assert network.body[1]._use_global_stats is asked


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1D, (4, 3)), (nn.BatchNorm2D, (4, 3, 2, 2)), (nn.BatchNorm3D, (4, 3, 2, 2, 2))],
)
def test_batch_norm_of_every_dimension_stands_still(norm, shape):
    network = nn.Sequential(norm(3), nn.Flatten(), nn.Linear(int(np.prod(shape[1:])), 1))
    freezer_for(network).apply(["head"])
    before = values(network)
    train_once(network, shape=shape)
    assert moved(before, values(network)) == {"2.weight", "2.bias"}


class OwnNorm(nn.Layer):
    """A normalization written by hand, with statistics in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.create_parameter([4])
        self.register_buffer("running_mean", paddle.zeros([4]))

    def forward(self, x):
        if self.training:
            self.running_mean.set_value(0.9 * self.running_mean + 0.1 * x.mean(0))
        return (x - self.running_mean) * self.scale


def test_statistics_of_a_hand_written_norm_stand_still_too():
    network = nn.Sequential(("norm", OwnNorm()), ("head", nn.Linear(4, 1)))
    freezer = freezer_for(network)
    freezer.apply(["head"])
    before = values(network)
    train_once(network, shape=(5, 4))
    assert moved(before, values(network)) == {"head.weight", "head.bias"}
    assert network.norm.training  # the loop's own flag is not touched between forwards
    freezer.restore()
    train_once(network, shape=(5, 4))
    assert "norm.running_mean" in moved(before, values(network))


def test_a_norm_without_weights_follows_the_layer_before_it():
    network = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1D(4, weight_attr=False, bias_attr=False), nn.Linear(4, 1)
    )
    freezer_for(network).apply(["head"])
    before = values(network)
    train_once(network, shape=(5, 4))
    assert moved(before, values(network)) == {"2.weight", "2.bias"}


def dropout_net():
    block = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
    return nn.Sequential(("block", block), ("drop", nn.Dropout(0.5)), ("head", nn.Linear(64, 2)))


@pytest.mark.parametrize(("mode", "dropped"), [("eval", False), ("train", True)])
def test_frozen_dropout_decides_about_dropout_inside_frozen_layers(mode, dropped):
    network = dropout_net()
    freezer = freezer_for(network, frozen_dropout=mode)
    freezer.apply(["head"])
    network.train()
    inside = network.block(paddle.ones([2, 4]))
    assert bool((inside == 0).any()) == dropped
    assert bool((network.drop(paddle.ones([2, 64])) == 0).any())  # it regularizes the head
    freezer.apply(["head", "block"])
    assert bool((network.block(paddle.ones([2, 4])) == 0).any())


def test_functional_dropout_of_an_attention_layer_is_switched_off_too():
    network = nn.Sequential(
        ("block", nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5)), ("head", nn.Linear(8, 2))
    )
    freezer_for(network, frozen_dropout="eval").apply(["head"])
    network.train()
    tokens = paddle.randn([2, 3, 8])
    np.testing.assert_array_equal(network.block(tokens).numpy(), network.block(tokens).numpy())


def test_a_stale_gradient_does_not_come_back_after_unfreezing():
    network = conv_net()
    freezer = freezer_for(network)
    freezer.apply(["head", "block3"])
    network(paddle.randn([2, 1, 6, 6])).sum().backward()
    assert network.block3[0].weight.grad is not None
    freezer.apply(["head"])
    assert network.block3[0].weight.grad is None
    freezer.apply(["head", "block3"])
    assert network.block3[0].weight.grad is None
    assert network.fc.weight.grad is not None


def test_what_the_user_froze_stays_frozen_and_is_left_as_found():
    network = conv_net()
    network.block3[0].weight.stop_gradient = True
    before = flags(network)
    freezer = freezer_for(network)
    freezer.apply([stage.name for stage in partition(network)])
    assert flags(network) == before
    freezer.apply(["head"])
    freezer.restore()
    assert flags(network) == before
    freezer.restore()
    assert flags(network) == before


@pytest.mark.parametrize("part", ["block3", "block3.1"])
def test_what_the_user_froze_inside_a_stage_stands_still_when_the_stage_is_open(part):
    """Weights and running statistics: "frozen" is a matter of the weight, not of the stage."""
    network = conv_net()
    for name, tensor in network.named_parameters():
        if name.startswith((f"{part}.", "block2.1.")):
            tensor.stop_gradient = True
    openable = [weight.name for weight in weights(network) if weight.trains]
    freezer = Freezer(Survey(network), partition(network, ["fc", ["block3", "block2"]]), openable)
    freezer.apply(["fc", "block3 + block2"])
    before = values(network)
    train_once(network)
    changed = moved(before, values(network))
    assert "block2.0.weight" in changed
    assert not [name for name in changed if name.startswith((f"{part}.", "block2.1."))]


stage_sets = st.sets(st.sampled_from(["head", "block3", "block2", "block1"]))


@settings(max_examples=40, deadline=None)
@given(st.lists(stage_sets, min_size=1, max_size=5))
def test_applying_is_idempotent_and_converges_from_any_state(sequence):
    def state(network):
        norms = [network.block1[1], network.block2[1], network.block3[1]]
        return flags(network), [norm._use_global_stats for norm in norms]

    network, fresh = conv_net(), conv_net()
    found = state(network)
    freezer = freezer_for(network)
    for stages in sequence:
        freezer.apply(stages)
    reached = state(network)
    freezer.apply(sequence[-1])
    assert state(network) == reached
    freezer_for(fresh).apply(sequence[-1])
    assert state(fresh) == reached
    assert freezer.count()[0] == sum(
        tensor.size for tensor in network.parameters() if not tensor.stop_gradient
    )
    freezer.restore()
    assert state(network) == found


def test_a_copy_and_a_saved_state_in_the_middle_of_training_work():
    network = conv_net()
    keys = list(network.state_dict())
    freezer = freezer_for(network, frozen_dropout="eval")
    freezer.apply(["head"])
    assert list(network.state_dict()) == keys
    twin = copy.deepcopy(network)
    images = paddle.randn([2, 1, 6, 6])
    network.train()
    twin.train()
    np.testing.assert_array_equal(twin(images).numpy(), network(images).numpy())
    freezer.restore()
    assert all(block.training for block in network.sublayers())


def test_an_error_inside_a_frozen_layer_leaves_its_mode_as_it_was():
    class Fails(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            raise RuntimeError("broken")

    network = nn.Sequential(("body", Fails()), ("head", nn.Linear(2, 1)))
    freezer = freezer_for(network, frozen_dropout="eval")
    freezer.apply(["head"])
    network.train()
    with pytest.raises(RuntimeError, match="broken"):
        network(paddle.ones([1, 2]))
    freezer.restore()
    assert network.body.training


def test_spectral_norm_under_a_frozen_layer_stands_still():
    normed = nn.utils.spectral_norm(nn.Linear(4, 4))
    network = nn.Sequential(("body", normed), ("head", nn.Linear(4, 2)))
    freezer = freezer_for(network)
    freezer.apply(["head"])
    network.train()
    network(paddle.ones([2, 4]))
    before = values(network)
    sums = freezer.checksums()
    assert "body.weight_u" in sums
    for _ in range(3):
        train_once(network, shape=(2, 4))
    assert moved(before, values(network)) == {"head.weight", "head.bias"}
    assert freezer.checksums() == sums
    freezer.restore()
    train_once(network, shape=(2, 4))
    assert "body.weight_u" in moved(before, values(network))


def test_buffers_that_move_in_training_stand_still_in_a_frozen_layer():
    class Average(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("ema", paddle.zeros([4]))

        def forward(self, x):
            if self.training:
                self.ema.set_value(0.5 * self.ema + 0.5 * x.mean(0))
            return self.fc(x)

    network = nn.Sequential(("body", Average()), ("head", nn.Linear(4, 2)))
    freezer_for(network).apply(["head"])
    before = values(network)
    train_once(network, shape=(2, 4))
    assert moved(before, values(network)) == {"head.weight", "head.bias"}


def test_vectors_of_a_spectral_norm_layer_are_no_weights():
    network = nn.Sequential(nn.Linear(4, 4), nn.SpectralNorm([4, 4]))
    assert [weight.name for weight in weights(network)] == ["0.weight", "0.bias"]


def test_dropout_between_two_frozen_layers_of_a_flat_network_is_switched_off():
    network = nn.Sequential(
        nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 2)
    )
    freezer_for(network, frozen_dropout="eval").apply(["head"])
    network.train()
    ones = paddle.ones([2, 64])
    assert not (network[1](ones) == 0).any()
    assert (network[3](ones) == 0).any()  # it regularizes the head


def test_a_static_graph_is_refused_everywhere():
    paddle.enable_static()
    try:
        network = TwoLayers()
        for call in (lambda: freeze(network, "fc1"), lambda: trainable_ratio(network)):
            with pytest.raises(ValueError, match="freezing needs dynamic mode"):
                call()
    finally:
        paddle.disable_static()


# ---------------------------------------------------------------- by hand


def test_freeze_takes_the_names_of_automatic_stages_too():
    network = conv_net()
    assert freeze(network, "head") == ("fc.weight", "fc.bias")
    assert unfreeze(network, "head") == ("fc.weight", "fc.bias")
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        freeze(nn.ReLU())


def test_freeze_and_unfreeze_by_hand_hold_weights_and_statistics():
    network = conv_net()
    assert freeze(network, "block1")[0] == "block1.0.weight"
    assert freeze(network, ["block2", "block3"])[-1] == "block3.1.bias"
    assert open_names(network) == ["fc.weight", "fc.bias"]
    assert trainable_ratio(network) == 10 / sum(weight.numel for weight in weights(network))
    before = values(network)
    train_once(network)
    assert moved(before, values(network)) == {"fc.weight", "fc.bias"}
    assert len(unfreeze(network, "block3")) == 4
    before = values(network)
    train_once(network)
    assert "block3.1._mean" in moved(before, values(network))
    assert "block2.1._mean" not in moved(before, values(network))
    unfreeze(network)
    assert trainable_ratio(network) == 1.0


def test_unfreezing_everything_does_not_open_what_something_else_froze():
    network = TwoLayers()
    network.fc1.weight.stop_gradient = True
    freeze(network)
    unfreeze(network)
    assert open_names(network) == ["fc1.bias", "fc2.weight", "fc2.bias"]
    unfreeze(network, "fc1")
    assert network.fc1.weight.stop_gradient  # beside something that trains: not asked for by name
    assert unfreeze(network, "fc1.weight") == ("fc1.weight",)
    assert trainable_ratio(network) == 1.0


def test_unfreezing_a_layer_that_the_user_froze_whole_opens_it():
    network = TwoLayers()
    for tensor in network.fc1.parameters():
        tensor.stop_gradient = True
    assert unfreeze(network, "fc1") == ("fc1.weight", "fc1.bias")


def test_a_schedule_leaves_what_freeze_froze():
    network = conv_net()
    freeze(network, "block1")
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with FreezeSchedule(every="1 step").attach(network, optimizer, total_steps=9) as freezing:
        for _ in range(5):
            train_once(network)
            freezing.step()
        assert "block1.0.weight" not in open_names(network)
        assert "block2.0.weight" in open_names(network)
    before = values(network)
    train_once(network)
    assert not [name for name in moved(before, values(network)) if name.startswith("block1")]
    unfreeze(network)
    assert trainable_ratio(network) == 1.0


# ---------------------------------------------------------------- hand-written loops


def attach(network, schedule, **lengths):
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    return schedule.attach(network, optimizer, **{"total_steps": 8, **lengths})


def test_a_hand_written_loop_goes_through_the_schedule_and_leaves_the_network_as_found():
    network = conv_net()
    schedule = FreezeSchedule(every="2 steps")
    seen = []
    with attach(network, schedule) as freezing:
        for _ in range(8):
            seen.append(len(freezing.open_stages))
            train_once(network)
            freezing.step()
    assert seen == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [t.step for t in schedule.history] == [0, 2, 4, 6]
    assert trainable_ratio(network) == 1.0
    assert network.block1[1]._use_global_stats is None


def test_a_loop_continued_at_a_step_is_where_the_schedule_says():
    network = conv_net()
    with attach(network, FreezeSchedule(every="2 steps"), step=5) as freezing:
        assert freezing.open_stages == ("head", "block3", "block2")
        freezing.step()
        assert freezing.open_stages == ("head", "block3", "block2", "block1")
    assert [(t.step, t.opened) for t in freezing.history] == [
        (5, ("head", "block3", "block2")),
        (6, ("block1",)),
    ]


def test_lines_go_to_the_logger_or_where_the_user_says(caplog):
    network = conv_net()
    lines: list[str] = []
    with attach(network, FreezeSchedule(), say=lines.append):
        pass
    assert lines == [
        "step 0, epoch 0: opens head; freezes block3, block2, block1; "
        "10 of 370 parameters train (2.7%)"
    ]
    with caplog.at_level("INFO", logger="paddle_freeze_callback"):
        attach(network, FreezeSchedule()).close()
    assert caplog.messages == lines


def test_a_network_is_put_back_when_the_run_is_thrown_away():
    network = conv_net()
    freezing = attach(network, FreezeSchedule())
    assert trainable_ratio(network) < 1
    del freezing
    gc.collect()
    assert trainable_ratio(network) == 1.0
    assert network.block1[1]._use_global_stats is None


def test_the_next_run_with_another_schedule_starts_from_what_was_found():
    network = conv_net()
    network.block2[0].bias.stop_gradient = True
    found = flags(network)
    first, second = FreezeSchedule(every="2 steps"), FreezeSchedule(strategy="head_only")
    left_over = attach(network, first)  # never closed, as after an exception
    with attach(network, second):
        assert open_names(network) == ["fc.weight", "fc.bias"]
    assert flags(network) == found
    with pytest.raises(RuntimeError, match="another FreezeSchedule took over this network"):
        left_over.step()
    assert flags(network) == found


def test_restore_puts_everything_back_at_once():
    network = conv_net()
    schedule = FreezeSchedule(frozen_dropout="eval")
    freezing = attach(network, schedule)
    schedule.run.restore()
    assert trainable_ratio(network) == 1.0
    freezing.step()  # a loop that goes on is not stopped
    assert trainable_ratio(network) == 1.0


def test_restore_false_keeps_the_flags_and_puts_the_rest_back():
    network = conv_net()
    with attach(network, FreezeSchedule(restore=False)):
        pass
    assert open_names(network) == ["fc.weight", "fc.bias"]
    assert network.block1[1]._use_global_stats is None


def test_verify_names_the_first_tensor_that_moved():
    network = conv_net()
    with (
        pytest.raises(RuntimeError, match=re.escape("block2.0.bias moved although it is frozen")),
        attach(network, FreezeSchedule(every="2 steps", verify=True)) as freezing,
    ):
        network.block2[0].bias.set_value(network.block2[0].bias + 1)
        freezing.step()
        freezing.step()
    assert trainable_ratio(network) == 1.0


class OnBackbone(nn.Layer):
    def __init__(self, backbone: nn.Layer) -> None:
        super().__init__()
        self.backbone, self.fc = backbone, nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.backbone(x))


def test_networks_that_share_layers_cannot_be_scheduled_at_once_nor_left_frozen():
    backbone = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    one, other = OnBackbone(backbone), OnBackbone(backbone)
    left_over = attach(one, FreezeSchedule(every="2 steps"))
    with attach(other, FreezeSchedule(every="2 steps")) as freezing:
        assert freezing.history[0].frozen == ("backbone.2", "backbone.0")
        for _ in range(4):
            freezing.step()
        assert trainable_ratio(other) == 1.0
        with pytest.raises(RuntimeError, match="another FreezeSchedule took over"):
            left_over.step()
    assert trainable_ratio(one) == trainable_ratio(other) == 1.0


def test_dead_weak_proxies_in_the_process_do_not_disturb():
    class Thing:
        pass

    thing = Thing()
    proxies = [weakref.proxy(thing) for _ in range(3)]
    del thing
    gc.collect()
    with attach(conv_net(), FreezeSchedule()) as freezing:
        assert freezing.open_stages == ("head",)
    assert len(proxies) == 3


def test_a_schedule_given_to_a_second_network_gives_up_the_first_and_says_so():
    schedule = FreezeSchedule(every="2 steps")
    one, other = conv_net(), conv_net()
    first = attach(one, schedule)
    attach(other, schedule)
    assert trainable_ratio(one) == 1.0
    with pytest.raises(RuntimeError, match="another FreezeSchedule took over"):
        first.step()


def test_a_stage_found_frozen_is_named_in_a_line():
    network = conv_net()
    lines: list[str] = []
    with attach(network, FreezeSchedule(strategy="head_only", restore=False)):
        pass
    with attach(network, FreezeSchedule(), say=lines.append):
        pass
    assert lines[1] == (
        "left frozen, as found (to train it, name it alone or set stop_gradient=False): "
        "block3, block2, block1"
    )


def test_verify_watches_running_statistics_too():
    network = conv_net()
    freezing = attach(network, FreezeSchedule(verify=True))
    network.block1[1]._mean.set_value(network.block1[1]._mean + 1)
    with pytest.raises(RuntimeError, match=re.escape("block1.1._mean moved")):
        freezing.close()
    assert trainable_ratio(network) == 1.0


def test_verify_is_content_with_a_right_run():
    network = conv_net()
    with attach(network, FreezeSchedule(every="2 steps", verify=True)) as freezing:
        for _ in range(8):
            train_once(network)
            freezing.step()
    assert len(freezing.history) == 4


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.SimpleRNN])
def test_a_frozen_embedding_under_a_frozen_rnn_trains_its_head(kind):
    """Paddle's RNNs with frozen weights have no backward for their input on a CPU."""

    class Reader(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(9, 4), kind(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(self.embedding(x))[0][:, -1])

    network = Reader()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    before = network.head.weight.numpy().copy()
    with FreezeSchedule(verify=True, strategy="head_only").attach(
        network, optimizer, total_steps=3
    ) as freezing:
        for _ in range(3):
            network.train()
            network(paddle.to_tensor([[1, 2, 3]])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    assert (network.head.weight.numpy() != before).any()


class Adapted(nn.Layer):
    """A block as LoRA leaves it: two frozen layers with dropout between, and an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout, self.second = nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)
        self.adapter = nn.Linear(4, 4)
        for tensor in [*self.first.parameters(), *self.second.parameters()]:
            tensor.stop_gradient = True

    def forward(self, x):
        return self.second(self.dropout(self.first(x))) + self.adapter(x)


@pytest.mark.parametrize(("opened", "drops"), [(["head"], False), (["head", "block"], True)])
def test_dropout_in_a_block_with_lora_is_on_when_the_block_is_open(opened, drops):
    """Its base weights never open, so they do not say whether the block trains."""
    network = nn.Sequential(("block", Adapted()), ("head", nn.Linear(4, 2)))
    seen = []
    network.block.dropout.register_forward_post_hook(
        lambda layer, inputs, output: seen.append(layer.training)
    )
    openable = [weight.name for weight in weights(network) if weight.trains]
    stages = partition(network, ["head", "block"])
    Freezer(Survey(network), stages, openable, frozen_dropout="eval").apply(opened)
    network.train()
    network(paddle.ones([2, 4]))
    assert seen == [drops]
