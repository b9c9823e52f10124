"""What a run says: in the user's words, at the user's line; at its end what never happened."""

from __future__ import annotations

import itertools
import re
import warnings

import numpy as np
import paddle
import pytest
from networks import Images, conv_net, model_for
from paddle import nn
from trainers import Tokens, TrainerCallback, logger, tiny_bert, trainer_for

import paddle_freeze_callback
from paddle_freeze_callback import (
    ByGradient,
    ChainThaw,
    Cyclic,
    Explicit,
    FreezeDown,
    FreezeSchedule,
    Gradual,
    HeadOnly,
    HeadThenAll,
    OnPlateau,
    RandomStages,
)
from paddle_freeze_callback.session.plan import plan
from paddle_freeze_callback.session.transition import Transition
from paddle_freeze_callback.stages.partition import Survey
from paddle_freeze_callback.strategies import LearningRates
from paddle_freeze_callback.words import in_lines


def sgd(network):
    return paddle.optimizer.SGD(0.01, parameters=network.parameters())


def step(network, optimizer):
    network(paddle.rand([2, 1, 6, 6])).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()


def by_hand(schedule, steps, *, total=None, evaluations=(), **attach):
    """A run of so many steps; the lines that it said."""
    network, lines = conv_net(), []
    optimizer = sgd(network)
    with schedule.attach(
        network, optimizer, total_steps=total or steps, say=lines.append, **attach
    ) as freezing:
        for done in range(1, steps + 1):
            step(network, optimizer)
            freezing.step()
            if done in evaluations:
                freezing.evaluated({"acc": 1 / done, "eval_loss": 1.0})
    return lines


@pytest.fixture
def caught():
    """All warnings, in place."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


# ---------------------------------------------------------------- words of our own insides

ALL = (
    Gradual(every="2 steps"),
    HeadOnly(),
    HeadThenAll("3 steps"),
    Explicit({0: "fc", "2 steps": {"freeze": "block1"}}),
    ChainThaw(),
    FreezeDown(),
    RandomStages(k=1, every="2 steps"),
    RandomStages(k=1, every="20 steps", always=["fc"]),
    Cyclic(every="2 steps"),
    OnPlateau("acc", patience=1),
    OnPlateau("acc", patience=9),
    OnPlateau("loss"),
    ByGradient(every="2 steps"),
    ByGradient(every="20 steps"),
    lambda progress: progress.stages[:1],
    lambda progress: progress.stages[: progress.step],
)


@pytest.mark.parametrize("total", [2, 9])
@pytest.mark.parametrize("strategy", ALL, ids=lambda one: getattr(one, "__name__", str(one)))
def test_no_name_of_our_insides_reaches_a_user(strategy, total, caught):
    schedule = FreezeSchedule(strategy=strategy, warmup="1 step", verify=True)
    shown = [repr(schedule)]
    try:
        shown += by_hand(schedule, total, evaluations=(1, 2))
        shown += [*(str(one.message) for one in caught), repr(schedule.run.as_explicit())]
        shown.append(str(schedule.preview(conv_net(), total_steps=total)))
    except (ValueError, TypeError) as error:
        shown.append(str(error))
    assert len(shown) > 1
    assert [line for line in shown if re.search(r"(?<!\w)_[A-Z]\w*", line)] == []


@pytest.mark.parametrize("strategy", ALL[:-2], ids=str)
def test_a_strategy_fitted_to_a_network_is_still_of_a_public_class(strategy):
    fitted = plan(Survey(conv_net()), "auto", strategy, LearningRates()).strategy
    assert type(fitted) is type(strategy)
    assert type(fitted).__name__ in paddle_freeze_callback.__all__


# ---------------------------------------------------------------- where a warning points


def hand(schedule, folder):
    by_hand(schedule, 6, evaluations=(6,))


def hapi(schedule, folder):
    model = model_for(conv_net())
    model.fit(Images(), Images(4), batch_size=4, epochs=1, verbose=0, callbacks=[schedule])


def trainer(schedule, folder):
    flags = {"max_steps": 6, "evaluation_strategy": "steps", "eval_steps": 6}
    loop = trainer_for(tiny_bert(), folder, [schedule], **flags)
    loop.eval_dataset = Tokens(4)
    loop.train()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": "7 steps"}, "never open"),
        ({"strategy": RandomStages(k=1)}, "never acts"),
        ({"strategy": OnPlateau("loss")}, "saw its metric once"),
    ],
)
@pytest.mark.parametrize("loop", [hand, hapi, trainer])
def test_a_warning_points_at_the_line_that_trains(options, text, loop, tmp_path, caught):
    if loop is not hapi and "once" in text:
        options = {"strategy": OnPlateau("eval_loss")}
    loop(FreezeSchedule(**options), tmp_path)
    said = [one.filename for one in caught if text in str(one.message)]
    assert said == [__file__]


# ---------------------------------------------------------------- the end of a run


@pytest.mark.parametrize(
    ("seen", "patience", "text"),
    [
        ((), 2, "never saw its metric in this run, and needs 3 evaluations to open a stage"),
        ((3,), 2, "saw its metric once in this run, and needs 3 evaluations"),
        ((2, 4), 2, "saw its metric 2 times in this run, and needs 3"),
        ((2, 4, 5), 2, ""),
        ((2, 4), 1, ""),
    ],
)
def test_a_plateau_schedule_that_could_not_decide_says_so_at_the_end(seen, patience, text, caught):
    by_hand(FreezeSchedule(strategy=OnPlateau("acc", patience=patience)), 6, evaluations=seen)
    said = [str(one.message) for one in caught if "metric" in str(one.message)]
    assert [text in line for line in said] == ([True] if text else [])
    assert all(line.endswith("so none opened") for line in said)


@pytest.mark.parametrize(
    ("options", "total", "line"),
    [
        ({"every": "2 steps"}, 9,
         "step 3: the run ends, and block2, block1 never opened: block2 opens at step 4"),
        ({"strategy": OnPlateau("acc", patience=1)}, 3,
         "step 3: the run ends, and block3, block2, block1 never opened: at the end 'acc' had not "
         "improved in 0 evaluations in a row, patience is 1"),
        ({"strategy": RandomStages(k=1, always=["head"])}, 3,
         "step 3: the run ends, and block3, block2 never opened"),
        ({"strategy": lambda progress: progress.stages[:2]}, 3,
         "step 3: the run ends, and block2, block1 never opened"),
        ({"strategy": HeadOnly()}, 3, None),
        ({"every": "1 step"}, 4, None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_the_end_of_a_run_says_what_never_opened_and_why(options, total, line):
    lines = by_hand(FreezeSchedule(**options), 3, total=total)
    said = [one for one in lines if "never opened" in one]
    assert said == ([line] if line else [])


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_remembers_what_opened_before():
    schedule = FreezeSchedule(strategy=Cyclic(every="1 step"))
    lines = by_hand(schedule, 1, total=9, step=4)
    assert [line for line in lines if "never opened" in line] == []
    lines = by_hand(schedule, 1, total=9, step=1)
    assert "step 2: the run ends, and block1 never opened" in lines


class Stops(paddle.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


class StopsTrainer(TrainerCallback):
    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_training_that_stops_early_says_what_was_still_to_come(tmp_path, monkeypatch, capsys):
    schedule = FreezeSchedule(strategy=HeadThenAll("12 steps"))
    model_for(conv_net()).fit(
        Images(), batch_size=4, epochs=4, verbose=1, callbacks=[schedule, Stops()]
    )
    end = "step 6: the run ends, and {} never opened: {} opens at step 12"
    assert end.format("block3, block2, block1", "block3") in capsys.readouterr().out
    lines: list[str] = []
    monkeypatch.setattr(logger, "info", lines.append)
    trainer_for(tiny_bert(), tmp_path, [schedule, StopsTrainer()]).train()
    layers = ", ".join(f"encoder.layers.{i}" for i in (2, 1, 0))
    assert in_lines(end.format(f"{layers}, embeddings", "encoder.layers.2"))[0] in lines


# ---------------------------------------------------------------- near misses


def test_a_metric_of_another_name_in_the_only_evaluation_is_said_at_the_end(caught):
    model = model_for(conv_net(), metrics=paddle.metric.Accuracy(topk=(1, 2)))
    schedule = FreezeSchedule(strategy=OnPlateau("acc"))
    options = {"batch_size": 4, "epochs": 1, "verbose": 0, "callbacks": [schedule]}
    model.fit(Images(), Images(4), **options)
    (said,) = [str(one.message) for one in caught if "metric" in str(one.message)]
    assert "never saw its metric" in said
    assert said.endswith("did you mean 'acc_top2' or 'acc_top1'?")


@pytest.mark.parametrize(
    ("metric", "seen", "end"),
    [
        ("acc", ["acc_top1", "acc_top2", "loss"], "did you mean 'acc_top2' or 'acc_top1'?"),
        ("eval_los", ["eval_loss", "eval_runtime"], "did you mean 'eval_loss'?"),
        ("acc", ["loss"], "of this evaluation: loss"),
    ],
)
def test_all_metrics_that_are_near_are_named(metric, seen, end):
    text = OnPlateau(metric, mode="max").unknown_metric(dict.fromkeys(seen, 1.0))
    assert text.endswith(end)


# ---------------------------------------------------------------- resumed with the same schedule


@pytest.mark.parametrize("saved", [1, 2, 3, 4])
def test_saved_at_any_step_and_resumed_says_nothing_of_another_schedule(saved, tmp_path):
    schedule = FreezeSchedule(every="2 steps", verify=True)
    network = conv_net()
    optimizer = sgd(network)
    with schedule.attach(network, optimizer, total_steps=8) as freezing:
        for _ in range(saved):
            step(network, optimizer)
            freezing.step()
        freezing.save(tmp_path / "state")
    for others in ({}, {"every": "3 steps"}):
        again = FreezeSchedule(**{"every": "2 steps", **others}, resume_from=tmp_path / "state")
        network, lines = conv_net(), []
        with pytest.warns(match="never open") if others else warnings.catch_warnings():
            again.attach(network, sgd(network), total_steps=8, say=lines.append).restore()
        said = [line for line in lines if "another schedule" in line]
        assert bool(said) is bool(others and saved in (2, 4))
        assert all("was open and is not now" in line for line in said)


# ---------------------------------------------------------------- layers that come later


def test_layers_added_during_training_are_said_at_the_next_log(tmp_path, monkeypatch, capsys):
    added = "new in the network: late.weight, late.bias; no stage holds them, so nothing freezes"
    network, lines = conv_net(), []
    optimizer = sgd(network)
    with FreezeSchedule(strategy=HeadOnly()).attach(
        network, optimizer, total_steps=9, say=lines.append
    ) as freezing:
        freezing.evaluated({"loss": 1.0})
        network.late = nn.Linear(2, 2)
        step(network, optimizer)
        freezing.step()
        assert not [line for line in lines if "new in" in line]  # a step costs nothing
        for _ in range(2):
            freezing.evaluated({"loss": 1.0})
            freezing.save(tmp_path / "state")
    assert [line[: len(added)] for line in lines if "new in" in line] == [added]

    class Adds(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step == 2 and not hasattr(self.model.network, "late"):
                self.model.network.late = nn.Linear(2, 2)

    callbacks = [FreezeSchedule(strategy=HeadOnly()), Adds()]
    model_for(conv_net()).fit(Images(), batch_size=4, epochs=2, verbose=1, callbacks=callbacks)
    assert capsys.readouterr().out.count(added) == 1

    class AddsTrainer(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.late = nn.Linear(2, 2)

    lines = []
    monkeypatch.setattr(logger, "info", lines.append)
    trainer_for(
        tiny_bert(), tmp_path, [FreezeSchedule(strategy=HeadOnly()), AddsTrainer()], logging_steps=3
    ).train()
    assert len([line for line in lines if added in str(line)]) == 1


def test_statistics_whose_flags_somebody_set_are_no_new_weights():
    network, lines = conv_net(), []
    with FreezeSchedule(strategy=HeadOnly()).attach(
        network, sgd(network), total_steps=9, say=lines.append
    ) as freezing:
        for tensor in network.parameters():
            tensor.stop_gradient = False
        with pytest.warns(UserWarning, match="somebody else set stop_gradient"):
            freezing.evaluated({"loss": np.float32(1)})
    assert not [line for line in lines if "new in" in line]


# ---------------------------------------------------------------- lines


class Deep(nn.Layer):
    """Twelve stages with names as long as those of language models."""

    def __init__(self) -> None:
        super().__init__()
        paddle.seed(5)
        self.decoder = nn.Layer()
        self.decoder.embed_tokens = nn.Linear(4, 64)
        self.decoder.layers = nn.LayerList([nn.Linear(64, 64) for _ in range(10)])
        self.sequence_classifier = nn.Linear(64, 2)

    def forward(self, x):
        x = self.decoder.embed_tokens(x)
        for layer in self.decoder.layers:
            x = x + layer(x)
        return self.sequence_classifier(x)


DEEP = [f"decoder.layers.{i}" for i in reversed(range(10))]
DEEP = ["sequence_classifier", *DEEP, "decoder.embed_tokens"]
RATED = {"lr_decay": 1.5, "warmup": "3 steps", "verify": True}


def said_of_deep(schedule, network=None, steps=26, **attach):
    """What a run of the deep network says, as lines of a log; layers come during it."""
    network, lines = network or Deep(), []
    optimizer = sgd(network)
    with schedule.attach(
        network, optimizer, total_steps=26, say=lines.append, **attach
    ) as freezing:
        for done in range(1, steps + 1):
            network(paddle.rand([4, 4])).square().mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
            network.late = nn.Linear(4, 4)
            freezing.evaluated({"acc": 1 / done, "loss": 1.0})
    return [line for text in lines for line in in_lines(text)]


@pytest.mark.parametrize("strategy", ALL[:-1], ids=lambda one: getattr(one, "__name__", str(one)))
@pytest.mark.filterwarnings("ignore")
def test_at_twelve_stages_no_line_has_more_than_120_characters(strategy):
    if isinstance(strategy, Explicit):
        strategy = Explicit({0: DEEP[0], "2 steps": {"unfreeze": DEEP[1:9], "freeze": DEEP[0]}})
    if isinstance(strategy, RandomStages) and strategy.always:
        strategy = RandomStages(k=1, every="20 steps", always=[DEEP[0]])
    stages = "auto" if isinstance(strategy, Explicit) else [*DEEP[:-1], "*"]
    lines = said_of_deep(FreezeSchedule(stages=stages, strategy=strategy, **RATED))
    assert len(lines) > 1
    assert [line for line in lines if len(line) > 120] == []
    assert not [line for line in lines if "*" in line and "[" not in line]


@pytest.mark.filterwarnings("ignore")
def test_nor_has_any_other_line_that_a_run_may_say(tmp_path):
    class Leaves(Deep):
        def forward(self, x):
            self.sequence_classifier.weight.stop_gradient = True
            self.decoder.layers[9].weight.stop_gradient = True
            x = self.decoder.layers[8](self.decoder.layers[9](self.decoder.embed_tokens(x)))
            return self.sequence_classifier(x)

    network = Deep()
    for layer in network.decoder.layers[2:8]:
        for tensor in layer.parameters():
            tensor.stop_gradient = True
    schedule = FreezeSchedule(every="1 step")
    lines = said_of_deep(schedule, network, steps=5)
    run = FreezeSchedule(every="1 step", on_conflict="enforce", cache="memory")
    lines += said_of_deep(run, Leaves())
    saving = FreezeSchedule(strategy=HeadOnly())
    network = Deep()
    with saving.attach(network, sgd(network), total_steps=26, step=9) as freezing:
        freezing.save(tmp_path / "state")
    again = FreezeSchedule(every="1 step", resume_from=tmp_path / "state")
    network = Deep()
    whole: list[str] = []
    again.attach(network, sgd(network), total_steps=26, say=whole.append).restore()
    lines += [line for text in whole for line in in_lines(text)]
    text = " ".join(line.strip() for line in lines)
    for words in ("new in the network", "order: ", "reaches", "although the schedule has",
                  "another schedule"):  # fmt: skip
        assert words in text
    assert max(map(len, lines)) <= 120


def test_one_transition_fits_whatever_its_names_and_numbers_are():
    rates = {name: 1.23456e-5 / 1.5**i for i, name in enumerate(DEEP)}
    long = [f"backbone.{'very_' * 8}long_block.{i}" for i in range(99)]
    for opened, frozen in itertools.product([DEEP[:1], DEEP[:3], DEEP, long[:1], long], repeat=2):
        for total in (100, 109_483_778, 67_384_156_160):
            for more in ({}, rates):
                change = Transition(12345, 12, tuple(opened), tuple(frozen), 7, total, more)
                assert len(str(change)) <= 104, str(change)
    assert str(Transition(9, 1, ("*",), (), 7, 9)).startswith("step 9, epoch 1: opens the rest; 7")
