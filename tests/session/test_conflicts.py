"""Flags that somebody else sets while a schedule is at work, in each kind of loop."""

from __future__ import annotations

import copy
import gc
import itertools
import re
import warnings

import paddle
import pytest
from networks import Images, conv_net, model_for, moved, open_names, values
from trainers import TrainerCallback, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, freeze, unfreeze
from paddle_freeze_callback.freezing.freezer import Freezer
from paddle_freeze_callback.freezing.optimizer import around
from paddle_freeze_callback.stages.weights import weights


def open_all(network):
    for weight in weights(network):
        weight.tensor.stop_gradient = False


def freeze_all(network):
    for weight in weights(network):
        weight.tensor.stop_gradient = True


class InFit(paddle.callbacks.Callback):
    """Calls a function after so many steps of ``fit``, and after each one that follows."""

    def __init__(self, act, at, on=False):
        super().__init__()
        self.act, self.at, self.on, self.steps = act, at, on, 0

    def on_train_batch_end(self, step, logs=None):
        self.steps += 1
        if self.steps == self.at or (self.on and self.steps > self.at):
            self.act(self.model.network)


class InTrainer(TrainerCallback):
    """The same in a Trainer."""

    def __init__(self, act, at, on=False):
        self.act, self.at, self.on = act, at, on

    def on_step_end(self, args, state, control, model=None, **context):
        if state.global_step == self.at or (self.on and state.global_step > self.at):
            self.act(model)


def by_hand(schedule, act, at, folder, on=False):
    network = conv_net()
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    loader = paddle.io.DataLoader(Images(), batch_size=4)
    with schedule.attach(network, optimizer, epochs=4, steps_per_epoch=6) as run:
        step = 0
        for _ in range(4):
            for images, _ in loader:
                network.train()
                network(images).square().mean().backward()
                optimizer.step()
                optimizer.clear_grad()
                step += 1
                if step == at or (on and step > at):
                    act(network)
                run.step()
    return network


def in_fit(schedule, act, at, folder, on=False):
    network = conv_net()
    model_for(network).fit(
        Images(), batch_size=4, epochs=4, verbose=0, callbacks=[schedule, InFit(act, at, on)]
    )
    return network


def in_trainer(schedule, act, at, folder, on=False):
    network = tiny_bert()
    flags = {"logging_steps": 1000}
    trainer_for(network, folder, [schedule, InTrainer(act, at, on)], **flags).train()
    return network


LOOPS = pytest.mark.parametrize("loop", [by_hand, in_fit, in_trainer])
HEAD = re.compile(r"fc\.|classifier\.")


def told(record) -> list[str]:
    return [str(one.message) for one in record if "somebody else set" in str(one.message)]


@LOOPS
def test_what_somebody_else_opened_is_named_once_within_the_phase(loop, tmp_path):
    schedule = FreezeSchedule(strategy="head_only")
    with pytest.warns(UserWarning, match="somebody else") as record:
        loop(schedule, open_all, 5, tmp_path, on=True)
    (line,) = told(record)
    first = schedule.run.stages[0]
    name = re.match(r"(\S+) and \d+ more are open although the schedule has them frozen: ", line)
    assert name
    assert name[1] not in first.parameters
    before, now = map(
        int, re.search(r"set stop_gradient between steps (\d+) and (\d+)", line).groups()
    )
    assert before <= 5 <= now <= 7
    assert "another callback" in line
    assert "on_conflict='enforce'" in line


@LOOPS
def test_what_somebody_else_froze_is_named_too(loop, tmp_path):
    with pytest.warns(UserWarning, match="somebody else") as record:
        loop(FreezeSchedule(strategy="head_only"), freeze_all, 22, tmp_path)
    (line,) = told(record)
    assert HEAD.match(line)
    assert "and 1 more are frozen although the schedule has them open" in line


@LOOPS
def test_each_phase_is_told_of_again(loop, tmp_path):
    schedule = FreezeSchedule(every="8 steps", start="8 steps")
    with pytest.warns(UserWarning, match="somebody else") as record:
        loop(schedule, open_all, 2, tmp_path, on=True)
    assert len(told(record)) == 3


@LOOPS
def test_enforce_sets_flags_and_gradients_back(loop, tmp_path):
    schedule = FreezeSchedule(strategy="head_only", on_conflict="enforce")
    flags, gradients, weights_then = [], [], []

    def act(network):
        flags.append(open_names(network))
        gradients.append([n for n, tensor in network.named_parameters() if tensor.grad is not None])
        weights_then.append(values(network))
        open_all(network)

    network = loop(schedule, act, 3, tmp_path, on=True)
    assert len(flags) == 22
    for opened, held in zip(flags, gradients):
        assert opened
        assert all(HEAD.match(name) for name in [*opened, *held])
    changed = moved(weights_then[0], values(network))
    assert changed
    assert all(HEAD.match(name) for name in changed)


@LOOPS
def test_error_stops_the_training(loop, tmp_path):
    schedule = FreezeSchedule(strategy="head_only", on_conflict="error")
    with pytest.raises(RuntimeError, match="are open although the schedule has them frozen"):
        loop(schedule, open_all, 5, tmp_path)
    assert schedule.run.steps_done <= 7


@LOOPS
def test_a_loop_that_toggles_flags_inside_a_step_is_left_alone(loop, tmp_path):
    def toggle(network):
        found = [(weight.tensor, weight.tensor.stop_gradient) for weight in weights(network)]
        open_all(network)
        freeze_all(network)
        for tensor, flag in found:
            tensor.stop_gradient = flag

    loop(
        FreezeSchedule(every="5 steps", verify=True, on_conflict="error"),
        toggle,
        1,
        tmp_path,
        on=True,
    )


def test_a_save_that_opens_everything_for_its_own_length_is_left_alone(tmp_path):
    """As savers of adapters do, which write what trains."""
    network = conv_net()
    model = model_for(network)
    save = model.save

    def opening(path, training=True):
        found = [(weight.tensor, weight.tensor.stop_gradient) for weight in weights(network)]
        open_all(network)
        save(path, training)
        for tensor, flag in found:
            tensor.stop_gradient = flag

    model.save = opening
    schedule = FreezeSchedule(every="5 steps", on_conflict="error")
    folder = str(tmp_path / "saved")
    model.fit(Images(), batch_size=4, epochs=3, verbose=0, save_dir=folder, callbacks=[schedule])
    assert len(schedule.history) == 4


def attached(schedule, steps=1000):
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    return network, schedule.attach(network, optimizer, total_steps=steps)


def test_flags_are_looked_at_ever_less_often_and_at_no_other_step(monkeypatch):
    looks = []
    found = Freezer.conflicts
    monkeypatch.setattr(
        Freezer, "conflicts", lambda self, *of: looks.append(run.steps_done) or found(self, *of)
    )
    _, run = attached(FreezeSchedule(unfreeze_at={0: "fc", "500 steps": "*"}))
    for _ in range(700):
        run.step()
    after_the_transition = looks.index(500) + 1
    assert looks[:after_the_transition] == [1, 3, 7, 15, 31, 63, 127, 227, 327, 427, 500]
    assert looks[after_the_transition:] == [501, 503, 507, 515, 531, 563, 627]


@pytest.mark.parametrize("event", ["save", "evaluated", "verify"])
def test_a_save_and_an_evaluation_look_at_once(event, tmp_path):
    network, run = attached(FreezeSchedule(strategy="head_only"))
    for _ in range(300):
        run.step()
    open_all(network)
    calls = {
        "save": lambda: run.save(tmp_path / "x"),
        "evaluated": lambda: run.evaluated({"acc": 0.5}),
        "verify": run.verify,
    }
    with pytest.warns(UserWarning, match="between steps 227 and 300"):
        calls[event]()


def test_after_a_log_of_a_trainer_the_next_step_is_looked_at(tmp_path):
    schedule = FreezeSchedule(strategy="head_only")
    lines = []

    class Notes(TrainerCallback):
        def on_log(self, args, state, control, **context):
            lines.extend((state.global_step, line) for line in told(record))

    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        trainer_for(
            tiny_bert(), tmp_path, [schedule, InTrainer(open_all, 9), Notes()], logging_steps=3
        ).train()
    assert lines[0][0] == 12  # the log at step 9 asks for step 10; by itself it would be step 15


def test_verify_says_that_the_optimizer_moved_what_somebody_else_opened():
    network, run = attached(FreezeSchedule(strategy="head_only", verify=True))
    open_all(network)
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    network(paddle.ones([2, 1, 6, 6])).sum().backward()
    optimizer.step()
    with (
        pytest.warns(UserWarning, match="somebody else set"),
        pytest.raises(RuntimeError, match=r"somebody else opened it, so the optimizer moved it"),
    ):
        run.verify()


def test_verify_says_what_else_moves_a_frozen_weight():
    network, run = attached(FreezeSchedule(strategy="head_only", verify=True))
    network.block1[0].weight.set_value(network.block1[0].weight + 1)
    with pytest.raises(
        RuntimeError, match=r"a loaded checkpoint, .* or the optimizer while somebody had it open"
    ):
        run.verify()


def test_after_the_run_flags_are_nobody_elses_business():
    network, run = attached(FreezeSchedule(on_conflict="error"))
    run.close()
    open_all(network)
    run.evaluated({})
    run.verify()


def test_after_an_epoch_of_fit_the_next_step_is_looked_at():
    schedule = FreezeSchedule(strategy="head_only")
    callbacks = [schedule, InFit(open_all, 9)]
    with pytest.warns(UserWarning, match="between steps 7 and 13"):
        model_for(conv_net()).fit(
            Images(48), batch_size=4, epochs=2, verbose=0, callbacks=callbacks
        )


def test_what_the_user_froze_inside_a_stage_the_user_may_move():
    network = conv_net()
    network.block1[0].weight.stop_gradient = True
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with FreezeSchedule(verify=True).attach(network, optimizer, total_steps=9) as run:
        network.block1[0].weight.set_value(network.block1[0].weight + 1)
        run.verify()
    assert run.at_work is False


# ------------------------------------------------------------ flags for the length of one step


def close_backbone(network):
    """As a loop that knows what it should be between its steps."""
    for name, tensor in network.named_parameters():
        tensor.stop_gradient = not HEAD.match(name)


class AroundFitsSteps(paddle.callbacks.Callback):
    def __init__(self, before, after):
        super().__init__()
        self.before, self.after = before, after

    def on_train_batch_begin(self, step, logs=None):
        self.before(self.model.network)

    def on_train_batch_end(self, step, logs=None):
        self.after(self.model.network)


class AroundTrainersSteps(TrainerCallback):
    def __init__(self, before, after):
        self.before, self.after = before, after

    def on_step_begin(self, args, state, control, model=None, **context):
        self.before(model)

    def on_step_end(self, args, state, control, model=None, **context):
        self.after(model)


def around_steps_by_hand(schedule, before, after, folder):
    network = conv_net()
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    loader = paddle.io.DataLoader(Images(), batch_size=4)
    start = values(network)
    with schedule.attach(network, optimizer, epochs=2, steps_per_epoch=6) as run:
        for images in (images for _ in range(2) for images, _ in loader):
            network.train()
            before(network)
            network(images).square().mean().backward()
            optimizer.step()
            after(network)
            optimizer.clear_grad()
            run.step()
    return moved(start, values(network))


def around_steps_of_follow(schedule, before, after, folder):
    network = conv_net()
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    loader = paddle.io.DataLoader(Images(), batch_size=4)
    start = values(network)
    with schedule.follow(network, optimizer, epochs=2, steps_per_epoch=6):
        for images in (images for _ in range(2) for images, _ in loader):
            before(network)
            network(images).square().mean().backward()
            optimizer.step()
            after(network)
            optimizer.clear_grad()
    assert not [name for name in vars(optimizer) if name in ("step", "minimize")]
    return moved(start, values(network))


def around_steps_of_fit(schedule, before, after, folder):
    network = conv_net()
    start = values(network)
    rival = AroundFitsSteps(before, after)
    model_for(network).fit(Images(), batch_size=4, epochs=2, verbose=0, callbacks=[schedule, rival])
    return moved(start, values(network))


def around_steps_of_trainer(schedule, before, after, folder):
    network = tiny_bert()
    start = values(network)
    rival = AroundTrainersSteps(before, after)
    trainer_for(network, folder, [schedule, rival], logging_steps=1000).train()
    return moved(start, values(network))


AROUND = pytest.mark.parametrize(
    "loop",
    [
        around_steps_by_hand,
        around_steps_of_follow,
        around_steps_of_fit,
        around_steps_of_trainer,
    ],
)


@AROUND
def test_what_is_open_only_while_the_optimizer_steps_is_seen(loop, tmp_path):
    with pytest.warns(UserWarning, match="somebody else") as record:
        changed = loop(FreezeSchedule(strategy="head_only"), open_all, close_backbone, tmp_path)
    (line,) = told(record)
    assert "are open although the schedule has them frozen" in line
    assert re.search("between steps [01] and [13]", line)  # follow() begins in the first forward
    assert not all(HEAD.match(name) for name in changed)


@AROUND
def test_enforce_wins_against_code_that_opens_before_each_step(loop, tmp_path):
    schedule = FreezeSchedule(strategy="head_only", on_conflict="enforce", verify=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*somebody else.*")
        changed = loop(schedule, open_all, close_backbone, tmp_path)
    assert changed
    assert all(HEAD.match(name) for name in changed)


@AROUND
def test_error_stops_before_anything_moved(loop, tmp_path):
    network = []

    def before(opened):
        network[:] = [opened, values(opened)]
        open_all(opened)

    schedule = FreezeSchedule(strategy="head_only", on_conflict="error", frozen_norm="train")
    with pytest.raises(RuntimeError, match="are open although the schedule has them frozen"):
        loop(schedule, before, close_backbone, tmp_path)
    weights_now = {weight.name for weight in weights(network[0])}
    assert not weights_now.intersection(moved(network[1], values(network[0])))


@AROUND
def test_enforce_says_that_what_is_frozen_before_each_forward_does_not_train(loop, tmp_path):
    calls = []

    def freeze_a_bias(network):
        calls.append(network)
        for name, tensor in network.named_parameters() if calls[1:] else ():
            tensor.stop_gradient = not HEAD.match(name) or name.endswith("bias")

    schedule = FreezeSchedule(strategy="head_only", on_conflict="enforce")
    with pytest.warns(UserWarning, match="somebody else") as record:
        loop(schedule, freeze_a_bias, lambda network: None, tmp_path)
    (line,) = told(record)
    assert re.match(r"(fc|classifier)\.bias is frozen although", line)
    assert line.endswith("again: what is frozen before each forward does not train; drop that")


def discriminator_first(judge, maker, of_judge, of_maker, open_judge):
    images = paddle.rand([4, 1, 6, 6])
    open_judge()
    judge(images).mean().backward()
    of_judge.step()
    of_judge.clear_grad()
    freeze_all(judge)
    judge(maker(images)).mean().backward()
    of_maker.step()
    of_maker.clear_grad()


def generator_first(judge, maker, of_judge, of_maker, open_judge):
    images = paddle.rand([4, 1, 6, 6])
    freeze_all(judge)
    judge(maker(images)).mean().backward()
    of_maker.step()
    of_maker.clear_grad()
    open_judge()
    judge(images).mean().backward()
    of_judge.step()
    of_judge.clear_grad()


@pytest.mark.parametrize("order", [discriminator_first, generator_first])
@pytest.mark.parametrize("opens", ["its head", "everything"])
def test_a_gan_may_freeze_its_discriminator_for_the_other_step(order, opens):
    judge, maker = conv_net(), paddle.nn.Conv2D(1, 1, 3, padding=1)
    of_judge = paddle.optimizer.SGD(0.01, parameters=judge.parameters())
    of_maker = paddle.optimizer.SGD(0.01, parameters=maker.parameters())
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        with FreezeSchedule(strategy="head_only").attach(judge, of_judge, total_steps=9) as run:
            for _ in range(9):
                order(
                    judge, maker, of_judge, of_maker,
                    lambda: (open_all if opens == "everything" else close_backbone)(judge),
                )  # fmt: skip
                run.step()
    lines = told(record)
    if opens == "its head":
        assert not lines
    else:
        assert len(lines) == 1
        assert "are open although the schedule has them frozen" in lines[0]


def test_with_several_optimizers_each_is_looked_at_in_the_same_step():
    network = conv_net()
    upper = [tensor for name, tensor in network.named_parameters() if HEAD.match(name)]
    lower = [tensor for name, tensor in network.named_parameters() if not HEAD.match(name)]
    both = [paddle.optimizer.SGD(0.1, parameters=one) for one in (upper, lower)]
    schedule = FreezeSchedule(strategy="head_only", on_conflict="enforce")
    start = values(network)
    with schedule.attach(network, both, total_steps=4) as run:
        for _ in range(4):
            open_all(network)
            network(paddle.rand([4, 1, 6, 6])).mean().backward()
            for one in both:
                one.step()
                one.clear_grad()
            run.step()
    assert all(HEAD.match(name) for name in moved(start, values(network)) if "mean" not in name)


def test_a_gradient_from_while_somebody_had_it_open_is_not_added_when_a_stage_opens():
    network, run = attached(FreezeSchedule(unfreeze_at={0: "fc", "1 steps": "*"}), steps=3)
    open_all(network)
    network(paddle.rand([4, 1, 6, 6])).mean().backward()
    close_backbone(network)
    assert network.block1[0].weight.grad is not None
    run.step()
    assert network.block1[0].weight.grad is None


def test_the_optimizers_methods_are_its_own_again_in_whatever_order_wrappers_end():
    optimizer = paddle.optimizer.SGD(0.1, parameters=conv_net().parameters())
    calls = []

    def noted(name):
        return lambda one, method, *given: calls.append(name) or method(*given)

    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]):
        stops = [around(optimizer, "step", noted(name)) for name in range(3)]
        optimizer.step()
        assert calls == [2, 1, 0]
        for index in order:
            stops[index]()
        assert "step" not in vars(optimizer)
        calls.clear()


def test_a_run_that_is_thrown_away_leaves_the_optimizer_as_it_was():
    _, run = attached(FreezeSchedule())
    optimizer = run._optimizer
    assert "step" in vars(optimizer)
    del run
    gc.collect()
    assert "step" not in vars(optimizer)


def test_a_deep_copy_of_the_optimizer_steps_itself():
    network, run = attached(FreezeSchedule(on_conflict="error"))
    twin = copy.deepcopy(run._optimizer)
    open_all(network)
    network(paddle.rand([4, 1, 6, 6])).mean().backward()
    twin.step()
    with pytest.raises(RuntimeError, match="somebody else set"):
        run._optimizer.step()


def test_a_loop_that_forgets_to_call_step_is_told_at_its_end():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    run = FreezeSchedule().attach(network, optimizer, total_steps=9)
    for _ in range(3):
        network(paddle.rand([4, 1, 6, 6])).mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    with pytest.warns(UserWarning, match="stepped 3 times, and the schedule was never told"):
        run.close()


# ------------------------------------------------------------ "all parameters" name statistics, too


def open_parameters(network):
    """As everybody writes it; BatchNorm's statistics are parameters."""
    for tensor in network.parameters():
        tensor.stop_gradient = False


STATISTICS = re.compile(r".*\.(_mean|_variance)")


@AROUND
def test_statistics_that_somebody_opens_with_the_weights_stay_statistics(loop, tmp_path):
    schedule = FreezeSchedule(strategy="head_only", on_conflict="enforce", verify=True)
    changed = loop(schedule, open_parameters, lambda network: None, tmp_path)
    assert changed
    assert all(HEAD.match(name) for name in changed)
    assert not [name for stage in schedule.run.stages for name in stage.parameters
                if STATISTICS.match(name)]  # fmt: skip


def test_a_network_opened_whole_before_the_run_has_no_weights_more():
    network, opened = conv_net(), conv_net()
    open_parameters(opened)
    assert [weight.name for weight in weights(network)] == [w.name for w in weights(opened)]
    schedule = FreezeSchedule(strategy="head_only", verify=True)
    start = values(opened)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        model_for(opened).fit(Images(), batch_size=4, epochs=2, verbose=0, callbacks=[schedule])
    assert all(HEAD.match(name) for name in moved(start, values(opened)))
    assert not [one for one in record if "gradient" in str(one.message)]


# ------------------------------------------------------------ optimizers that come, rest or share


def two_optimizers(network):
    upper = [tensor for name, tensor in network.named_parameters() if HEAD.match(name)]
    lower = [tensor for name, tensor in network.named_parameters() if not HEAD.match(name)]
    return [paddle.optimizer.SGD(0.1, parameters=one) for one in (upper, lower)]


def backward(network):
    network.train()
    network(paddle.rand([4, 1, 6, 6])).mean().backward()


def test_an_optimizer_that_the_loop_built_anew_is_not_seen_so_flags_are_compared_between_steps():
    network, run = attached(FreezeSchedule(strategy="head_only", on_conflict="enforce"))
    first = run._optimizer
    backward(network)
    first.step()
    run.step()
    rebuilt = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    for _ in range(8):
        open_all(network)
        backward(network)
        rebuilt.step()
        rebuilt.clear_grad()
        run.step()
    assert all(HEAD.match(name) for name in open_names(network))


@pytest.mark.parametrize("resting", [0, 1])
def test_an_optimizer_that_steps_every_second_time_is_compared_as_often(resting):
    network = conv_net()
    both = two_optimizers(network)
    schedule = FreezeSchedule(unfreeze_at={0: "block3"}, on_conflict="error")
    opened = [tensor for one in (both[resting],) for tensor in one._parameter_list]
    run = schedule.attach(network, both, total_steps=50)
    with pytest.raises(RuntimeError, match="are open although the schedule has them frozen"):
        for step in range(50):
            for tensor in opened:
                tensor.stop_gradient = False
            backward(network)
            for index, one in enumerate(both):
                if index != resting or step % 2:
                    one.step()
                    one.clear_grad()
            run.step()
    assert run.steps_done < 5
    run.close(verify=False)


def test_each_of_several_optimizers_has_its_line():
    network = conv_net()
    both = two_optimizers(network)
    with (
        warnings.catch_warnings(record=True) as record,
        FreezeSchedule(unfreeze_at={0: "block3"}).attach(network, both, total_steps=9) as run,
    ):
        warnings.simplefilter("always")
        for _ in range(9):
            open_all(network)
            backward(network)
            for one in both:
                one.step()
                one.clear_grad()
            run.step()
    assert [line.split(" ")[0].split(".")[0] for line in told(record)] == ["fc", "block1"]


def test_enforce_moves_nothing_that_has_no_gradient():
    """Decay and momentum would."""
    network = conv_net()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=network.parameters(), weight_decay=0.5)
    schedule = FreezeSchedule(unfreeze_at={0: "*"}, on_conflict="enforce")
    kept = []
    with (
        warnings.catch_warnings(record=True) as record,
        schedule.attach(network, optimizer, total_steps=9) as run,
    ):
        warnings.simplefilter("always")
        for step in range(9):
            for tensor in network.block1.parameters() if step else ():
                tensor.stop_gradient = True
            backward(network)
            optimizer.step()
            optimizer.clear_grad()
            run.step()
            kept.append(network.block1[0].weight.numpy())
    assert all((one == kept[0]).all() for one in kept)
    assert [line for line in told(record) if "frozen before each forward does not train" in line]


def test_enforce_trains_what_was_frozen_after_its_backward():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "*"}, on_conflict="enforce")
    kept = []
    with (
        warnings.catch_warnings(),
        schedule.attach(network, optimizer, total_steps=5) as run,
    ):
        warnings.filterwarnings("error", message=".*somebody else.*")
        for _ in range(5):
            backward(network)
            freeze_all(network)
            optimizer.step()
            optimizer.clear_grad()
            run.step()
            kept.append(network.block1[0].weight.numpy())
    assert all((one != two).any() for one, two in itertools.pairwise(kept))


def test_a_gradient_is_one_however_small(recwarn):
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1e12, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "fc"}, on_conflict="enforce")
    start = network.fc.weight.numpy()
    with schedule.attach(network, optimizer, total_steps=2) as run:
        (1e-12 * network(paddle.rand([4, 1, 6, 6])).mean()).backward()
        freeze_all(network)
        optimizer.step()
        optimizer.clear_grad()
        run.step()
    assert (network.fc.weight.numpy() != start).all()


def test_an_error_that_is_caught_comes_again_at_the_next_step():
    network, run = attached(FreezeSchedule(strategy="head_only", on_conflict="error"))
    start = values(network)
    for _ in range(3):
        open_all(network)
        backward(network)
        with pytest.raises(RuntimeError, match="somebody else"):
            run._optimizer.step()
        run._optimizer.clear_grad()
        run.step()
    assert not [name for name in moved(start, values(network)) if not STATISTICS.match(name)]


def test_what_somebody_froze_is_not_said_to_be_out_of_reach_as_well():
    lines = []
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(strategy="head_only")
    with (
        warnings.catch_warnings(record=True) as record,
        schedule.attach(network, optimizer, total_steps=9, say=lines.append) as run,
    ):
        warnings.simplefilter("always")
        for _ in range(9):
            for tensor in network.fc.parameters():
                tensor.stop_gradient = True
            network.block1[0].weight.stop_gradient = False
            backward(network)
            optimizer.step()
            optimizer.clear_grad()
            run.step()
    assert not [line for line in lines if "reaches" in line or "gradient" in line]
    assert [line for line in told(record) if "are frozen although" in line]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_follow_ends_a_step_when_all_optimizers_have_stepped(order):
    ends = []
    for host in ("attach", "follow"):
        paddle.seed(7)
        network = conv_net()
        both = two_optimizers(network)
        schedule = FreezeSchedule(
            unfreeze_at={0: "*", "2 steps": {"freeze": "block2"}, "4 steps": "*"}
        )
        listed = [both[index] for index in order]
        with getattr(schedule, host)(network, listed, total_steps=6) as run:
            for _ in range(6):
                backward(network)
                for one in both:
                    one.step()
                for one in both:
                    one.clear_grad()
                if host == "attach":
                    run.step()
        assert run.steps_done == 6
        ends.append(values(network))
    assert not moved(*ends)


def test_follow_ends_a_step_at_the_next_forward_when_one_optimizer_rests():
    seen = []
    network = conv_net()
    both = two_optimizers(network)
    schedule = FreezeSchedule(unfreeze_at={0: "fc", "3 steps": "*"})
    with schedule.follow(network, both, total_steps=6) as run:
        for step in range(6):
            network.train()
            loss = network(paddle.rand([4, 1, 6, 6])).mean()
            seen.append("block1.0.weight" in open_names(network))
            loss.backward()
            for one in both[: 1 + step % 2]:
                one.step()
                one.clear_grad()
    assert seen == [False] * 3 + [True] * 3
    assert run.steps_done == 6


@pytest.mark.parametrize("first", [discriminator_first, generator_first])
@pytest.mark.parametrize("mode", ["warn", "enforce"])
def test_follow_takes_a_network_that_a_gan_froze_for_the_other_step_as_open(first, mode):
    judge, maker = conv_net(), conv_net()

    class Picture(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.inner = maker

        def forward(self, images):
            return images + self.inner(images).mean()

    picture = Picture()
    optimizers, lines = [], []
    for one in (judge, picture):
        optimizers.append(paddle.optimizer.SGD(0.01, parameters=one.parameters()))
    start = values(judge)
    freeze_all(picture)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*somebody else.*")
        schedule = FreezeSchedule(unfreeze_at={0: "*"}, on_conflict=mode)
        with schedule.follow(judge, optimizers[0], total_steps=4, say=lines.append):
            for _ in range(4):
                first(judge, picture, *optimizers, lambda: open_all(judge))
    assert {"fc.weight", "block1.0.weight"} <= moved(start, values(judge))


def test_following_a_copy_of_an_optimizer_leaves_the_run_of_the_original():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    run = FreezeSchedule(strategy="head_only").follow(network, optimizer, total_steps=9)
    other, twin = copy.deepcopy((network, optimizer))
    FreezeSchedule().follow(other, twin, total_steps=9).close(verify=False)
    backward(network)
    optimizer.step()
    assert run.steps_done == 1
    run.close()


def test_freeze_in_the_middle_of_a_run_leaves_statistics_free_after_unfreeze():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "fc", "1 steps": "*"})
    with schedule.attach(network, optimizer, total_steps=3) as run:
        freeze(network, "block1")
        run.step()
    unfreeze(network)
    start = values(network)
    backward(network)
    assert "block1.1._mean" in moved(start, values(network))


def test_statistics_that_freeze_holds_although_their_stage_opens_are_warned_of():
    network = conv_net()
    freeze(network, "block1")
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with pytest.warns(UserWarning, match=r"freeze\(\) holds the statistics of block1\.1, whose"):
        run = FreezeSchedule(stages=["fc", "block2", "block1"]).attach(
            network, optimizer, total_steps=9
        )
    run.close(verify=False)


class AboveFrozen(paddle.nn.Layer):
    def __init__(self, layer):
        super().__init__()
        self.below, self.layer, self.fc = paddle.nn.Conv2D(1, 4, 3), layer, paddle.nn.Linear(4, 2)

    def forward(self, images):
        features = self.below(images)
        if isinstance(self.layer, paddle.nn.LSTM):
            return self.fc(self.layer(features.flatten(2).transpose([0, 2, 1]))[0].mean(1))
        return self.fc(self.layer(features).mean([2, 3]))


@pytest.mark.parametrize("kind", ["InstanceNorm2D", "PReLU", "LSTM", "GroupNorm"])
def test_layers_whose_kernels_raise_are_stood_before_whatever_somebody_sets(kind):
    make = {
        "InstanceNorm2D": lambda: paddle.nn.InstanceNorm2D(4),
        "PReLU": lambda: paddle.nn.PReLU(4),
        "LSTM": lambda: paddle.nn.LSTM(4, 4),
        "GroupNorm": lambda: paddle.nn.GroupNorm(2, 4),
    }[kind]
    warnings.simplefilter("ignore")  # of what the rival freezes; pytest puts that back
    for begins_open in (True, False):
        network = AboveFrozen(make())
        optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
        schedule = FreezeSchedule(
            unfreeze_at={0: ["fc", "layer"] if begins_open else "fc"}, on_conflict="enforce"
        )
        with schedule.attach(network, optimizer, total_steps=3) as run:
            for _ in range(3):
                own = network.layer.parameters()
                for tensor in own[:1] if begins_open else own:
                    tensor.stop_gradient = begins_open
                network(paddle.rand([2, 1, 6, 6])).mean().backward()
                optimizer.step()
                optimizer.clear_grad()
                run.step()
