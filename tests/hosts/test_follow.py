"""The third host: somebody else's loop, driven by the optimizer's own steps."""

from __future__ import annotations

import gc
import os

import numpy as np
import paddle
import pytest
from networks import Images, TwoLayers, conv_net, values
from paddle import nn

from paddle_freeze_callback import FreezeSchedule, HeadThenAll
from paddle_freeze_callback.hosts.watched import BATCHES, FORWARDS, LOADS, SAVES

STEPS = 6


@pytest.fixture(autouse=True)
def names_of_its_own():
    gc.collect()  # runs that earlier tests did not end
    for watch in (BATCHES, FORWARDS, LOADS, SAVES):
        watch.listeners()
    with paddle.utils.unique_name.guard():
        yield


def momentum(network, **options):
    return paddle.optimizer.Momentum(0.1, parameters=network.parameters(), **options)


def loss_of(network, index=0):
    """The loss of one batch of four images."""
    batch = [Images()[4 * index + i] for i in range(4)]
    images, labels = (paddle.to_tensor(np.stack(column)) for column in zip(*batch))
    return nn.functional.cross_entropy(network(images), labels)


def train(network, optimizer, steps=STEPS, *, accumulate=1, first=0):
    """A loop that knows nothing of us."""
    network.train()
    for step in range(first, first + steps):
        for _ in range(accumulate):
            loss_of(network, step % 6).backward()
        optimizer.step()
        optimizer.clear_grad()


def train_by_minimize(network, optimizer):
    network.train()
    for step in range(STEPS):
        loss = loss_of(network, step)
        loss.backward()
        optimizer.minimize(loss)
        optimizer.clear_grad()


def train_scaled(network, optimizer):
    scaler = paddle.amp.GradScaler(init_loss_scaling=4.0)
    for step in range(STEPS):
        scaler.scale(loss_of(network, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()


def train_scaled_by_minimize(network, optimizer):
    scaler = paddle.amp.GradScaler(init_loss_scaling=4.0)
    for step in range(STEPS):
        scaled = scaler.scale(loss_of(network, step))
        scaled.backward()
        scaler.minimize(optimizer, scaled)
        optimizer.clear_grad()


def train_accumulating(network, optimizer):
    train(network, optimizer, accumulate=2)


SCHEDULE = {"unfreeze_at": {0: "fc", "2 steps": "block3", "4 steps": "*"}}
CHANGES = [(0, ("fc",)), (2, ("block3",)), (4, ("*",))]


def changes(schedule):
    return [(change.step, change.opened) for change in schedule.history]


def attached(accumulate=1):
    """The weights after the same run with ``attach``."""
    network = conv_net()
    optimizer = momentum(network)
    schedule = FreezeSchedule(**SCHEDULE)
    with schedule.attach(network, optimizer, total_steps=STEPS) as freezing:
        network.train()
        for step in range(STEPS):
            for _ in range(accumulate):
                loss_of(network, step).backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    return values(network)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


# ---------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("loop", "accumulate"),
    [
        (train, 1),
        (train_accumulating, 2),
        (train_by_minimize, 1),
        (train_scaled, 1),
        (train_scaled_by_minimize, 1),
    ],
)
def test_every_way_to_step_counts_once_and_trains_bitwise_as_attach_does(loop, accumulate):
    network = conv_net()
    optimizer = momentum(network)
    schedule = FreezeSchedule(**SCHEDULE, verify=True)
    with schedule.follow(network, optimizer, total_steps=STEPS) as following:
        loop(network, optimizer)
    assert following.steps_done == STEPS
    assert changes(schedule) == CHANGES
    assert same(values(network), attached(accumulate))


def test_everything_open_trains_bitwise_as_without_us():
    def trained(follow):
        network = conv_net()
        optimizer = momentum(network)
        if follow:
            FreezeSchedule(unfreeze_at={0: "*"}).follow(network, optimizer, total_steps=STEPS)
        train(network, optimizer)
        return values(network)

    assert same(trained(True), trained(False))


def test_what_is_loaded_before_the_first_forward_counts():
    other, network = conv_net(), conv_net()
    train(other, momentum(other), steps=1)
    optimizer = momentum(network)
    with FreezeSchedule(**SCHEDULE, verify=True).follow(network, optimizer, total_steps=4):
        network.set_state_dict(other.state_dict())
        train(network, optimizer, steps=2)
    assert np.array_equal(network.block1[0].weight, other.block1[0].weight)
    assert np.array_equal(network.block1[1]._mean, other.block1[1]._mean)
    assert not np.array_equal(network.fc.weight, other.fc.weight)


def test_an_evaluation_or_a_forward_without_gradients_does_not_begin_the_run():
    network = conv_net()
    optimizer = momentum(network)
    with FreezeSchedule(**SCHEDULE).follow(network, optimizer, total_steps=4) as following:
        network.eval()
        loss_of(network)
        network.train()
        with paddle.no_grad():
            loss_of(network)
        assert following.run is None
        train(network, optimizer, steps=1)
        assert following.run is not None


def test_two_optimizers_of_one_network_count_once_and_have_rates_of_their_own():
    network = conv_net()
    head = paddle.optimizer.SGD(0.5, parameters=network.fc.parameters())
    body = [p for n, p in network.named_parameters() if not n.startswith("fc")]
    backbone = paddle.optimizer.Adam(0.1, parameters=body)
    schedule = FreezeSchedule(
        unfreeze_at={0: "fc", "2 steps": "*", "4 steps": {"freeze": "block1"}},
        lr={"block1": 0.5},
        free_optimizer_state=True,
    )
    with schedule.follow(network, [head, backbone], total_steps=STEPS) as following:
        for step in range(STEPS):
            loss_of(network, step).backward()
            backbone.step()
            head.step()
            head.clear_grad()
            backbone.clear_grad()
    assert following.steps_done == STEPS
    assert [change.step for change in schedule.history] == [0, 2, 4]
    assert schedule.history[1].learning_rates == pytest.approx(
        {"fc": 0.5, "block1": 0.05, "*": 0.1}
    )
    kept = [name for state in backbone._accumulators.values() for name in state]
    assert network.block1[0].weight.name not in kept
    assert network.block2[0].weight.name in kept


class OwnMinimize(paddle.optimizer.SGD):
    """``minimize`` by way of ``step``, as optimizers outside Paddle have it."""

    def minimize(self, loss, *rest, **named):
        loss.backward()
        self.step()


def test_steps_that_an_optimizer_makes_inside_another_call_count_once():
    network = conv_net()
    inner = momentum(network)
    outer = paddle.incubate.LookAhead(inner, alpha=0.5, k=2)
    schedule = FreezeSchedule(unfreeze_at={0: "*"})
    with schedule.follow(network, [outer, inner], total_steps=STEPS) as following:
        train(network, outer)
    assert following.steps_done == STEPS
    own = OwnMinimize(0.1, parameters=network.parameters())
    with schedule.follow(network, own, total_steps=STEPS) as following:
        for step in range(STEPS):
            own.minimize(loss_of(network, step))
            own.clear_grad()
    assert following.steps_done == STEPS


def test_without_a_forward_of_the_network_the_first_step_begins_the_run_and_warns():
    network = conv_net()
    optimizer = momentum(network)
    before = values(network)

    def calls_forward_alone(step):
        images = paddle.to_tensor(np.stack([Images()[i][0] for i in range(4)]))
        network.forward(images).sum().backward()
        optimizer.step()

    # the layers inside are called: enough to begin
    with FreezeSchedule(**SCHEDULE).follow(network, optimizer, total_steps=4):
        calls_forward_alone(0)
    bare = TwoLayers()
    optimizer = momentum(bare)
    with FreezeSchedule(unfreeze_at={0: "fc2"}).follow(bare, optimizer, total_steps=4):
        (bare.fc1.weight.sum() + bare.fc2.weight.sum()).backward()
        found = values(bare)
        with pytest.warns(UserWarning, match="no forward of the network in training mode"):
            optimizer.step()
    assert np.array_equal(found["fc1.weight"], bare.fc1.weight)
    assert not np.array_equal(found["fc2.weight"], bare.fc2.weight)
    assert np.array_equal(before["block1.0.weight"], network.block1[0].weight)


def test_the_lines_tell_of_a_loop_that_stops_early_or_goes_on():
    for steps, line in (
        (4, "ends after 4 of 6 steps"),
        (7, "step 7: the loop goes on after the 6 steps that were announced; "),
    ):
        network, lines = conv_net(), []
        optimizer = momentum(network)
        schedule = FreezeSchedule(**SCHEDULE)
        with schedule.follow(network, optimizer, total_steps=STEPS, say=lines.append):
            train(network, optimizer, steps)
        assert [one for one in lines if one.startswith(line)], lines


def test_a_block_in_which_nothing_trained_warns():
    network = conv_net()
    with (
        pytest.warns(UserWarning, match="neither a forward in training mode nor a step"),
        FreezeSchedule().follow(network, momentum(network), total_steps=4),
    ):
        pass


# ---------------------------------------------------------------- epochs


def loader():
    return paddle.io.DataLoader(Images(8), batch_size=4)


def train_epochs(network, optimizer, epochs, loader_of, look=lambda: None):
    for _ in range(epochs):
        network.train()
        for images, labels in loader_of():
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            optimizer.clear_grad()
        look()


def test_epochs_alone_are_the_iterations_of_the_loader_that_trains():
    network = conv_net()
    optimizer = momentum(network)
    data, held_out = loader(), loader()

    def look():
        next(iter(data))  # a batch that is only shown
        network.eval()
        for images, _ in held_out:
            network(images)

    schedule = FreezeSchedule(unfreeze_at={0: "fc", 1: "block3", 2: "*"})
    with schedule.follow(network, optimizer, epochs=3):
        train_epochs(network, optimizer, 3, lambda: data, look)
    assert changes(schedule) == CHANGES


def test_epochs_alone_follow_a_loader_that_is_built_anew_or_has_workers():
    workers = paddle.io.DataLoader(Images(8), batch_size=4, num_workers=1, persistent_workers=True)
    for loader_of in (loader, lambda: workers):
        network = conv_net()
        optimizer = momentum(network)
        schedule = FreezeSchedule(unfreeze_at={0: "fc", 1: "block3", 2: "*"})
        with schedule.follow(network, optimizer, epochs=3):
            train_epochs(network, optimizer, 3, loader_of)
        assert changes(schedule) == CHANGES


def test_an_evaluation_inside_an_epoch_begins_none():
    network = conv_net()
    optimizer = momentum(network)
    held_out = loader()
    schedule = FreezeSchedule(unfreeze_at={0: "fc", 1: "*"})
    with schedule.follow(network, optimizer, epochs=2):
        for _ in range(2):
            for images, _ in loader():
                network(images).sum().backward()
                optimizer.step()
                network.eval()
                for held, _ in held_out:
                    network(held)
                network.train()
    assert [change.step for change in schedule.history] == [0, 2]


def test_epochs_alone_without_a_loader_are_refused_before_the_first_step():
    network = conv_net()
    optimizer = momentum(network)
    before = values(network)
    with (
        pytest.raises(ValueError, match=r"epochs=3 alone needs a paddle.io.DataLoader"),
        FreezeSchedule(every=1).follow(network, optimizer, epochs=3),
    ):
        train(network, optimizer)
    assert same(before, values(network))


# ---------------------------------------------------------------- the end


def state_of(network, optimizer):
    flags = [parameter.stop_gradient for parameter in network.parameters()]
    norms = [layer.__dict__.get("_use_global_stats") for layer in network.sublayers()]
    hooks = [len(layer._forward_pre_hooks) for layer in network.sublayers(include_self=True)]
    names = (nn.Layer.__call__, paddle.io.DataLoader.__iter__, paddle.save, paddle.load)
    return flags, norms, hooks, sorted(vars(optimizer)), names


@pytest.mark.parametrize("options", [{"total_steps": STEPS}, {"epochs": 3}], ids=str)
def test_after_the_block_all_is_as_found(options):
    network = conv_net()
    optimizer = momentum(network)
    train(network, optimizer, steps=1)
    found = state_of(network, optimizer)
    schedule = FreezeSchedule(**SCHEDULE)
    with schedule.follow(network, optimizer, **options):
        assert state_of(network, optimizer) != found
        train_epochs(network, optimizer, 1, loader)
        assert network.block1[0].weight.stop_gradient
    assert state_of(network, optimizer) == found


def test_an_exception_leaves_all_as_found():
    network = conv_net()
    optimizer = momentum(network)
    found = state_of(network, optimizer)
    with (
        pytest.raises(ZeroDivisionError),
        FreezeSchedule(**SCHEDULE, verify=True).follow(network, optimizer, total_steps=STEPS),
    ):
        train(network, optimizer, steps=1)
        raise ZeroDivisionError
    assert state_of(network, optimizer) == found


def test_a_step_that_raises_does_not_count():
    network = conv_net()
    optimizer = momentum(network)
    with FreezeSchedule(**SCHEDULE).follow(network, optimizer, total_steps=STEPS) as following:
        train(network, optimizer, steps=1)
        with pytest.raises(TypeError):
            optimizer.step("wrong")
        assert following.steps_done == 1
        train(network, optimizer, steps=1)
        assert following.steps_done == 2


def test_the_run_ends_with_the_optimizer():
    network = conv_net()
    optimizer = momentum(network)
    found = state_of(network, optimizer)
    FreezeSchedule(**SCHEDULE).follow(network, optimizer, total_steps=STEPS)
    train(network, optimizer, steps=1)
    assert network.block1[0].weight.stop_gradient
    del optimizer
    gc.collect()
    loss_of(network)
    paddle.save({}, os.devnull)
    assert state_of(network, momentum(network))[:3] == found[:3]
    assert nn.Layer.__call__ is found[4][0]
    assert paddle.save is found[4][2]


@pytest.mark.parametrize("ended", [True, False])
def test_two_runs_one_after_another_each_begin_at_the_beginning(ended):
    network = conv_net()
    optimizer = momentum(network)
    found = state_of(network, optimizer)
    schedule = FreezeSchedule(**SCHEDULE)
    for _ in range(2):
        following = schedule.follow(network, optimizer, total_steps=STEPS)
        train(network, optimizer)
        assert changes(schedule) == CHANGES
        if ended:
            following.close()
    following.close()
    following.close()
    assert state_of(network, optimizer) == found


def test_another_schedule_takes_over_from_one_that_was_not_ended():
    network = conv_net()
    optimizer = momentum(network)
    first, second = FreezeSchedule(**SCHEDULE), FreezeSchedule(unfreeze_at={0: "block1"})
    following = first.follow(network, optimizer, total_steps=STEPS)
    train(network, optimizer, steps=1)
    with second.follow(network, optimizer, total_steps=2):
        train(network, optimizer, steps=2)
    assert following.steps_done == 1
    assert second.history[0].opened == ("block1",)
    assert not any(p.stop_gradient for p in network.fc.parameters())


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_by_hand_takes_over_from_a_followed_one_that_was_not_ended(steps):
    network = conv_net()
    optimizer = momentum(network)
    following = FreezeSchedule(**SCHEDULE).follow(network, optimizer, total_steps=STEPS)
    if steps:
        train(network, optimizer, steps=1)
    else:
        loss_of(network)
    second = FreezeSchedule(unfreeze_at={0: "block1"})
    with second.attach(network, optimizer, total_steps=2) as run:
        for _ in range(2):
            train(network, optimizer, steps=1)
            run.step()
    following.close()
    assert following.steps_done == steps
    assert second.history[0].opened == ("block1",)
    assert not any(p.stop_gradient for p in network.fc.parameters())


@pytest.mark.filterwarnings("ignore:.*never opens")
@pytest.mark.parametrize("by", ["attach", "follow"])
def test_nothing_opens_or_freezes_after_the_steps_that_were_announced(by):
    network, lines = conv_net(), []
    optimizer = momentum(network)
    schedule = FreezeSchedule(unfreeze_at={0: "fc", "6 steps": "*"})
    run = getattr(schedule, by)(network, optimizer, total_steps=STEPS, say=lines.append)
    for _ in range(STEPS + 2):
        train(network, optimizer, steps=1)
        if by == "attach":
            run.step()
    assert set(schedule.run.trained_state_dict()) >= {"fc.weight", "fc.bias"}
    assert "block1.0.weight" not in schedule.run.trained_state_dict()
    assert changes(schedule) == [(0, ("fc",))]
    run.close()
    told = "step 7: the loop goes on after the 6 steps that were announced; "
    assert sum(line.startswith(told) for line in lines) == 1, lines


def test_what_moves_while_it_is_frozen_is_found():
    network = conv_net()
    optimizer = momentum(network)
    following = FreezeSchedule(**SCHEDULE, verify=True).follow(network, optimizer, total_steps=6)
    train(network, optimizer, steps=1)
    network.block1[0].weight.set_value(network.block1[0].weight + 1)
    with pytest.raises(RuntimeError, match=r"block1\.0\.weight moved although it is frozen"):
        following.close()


# ---------------------------------------------------------------- refusals


def frozen_everywhere(network):
    for parameter in network.parameters():
        parameter.stop_gradient = True
    return momentum(network)


@pytest.mark.parametrize(
    ("schedule", "make", "length", "message"),
    [
        ({"unfreeze_at": {0: "fx"}}, momentum, {"total_steps": 4}, "did you mean 'fc'"),
        ({}, lambda n: momentum(n.fc), {"total_steps": 4}, "was not given 12 parameters"),
        ({}, frozen_everywhere, {"total_steps": 4}, "nothing would train"),
        ({}, momentum, {}, "how long is the run"),
        ({}, momentum, {"epochs": 0}, "epochs=0 must be"),
        ({}, momentum, {"total_steps": 4, "step": -1}, "step=-1 must be"),
        ({}, momentum, {"total_steps": 4, "step": 4}, "is over then"),
        ({"resume_at": "1 epoch"}, momentum, {"total_steps": 4}, r"give follow\(\) step="),
        (
            {},
            lambda n: momentum(n, use_multi_tensor=True),
            {"total_steps": 4},
            "build it without use_multi_tensor",
        ),
        ({"every": "30%"}, lambda n: [], {"total_steps": 4}, "an empty list of optimizers"),
        ({"lr_decay": 2}, lambda n: [momentum(n), "x"], {"total_steps": 4}, "str is no paddle opt"),
    ],
)
def test_what_cannot_be_right_is_refused_at_once(schedule, make, length, message):
    network = conv_net()
    optimizer = make(network)
    found = [parameter.stop_gradient for parameter in network.parameters()]
    with pytest.raises((ValueError, TypeError), match=message):
        FreezeSchedule(**schedule).follow(network, optimizer, **length)
    assert [parameter.stop_gradient for parameter in network.parameters()] == found
    assert nn.Layer.__call__.__qualname__ == "Layer.__call__"


def test_the_source_of_the_schedule_is_named(tmp_path):
    file = tmp_path / "freeze.yaml"
    file.write_text("unfreeze_at: {0: fx}")
    network = conv_net()
    with pytest.raises(ValueError, match=r"freeze\.yaml: .*fx"):
        FreezeSchedule.from_file(file).follow(network, momentum(network), total_steps=4)


# ---------------------------------------------------------------- checkpoints


def resumable():
    """A network and its optimizer; from here on names are as in a process of its own."""
    paddle.utils.unique_name.switch()
    network = conv_net()
    scheduler = paddle.optimizer.lr.StepDecay(0.1, step_size=2)
    return network, paddle.optimizer.Adam(scheduler, parameters=network.parameters())


def script(folder, steps, *, first=0, resume=None, follow=None, load=None):
    """A training script with checkpoints of its own, and what its ``train(...)`` may do."""
    network, optimizer = resumable()
    following = follow(network, optimizer) if follow else None
    if resume:
        network.set_state_dict(paddle.load(f"{resume}.pdparams"))
        optimizer.set_state_dict((load or paddle.load)(f"{resume}.pdopt"))
    for step in range(first, first + steps):
        train(network, optimizer, 1, first=step)
        optimizer._learning_rate.step()
        paddle.save(network.state_dict(), f"{folder}/{step + 1}.pdparams")
        paddle.save(optimizer.state_dict(), f"{folder}/{step + 1}.pdopt")
    if following:
        following.close()
    return values(network)


def follower(schedule=None, **options):
    chosen = schedule or FreezeSchedule(**SCHEDULE, verify=True)
    return lambda *given: chosen.follow(*given, total_steps=STEPS, **options)


@pytest.mark.parametrize("at", range(1, STEPS))
def test_a_script_that_resumes_from_its_own_checkpoint_goes_on_bitwise(tmp_path, at):
    whole = script(tmp_path, STEPS, follow=follower())
    assert (tmp_path / f"{at}.freeze_schedule.json").exists()
    (tmp_path / "rest").mkdir()
    resumed = script(
        tmp_path / "rest", STEPS - at, first=at, resume=tmp_path / str(at), follow=follower()
    )
    assert same(whole, resumed)


def test_a_state_inside_other_things_is_recognised_both_ways(tmp_path):
    network, optimizer = resumable()
    with FreezeSchedule(**SCHEDULE).follow(network, optimizer, total_steps=STEPS):
        train(network, optimizer, steps=3)
        paddle.save(
            {"epoch": 1, "net": network.state_dict(), "opts": [optimizer.state_dict()]},
            str(tmp_path / "all.pdparams"),
        )
        paddle.save(network.state_dict(), str(tmp_path / "weights.pdparams"))
    assert [file.name for file in tmp_path.glob("*.json")] == ["all.freeze_schedule.json"]
    network, optimizer = resumable()
    schedule = FreezeSchedule(**SCHEDULE)
    with schedule.follow(network, optimizer, total_steps=STEPS) as following:
        state = paddle.load(str(tmp_path / "all.pdparams"))
        network.set_state_dict(state["net"])
        optimizer.set_state_dict(dict(state["opts"][0]))  # a copy
        assert following.steps_done == 3
        train(network, optimizer, steps=3)
    assert changes(schedule) == [(3, ("fc", "block3")), (4, ("*",))]


def test_a_folder_of_the_checkpoint_s_name_is_left_alone(tmp_path):
    (tmp_path / "best").mkdir()
    network, optimizer = resumable()
    with FreezeSchedule(**SCHEDULE).follow(network, optimizer, total_steps=STEPS):
        train(network, optimizer, steps=3)
        paddle.save(optimizer.state_dict(), str(tmp_path / "best.pdopt"))
    assert list((tmp_path / "best").iterdir()) == []
    network, optimizer = resumable()
    with FreezeSchedule(**SCHEDULE).follow(network, optimizer, total_steps=STEPS) as following:
        optimizer.set_state_dict(paddle.load(str(tmp_path / "best.pdopt")))
        assert following.steps_done == 3
        train(network, optimizer, steps=1)


def test_a_state_without_a_record_is_refused_unless_the_steps_are_told(tmp_path):
    script(tmp_path, 3)
    at = tmp_path / "3"
    with pytest.raises(ValueError, match=r"3\.pdopt, which has no record of a schedule; give step"):
        script(tmp_path, 1, resume=at, follow=follower())
    schedule = FreezeSchedule(**SCHEDULE)
    script(tmp_path, 3, first=3, resume=at, follow=follower(schedule, step=3))
    assert changes(schedule) == [(3, ("fc", "block3")), (4, ("*",))]


def test_a_state_that_was_loaded_unseen_is_refused_unless_the_steps_are_told(tmp_path):
    script(tmp_path, 3, follow=follower())
    load = paddle.load
    with pytest.raises(ValueError, match="state comes from somewhere unseen; give step"):
        script(tmp_path, 1, resume=tmp_path / "3", follow=follower(), load=load)
    # Or before follow():
    network, optimizer = resumable()
    optimizer.set_state_dict(load(str(tmp_path / "3.pdopt")))
    schedule = FreezeSchedule(**SCHEDULE)
    with (
        pytest.raises(ValueError, match="the optimizer has a loaded state; give step="),
        schedule.follow(network, optimizer, total_steps=STEPS),
    ):
        train(network, optimizer, steps=1)
    again = FreezeSchedule(**SCHEDULE, resume_from=str(tmp_path / "3"))
    with again.follow(network, optimizer, total_steps=STEPS) as following:
        train(network, optimizer, steps=1)
        assert following.steps_done == 4


def test_told_steps_that_contradict_the_record_are_refused(tmp_path):
    script(tmp_path, 3, follow=follower())
    with pytest.raises(ValueError, match=r"step=2 contradicts .*3\.pdopt, which was saved after 3"):
        script(tmp_path, 1, resume=tmp_path / "3", follow=follower(step=2))


def test_weights_alone_begin_afresh(tmp_path):
    script(tmp_path, 3, follow=follower())
    network, optimizer = resumable()
    schedule = FreezeSchedule(**SCHEDULE)
    with schedule.follow(network, optimizer, total_steps=STEPS):
        network.set_state_dict(paddle.load(str(tmp_path / "3.pdparams")))
        train(network, optimizer)
    assert changes(schedule) == CHANGES


def test_a_loop_that_goes_back_to_its_checkpoint_freezes_again(tmp_path):
    whole = script(tmp_path, STEPS, follow=follower())
    network, optimizer = resumable()
    schedule = FreezeSchedule(**SCHEDULE, verify=True)
    with schedule.follow(network, optimizer, total_steps=STEPS) as following:
        for step in range(5):
            train(network, optimizer, 1, first=step)
            optimizer._learning_rate.step()
        network.set_state_dict(paddle.load(str(tmp_path / "1.pdparams")))
        optimizer.set_state_dict(paddle.load(str(tmp_path / "1.pdopt")))
        assert following.steps_done == 1
        assert network.block1[0].weight.stop_gradient
        for step in range(1, STEPS):
            train(network, optimizer, 1, first=step)
            optimizer._learning_rate.step()
    assert same(values(network), whole)


def test_a_state_kept_in_memory_does_not_change_the_count():
    network, lines = conv_net(), []
    optimizer = momentum(network)
    with FreezeSchedule(**SCHEDULE).follow(
        network, optimizer, total_steps=STEPS, say=lines.append
    ) as following:
        train(network, optimizer, steps=3)
        optimizer.set_state_dict(optimizer.state_dict())
        assert following.steps_done == 3
    assert [line for line in lines if "takes a state from somewhere unseen" in line]


# ---------------------------------------------------------------- strategies that decide


def test_a_strategy_that_decides_gets_its_metrics_from_the_user(tmp_path):
    from paddle_freeze_callback import OnPlateau

    network, optimizer = resumable()
    schedule = FreezeSchedule(strategy=OnPlateau("accuracy", patience=1, restore_best=True))
    following = schedule.follow(network, optimizer, total_steps=STEPS)
    with pytest.raises(RuntimeError, match="nothing was trained yet"):
        following.evaluated({"accuracy": 0.5})
    with following:
        for step in range(3):
            train(network, optimizer, 1, first=step)
            following.evaluated({"accuracy": 0.5})
        paddle.save(optimizer.state_dict(), str(tmp_path / "3.pdopt"))
    opened = schedule.run.open_stages
    assert len(opened) == 2
    network, optimizer = resumable()
    with schedule.follow(network, optimizer, total_steps=STEPS):
        optimizer.set_state_dict(paddle.load(str(tmp_path / "3.pdopt")))
        train(network, optimizer, 1)
    assert schedule.history[0].opened == opened


def test_a_strategy_that_measures_gradients_sees_them():
    from paddle_freeze_callback import ByGradient

    network = conv_net()
    optimizer = momentum(network)
    schedule = FreezeSchedule(strategy=ByGradient(every="2 steps", threshold=0.99))
    with schedule.follow(network, optimizer, total_steps=STEPS):
        train(network, optimizer)
    assert [change.step for change in schedule.history][:2] == [0, 3]
    assert len(schedule.run.open_stages) < len(schedule.run.stages)


def test_head_then_all_of_a_network_behind_a_wrapper():
    """A wrapper of the loop's own is called, or a part of the network is."""

    class Task(nn.Layer):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(images)

    network = conv_net()
    optimizer = momentum(network)
    schedule = FreezeSchedule(strategy=HeadThenAll("50%"))
    with schedule.follow(network, optimizer, total_steps=STEPS):
        train(Task(network), optimizer)
    assert [change.step for change in schedule.history] == [0, 3]


# ---------------------------------------------------------------- the recipe of a document


class Detection:
    """A stand-in for ppdet.engine.Trainer 2.6.0: the order of its events, its swap of averages.

    Its ``status["mode"]`` is still "train" when an evaluation begins.
    """

    def __init__(self):
        paddle.seed(7)
        self.model = nn.Sequential(
            *[(name, nn.Linear(4, 4)) for name in ("backbone", "neck", "yolo_head")]
        )
        self.optimizer = momentum(self.model)
        self.loader = [0, 1]
        self._metrics, self._callbacks, self._values = [self], [], iter([0.1, 0.3, 0.3, None, 0.2])

    def get_results(self):
        value = next(self._values)
        return {} if value is None else {"bbox": [value, 0.9]}

    def register_callbacks(self, callbacks):
        self._callbacks += callbacks

    def _tell(self, event, status):
        for callback in self._callbacks:
            getattr(callback, event)(status)

    def train(self, validate):
        status = {}
        for _ in range(5):
            status["mode"] = "train"
            self._tell("on_epoch_begin", status)
            self.model.train()
            for _ in self.loader:
                self._tell("on_step_begin", status)
                self.model(paddle.rand([2, 4])).mean().backward()
                self.optimizer.step()
                self.optimizer.clear_grad()
            own = values(self.model)
            for parameter in self.model.parameters():  # averages round
                parameter.set_value(parameter * 1.001)
            self._tell("on_epoch_end", status)
            self._tell("on_epoch_begin", status)
            status["mode"] = "eval"
            self._tell("on_step_begin", status)
            self._tell("on_epoch_end", status)
            self.model.set_state_dict(own)


def test_the_callback_of_the_guide_hands_evaluations_over_when_the_weights_are_back(monkeypatch):
    import re
    import sys
    from pathlib import Path
    from types import ModuleType, SimpleNamespace

    from paddle_freeze_callback import OnPlateau

    class Callback:
        def __init__(self, model):
            self.model = model

        def __getattr__(self, event):
            return lambda status: None

    engine = ModuleType("ppdet.engine")
    engine.Callback = Callback
    monkeypatch.setitem(sys.modules, "ppdet", ModuleType("ppdet"))
    monkeypatch.setitem(sys.modules, "ppdet.engine", engine)
    page = Path(__file__).parent.parent.parent / "docs" / "any-script.md"
    (block,) = re.findall(r"^```py\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    names = {
        "trainer": Detection(), "cfg": SimpleNamespace(epoch=5), "OnPlateau": OnPlateau,
        "FreezeSchedule": lambda **options: FreezeSchedule(**options, verify=True),
    }  # fmt: skip
    exec(block, names)
    assert changes(names["schedule"]) == [(0, ("yolo_head",)), (6, ("neck",))]
    assert names["schedule"].run.metrics == {
        "bbox": [(2, 0.1), (4, 0.3), (6, 0.3)]
    }  # without the evaluation that found nothing, and the last one, after which nothing trains
