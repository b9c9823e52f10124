"""A schedule that lists its changes: what wins in one moment, and which entries change nothing."""

from __future__ import annotations

import warnings

import paddle
import pytest
from networks import Vectors, model_for, moved, values
from paddle import nn
from trainers import Trainer, trainer_for

from paddle_freeze_callback import Explicit, FreezeSchedule
from paddle_freeze_callback.strategies.run import Run

STAGES = ("fc", "layer2", "layer1")
RUN = Run.of(epochs=3, steps_per_epoch=2)


@pytest.mark.parametrize(
    ("changes", "opens"),
    [
        ({"unfreeze": "*", "freeze": "layer1"}, "fc layer2"),
        ({"freeze": "layer1", "unfreeze": "*"}, "fc layer2"),
        ({"freeze": "*", "unfreeze": "fc"}, "fc"),
        ({"unfreeze": "fc", "freeze": "*"}, "fc"),
        ({"unfreeze": ["fc", "layer1"], "freeze": "layer1"}, "fc"),
        ({"unfreeze": "layer2", "freeze": "layer1"}, "layer2"),
    ],
)
@pytest.mark.parametrize("before", [{}, {0: "*"}, {0: "layer1"}])
def test_in_one_moment_the_narrower_wins_in_whatever_order(changes, opens, before):
    rule = Explicit({**before, "1 step" if before else 0: changes})
    rule.check(RUN, STAGES)
    now = rule.openings(RUN, STAGES)[-1][1]
    named = {*opens.split()}
    if changes.get("freeze") == "*" or not before:
        assert now == named
    assert named <= now
    assert ("layer1" in now) is ("layer1" in named)


def test_of_two_moments_at_one_step_the_later_wins():
    opens = Explicit({0: "*", "0 steps": {"freeze": "layer1"}}).openings(RUN, STAGES)
    assert opens == [(0, {"fc", "layer2"})]


@pytest.mark.parametrize(
    ("moments", "found"),
    [
        ({0: "fc", 1: {"freeze": "layer1"}}, ["[1]['freeze'] layer1 never opened"]),
        ({0: "*", 1: "fc"}, ["[1]['unfreeze'] fc is open already"]),
        ({0: "*", 1: ["fc", "layer1"]}, ["[1]['unfreeze'] fc, layer1 are open already"]),
        ({0: "*", 1: {"freeze": "layer1"}, "75%": {"freeze": "layer1"}},
         ["['75%']['freeze'] layer1 is frozen already"]),
        ({0: ["fc", "layer1"], 1: {"unfreeze": "fc", "freeze": "layer2"}},
         ["[1]['freeze'] layer2 never opened", "[1]['unfreeze'] fc is open already"]),
        ({0: "fc", 1: {"freeze": "*", "unfreeze": "fc"}}, ["[1] everything is so already"]),
        ({0: "*", 9: {"freeze": "fc"}},
         ["[9]['freeze'] fc is to freeze at step 18, after the end of the run"]),
        ({0: "fc", 1: "adapter"}, ["[1]['unfreeze'] adapter is found frozen"]),
        ({0: "fc", 1: ["fc", "adapter"]},
         ["[1]['unfreeze'] adapter, fc are open already, or were found frozen (adapter)"]),
        ({0: {"unfreeze": "*", "freeze": "layer1"}, 1: "layer1"}, []),
        ({0: {"freeze": "*", "unfreeze": "fc"}, 1: "*"}, []),
        ({0: "fc", 1: {"freeze": "fc", "unfreeze": "layer1"}, 2: "*"}, []),
        ({0: "fc", 1: ["fc", "layer2"]}, []),
    ],
)  # fmt: skip
def test_entries_that_change_nothing_are_found(moments, found):
    said = sorted(Explicit(moments).no_effect(RUN, STAGES))
    assert [line.replace(" has no effect:", "") for line in said] == [
        f"unfreeze_at{each}" for each in found
    ]


@pytest.mark.parametrize(
    ("moments", "undone"),
    [
        ({0: "fc", 2: "layer1", "4 steps": {"freeze": "layer1"}}, "layer1"),
        ({0: "fc", 2: ["layer1", "layer2"], "4 steps": {"freeze": "layer1"}}, "layer1"),
        ({0: "*", 2: {"freeze": "*"}, "50%": ["fc", "layer2"]}, "fc, layer2"),
        ({0: "fc", 2: "layer1", "5 steps": {"freeze": "layer1"}}, ""),
        ({0: "fc", 2: "layer1", "4 steps": "layer2"}, ""),
        ({0: "fc", 1: {"unfreeze": "*", "freeze": "layer1"}}, ""),
    ],
)
def test_entries_that_take_each_other_back_at_one_step_are_found(moments, undone):
    run = Run.of(epochs=4, steps_per_epoch=2)
    said = Explicit(moments).no_effect(run, STAGES)
    if undone:
        (line,) = said
        keys = [f"unfreeze_at[{when!r}]" for when in moments if when != 0]
        assert line == (
            f"{', '.join(keys)} all come at step 4 of this run and take each other back: {undone} "
            "would open and freeze at once; move one of them"
        )
    else:
        assert not said


# ---------------------------------------------------------------- in each loop


class Net(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)))


class Rows(paddle.io.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        x, label = Vectors()[index]
        return {"x": x, "labels": label}


class Plain(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        return nn.functional.cross_entropy(model(inputs["x"]), inputs["labels"])


def by_hand(network, schedule, folder):
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    with schedule.attach(network, optimizer, epochs=3, steps_per_epoch=2) as freezing:
        for _ in range(6):
            network(paddle.rand([4, 4])).square().mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()


def by_fit(network, schedule, folder):
    model_for(network).fit(Vectors(8), batch_size=4, epochs=3, verbose=0, callbacks=[schedule])


def by_trainer(network, schedule, folder):
    trainer_for(network, folder, [schedule], data=Rows(), kind=Plain).train()


@pytest.mark.parametrize("train", [by_hand, by_fit, by_trainer])
def test_all_but_one_trains_all_but_one_and_says_what_has_no_effect(train, tmp_path):
    network = Net()
    before = values(network)
    plan = {0: {"unfreeze": "*", "freeze": "layer1"}, 1: {"freeze": "layer1"}, 2: "fc"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(network, FreezeSchedule(unfreeze_at=plan, verify=True), tmp_path)
    assert moved(before, values(network)) == {
        f"{layer}.{own}" for layer in ("layer2", "fc") for own in ("weight", "bias")
    }
    said = [one for one in caught if "no effect" in str(one.message)]
    assert [str(one.message) for one in said] == [
        "unfreeze_at[1]['freeze'] has no effect: layer1 never opened",
        "unfreeze_at[2]['unfreeze'] has no effect: fc is open already",
    ]
    assert {one.filename for one in said} == {__file__}


def test_a_preview_notes_entries_without_effect():
    schedule = FreezeSchedule(unfreeze_at={0: "*", 1: "fc"})
    notes = schedule.preview(Net(), epochs=3, steps_per_epoch=2).notes
    assert "unfreeze_at[1]['unfreeze'] has no effect: fc is open already" in notes
